package main

import (
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(func(*http.Request) error { return p.ready() }),
		"GET /status":  cli.JSON(func() any { return p.status() }),
	}
}

// statusPage is what /status shows. Times are in milliseconds, loss is a share of 1.
type statusPage struct {
	// Chosen is the path over which the routes are to lead, Since when and for
	// what Reason.
	Chosen string    `json:"chosen"`
	Since  time.Time `json:"since,omitzero"`
	Reason string    `json:"reason,omitempty"`
	// InUse says that they do, Problem why not.
	InUse    bool       `json:"inUse"`
	Problem  string     `json:"problem,omitempty"`
	Switches uint64     `json:"switches"`
	Routes   routesPage `json:"routes"`
	Paths    []pathPage `json:"paths"`
}

// routesPage is how the routes are.
type routesPage struct {
	Path    string `json:"path"` // over which they lead in fact
	Count   int    `json:"count"`
	PutBack uint64 `json:"putBack"` // how often somebody had taken some away
	Problem string `json:"problem,omitempty"`
}

// pathPage is one path.
type pathPage struct {
	Name       string      `json:"name"`
	Via        string      `json:"via"`
	Chosen     bool        `json:"chosen"`
	State      string      `json:"state"`
	Since      time.Time   `json:"since,omitzero"`
	RTT        float64     `json:"rttMs"`
	Variation  float64     `json:"variationMs"`
	Loss       float64     `json:"loss"`
	Score      float64     `json:"scoreMs"` // low is good
	Misses     int         `json:"missesInARow"`
	Falls      uint64      `json:"falls"`
	LastAnswer time.Time   `json:"lastAnswer,omitzero"`
	LastError  string      `json:"lastError,omitempty"`
	Probes     []probePage `json:"probes"`
}

// probePage is one question that a path is asked.
type probePage struct {
	Name      string  `json:"name"`
	RTT       float64 `json:"rttMs"`
	Loss      float64 `json:"loss"`
	Misses    int     `json:"missesInARow"`
	Sent      uint64  `json:"sent"`
	Lost      uint64  `json:"lost"`
	LastError string  `json:"lastError,omitempty"`
}

func (p *program) status() *statusPage {
	s, routes := p.controller.Status(), p.router.Status()
	page := &statusPage{
		Chosen: s.Path, Since: s.Since, Reason: s.Reason, InUse: s.Applied, Problem: s.UseError, Switches: s.Switches,
		Routes: routesPage{Path: routes.Path, Count: routes.Routes, PutBack: routes.Reasserted},
		Paths:  []pathPage{},
	}
	for _, err := range []error{routes.ProbeErr, routes.Err} {
		if err != nil {
			page.Routes.Problem = err.Error()
		}
	}
	for i := range s.Paths {
		page.Paths = append(page.Paths, p.path(&s.Paths[i], s.Path))
	}
	return page
}

func (p *program) path(s *pathcontrol.PathStatus, chosen string) pathPage {
	page := pathPage{
		Name: s.Name, Chosen: s.Name == chosen, State: s.State.String(), Since: s.Since,
		RTT: millis(s.RTT), Variation: millis(s.Variation), Loss: s.Loss, Score: millis(s.Score),
		Misses: s.Misses, Falls: s.Falls, LastAnswer: s.LastAnswer, LastError: s.LastError, Probes: []probePage{},
	}
	for _, path := range p.paths {
		if path.name == s.Name {
			page.Via = path.via.String()
		}
	}
	for _, b := range s.Probers {
		page.Probes = append(page.Probes, probePage{b.Name, millis(b.RTT), b.Loss, b.Misses, b.Sent, b.Lost, b.LastError})
	}
	return page
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
