package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

const (
	// awaitPeer is how long a dial waits for a client that is reconnecting.
	awaitPeer = 5 * time.Second
	// awaitStep is how often it looks.
	awaitStep = 50 * time.Millisecond
)

// dialer dials into the device.
type dialer struct {
	// networks are where it may dial.
	networks []netip.Prefix
	// bind makes a socket use the device, whatever the routes are.
	bind func(fd uintptr) error
	// behind reports whether a client is there that has an address behind it.
	behind func(netip.Addr) bool
}

// DialContext has the shape of a Handler's Dial. What is checked is the address that
// is dialled, of a name each that it resolves to.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dial := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		ControlContext: func(ctx context.Context, _, address string, c syscall.RawConn) error {
			return d.control(ctx, address, c)
		},
	}
	return dial.DialContext(ctx, network, address)
}

func (d *dialer) control(ctx context.Context, address string, c syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := to.Addr().Unmap()
	if !contains(d.networks, ip) {
		return &connect.Error{Reason: connect.ErrProhibited, Err: fmt.Errorf("%s is in no network of the shoot", ip)}
	}
	if err := d.await(ctx, ip); err != nil {
		return err
	}
	if e := c.Control(func(fd uintptr) { err = d.bind(fd) }); e != nil {
		return e
	}
	return err
}

// await waits until a client is there that has ip behind it: a packet to nobody
// would be answered by silence.
func (d *dialer) await(ctx context.Context, ip netip.Addr) error {
	if d.behind(ip) {
		return nil
	}
	end := time.NewTimer(awaitPeer)
	defer end.Stop()
	step := time.NewTicker(awaitStep)
	defer step.Stop()
	for {
		select {
		case <-step.C:
			if d.behind(ip) {
				return nil
			}
		case <-end.C:
			return &connect.Error{Reason: connect.ErrUnavailable, RetryAfter: awaitPeer, Err: fmt.Errorf("no vpn-client with %s behind it is connected", ip)}
		case <-ctx.Done():
			return errors.Join(ctx.Err(), context.Cause(ctx))
		}
	}
}
