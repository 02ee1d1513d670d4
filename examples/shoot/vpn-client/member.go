package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// memberGrace is how long after a link has come up its server may not know all
// members yet, because it has started just then.
const memberGrace = 5 * time.Second

// member is the page /members/ADDRESS, which path-controller --members asks:
//
//	200  a server reaches the member that has the address
//	410  none does, of those that we have a link to
//	503  nobody can tell: there is no link, or only new ones
func (p *program) member(w http.ResponseWriter, r *http.Request) {
	addr, err := netip.ParseAddr(r.PathValue("address"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	known := false
	for _, l := range p.links {
		s := l.status()
		if slices.ContainsFunc(s.Members, func(m packet.Member) bool { return slices.Contains(m.Addresses, addr) }) {
			fmt.Fprintf(w, "reached by %s over %s\n", s.Server, s.Name)
			return
		}
		known = known || len(s.Members) > 0 && time.Since(s.Since) > memberGrace
	}
	if known {
		http.Error(w, "no server reaches it", http.StatusGone)
		return
	}
	http.Error(w, "no server tells", http.StatusServiceUnavailable)
}
