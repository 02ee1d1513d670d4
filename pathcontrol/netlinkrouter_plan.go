package pathcontrol

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A routeKey is what the kernel tells routes apart by.
type routeKey struct {
	table  uint32
	to     netip.Prefix
	metric uint32
}

// The kinds of routes that we make, as the kernel numbers them.
const (
	kindUnicast     = 1
	kindUnreachable = 7
)

// A routeEntry is a route as we want it or as the kernel has it.
type routeEntry struct {
	routeKey
	protocol uint8
	kind     uint8
	hops     []routeHop // one; none where nothing is sent; more are somebody else's doing
	source   netip.Addr
}

// A routeHop is one next hop of a route.
type routeHop struct {
	via    netip.Addr
	link   int    // number of the interface; 0 in what we want is any
	name   string // of the interface, in what we want
	onLink bool
}

// A ruleEntry is a rule that leads a mark to a table.
type ruleEntry struct {
	v6         bool
	priority   uint32
	mark, mask uint32
	table      uint32
	protocol   uint8
	anonymous  bool // the kernel does not know who made it (before 4.17)
	elaborate  bool // asks for more than the mark: not one of ours
}

// String is the route in the words of ip route.
func (e routeEntry) String() string {
	var b strings.Builder
	if e.kind == kindUnreachable {
		b.WriteString("unreachable ")
	} else if e.kind != kindUnicast {
		fmt.Fprintf(&b, "type %d ", e.kind)
	}
	if e.to.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(e.to.String())
	}
	for _, h := range e.hops {
		if len(e.hops) > 1 {
			b.WriteString(" nexthop")
		}
		if h.via.IsValid() {
			b.WriteString(" via ")
			if h.via.Is6() && e.to.Addr().Is4() {
				b.WriteString("inet6 ")
			}
			b.WriteString(h.via.String())
		}
		if h.name != "" {
			b.WriteString(" dev " + h.name)
		} else if h.link != 0 {
			fmt.Fprintf(&b, " dev if%d", h.link)
		}
		if h.onLink {
			b.WriteString(" onlink")
		}
	}
	if e.table != DefaultRouteTable {
		fmt.Fprintf(&b, " table %d", e.table)
	}
	fmt.Fprintf(&b, " proto %d", e.protocol)
	if e.source.IsValid() {
		fmt.Fprintf(&b, " src %v", e.source)
	}
	fmt.Fprintf(&b, " metric %d", e.metric)
	return b.String()
}

// String is the rule in the words of ip rule.
func (e ruleEntry) String() string {
	return fmt.Sprintf("fwmark %#x lookup %d priority %d proto %d", e.mark, e.table, e.priority, e.protocol)
}

// fulfils reports whether the route that the kernel has is the one we want.
func (e routeEntry) fulfils(want routeEntry) bool {
	if e.routeKey != want.routeKey || e.kind != want.kind || e.protocol != want.protocol || e.source != want.source {
		return false
	}
	if e.kind == kindUnreachable {
		return true // IPv6 names the loopback interface
	}
	if len(e.hops) != 1 || len(want.hops) != 1 {
		return false
	}
	has, wants := e.hops[0], want.hops[0]
	return has.via == wants.via && has.onLink == wants.onLink && (wants.link == 0 || has.link == wants.link)
}

// sameHop reports whether two routes to the same place differ in the source at
// most.
func sameHop(has, want routeEntry) bool {
	has.source = want.source
	return has.fulfils(want)
}

// direct reports whether the destination is on the link itself.
func (e routeEntry) direct() bool {
	return !slices.ContainsFunc(e.hops, func(h routeHop) bool { return h.via.IsValid() })
}

// The ways to change the table.
type routeVerb int

const (
	verbAdd     routeVerb = iota // fails where anything has the place
	verbReplace                  // the one that has the place goes in the same moment
	verbAppend                   // behind what has the place already
	verbRemove                   // exactly this one
)

// A routeChange is one request to the kernel.
type routeChange struct {
	verb  routeVerb
	route routeEntry
}

// A routePlan says how to come from the routes that there are to those we want.
type routePlan struct {
	changes   []routeChange // first: nobody is without a route after these
	removals  []routeChange // then, if all those were done
	conflicts []routeEntry  // somebody else's, with the place of ours
	shadows   []routeEntry  // somebody else's, with the same destination and a lower metric
	missing   []routeEntry  // wanted, and not there now
}

// planRoutes compares. What of have is not owned stays as it is, and what has the
// same place as such a route is not planned for.
func planRoutes(want, have []routeEntry, owned func(routeEntry) bool) routePlan {
	type place struct {
		table uint32
		to    netip.Prefix
	}
	var p routePlan
	at := make(map[place][]routeEntry, len(have))
	for _, h := range have {
		at[place{h.table, h.to}] = append(at[place{h.table, h.to}], h)
	}
	wanted := make(map[routeKey]bool, len(want))
	for _, w := range want {
		wanted[w.routeKey] = true
		var ours []routeEntry
		conflict := false
		for _, h := range at[place{w.table, w.to}] {
			switch {
			case h.metric == w.metric && (!owned(h) || mixed(h)):
				p.conflicts = append(p.conflicts, h)
				conflict = true
			case h.metric == w.metric:
				ours = append(ours, h)
			case h.metric < w.metric && !owned(h):
				p.shadows = append(p.shadows, h)
			}
		}
		found := slices.IndexFunc(ours, func(h routeEntry) bool { return h.fulfils(w) })
		if found < 0 {
			p.missing = append(p.missing, w)
		}
		if conflict {
			continue
		}
		switch {
		case found >= 0:
			ours = slices.Delete(ours, found, found+1)
			p.removals = appendRemovals(p.removals, ours)
		case len(ours) == 0:
			p.changes = append(p.changes, routeChange{verbAdd, w})
		case w.to.Addr().Is6() && w.direct() && slices.ContainsFunc(ours, func(h routeEntry) bool { return !h.direct() }):
			// For IPv6 a route without a router does not replace one with: it is
			// added, and the other stays ahead of it until it is removed.
			p.changes = append(p.changes, routeChange{verbAppend, w})
			p.removals = appendRemovals(p.removals, ours)
		default:
			// The kernel replaces one. What else is ours there, if anything, goes,
			// unless it is told apart from the new one by its source only.
			p.changes = append(p.changes, routeChange{verbReplace, w})
			if len(ours) > 1 {
				p.removals = appendRemovals(p.removals, slices.DeleteFunc(ours, func(h routeEntry) bool { return sameHop(h, w) }))
			}
		}
	}
	for _, h := range have {
		if owned(h) && !wanted[h.routeKey] {
			p.removals = appendRemovals(p.removals, []routeEntry{h})
		}
	}
	return p
}

// mixed reports whether an IPv6 route is one of several that the kernel holds
// together as one with several next hops. It tells us who made the first only, so
// none of them may be replaced.
func mixed(h routeEntry) bool { return h.to.Addr().Is6() && len(h.hops) > 1 }

// appendRemovals adds what removes routes. Of several next hops of an IPv6 route
// each is a route by itself, and only those of our protocol go.
func appendRemovals(list []routeChange, routes []routeEntry) []routeChange {
	for _, route := range routes {
		if !mixed(route) {
			list = append(list, routeChange{verbRemove, route})
			continue
		}
		for _, hop := range route.hops {
			one := route
			one.hops = []routeHop{hop}
			list = append(list, routeChange{verbRemove, one})
		}
	}
	return list
}

// planRules compares rules: what to add, what to remove.
func planRules(want, have []ruleEntry, owned func(ruleEntry) bool) (add, remove []ruleEntry) {
	same := func(a, b ruleEntry) bool {
		return !a.elaborate && !b.elaborate && a.v6 == b.v6 && a.priority == b.priority && a.mark == b.mark && a.mask == b.mask && a.table == b.table
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h ruleEntry) bool { return same(w, h) }) {
			add = append(add, w)
		}
	}
	for _, h := range have {
		if owned(h) && !slices.ContainsFunc(want, func(w ruleEntry) bool { return same(w, h) }) {
			remove = append(remove, h)
		}
	}
	return add, remove
}
