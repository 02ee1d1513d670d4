package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Forward carries connections to one of several backends. It dials before it
// accepts, so that a client over CONNECT gets its 200 only when a backend has
// accepted.
//
// Backends take turns. One that cannot be dialled is passed over for a second,
// then for longer up to half a minute, unless all are such; and one that has not
// answered within a second gets company: the next is dialled beside it, and the
// first that answers is taken. So a dead backend costs a client a second at most,
// and most clients nothing.
//
// Fields are set before the first connection and not changed afterwards.
type Forward struct {
	// Backends holds host:port, or unix:PATH, where a PATH that begins with @ is
	// an abstract socket. At least one is needed. A name with several addresses
	// is one backend: within the time of one dial they are tried one by one.
	Backends []string
	// Dial dials a backend, with the network "tcp" or "unix"; nil means a
	// net.Dialer. It must return soon after its context ends.
	Dial connect.DialFunc
	// DialTimeout bounds each dial. 0 means 5 s, negative no bound. A client that
	// resets its connection meanwhile ends the dial; one that only closes it cannot be
	// told from one that has asked and finished.
	DialTimeout time.Duration
	// SendProxy is the version of the PROXY header that the backend gets first:
	// 1, 2, or 0 for none. It names the true client (Info.Client) and what it
	// connected to (Info.Local); version 2 also has the server name as authority,
	// and the unique id that a load balancer in front gave. A backend that believes
	// such headers must get one: without, clients could send it theirs.
	SendProxy int
	// IdleTimeout resets a connection on which nothing went either way for so
	// long. 0 and negative mean never.
	IdleTimeout time.Duration
	// MaxDuration resets a connection of that age, or of up to a tenth less so
	// that not all come back at once: for backends which check credentials when a
	// connection begins and never again. 0 and negative mean never.
	MaxDuration time.Duration

	health health
}

// stagger is how long a backend may be alone in being dialled.
const stagger = time.Second

// check tells what is wrong with f by itself.
func (f *Forward) check() error {
	if f == nil {
		return errors.New("its handler is a nil *Forward")
	}
	err := checkBackends(f.Backends)
	if f.SendProxy < 0 || f.SendProxy > 2 {
		err = errors.Join(err, fmt.Errorf("SendProxy %d: want 0, 1 or 2", f.SendProxy))
	}
	return err
}

// ServeConn implements [Handler].
func (f *Forward) ServeConn(ctx context.Context, in *Incoming) error {
	backend, err := f.dialFor(ctx, in)
	if err != nil {
		return err
	}
	client, err := in.Accept()
	if err != nil {
		_ = relay.Reset(client)
		_ = relay.Reset(backend)
		return fmt.Errorf("entrypoint: the client was gone when a backend had answered: %w", err)
	}
	if f.MaxDuration > 0 {
		age := f.MaxDuration - rand.N(f.MaxDuration/10+1)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, age, errMaxDuration)
		defer cancel()
	}
	return relay.Relay(ctx, client, backend, &relay.Options{IdleTimeout: f.IdleTimeout, Counter: in.Counter()})
}

// dialFor dials while it looks whether the client is still there: else who connects
// and goes away at once would cost a seat for as long as a dial may take.
func (f *Forward) dialFor(ctx context.Context, in *Incoming) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := guard.Watch(in.conn, nil, func() { cancel(errClientGone) })
	backend, err := f.dial(ctx, in.Info)
	early, unwatched := w.Stop()
	if len(early) > 0 {
		in.conn = relay.NewPrefixed(in.conn, early)
	}
	gone := context.Cause(ctx) == errClientGone
	switch {
	case err == nil && (gone || unwatched != nil):
		_ = relay.Reset(backend)
		return nil, errClientGone
	case gone:
		return nil, errClientGone
	case err != nil:
		return nil, noBackend{err}
	}
	return backend, nil
}

var errClientGone = errors.New("entrypoint: the client went away during the dial")

var errMaxDuration = errors.New("entrypoint: the connection is as old as its route allows")

// dialled is how the dial of one backend ended.
type dialled struct {
	place int // in the order
	conn  net.Conn
	err   error
}

// dial returns a connection to the first backend that answers.
func (f *Forward) dial(ctx context.Context, i *Info) (net.Conn, error) {
	order := f.health.order(f.Backends)
	if len(order) == 0 { // SetRoutes sees a Forward, and not one within another Handler
		return nil, errors.New("entrypoint: the route has no backends")
	}
	if len(order) == 1 { // as most routes have it: nothing to watch beside the dial
		c, err := f.dialOne(ctx, order[0], i)
		f.note(ctx, order[0], err)
		return c, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan dialled, len(order))
	running := make(map[int]bool, 1) // by place
	begun := 0
	begin := func() {
		place := begun
		begun++
		running[place] = true
		go func() {
			c, err := f.dialOne(ctx, order[place], i)
			results <- dialled{place, c, err}
		}()
	}
	begin()
	next := time.NewTimer(stagger)
	defer next.Stop()
	var errs []error
	for {
		select {
		case <-next.C:
		case d := <-results:
			delete(running, d.place)
			f.note(ctx, order[d.place], d.err)
			if d.err == nil {
				cancel()
				f.abandon(order, d.place, len(running), results)
				return d.conn, nil
			}
			errs = append(errs, d.err)
			if running[begun-1] {
				continue // the second of the latest is not over
			}
		}
		switch {
		case begun < len(order) && ctx.Err() == nil:
			begin()
			next.Reset(stagger)
		case len(running) == 0:
			return nil, errors.Join(errs...)
		}
	}
}

// note takes the outcome of a dial. What was given up, or failed for a lack of
// descriptors here, says nothing of the backend.
func (f *Forward) note(ctx context.Context, backend string, err error) {
	switch {
	case err == nil:
		f.health.good(backend)
	case ctx.Err() == nil && !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE):
		f.health.bad(backend)
	}
}

// abandon waits for the dials that the one at place has beaten, which were
// cancelled. Those before it had a second's lead, so that they count as backends
// that do not answer; of those behind it nothing is known.
func (f *Forward) abandon(order []string, place, running int, results <-chan dialled) {
	for range running {
		switch d := <-results; {
		case d.err == nil:
			_ = relay.Reset(d.conn)
		case d.place < place:
			f.health.bad(order[d.place])
		}
	}
}

// dialOne dials a backend and writes the PROXY header.
func (f *Forward) dialOne(ctx context.Context, backend string, i *Info) (net.Conn, error) {
	d := f.DialTimeout
	if d == 0 {
		d = 5 * time.Second
	}
	if d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	network, address := "tcp", backend
	if path, ok := strings.CutPrefix(backend, "unix:"); ok {
		network, address = "unix", path
	}
	dial := f.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: -1}).DialContext // not package net's, which costs as many system calls
	}
	if f.SendProxy != 0 {
		header := func(context.Context, net.Conn) (*proxyproto.Header, error) { return f.header(i), nil }
		dial = (&proxyproto.Dialer{Dial: dial, Header: header, Timeout: -1}).DialContext // ctx has the bound
	}
	c, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	relay.KeepAlive(c)
	return c, nil
}

// header is the PROXY header for a backend.
func (f *Forward) header(i *Info) *proxyproto.Header {
	local := addrPort(i.Local)
	if !i.Client.IsValid() || !local.IsValid() {
		return &proxyproto.Header{Version: f.SendProxy, Local: true}
	}
	h := &proxyproto.Header{Version: f.SendProxy, Source: net.TCPAddrFromAddrPort(i.Client), Destination: net.TCPAddrFromAddrPort(local)}
	if f.SendProxy == 1 {
		return h
	}
	if n := len(i.ServerName); 0 < n && n <= maxServerName { // a default route may get any
		h.TLVs = append(h.TLVs, proxyproto.TLV{Type: proxyproto.TypeAuthority, Value: []byte(i.ServerName)})
	}
	if i.Proxy != nil {
		if id, ok := i.Proxy.TLV(proxyproto.TypeUniqueID); ok {
			h.TLVs = append(h.TLVs, proxyproto.TLV{Type: proxyproto.TypeUniqueID, Value: id})
		}
	}
	return h
}
