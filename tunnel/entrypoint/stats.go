package entrypoint

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Stats is how a [Router] stands.
type Stats struct {
	Conns    int               `json:"conns"`    // connections with a route
	Sniffing int               `json:"sniffing"` // connections that have not been let in yet: they have not said what they want, wait for Authorize, or are told that they are refused
	Draining bool              `json:"draining"`
	Refused  map[Reason]uint64 `json:"refused"` // since the start, of all routes and none
	Routes   []RouteStats      `json:"routes"`  // by name
}

// RouteStats is how a route stands, since its name appeared.
type RouteStats struct {
	Name    string `json:"name"`
	Removed bool   `json:"removed,omitempty"` // only its connections are left
	Conns   int    `json:"conns"`
	Total   uint64 `json:"total"` // connections so far, without those refused by ACL and limit of the route
	// ClientReset and BackendReset are how many of those a peer has reset, as many
	// do that are in a hurry: TLS ends so if one side closes before it has read the
	// other's last word.
	ClientReset  uint64            `json:"clientReset"`
	BackendReset uint64            `json:"backendReset"`
	Broken       uint64            `json:"broken"` // of those, which failed otherwise or were ended by force
	Refused      map[Reason]uint64 `json:"refused,omitempty"`
	Up           int64             `json:"up"` // bytes from clients to backends
	Down         int64             `json:"down"`
}

// Stats returns how the Router stands now.
func (r *Router) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{Conns: r.seats.Count(), Sniffing: len(r.waiting), Draining: r.draining, Refused: r.refused.copy()}
	for _, t := range r.tracks {
		rs := RouteStats{
			Name: t.name, Removed: t.removed, Conns: len(t.conns), Total: t.total.Load(), ClientReset: t.resets[0].Load(), BackendReset: t.resets[1].Load(), Broken: t.broken.Load(),
			Refused: t.refused.copy(), Up: t.up, Down: t.down,
		}
		for c := range t.conns {
			up, down := c.in.counter.Bytes()
			rs.Up += up
			rs.Down += down
		}
		s.Routes = append(s.Routes, rs)
	}
	slices.SortFunc(s.Routes, func(a, b RouteStats) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// refusals counts by reason. Its zero value is ready for use.
type refusals struct {
	mu sync.Mutex
	n  map[Reason]uint64
}

func (r *refusals) add(reason Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.n = make(map[Reason]uint64)
	}
	r.n[reason]++
}

func (r *refusals) copy() map[Reason]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.n)
}
