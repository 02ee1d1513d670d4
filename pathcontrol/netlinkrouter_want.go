package pathcontrol

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// Check reports what is wrong with the fields, without asking the kernel. Up
// calls it.
func (r *NetlinkRouter) Check() error {
	var wrong []error
	problem := func(format string, a ...any) { wrong = append(wrong, fmt.Errorf(format, a...)) }
	if len(r.Networks) == 0 {
		problem("no networks")
	}
	if len(r.Hops) == 0 {
		problem("no next hops")
	}
	if len(r.Hops) > maxHops {
		problem("%d next hops, at most %d are possible", len(r.Hops), maxHops)
	}
	for _, n := range r.Networks {
		if what := r.badNetwork(n); what != "" {
			problem("network %v: %s", n, what)
		}
	}
	for _, name := range r.names() {
		for _, what := range r.badHop(r.Hops[name]) {
			problem("path %q: %s", name, what)
		}
		if name == "" {
			problem("a path needs a name")
		}
	}
	if r.Table < 0 || r.Table == 255 || r.Table > math.MaxInt32 {
		problem("table %d: want 1 to %d and not 255, the kernel's own", r.Table, math.MaxInt32)
	}
	if r.Metric < 0 || r.Metric >= math.MaxInt32 {
		problem("metric %d: want 1 to %d", r.Metric, math.MaxInt32-1)
	}
	if r.Protocol != 0 && (r.Protocol <= 4 || r.Protocol > 255) {
		problem("protocol %d: want 5 to 255, lower ones are the kernel's and the administrator's", r.Protocol)
	}
	first := r.probeTable(0)
	switch {
	case first < 256 || first > math.MaxInt32-maxHops:
		problem("probe table %d: want 256 to %d", first, math.MaxInt32-maxHops)
	case r.isProbeTable(r.table()):
		problem("table %d is one of the probe tables, %d to %d", r.table(), first, first+maxHops-1)
	}
	if r.ProbeMark < 0 || r.ProbeMark > math.MaxInt32-maxHops {
		problem("probe mark %d: want 1 to %d", r.ProbeMark, math.MaxInt32-maxHops)
	}
	if r.RulePriority < 0 || r.RulePriority >= 32766 {
		problem("rule priority %d: want 1 to 32765, ahead of the main table's", r.RulePriority)
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("pathcontrol: routes: %w", errors.Join(wrong...))
}

// badNetwork says what is wrong with a network, nothing if it is empty.
func (r *NetlinkRouter) badNetwork(n netip.Prefix) string {
	switch {
	case !n.IsValid():
		return "not a prefix"
	case n.Addr().Is4In6():
		return "an IPv4 network written as IPv6"
	case n != n.Masked():
		return fmt.Sprintf("has host bits, the network is %v", n.Masked())
	case n.Bits() == 0 && !r.AllowDefault:
		return "a default route takes the way to everything, also to the tunnel's far end; AllowDefault allows it"
	case n.Bits() > 0 && (n.Addr().IsMulticast() || n.Addr().IsLoopback() || n.Addr().Is6() && n.Addr().IsLinkLocalUnicast()):
		return "loopback, multicast and link-local addresses are not routed"
	}
	return ""
}

// badHop says what is wrong with a next hop.
func (r *NetlinkRouter) badHop(h NextHop) (wrong []string) {
	if !h.Via.IsValid() && h.Interface == "" {
		wrong = append(wrong, "needs Via or Interface")
	}
	if len(h.Interface) > 15 || strings.ContainsAny(h.Interface, "/ \x00") || h.Interface == "." || h.Interface == ".." {
		wrong = append(wrong, fmt.Sprintf("%q is no name of an interface", h.Interface))
	}
	switch {
	case h.Via.Zone() != "":
		wrong = append(wrong, fmt.Sprintf("next hop %v with a zone: name the interface in Interface", h.Via))
	case h.Via.Is4In6():
		wrong = append(wrong, fmt.Sprintf("next hop %v is an IPv4 address written as IPv6", h.Via))
	case h.Via.IsValid() && (h.Via.IsUnspecified() || h.Via.IsLoopback() || h.Via.IsMulticast()):
		wrong = append(wrong, fmt.Sprintf("next hop %v cannot be a neighbour", h.Via))
	case h.Via.Is6() && h.Via.IsLinkLocalUnicast() && h.Interface == "":
		wrong = append(wrong, fmt.Sprintf("next hop %v is link-local and needs Interface", h.Via))
	}
	if h.OnLink && (!h.Via.IsValid() || h.Interface == "") {
		wrong = append(wrong, "OnLink needs Via and Interface")
	}
	switch {
	case h.Source.Zone() != "" || h.Source.Is4In6():
		wrong = append(wrong, fmt.Sprintf("source %v: want a plain IPv4 or IPv6 address", h.Source))
	case h.Source.IsValid() && (h.Source.IsUnspecified() || h.Source.IsMulticast()):
		wrong = append(wrong, fmt.Sprintf("source %v is nobody's address", h.Source))
	case h.Source.IsValid() && !slices.ContainsFunc(r.Networks, func(n netip.Prefix) bool { return n.Addr().Is4() == h.Source.Is4() }):
		wrong = append(wrong, fmt.Sprintf("source %v is %s, and none of the networks is", h.Source, family(h.Source)))
	}
	if h.Via.Is4() {
		if i := slices.IndexFunc(r.Networks, func(n netip.Prefix) bool { return n.Addr().Is6() }); i >= 0 {
			wrong = append(wrong, fmt.Sprintf("next hop %v is IPv4 and cannot lead to %v: IPv6 networks need an IPv6 next hop, which IPv4 networks can have too",
				h.Via, r.Networks[i]))
		}
	}
	return wrong
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Routes says what Use makes of a path, one route a line in the words of ip
// route, without asking the kernel. An unknown path has none.
func (r *NetlinkRouter) Routes(path string) []string {
	var lines []string
	for _, route := range r.wanted(path) {
		lines = append(lines, route.String())
	}
	return lines
}

// Mark returns the mark with which a socket's packets take the path, whichever
// is in use; see [Through]. It needs PerPath, and Up before the mark has any
// effect.
func (r *NetlinkRouter) Mark(path string) (uint32, error) {
	i := slices.Index(r.names(), path)
	switch {
	case !r.PerPath:
		return 0, errors.New("pathcontrol: a mark of a path needs PerPath")
	case i < 0:
		return 0, fmt.Errorf("pathcontrol: %w", r.unknown(path))
	}
	return r.mark(i), nil
}

// Control returns a function for [net.Dialer] and [net.ListenConfig] whose sockets
// reach the networks through the path, whichever is in use. It fails while the
// router is not up, since such a socket would take any way. Marks need
// CAP_NET_ADMIN.
func (r *NetlinkRouter) Control(path string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		mark, err := r.Mark(path)
		if err != nil {
			return err
		}
		r.mu.Lock()
		up := r.kernel != nil
		r.mu.Unlock()
		if !up {
			return errRouterDown
		}
		var inner error
		if err := c.Control(func(fd uintptr) { inner = setMark(fd, mark) }); err != nil {
			return err
		}
		return inner
	}
}

// unknown is the error for a path that is not there.
func (r *NetlinkRouter) unknown(path string) error {
	return fmt.Errorf("there is no path %q among the next hops: %s", path, strings.Join(r.names(), ", "))
}

// names are the paths in the order that their tables have.
func (r *NetlinkRouter) names() []string { return slices.Sorted(maps.Keys(r.Hops)) }

func (r *NetlinkRouter) table() uint32   { return uint32(or(r.Table, DefaultRouteTable)) }
func (r *NetlinkRouter) metric() uint32  { return uint32(or(r.Metric, DefaultRouteMetric)) }
func (r *NetlinkRouter) protocol() uint8 { return uint8(or(r.Protocol, DefaultRouteProtocol)) }

func (r *NetlinkRouter) mark(i int) uint32 {
	return uint32(or(r.ProbeMark, DefaultProbeMark) + i)
}

func (r *NetlinkRouter) probeTable(i int) int { return or(r.ProbeTable, DefaultProbeTable) + i }

func (r *NetlinkRouter) rulePriority() uint32 { return uint32(or(r.RulePriority, DefaultRulePriority)) }

func or(n, zero int) int {
	if n == 0 {
		return zero
	}
	return n
}

// networks are those given, in order and each once.
func (r *NetlinkRouter) networks() []netip.Prefix {
	list := slices.Clone(r.Networks)
	slices.SortFunc(list, comparePrefix)
	return slices.Compact(list)
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// wanted are the routes of the table that all use, when path is chosen.
func (r *NetlinkRouter) wanted(path string) []routeEntry {
	hop, ok := r.Hops[path]
	if !ok {
		return nil
	}
	return r.through(hop, r.table())
}

// through are the routes by one next hop in one table.
func (r *NetlinkRouter) through(hop NextHop, table uint32) []routeEntry {
	var routes []routeEntry
	for _, n := range r.networks() {
		route := routeEntry{
			routeKey: routeKey{table, n, r.metric()}, protocol: r.protocol(), kind: kindUnicast,
			hops: []routeHop{{via: hop.Via, name: hop.Interface, onLink: hop.OnLink}},
		}
		if hop.Source.IsValid() && hop.Source.Is4() == n.Addr().Is4() {
			route.source = hop.Source
		}
		routes = append(routes, route)
	}
	return routes
}

// dead are the routes behind those of a path's own table: they keep what has
// the path's mark from going another way while the path has no interface.
func (r *NetlinkRouter) dead(table uint32) []routeEntry {
	var routes []routeEntry
	for _, n := range r.networks() {
		routes = append(routes, routeEntry{
			routeKey: routeKey{table, n, r.metric() + 1}, protocol: r.protocol(), kind: kindUnreachable,
		})
	}
	return routes
}

// rules are what leads marks to tables.
func (r *NetlinkRouter) rules() []ruleEntry {
	if !r.PerPath {
		return nil
	}
	var rules []ruleEntry
	for _, v6 := range []bool{false, true} {
		if !slices.ContainsFunc(r.Networks, func(n netip.Prefix) bool { return n.Addr().Is6() == v6 }) {
			continue
		}
		for i := range r.names() {
			rules = append(rules, ruleEntry{v6: v6, priority: r.rulePriority(), mark: r.mark(i), mask: math.MaxUint32,
				table: uint32(r.probeTable(i)), protocol: r.protocol()})
		}
	}
	return rules
}

// owns reports whether a route is this router's.
func (r *NetlinkRouter) owns(route routeEntry) bool {
	if route.protocol != r.protocol() {
		return false
	}
	return route.table == r.table() && route.metric == r.metric() || r.isProbeTable(route.table)
}

// ownsRule reports whether a rule is this router's.
func (r *NetlinkRouter) ownsRule(rule ruleEntry) bool {
	return (rule.protocol == r.protocol() || rule.anonymous && !rule.elaborate) &&
		rule.priority == r.rulePriority() && r.isProbeTable(rule.table)
}

// isProbeTable reports whether a table is for one path alone.
func (r *NetlinkRouter) isProbeTable(table uint32) bool {
	return int64(table) >= int64(r.probeTable(0)) && int64(table) < int64(r.probeTable(maxHops))
}

// lock is the name that makes this router the only one of its kind, and probeLock
// the one that the probe tables have.
func (r *NetlinkRouter) lock() string {
	return fmt.Sprintf("@rhizome-pathcontrol/%d/%d/%d", r.protocol(), r.table(), r.metric())
}

func (r *NetlinkRouter) probeLock() string {
	return fmt.Sprintf("@rhizome-pathcontrol/probe/%d/%d", r.protocol(), r.probeTable(0))
}
