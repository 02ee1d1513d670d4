package intercept

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// A Dialect is how the entrypoint is told where a connection wants to go.
type Dialect int

const (
	// ProxyV2 sends a PROXY header of version 2: the source is the client, the
	// destination the Interceptor's. Not a byte comes back for it, so that a
	// refusal shows only as the end of the connection. A client without a TCP
	// address, as on a Unix socket, is 0.0.0.0:0 or [::]:0, whichever is of the
	// destination's family: the one header that names nobody has no destination
	// either.
	ProxyV2 Dialect = iota
	// Connect sends an HTTP CONNECT with the Interceptor's Header, in which
	// the entrypoint looks for the one that it routes by, and waits for its
	// answer. The entrypoint does not learn who the client is.
	Connect
)

// An Interceptor forwards connections to an entrypoint and tells it where they
// were going. What it forwards it does not look into: TLS stays between the
// client and the API server. Only Entrypoint must be set.
//
//	Serve ──► open ──Shutdown──► draining ──all ended or ctx──► closed
//	           └────────────────────Close──────────────────────────┘
//
// The fields must not be changed after the first use.
type Interceptor struct {
	// Entrypoint is the host:port to forward to. The host is resolved for each
	// connection.
	Entrypoint string
	// Dialect is how to tell the destination, ProxyV2 or Connect.
	Dialect Dialect
	// Destination is where the connections were going, as the entrypoint knows
	// it. The zero AddrPort means the local address of each connection, which
	// for the advertise address of the API server is the same on all nodes, and
	// which connections that are not of TCP do not have.
	Destination netip.AddrPort
	// Header goes along with each CONNECT: one field that the entrypoint routes
	// by, such as X-Gardener-Destination or Reversed-VPN.
	Header http.Header
	// Authority is the target in the request line of CONNECT, host:port. The
	// entrypoint routes by a header and ignores it; others log it. Empty means
	// the destination.
	Authority string
	// Dial reaches the entrypoint; nil means a [net.Dialer]. Where the result
	// is a TCP connection it gets the keep-alive of [relay.KeepAlive], as the
	// client's does.
	Dial connect.DialFunc
	// DialTimeout bounds the dial, and with Connect the entrypoint's answer
	// too, by default 5 s. Negative means no bound.
	DialTimeout time.Duration
	// MaxConns is how many connections may be open at a time, dials under way
	// included, by default 10000. A client beyond that is reset. Negative
	// means no bound. It is never more than two fifths of the descriptors that
	// the process may have, and no client gets more than nine times as many as
	// are free, so that one pod cannot shut out the others.
	MaxConns int
	// IdleTimeout resets connections on which no byte went either way. Zero
	// and negative mean never: a watch is idle by nature.
	IdleTimeout time.Duration
	// DrainTimeout is how long connections may go on after Shutdown was called,
	// by default 25 s. Each is reset at a moment of its own, at random in the
	// last four fifths of it, so that neither the clients of a node come back
	// all at once nor, in a rollout, those of all nodes. Negative means that
	// none is reset before the context of Shutdown ends.
	DrainTimeout time.Duration
	// Logger gets a line per client that could not be forwarded, at level
	// Warn, and one per connection at its end, at level Debug, as for a client
	// that went away by itself; 20 lines a second at most. Nil means silent.
	Logger *slog.Logger

	mu        sync.Mutex
	ctx       context.Context // of all that is being served; nil before the first use
	cancel    context.CancelCauseFunc
	listeners map[net.Listener]struct{}
	draining  bool
	empty     chan struct{} // closed when draining and nothing is left
	loops     int           // of Serve
	conns     map[*live]struct{}
	seats     guard.Seats
	looped    time.Time // when the entrypoint was found to be here
	counts    counts
	limit     guard.LogLimit
	work      sync.WaitGroup // Serve and conns
}

// live is a connection from its accept to its end.
type live struct {
	end  context.CancelCauseFunc
	give func() // its seat
}

// ErrClosed is returned by Serve after Shutdown or Close. It is a net.ErrClosed.
var ErrClosed error = closedError{}

type closedError struct{}

func (closedError) Error() string        { return "intercept: closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }

// Why a client was reset that never reached the entrypoint, besides the reasons
// of package connect. They are keys of Stats.Failed.
const (
	ReasonFull       = "connections_full" // MaxConns were open.
	ReasonClientGone = "client_gone"      // The client went away before the dial was done.
	ReasonClosed     = "closed"           // Shutdown or Close ended the dial, or came first.
)

var errClientGone = errors.New("the client went away")

// init makes what the zero value lacks. i.mu is held.
func (i *Interceptor) init() {
	if i.ctx != nil {
		return
	}
	i.ctx, i.cancel = context.WithCancelCause(context.Background())
	i.listeners = make(map[net.Listener]struct{})
	i.conns = make(map[*live]struct{})
	i.empty = make(chan struct{})
}

// Serve accepts connections from l and forwards them until Shutdown or Close, or
// until l fails. It owns l and always returns an error, ErrClosed after Shutdown
// and Close.
func (i *Interceptor) Serve(l net.Listener) error {
	defer l.Close()
	ctx, err := i.begin(l)
	if err != nil {
		return err
	}
	defer i.work.Done()
	err = guard.Accept(ctx, l, orSilent(i.Logger), func(c net.Conn) { i.take(ctx, c) })
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.listeners, l)
	i.loops--
	i.checkEmpty()
	if i.draining {
		return ErrClosed
	}
	return err
}

// begin counts a Serve, unless it is too late.
func (i *Interceptor) begin(l net.Listener) (context.Context, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.init()
	if i.draining {
		return nil, ErrClosed
	}
	i.listeners[l] = struct{}{}
	i.loops++
	i.work.Add(1)
	return i.ctx, nil
}

// take gives a connection a goroutine, or resets it if there is no room, or no
// time any more.
func (i *Interceptor) take(ctx context.Context, c net.Conn) {
	ctx, end := context.WithCancelCause(ctx)
	l := &live{end: end}
	if reason := i.enter(l, ipOf(c.RemoteAddr())); reason != "" {
		end(nil)
		_ = relay.Reset(c)
		i.logger(c).Warn("client not forwarded", "reason", reason)
		return
	}
	go i.serveConn(ctx, l, c)
}

// enter counts a connection, or says why it must not be.
func (i *Interceptor) enter(l *live, client netip.Addr) (reason string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counts.accepted++
	if reason = ReasonClosed; !i.draining { // else it was accepted just before
		full := ""
		if l.give, full = i.seats.Take(i.maxConns(), noLimit, client); full == "" {
			i.conns[l] = struct{}{}
			i.work.Add(1)
			return ""
		}
		reason = ReasonFull
	}
	i.counts.failed.add(reason)
	return reason
}

const noLimit = 1 << 30

// maxConns is MaxConns, or less where the process may have too few descriptors.
func (i *Interceptor) maxConns() int {
	limit := i.MaxConns
	switch {
	case limit == 0:
		limit = 10000
	case limit < 0:
		limit = noLimit
	}
	if n := guard.Descriptors(); n > 0 {
		limit = min(limit, n*2/5)
	}
	return limit
}

// ipOf is the IP address of a, not valid if it has none.
func ipOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return t.AddrPort().Addr().Unmap().WithZone("")
}

func (i *Interceptor) serveConn(ctx context.Context, l *live, c net.Conn) {
	defer i.work.Done()
	defer l.end(nil)
	i.forward(ctx, c)
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.conns, l)
	l.give()
	i.checkEmpty()
}

// forward joins a client with the entrypoint until both have ended.
func (i *Interceptor) forward(ctx context.Context, c net.Conn) {
	start := time.Now()
	relay.KeepAlive(c)
	conn, early, err := i.reach(ctx, c)
	if err != nil {
		reason := reasonOf(ctx, err)
		i.count(func(n *counts) { n.failed.add(reason) })
		// Not an orderly end: that would be an answer, if an empty one.
		_ = relay.Reset(c)
		level := slog.LevelWarn
		if reason == ReasonClientGone { // as a probe does that only connects
			level = slog.LevelDebug
		}
		i.logger(c).Log(ctx, level, "client not forwarded", "reason", reason, "error", err, "duration", time.Since(start))
		return
	}
	log := i.logger(c) // while c has addresses
	if len(early) > 0 {
		c = relay.NewPrefixed(c, early)
	}
	err = relay.Relay(ctx, c, conn, &relay.Options{IdleTimeout: i.IdleTimeout, Counter: &i.counts.relayed})
	if e := (*relay.Error)(nil); errors.As(err, &e) {
		i.count(func(n *counts) { n.broken.add(e.Op) })
	}
	log.Debug("connection ended", "error", err, "duration", time.Since(start))
}

// logger is the limited log, about a client.
func (i *Interceptor) logger(c net.Conn) *slog.Logger {
	return i.limit.Logger(orSilent(i.Logger)).With("client", text(c.RemoteAddr()), "entrypoint", i.Entrypoint)
}

// text is an address for people. Conns of somebody else's making may have none.
func text(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
