package entrypoint

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Causes with which the context of a connection ends, so that its log line tells
// why.
var (
	errRemoved = errors.New("entrypoint: the route was removed")
	errRevoked = errors.New("entrypoint: the client may not use the route any more")
	errDrained = errors.New("entrypoint: cut off while draining")
	errClosed  = errors.New("entrypoint: closed")
)

// revokeTimeout is how long a connection may go on whose client has lost the
// right to the route.
const revokeTimeout = 30 * time.Second

// track is what a route leaves behind when it is replaced: its connections and
// counters. It belongs to a name, is there as long as the name is in the table or
// has connections, and is guarded by Router.mu but for the atomics.
//
//	SetRoutes with the name ──► in the table ──► SetRoutes without it ──► removed ──► last conn ends ──► gone
//	                                 ▲                                       │            cut after RemovedTimeout
//	                                 └──────── SetRoutes with it again ──────┘
type track struct {
	name    string
	removed bool
	cut     *time.Timer // ends the connections of a removed route
	conns   map[*conn]struct{}

	total    atomic.Uint64 // connections
	broken   atomic.Uint64
	resets   [2]atomic.Uint64 // by the client, by the backend
	refused  refusals
	up, down int64 // bytes of connections that have ended
}

// reset counts a connection that a peer has reset. Of a Forward's relay the
// backend is leg b.
func (t *track) reset(err error) {
	var e *relay.Error
	if errors.As(err, &e) && e.Leg == "b" {
		t.resets[1].Add(1)
	} else {
		t.resets[0].Add(1)
	}
}

// conn is a connection from its accept to its end.
type conn struct {
	in  *Incoming
	end context.CancelCauseFunc

	// Once it has a route, guarded by Router.mu:
	route  *Route
	client netip.Addr
	track  *track
	revoke *time.Timer // the client has lost the right to the route
}

// enter finds the route of a connection and counts it as one of it, in one step:
// no SetRoutes can come between.
func (r *Router) enter(c *conn) (Handler, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return nil, refuseDraining()
	}
	i := c.in.Info
	route := r.table.lookup(i)
	if route == nil {
		return nil, refuseUnknown(i)
	}
	i.Route = route.Name
	t := r.tracks[route.Name]
	c.track = t
	c.client = i.Client.Addr()
	if !route.admits(c.client) {
		return nil, refuseDenied()
	}
	if route.MaxConns > 0 && len(t.conns) >= route.MaxConns {
		return nil, refuseLimit("the route")
	}
	c.route = route
	t.conns[c] = struct{}{}
	t.total.Add(1)
	delete(r.waiting, c)
	return route.Handler, nil
}

// leave undoes begin and enter.
func (r *Router) leave(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unroute(c)
	delete(r.waiting, c)
	r.work--
	r.checkGone()
}

// turnAway makes room for others while a connection is told that it is refused.
func (r *Router) turnAway(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unroute(c)
	r.waiting[c] = struct{}{}
}

// unroute undoes enter; r.mu is held.
func (r *Router) unroute(c *conn) {
	if c.route == nil {
		return
	}
	delete(c.track.conns, c)
	if c.revoke != nil {
		c.revoke.Stop()
	}
	up, down := c.in.counter.Bytes()
	c.track.up += up
	c.track.down += down
	r.forget(c.track)
	c.route = nil
}

// forget drops a removed route without connections; r.mu is held.
func (r *Router) forget(t *track) {
	if t.removed && len(t.conns) == 0 {
		if t.cut != nil {
			t.cut.Stop()
		}
		delete(r.tracks, t.name)
	}
}

// SetRoutes replaces all routes at once. Connections go on as they are: those of
// a route that stays, whatever became of its backends; those of a removed route
// until they end by themselves or [Router.RemovedTimeout] passes, unless a route
// of the same name comes back before; and those of a client that its route does
// not allow any more for 30 s, unless it is allowed again before.
//
// Where anything is wrong with the routes, nothing changes, and the error tells
// all of it. The Router keeps routes.
func (r *Router) SetRoutes(routes []*Route) error {
	t, err := newTable(routes)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table = t
	if r.tracks == nil {
		r.tracks = make(map[string]*track, len(routes))
	}
	for name, route := range t.routes {
		switch known, ok := r.tracks[name]; {
		case !ok:
			r.tracks[name] = &track{name: name, conns: make(map[*conn]struct{})}
		default:
			r.keep(known, route)
		}
	}
	for name, known := range r.tracks {
		if _, ok := t.routes[name]; !ok && !known.removed {
			r.remove(known)
		}
	}
	return nil
}

// keep goes on with a route's connections under a new version of it.
func (r *Router) keep(t *track, route *Route) {
	t.removed = false
	if t.cut != nil {
		t.cut.Stop()
		t.cut = nil
	}
	for c := range t.conns {
		same := slices.Equal(c.route.Allow, route.Allow) && slices.Equal(c.route.Deny, route.Deny)
		c.route = route
		if same {
			continue
		}
		admitted := route.admits(c.client)
		switch {
		case admitted && c.revoke != nil:
			c.revoke.Stop()
			c.revoke = nil
		case !admitted && c.revoke == nil:
			c.revoke = time.AfterFunc(revokeTimeout, func() { c.end(errRevoked) })
		}
	}
}

// remove lets a removed route's connections end.
func (r *Router) remove(t *track) {
	t.removed = true
	switch d := r.RemovedTimeout; {
	case d < 0:
		t.endAll(errRemoved)
	case d > 0 && len(t.conns) > 0:
		var cut *time.Timer
		cut = time.AfterFunc(d, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if t.cut == cut { // else it came back while this waited for the lock
				t.endAll(errRemoved)
			}
		})
		t.cut = cut
	}
	r.forget(t)
}

func (t *track) endAll(cause error) {
	for c := range t.conns {
		c.end(cause)
	}
}

// live returns all connections; r.mu is held.
func (r *Router) live() []*conn {
	var all []*conn
	for _, t := range r.tracks {
		all = slices.AppendSeq(all, maps.Keys(t.conns))
	}
	return all
}
