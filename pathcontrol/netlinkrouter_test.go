package pathcontrol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRouterCheck(t *testing.T) {
	via := netip.MustParseAddr("fd00::a")
	for name, tc := range map[string]struct {
		change func(*NetlinkRouter)
		want   string // empty: nothing is wrong
	}{
		"good":              {func(*NetlinkRouter) {}, ""},
		"nothing":           {func(r *NetlinkRouter) { *r = NetlinkRouter{} }, "no networks\nno next hops"},
		"host bits":         {networks("10.1.2.3/16"), "network 10.1.2.3/16: has host bits, the network is 10.1.0.0/16"},
		"host bits of IPv6": {networks("fd00::1/64"), "the network is fd00::/64"},
		"default":           {networks("0.0.0.0/0"), "AllowDefault allows it"},
		"default of IPv6":   {networks("::/0"), "AllowDefault allows it"},
		"default allowed":   {func(r *NetlinkRouter) { networks("::/0", "0.0.0.0/0")(r); r.AllowDefault = true }, ""},
		"half of all":       {networks("0.0.0.0/1", "128.0.0.0/1"), ""},
		"overlap":           {networks("10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"), ""},
		"no prefix":         {func(r *NetlinkRouter) { r.Networks = append(r.Networks, netip.Prefix{}) }, "not a prefix"},
		"IPv4 as IPv6":      {networks("::ffff:10.0.0.0/104"), "written as IPv6"},
		"loopback":          {networks("127.0.0.0/8"), "are not routed"},
		"multicast":         {networks("ff00::/8"), "are not routed"},
		"link-local":        {networks("fe80::/64"), "are not routed"},
		"IPv4 over IPv6":    {hop(NextHop{Via: via}), ""},
		"IPv6 over IPv4":    {hop(NextHop{Via: netip.MustParseAddr("10.0.0.1")}), "next hop 10.0.0.1 is IPv4 and cannot lead to fd00:1::/32: IPv6 networks need an IPv6 next hop"},
		"IPv4 over IPv4": {func(r *NetlinkRouter) {
			networks("10.0.0.0/8")(r)
			hop(NextHop{Via: netip.MustParseAddr("10.0.0.1")})(r)
		}, ""},
		"device":            {hop(NextHop{Interface: "tun0"}), ""},
		"no hop":            {hop(NextHop{}), "needs Via or Interface"},
		"zone":              {hop(NextHop{Via: netip.MustParseAddr("fe80::1%bond0")}), "name the interface in Interface"},
		"link-local hop":    {hop(NextHop{Via: netip.MustParseAddr("fe80::1")}), "is link-local and needs Interface"},
		"link-local hop on": {hop(NextHop{Via: netip.MustParseAddr("fe80::1"), Interface: "bond0"}), ""},
		"mapped hop":        {hop(NextHop{Via: netip.MustParseAddr("::ffff:10.0.0.1")}), "written as IPv6"},
		"no neighbour":      {hop(NextHop{Via: netip.MustParseAddr("::")}), "cannot be a neighbour"},
		"on link of what":   {hop(NextHop{Via: via, OnLink: true}), "OnLink needs Via and Interface"},
		"name":              {hop(NextHop{Interface: "a/b"}), "is no name of an interface"},
		"long name":         {hop(NextHop{Interface: strings.Repeat("a", 16)}), "is no name of an interface"},
		"source":            {hop(NextHop{Via: via, Source: netip.MustParseAddr("10.9.0.1")}), ""},
		"source of no network": {func(r *NetlinkRouter) {
			networks("fd00:1::/32")(r)
			hop(NextHop{Via: via, Source: netip.MustParseAddr("10.9.0.1")})(r)
		}, "source 10.9.0.1 is IPv4, and none of the networks is"},
		"source of no network, v6": {func(r *NetlinkRouter) { networks("10.0.0.0/8")(r); hop(NextHop{Via: via, Source: via})(r) }, "source fd00::a is IPv6, and none of the networks is"},
		"source of nobody":         {hop(NextHop{Via: via, Source: netip.MustParseAddr("0.0.0.0")}), "is nobody's address"},
		"source with a zone":       {hop(NextHop{Via: via, Source: netip.MustParseAddr("fe80::1%a")}), "want a plain"},
		"table":                    {func(r *NetlinkRouter) { r.Table = 255 }, "table 255"},
		"negative table":           {func(r *NetlinkRouter) { r.Table = -1 }, "table -1"},
		"probe table":              {func(r *NetlinkRouter) { r.Table = DefaultProbeTable + 47 }, "is one of the probe tables, 21500 to 21547"},
		"low probe table":          {func(r *NetlinkRouter) { r.ProbeTable = 100 }, "probe table 100: want 256"},
		"probe mark":               {func(r *NetlinkRouter) { r.ProbeMark = -1 }, "probe mark -1"},
		"rule priority":            {func(r *NetlinkRouter) { r.RulePriority = 32766 }, "rule priority 32766"},
		"metric":                   {func(r *NetlinkRouter) { r.Metric = -1 }, "metric -1"},
		"protocol":                 {func(r *NetlinkRouter) { r.Protocol = 4 }, "protocol 4"},
		"large protocol":           {func(r *NetlinkRouter) { r.Protocol = 256 }, "protocol 256"},
		"unnamed path":             {func(r *NetlinkRouter) { r.Hops[""] = NextHop{Interface: "a"} }, "a path needs a name"},
		"too many paths": {func(r *NetlinkRouter) {
			for i := range maxHops {
				r.Hops[fmt.Sprint(i)] = NextHop{Interface: "a"}
			}
		}, "49 next hops, at most 48"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &NetlinkRouter{Networks: prefixes("10.0.0.0/8", "fd00:1::/32"), Hops: map[string]NextHop{"b": {Interface: "bond0"}}}
			tc.change(r)
			err := r.Check()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "pathcontrol: routes: ") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if up := r.Up(); up == nil || up.Error() != err.Error() {
				t.Errorf("Up: %v", up)
			}
		})
	}
}

func networks(texts ...string) func(*NetlinkRouter) {
	return func(r *NetlinkRouter) { r.Networks = prefixes(texts...) }
}

func hop(h NextHop) func(*NetlinkRouter) {
	return func(r *NetlinkRouter) { r.Hops["a"] = h }
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestRouterMark(t *testing.T) {
	r := &NetlinkRouter{Networks: prefixes("10.0.0.0/8"), Hops: map[string]NextHop{"b": {Interface: "b"}, "a": {Interface: "a"}}}
	if _, err := r.Mark("a"); err == nil || !strings.Contains(err.Error(), "needs PerPath") {
		t.Errorf("error %v", err)
	}
	r.PerPath, r.ProbeMark = true, 500
	for path, want := range map[string]uint32{"a": 500, "b": 501} {
		if mark, err := r.Mark(path); err != nil || mark != want {
			t.Errorf("mark of %s: %d, %v", path, mark, err)
		}
	}
	for path, want := range map[string]string{"c": `no path "c" among the next hops: a, b`, "a": errRouterDown.Error()} {
		if err := r.Control(path)("udp", "", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v", err)
		}
	}
}

// place is a route of 10.0.0.0/8, or of fd00::/8, as the plan's tests write them:
// by protocol, metric, and next hop.
func place(v6 bool, protocol uint8, metric uint32, via string, source string) routeEntry {
	e := routeEntry{routeKey: routeKey{DefaultRouteTable, netip.MustParsePrefix("10.0.0.0/8"), metric}, protocol: protocol, kind: kindUnicast}
	if v6 {
		e.to = netip.MustParsePrefix("fd00::/8")
	}
	hop := routeHop{link: 7}
	if via != "" {
		hop.via = netip.MustParseAddr(via)
	}
	if source != "" {
		e.source = netip.MustParseAddr(source)
	}
	e.hops = []routeHop{hop}
	return e
}

func TestPlanRoutes(t *testing.T) {
	const ours, metric = DefaultRouteProtocol, DefaultRouteMetric
	r := &NetlinkRouter{}
	several := func(e routeEntry, via string) routeEntry {
		e.hops = append(slices.Clone(e.hops), routeHop{link: 7, via: netip.MustParseAddr(via)})
		return e
	}
	a4, b4 := place(false, ours, metric, "fd00::a", ""), place(false, ours, metric, "fd00::b", "")
	a6, b6, d6 := place(true, ours, metric, "fd00::a", ""), place(true, ours, metric, "fd00::b", ""), place(true, ours, metric, "", "")
	a6source := place(true, ours, metric, "fd00::a", "fd00::1")
	foreign4 := place(false, 4, metric, "fd00::a", "")
	for name, tc := range map[string]struct {
		want, have []routeEntry
		plan       string
	}{
		"new":                         {[]routeEntry{a4}, nil, "add fd00::a; missing 1"},
		"there":                       {[]routeEntry{a4}, []routeEntry{a4}, ""},
		"another":                     {[]routeEntry{b4}, []routeEntry{a4}, "replace fd00::b; missing 1"},
		"not wanted":                  {nil, []routeEntry{a4}, "remove fd00::a"},
		"somebody else's":             {[]routeEntry{a4}, []routeEntry{foreign4}, "missing 1; conflicts 1"},
		"somebody else's, as well":    {[]routeEntry{a4}, []routeEntry{foreign4, a4}, "conflicts 1"},
		"somebody else's, not wanted": {nil, []routeEntry{foreign4}, ""},
		"another metric":              {[]routeEntry{a4}, []routeEntry{place(false, 4, 1024, "fd00::b", "")}, "add fd00::a; missing 1"},
		"a better metric":             {[]routeEntry{a4}, []routeEntry{place(false, 4, 0, "fd00::b", ""), a4}, "shadows 1"},
		"two of ours":                 {[]routeEntry{a4}, []routeEntry{b4, a4}, "remove fd00::b"},
		"two others of ours":          {[]routeEntry{a4}, []routeEntry{b4, place(false, ours, metric, "fd00::c", "")}, "replace fd00::a; remove fd00::b; remove fd00::c; missing 1"},
		"two that differ in source":   {[]routeEntry{a6}, []routeEntry{b6, a6source}, "replace fd00::a; remove fd00::b; missing 1"},
		"IPv6":                        {[]routeEntry{a6}, []routeEntry{b6}, "replace fd00::a; missing 1"},
		"IPv6, router for none":       {[]routeEntry{a6}, []routeEntry{d6}, "replace fd00::a; missing 1"},
		"IPv6, none for router":       {[]routeEntry{d6}, []routeEntry{a6}, "append direct; remove fd00::a; missing 1"},
		"IPv6, several":               {[]routeEntry{a6}, []routeEntry{several(a6, "fd00::b")}, "missing 1; conflicts 1"},
		"IPv6, several, not wanted":   {nil, []routeEntry{several(a6, "fd00::b")}, "remove fd00::a; remove fd00::b"},
		"IPv4, several":               {[]routeEntry{a4}, []routeEntry{several(a4, "fd00::b")}, "replace fd00::a; missing 1"},
		"IPv4, several, not wanted":   {nil, []routeEntry{several(a4, "fd00::b")}, "remove several"},
	} {
		t.Run(name, func(t *testing.T) {
			p := planRoutes(tc.want, tc.have, r.owns)
			var got []string
			for _, c := range slices.Concat(p.changes, p.removals) {
				to := "direct"
				if len(c.route.hops) > 1 {
					to = "several"
				} else if !c.route.direct() {
					to = c.route.hops[0].via.String()
				}
				got = append(got, []string{"add", "replace", "append", "remove"}[c.verb]+" "+to)
			}
			for what, n := range map[string]int{"missing": len(p.missing), "conflicts": len(p.conflicts), "shadows": len(p.shadows)} {
				if n > 0 {
					got = append(got, fmt.Sprint(what, " ", n))
				}
			}
			want := strings.Split(tc.plan, "; ")
			if tc.plan == "" {
				want = nil
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("plan %q, want %q", got, want)
			}
		})
	}
}

func TestRouteWords(t *testing.T) {
	e := place(false, 4, 0, "10.0.0.1", "10.0.0.2")
	e.hops = append(e.hops, routeHop{via: netip.MustParseAddr("fd00::1"), name: "bond0", onLink: true})
	e.table, e.kind = 100, 6
	if got, want := e.String(), "type 6 10.0.0.0/8 nexthop via 10.0.0.1 dev if7 nexthop via inet6 fd00::1 dev bond0 onlink table 100 proto 4 src 10.0.0.2 metric 0"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	dead := (&NetlinkRouter{Networks: prefixes("::/0")}).dead(300)
	if got, want := dead[0].String(), "unreachable default table 300 proto 215 metric 51"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := (ruleEntry{mark: 0xd0, table: 300, priority: 2, protocol: 9}).String(), "fwmark 0xd0 lookup 300 priority 2 proto 9"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestRouteErrors: of a thousand refusals the person reads what they say, once.
func TestRouteErrors(t *testing.T) {
	var changes []routeChange
	var errs []error
	var all []routeEntry
	one := errors.New("no")
	for i := range 8 {
		e := place(false, 215, uint32(i), "fd00::a", "")
		changes, all = append(changes, routeChange{verbAdd, e}), append(all, e)
		switch {
		case i == 0:
			errs = append(errs, nil)
		case i < 4:
			errs = append(errs, one)
		default:
			errs = append(errs, fmt.Errorf("reason %d", i))
		}
	}
	err := summary(changes, errs)
	if !errors.Is(err, one) || !strings.Contains(err.Error(), "3 of 8 routes, one of them 10.0.0.0/8") || !strings.HasSuffix(err.Error(), "and 2 other reasons") {
		t.Errorf("error %v", err)
	}
	if err := conflict(all); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "and 5 more") {
		t.Errorf("error %v", err)
	}
	if err := summary(changes, make([]error, 8)); err != nil {
		t.Errorf("error %v", err)
	}
}

func TestLogGate(t *testing.T) {
	var g logGate
	one := errors.New("one")
	pass := func(err error, want bool, wantHeld int) {
		t.Helper()
		if held, ok := g.pass(err); ok != want || held != wantHeld {
			t.Errorf("%v: %v, held %d", err, ok, held)
		}
	}
	pass(nil, true, 0)
	pass(nil, false, 0)
	pass(one, true, 1)
	pass(one, false, 0)
	g.last = g.last.Add(-2 * time.Second)
	pass(one, false, 0)
	g.last = g.last.Add(-time.Minute)
	pass(one, true, 2)
	pass(nil, true, 0)
	g.last = g.last.Add(-2 * time.Second)
	pass(nil, true, 0)
}
