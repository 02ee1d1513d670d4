package entrypoint

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// Router serves listeners and hands each connection to its route. Its zero value
// is ready for use and refuses everything until [Router.SetRoutes] has told it
// more. Fields are set before the first Serve and not changed afterwards.
type Router struct {
	// Authorize, if not nil, is asked for each connection that has a route and
	// whose client it allows. An error refuses the connection. It runs on a
	// goroutine of its own and must return soon after ctx has ended.
	Authorize func(ctx context.Context, i *Info) error
	// AuthorizeTimeout bounds Authorize; when it passes the connection is
	// refused, whatever Authorize may say later. 0 means 250 ms, as Gardener's
	// ingress gateway has it; negative means no bound.
	AuthorizeTimeout time.Duration
	// HeadTimeout bounds the time from accepting a connection until it has said
	// what it wants, PROXY headers included. 0 means 10 s, negative no bound.
	HeadTimeout time.Duration
	// RemovedTimeout is how long the connections of a removed route may go on.
	// 0 means until they end by themselves; negative ends them at once.
	RemovedTimeout time.Duration
	// DrainTimeout is how long connections may go on after Shutdown was called.
	// Each is reset at a moment of its own, at random in the last four fifths of
	// it, so that they do not all come back at once. 0 means 25 s; negative means
	// that none is reset before the context of Shutdown ends.
	DrainTimeout time.Duration
	// Limits bounds the connections.
	Limits Limits
	// Name is how the Router calls itself in Proxy-Status; empty means "rhizome".
	Name string
	// Logger gets a line for each connection at its end: at level Debug for one
	// that was served, at Info for one that was refused or broke, of those at
	// most 20 a second. Nil is silent.
	Logger *slog.Logger

	bounds   sync.Once
	limits   Limits // of Limits, what descriptors allow
	seats    guard.Seats
	refused  refusals
	limitLog guard.LogLimit

	helloBytes atomic.Int64 // of large hellos that are being read

	mu       sync.Mutex
	table    *table            // nil before the first SetRoutes
	tracks   map[string]*track // by name of the route
	doors    map[net.Listener]*door
	waiting  map[*conn]struct{} // not routed yet
	work     int                // listeners, connections and Authorize calls
	draining bool
	gone     chan struct{} // not nil when draining; closed when no work is left
}

// ErrRouterClosed is what Serve returns after Shutdown or Close.
// errors.Is(ErrRouterClosed, net.ErrClosed) is true.
var ErrRouterClosed error = routerClosed{}

type routerClosed struct{}

func (routerClosed) Error() string        { return "entrypoint: router closed" }
func (routerClosed) Is(target error) bool { return target == net.ErrClosed }

// Serve accepts connections from l until l fails or the Router is shut down, and
// serves each on a goroutine of its own. A nil d means the zero Door. It owns l,
// closes it, and may be called for several listeners. It returns as soon as
// nothing more is accepted: [Router.Shutdown] and [Router.Close] wait for the
// connections. The error is ErrRouterClosed or that of the listener.
func (r *Router) Serve(l net.Listener, d *Door) error {
	own, err := newDoor(r, d)
	if err != nil {
		_ = l.Close()
		return err
	}
	if !r.open(l, own) {
		_ = l.Close()
		return ErrRouterClosed
	}
	defer r.done()
	defer r.shut(l)
	// The context ends waits within Accept only, and then the listener is closed.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	err = guard.Accept(ctx, l, r.logger(), func(c net.Conn) { r.serveConn(own, c) })
	if r.isDraining() {
		return ErrRouterClosed
	}
	return err
}

// open counts a listener.
func (r *Router) open(l net.Listener, d *door) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return false
	}
	if r.doors == nil {
		r.doors = make(map[net.Listener]*door)
	}
	r.doors[l] = d
	r.work++
	return true
}

func (r *Router) shut(l net.Listener) {
	_ = l.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.doors, l)
}

// begin counts a connection.
func (r *Router) begin(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return false
	}
	if r.waiting == nil {
		r.waiting = make(map[*conn]struct{})
	}
	r.waiting[c] = struct{}{}
	r.work++
	return true
}

// done undoes open and begin.
func (r *Router) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work--
	r.checkGone()
}

// checkGone tells Shutdown and Close that all is over; r.mu is held.
func (r *Router) checkGone() {
	if r.draining && r.work == 0 {
		close(r.gone)
		r.work = -1 // once
	}
}

func (r *Router) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}

// Shutdown stops accepting and waits until the connections have ended, each at
// last at its own moment of [Router.DrainTimeout]; if any was reset then, the error
// says how many. If ctx ends before, what is open is reset, and the error is that
// of ctx. Connections that have not said what they want are refused if they do, and
// reset after a second.
func (r *Router) Shutdown(ctx context.Context) error {
	gone := r.drain()
	var cut atomic.Int64
	for _, t := range r.cutLater(&cut) {
		defer t.Stop()
	}
	select {
	case <-gone:
	case <-ctx.Done():
		_ = r.Close()
		return context.Cause(ctx)
	}
	if n := cut.Load(); n > 0 {
		return fmt.Errorf("entrypoint: %d connections did not end by themselves: %w", n, context.DeadlineExceeded)
	}
	return nil
}

// Close stops accepting, resets all connections, and waits until they are gone.
// The error is always nil.
func (r *Router) Close() error {
	gone := r.drain()
	r.mu.Lock()
	for c := range r.waiting {
		c.end(errClosed)
	}
	for _, c := range r.live() {
		c.end(errClosed)
	}
	r.mu.Unlock()
	<-gone
	return nil
}

// drain closes the listeners and returns what tells that all is over.
func (r *Router) drain() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.draining {
		r.draining = true
		r.gone = make(chan struct{})
		for l := range r.doors {
			_ = l.Close()
		}
		r.checkGone()
	}
	return r.gone
}

// strangerDrain is how long a connection may go on that is not let in yet.
const strangerDrain = time.Second

// cutLater has each connection end at a moment of its own, and counts those in cut
// that it ends.
func (r *Router) cutLater(cut *atomic.Int64) []*time.Timer {
	d := r.DrainTimeout
	if d == 0 {
		d = 25 * time.Second
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var timers []*time.Timer
	for c := range r.waiting {
		timers = append(timers, time.AfterFunc(strangerDrain, func() { c.end(errDrained) }))
	}
	if d < 0 {
		return timers
	}
	for _, c := range r.live() {
		moment := d/5 + rand.N(d-d/5+1)
		timers = append(timers, time.AfterFunc(moment, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if _, there := c.track.conns[c]; there { // else it has ended by itself
				cut.Add(1)
			}
			c.end(errDrained) // also what is being told that no backend answers
		}))
	}
	return timers
}

// effective is what is left of Limits within what this process may open.
func (r *Router) effective() Limits {
	r.bounds.Do(func() {
		var lowered bool
		n := guard.Descriptors()
		if r.limits, lowered = r.Limits.within(n); lowered {
			r.logger().Warn("limits lowered: a connection takes two descriptors and more, see ulimit -n", "descriptors", n,
				"connections", r.limits.Conns, "sniffing", r.limits.Sniffing)
		}
	})
	return r.limits
}

func (r *Router) logger() *slog.Logger {
	if r.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Logger
}

func (r *Router) headTimeout() time.Duration {
	if r.HeadTimeout == 0 {
		return 10 * time.Second
	}
	return r.HeadTimeout
}
