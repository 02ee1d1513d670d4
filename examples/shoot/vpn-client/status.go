package main

import (
	"cmp"
	"slices"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// status is the page /status.
type status struct {
	Mode   string `json:"mode"`
	Device string `json:"device"`
	// Active is the link that is used; empty if there is none, or no single one.
	Active string       `json:"active"`
	Links  []linkStatus `json:"links"`
	// Members are those that any server reaches.
	Members []packet.Member `json:"members"`
	Routes  []routeStatus   `json:"routes"`
	Bond    backendStatus   `json:"bond"`
}

// routeStatus is the routes of --route that have one next hop.
type routeStatus struct {
	Via     string `json:"via,omitempty"`
	Wanted  int    `json:"wanted"`
	There   int    `json:"there"`
	Problem string `json:"problem,omitempty"`
}

func (p *program) status() status {
	s := status{Mode: p.mode.String(), Device: p.device, Active: p.backend.active(), Bond: p.backend.status(), Routes: []routeStatus{}}
	type key struct {
		id   uint64
		name string
	}
	members := make(map[key]packet.Member)
	for _, l := range p.links {
		one := l.status()
		s.Links = append(s.Links, one)
		for _, m := range one.Members {
			members[key{m.ID, m.Name}] = m
		}
	}
	s.Members = make([]packet.Member, 0, len(members))
	for _, m := range members {
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b packet.Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	for _, r := range p.kernel.routers {
		st := r.Status()
		one := routeStatus{Wanted: len(r.Networks), There: st.Routes}
		if via := r.Hops[onlyPath].Via; via.IsValid() {
			one.Via = via.String()
		}
		if st.Err != nil {
			one.Problem = st.Err.Error()
		}
		s.Routes = append(s.Routes, one)
	}
	return s
}
