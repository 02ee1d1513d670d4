package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// targetDial is the dial of one stream's target.
type targetDial struct {
	agent   *Agent
	session *agentSession
	stream  stream
	log     *slog.Logger
	network string // tcp4, tcp6, or empty for both
	leave   func() // ends the watch over Allow
}

// dial resolves a target, checks each address, and dials those that are
// allowed, as [Agent].Allow documents. What was checked is what is dialled.
func (d *targetDial) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := connect.ParseTarget(address)
	if err != nil {
		return nil, err
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	allow := d.agent.Allow
	if allow == nil {
		allow = Rules(nil).Allow
	}
	var allowed []checked
	var refused error
	for _, addr := range addrs {
		t := Target{Host: host, Port: uint16(port), Addr: unmap(addr)}
		if err := allow(t); err != nil {
			refused = err
			continue
		}
		allowed = append(allowed, checked{t, addr.Unmap().WithZone("")})
	}
	if len(allowed) == 0 {
		return nil, &connect.Error{Reason: connect.ErrProhibited, Target: address, Err: refused}
	}
	c, t, err := d.race(ctx, allowed)
	if err != nil {
		return nil, err
	}
	relay.KeepAlive(c)
	d.leave = d.session.targets.Enter(&admit.Admission{
		Check: func() error { return allow(t) },
		Log:   d.log.With("target", address),
		End:   func() { _ = d.stream.ResetWith("the target is no longer allowed") },
	})
	return c, nil
}

// checked is a target that is allowed and how it is dialled: a NAT64 address
// is judged by the IPv4 address in it, and dialled as it is, because a network
// that has NAT64 may have no IPv4.
type checked struct {
	Target
	addr netip.Addr
}

// resolve returns the addresses of a host that fit the network.
func (d *targetDial) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	network := "ip"
	switch d.network {
	case "tcp4":
		network = "ip4"
	case "tcp6":
		network = "ip6"
	case "":
	default:
		return nil, &connect.Error{Reason: connect.ErrRequest, Err: net.UnknownNetworkError(d.network)}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		// What matters is how it will be dialled.
		if network == "ip4" && !unmap(a).Is4() || network == "ip6" && unmap(a).Is4() {
			return nil, &connect.Error{Reason: connect.ErrUnroutable, Detail: "the address is not of " + d.network}
		}
		return []netip.Addr{a}, nil
	}
	var addrs []netip.Addr
	var err error
	if d.agent.ResolveTarget != nil {
		addrs, err = d.agent.ResolveTarget(ctx, host)
	} else {
		addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	if err != nil {
		return nil, err
	}
	fits := addrs[:0:0]
	for _, a := range addrs {
		if network == "ip" || (network == "ip4") == a.Unmap().Is4() {
			fits = append(fits, a)
		}
	}
	if len(fits) == 0 {
		return nil, &net.DNSError{Err: "no suitable address", Name: host, IsNotFound: true}
	}
	return fits, nil
}

// stagger is how long an address has before the next one is tried beside it
// (RFC 8305 §5).
const stagger = 250 * time.Millisecond

// race dials the targets one after the other, the next one when the last has
// failed or after the stagger, and takes the first that accepts.
func (d *targetDial) race(ctx context.Context, targets []checked) (net.Conn, Target, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   net.Conn
		t   Target
		err error
	}
	results := make(chan result)
	started, pending := 0, 0
	start := func() {
		t := targets[started]
		started++
		pending++
		go func() {
			c, err := d.dialOne(ctx, t)
			results <- result{c, t.Target, err}
		}()
	}
	var won *result
	var failed []error
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pending > 0 || won == nil && started < len(targets) {
		select {
		case <-timer.C:
			if won == nil && started < len(targets) {
				start()
				timer.Reset(stagger)
			}
		case r := <-results:
			pending--
			switch {
			case r.err != nil:
				failed = append(failed, r.err)
				timer.Reset(0)
			case won != nil:
				r.c.Close()
			default:
				won = &r
				cancel() // the others' errors are not looked at
			}
		}
	}
	if won != nil {
		return won.c, won.t, nil
	}
	if len(failed) == 1 {
		return nil, Target{}, failed[0]
	}
	return nil, Target{}, &connect.Error{
		Reason: connect.Classify(failed[0]).Reason,
		Err:    fmt.Errorf("all %d addresses failed: %w", len(failed), errors.Join(failed...)),
	}
}

func (d *targetDial) dialOne(ctx context.Context, t checked) (net.Conn, error) {
	address := netip.AddrPortFrom(t.addr, t.Port).String()
	if d.agent.DialTarget != nil {
		return d.agent.DialTarget(ctx, "tcp", address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", address)
}
