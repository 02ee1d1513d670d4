package main

import (
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(p.ready),
		"GET /routes":  cli.JSON(func() any { return p.routes() }),
	}
}

// ready is an entrypoint that takes connections. A file that has turned bad does
// not count: the routes before it are in use.
func (p *program) ready(*http.Request) error {
	if p.router.Stats().Draining {
		return errors.New("it drains")
	}
	return nil
}

// routesPage is what /routes shows: what stands in the file and is in use, and what
// became of it.
type routesPage struct {
	Config configPage `json:"config"`
	entrypoint.Stats
	Routes []routePage `json:"routes"` // instead of those of Stats
}

// configPage is how the file stands.
type configPage struct {
	File string    `json:"file"`
	Used time.Time `json:"used"` // since when what is in use is in use
	// Restart says that listeners, limits or timeouts of the file in use are
	// not those of the start.
	Restart bool `json:"restartNeeded"`
	// Refused is what is wrong with the newest file, and Since since when.
	Refused string    `json:"refused,omitempty"`
	Since   time.Time `json:"refusedSince,omitzero"`
}

// routePage is a route, or what is left of one that was removed.
type routePage struct {
	entrypoint.RouteStats
	SNI            []string                   `json:"sni,omitempty"`
	Destinations   []string                   `json:"destinations,omitempty"`
	HeaderValues   []string                   `json:"headerValues,omitempty"`
	Default        bool                       `json:"default,omitempty"`
	Allow          []netip.Prefix             `json:"allow,omitempty"`
	Deny           []netip.Prefix             `json:"deny,omitempty"`
	MaxConnections int                        `json:"maxConnections,omitempty"`
	Backends       []entrypoint.BackendStatus `json:"backends,omitempty"`
}

func (p *program) routes() *routesPage {
	status, current := p.file.Status(), p.current.Load()
	page := &routesPage{
		Config: configPage{File: p.config, Used: status.Used, Restart: !current.SameFront(p.started), Since: status.Since},
		Stats:  p.router.Stats(),
		Routes: []routePage{},
	}
	if status.Err != nil {
		page.Config.Refused = status.Err.Error()
	}
	for _, stats := range page.Stats.Routes {
		r := routePage{RouteStats: stats}
		// The counters are a moment newer than the file: a route may be in one only.
		if route := current.Route(stats.Name); route != nil && !stats.Removed {
			r.describe(route)
		}
		page.Routes = append(page.Routes, r)
	}
	return page
}

func (r *routePage) describe(route *entrypoint.Route) {
	r.SNI, r.HeaderValues, r.Default = route.SNI, route.HeaderValues, route.Default
	for _, d := range route.Destinations {
		r.Destinations = append(r.Destinations, d.String())
	}
	r.Allow, r.Deny, r.MaxConnections = route.Allow, route.Deny, route.MaxConns
	if f, ok := route.Handler.(*entrypoint.Forward); ok {
		r.Backends = f.Status()
	}
}
