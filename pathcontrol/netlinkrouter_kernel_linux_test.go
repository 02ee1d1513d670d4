package pathcontrol

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRouteAddExclusive: the kernel itself refuses to put a route where somebody
// else has one by now.
func TestRouteAddExclusive(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		self.must(r.Up())
		for _, to := range []string{"10.200.0.0/16", "fd00:200::/32"} {
			self.route(to, "fd00::c", "link", func(r *netlink.Route) { r.Priority = DefaultRouteMetric })
		}
		before := self.dump(nobody)
		changed, err := r.apply(r.kernel, planRoutes(r.wanted("a"), nil, r.owns)) // as if nothing were there
		if !errors.Is(err, ErrConflict) || changed != 1 {
			t.Errorf("%d changed, error %v", changed, err)
		}
		self.must(r.Close())
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouteStaysWhenRefused: what is to be removed stays where the kernel refuses
// what should be instead.
func TestRouteStaysWhenRefused(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.Hops["b"] = NextHop{Interface: "link", Source: netip.MustParseAddr("fd77::1")} // nobody's
		self.must(r.Use(t.Context(), "a"))
		have, err := r.kernel.routes(r.table(), r.protocol())
		self.must(err)
		want, err := r.resolve(r.kernel, r.wanted("b"))
		self.must(err)
		p := planRoutes(want, have, r.owns)
		if len(p.removals) != 1 {
			t.Fatalf("%d removals", len(p.removals))
		}
		if _, err := r.apply(r.kernel, p); !errors.Is(err, unix.EINVAL) {
			t.Errorf("error %v", err)
		}
		if lines := strings.Join(routesOf(t, r), "\n"); !strings.Contains(lines, "fd00:200::/32 via "+aAddr6) {
			t.Errorf("routes\n%s", lines)
		}
		self.must(r.Close())
	})
}

// TestRouterUpLeavesNothing: where Up fails it has made nothing.
func TestRouterUpLeavesNothing(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		self.route("10.7.0.0/16", "10.9.0.10", "link", func(r *netlink.Route) { r.Table = DefaultProbeTable + 1 })
		before := self.dump(nobody)
		r := w.router()
		r.PerPath = true
		if err := r.Up(); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), `path "b" alone: table 21501`) {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterLostNewsMatter: that news were dropped is news, whatever else can be
// read.
func TestRouterLostNewsMatter(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		self.must(r.Up())
		self.must(r.kernel.events.SetReceiveBufferSize(1, false))
		other := w.router()
		other.Networks, other.Table, other.Metric = prefixes("10.66.0.0/16"), 99, 9
		for range 100 { // news that do not concern r
			self.must(other.Use(t.Context(), "a"))
			self.must(other.Use(t.Context(), ""))
		}
		self.must(other.Close())
		news, ended := make(chan struct{}, 1), make(chan struct{})
		k := r.kernel
		go func() {
			defer close(ended)
			r.watch(k, news)
		}()
		until(t, "there is news", func() bool { return len(news) == 1 })
		if s := r.Status(); s.Lost == 0 {
			t.Errorf("status %+v", s)
		}
		self.must(r.Close())
		<-ended
	})
}

// TestRouterRetries: where a look fails there is another, even if nothing tells that
// it would do better.
func TestRouterRetries(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		newTwoPaths(self)
		link, err := netlink.LinkByName("link")
		self.must(err)
		to, err := netlink.ParseIPNet("10.77.0.0/24")
		self.must(err)
		foreign := &netlink.Route{Dst: to, LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK}
		self.must(netlink.RouteAdd(foreign))
		r := &NetlinkRouter{
			Networks: prefixes("10.200.0.0/16"), CheckInterval: noTicks,
			Hops: map[string]NextHop{"a": {Via: netip.MustParseAddr("10.77.0.1"), Interface: "link"}},
		}
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		self.must(netlink.RouteDel(foreign))
		self.removeRoute("10.200.0.0/16")
		until(t, "the look fails", func() bool {
			err := r.Status().Err
			return errors.Is(err, unix.ENETUNREACH) && strings.Contains(err.Error(), "neighbour")
		})
		self.must(netlink.RouteAdd(foreign))
		until(t, "the route is back", func() bool { return len(routesOf(t, r)) == 1 && r.Status().Err == nil })
	})
}

// TestRouterConcerns tells news that matter from others.
func TestRouterConcerns(t *testing.T) {
	r := &NetlinkRouter{Networks: prefixes("10.0.0.0/8"), Hops: map[string]NextHop{"a": {Interface: "bond0"}}}
	perPath := &NetlinkRouter{Networks: r.Networks, Hops: r.Hops, PerPath: true}
	anyLink := &NetlinkRouter{Networks: r.Networks, Hops: map[string]NextHop{"a": {Via: netip.MustParseAddr("10.0.0.1")}}}
	const self, other = 7, 8
	message := func(kind uint16, from uint32, m []byte) syscall.NetlinkMessage {
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind, Pid: from}, Data: m[sizeofNlmsg:]}
	}
	route := func(change func(*routeEntry)) []byte {
		e := place(false, 4, 50, "10.0.0.1", "")
		change(&e)
		return routeMessage(routeChange{verbAdd, e})
	}
	ours := route(func(e *routeEntry) { e.protocol = DefaultRouteProtocol })
	sameDestination := route(func(e *routeEntry) { e.metric = 1024 })
	probeTable := route(func(e *routeEntry) { e.table = DefaultProbeTable })
	rule := ruleMessage(ruleEntry{table: 9}, true)
	for name, tc := range map[string]struct {
		r       *NetlinkRouter
		message syscall.NetlinkMessage
		want    bool
	}{
		"our route":                    {r, message(unix.RTM_DELROUTE, other, ours), true},
		"our route, by us":             {r, message(unix.RTM_DELROUTE, self, ours), false},
		"the same destination":         {r, message(unix.RTM_NEWROUTE, other, sameDestination), true},
		"another destination":          {r, message(unix.RTM_NEWROUTE, other, route(func(e *routeEntry) { e.to = netip.MustParsePrefix("10.0.0.0/9") })), false},
		"another table":                {r, message(unix.RTM_NEWROUTE, other, route(func(e *routeEntry) { e.table = 9 })), false},
		"a probe table":                {perPath, message(unix.RTM_NEWROUTE, other, probeTable), true},
		"a probe table, not used":      {r, message(unix.RTM_NEWROUTE, other, probeTable), false},
		"a rule":                       {perPath, message(unix.RTM_DELRULE, other, rule), true},
		"a rule, by us":                {perPath, message(unix.RTM_NEWRULE, self, rule), false},
		"a rule, not used":             {r, message(unix.RTM_DELRULE, other, rule), false},
		"our interface":                {r, message(unix.RTM_NEWLINK, other, getLinkMessage("bond0")), true},
		"another interface":            {r, message(unix.RTM_NEWLINK, other, getLinkMessage("bond1")), false},
		"an interface that may be it":  {anyLink, message(unix.RTM_DELLINK, other, getLinkMessage("bond1")), true},
		"an address":                   {r, message(unix.RTM_DELADDR, other, rule), true},
		"a route that cannot be read":  {r, message(unix.RTM_NEWROUTE, other, ours[:sizeofNlmsg+5]), false},
		"a link that cannot be read":   {anyLink, message(unix.RTM_NEWLINK, other, ours[:sizeofNlmsg+5]), false},
		"a route of no family of ours": {r, message(unix.RTM_NEWROUTE, other, append(ours[:sizeofNlmsg:sizeofNlmsg], make([]byte, 12)...)), false},
	} {
		if got := tc.r.concerns(self)(tc.message); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
