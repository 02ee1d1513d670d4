package intercept

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// reach dials the entrypoint for c and tells it the destination. Early is what c
// has sent meanwhile. If c goes away, the dial ends.
func (i *Interceptor) reach(ctx context.Context, c net.Conn) (conn net.Conn, early []byte, err error) {
	dial, err := i.dialerFor(c)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := guard.Watch(c, nil, func() { cancel(errClientGone) })
	conn, err = dial(ctx)
	early, unwatched := w.Stop()
	if context.Cause(ctx) == errClientGone || err == nil && unwatched != nil {
		if conn != nil {
			_ = relay.Reset(conn)
		}
		return nil, nil, errClientGone
	}
	return conn, early, err
}

// dialerFor makes the dial function of one client.
func (i *Interceptor) dialerFor(c net.Conn) (func(context.Context) (net.Conn, error), error) {
	destination := i.Destination
	if !destination.IsValid() {
		if destination = tcpAddr(c.LocalAddr()); !destination.IsValid() {
			return nil, &connect.Error{Reason: connect.ErrConfig, Detail: "no destination for a connection to " + text(c.LocalAddr())}
		}
	}
	destination = netip.AddrPortFrom(destination.Addr().Unmap().WithZone(""), destination.Port())
	timeout := i.DialTimeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	forward := func(ctx context.Context, network, address string) (net.Conn, error) {
		return i.dial(ctx, network, address, text(c.LocalAddr()))
	}
	if i.Dialect == Connect {
		authority := i.Authority
		if authority == "" {
			authority = destination.String()
		}
		d := &connect.Dialer{Address: i.Entrypoint, Header: i.Header, Forward: forward, Timeout: timeout}
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", authority) }, nil
	}
	header := func(context.Context, net.Conn) (*proxyproto.Header, error) {
		source := tcpAddr(c.RemoteAddr())
		if !source.IsValid() {
			source = nobody(destination)
		}
		return &proxyproto.Header{Source: net.TCPAddrFromAddrPort(source), Destination: net.TCPAddrFromAddrPort(destination)}, nil
	}
	d := &proxyproto.Dialer{Dial: forward, Header: header, Timeout: timeout}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", i.Entrypoint) }, nil
}

// tcpAddr returns the address of a TCP connection's end, else none.
func tcpAddr(a net.Addr) netip.AddrPort {
	tcp, _ := a.(*net.TCPAddr)
	return tcp.AddrPort()
}

// nobody is the source of a client that has no address.
func nobody(destination netip.AddrPort) netip.AddrPort {
	if destination.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
}

// dial reaches the entrypoint for a client that has connected to here.
func (i *Interceptor) dial(ctx context.Context, network, address, here string) (net.Conn, error) {
	dial := i.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	loop := &connect.Error{Reason: connect.ErrConfig, Detail: "the entrypoint is this program itself: " + address + " is " + here}
	if i.inLoop(false) {
		return nil, loop
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if here != "" && text(conn.RemoteAddr()) == here {
		i.inLoop(true)
		_ = relay.Reset(conn)
		return nil, loop
	}
	relay.KeepAlive(conn)
	return conn, nil
}

// inLoop reports whether the entrypoint was found within the last second to be
// this program itself. One connection would go round for ever then, by name
// servers or routes that lead to the address which is intercepted.
func (i *Interceptor) inLoop(now bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now {
		i.looped = time.Now()
	}
	return !i.looped.IsZero() && time.Since(i.looped) < time.Second
}

// reasonOf is what a failure of reach counts as.
func reasonOf(ctx context.Context, err error) string {
	switch {
	case err == errClientGone:
		return ReasonClientGone
	case ctx.Err() != nil:
		return ReasonClosed
	}
	return string(connect.Classify(err).Reason)
}
