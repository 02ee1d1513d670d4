package entrypoint

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// deaf is a Handler that serves nobody.
type deaf struct{}

func (deaf) ServeConn(context.Context, *Incoming) error { return nil }

// mustTable makes a table of routes that are named after what leads to them.
func mustTable(t testing.TB, routes ...*Route) *table {
	t.Helper()
	for _, r := range routes {
		if r.Handler == nil {
			r.Handler = deaf{}
		}
		if r.Name == "" {
			r.Name = fmt.Sprint(r.SNI, r.Destinations, r.HeaderValues, r.Default)
		}
	}
	table, err := newTable(routes)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func sniRoutes(names ...string) (routes []*Route) {
	for _, name := range names {
		routes = append(routes, &Route{Name: name, SNI: []string{name}})
	}
	return routes
}

func nameOf(r *Route) string {
	if r == nil {
		return ""
	}
	return r.Name
}

// A whole name counts before a wildcard, and a longer wildcard before a shorter
// one. A wildcard is for any number of labels, and not for none.
func TestLookupServerName(t *testing.T) {
	names := []string{"a.b", "*.a.b", "*.x.a.b", "y.x.a.b", "*.Example.COM", "Exact.Example.com", "*.com"}
	for name, want := range map[string]string{
		"a.b":                 "a.b",
		"c.a.b":               "*.a.b",
		"e.d.c.a.b":           "*.a.b",
		"x.a.b":               "*.a.b", // not *.x.a.b, which is for what is below it
		"y.x.a.b":             "y.x.a.b",
		"z.x.a.b":             "*.x.a.b",
		"z.y.x.a.b":           "*.x.a.b", // an exact name is for itself alone
		"A.B":                 "a.b",
		"EXACT.example.com":   "Exact.Example.com",
		"other.EXAMPLE.com":   "*.Example.COM",
		"example.com":         "*.com",
		"com":                 "default",
		"ca.b":                "default",
		"b":                   "default",
		"":                    "default",
		".a.b":                "default",
		"*.a.b":               "default", // as good as any other label
		"a.b.":                "default",
		"net":                 "default",
		"very.far.away.org":   "default",
		"x..a.b":              "default",
		"a.b.evil.org":        "default",
		"exact.example.com.x": "default",
	} {
		with := mustTable(t, append(sniRoutes(names...), &Route{Name: "default", Default: true})...)
		if got := nameOf(with.byName(name)); got != want {
			t.Errorf("%q leads to %q, want %q", name, got, want)
		}
		without := mustTable(t, sniRoutes(names...)...)
		if got := nameOf(without.byName(name)); got != strings.TrimPrefix(want, "default") {
			t.Errorf("without a default, %q leads to %q, want %q", name, got, want)
		}
	}
}

// A name of many labels costs nothing: a ClientHello has room for 32,000, and
// a table would hash what follows each of them.
func TestLookupEndlessName(t *testing.T) {
	table := mustTable(t, append(sniRoutes("*.a"), &Route{Name: "default", Default: true})...)
	longest := strings.Repeat("a.", 126) + "a"
	for name, want := range map[string]string{longest: "*.a", "aa." + longest: "default", strings.Repeat("a.", 32000) + "a": "default"} {
		if got := nameOf(table.byName(name)); got != want {
			t.Errorf("a name of %d bytes leads to %q, want %q", len(name), got, want)
		}
	}
}

// The longest prefix counts, then the port; IPv4 and IPv6 are apart, and an IPv4
// address within IPv6 is one of IPv4.
func TestLookupDestination(t *testing.T) {
	var routes []*Route
	for _, d := range []string{
		"240.0.0.0/4", "240.0.0.0/8", "240.0.0.0/8:443", "240.0.0.1", "240.0.0.1:443",
		"240.1.0.0/16:443", "[fd00::/8]:443", "fd00::/64", "fd00::1", "[fd00::1]:443", "0.0.0.0/0:53",
	} {
		routes = append(routes, &Route{Name: d, Destinations: []Destination{dest(d)}})
	}
	table := mustTable(t, routes...)
	for d, want := range map[string]string{
		"240.0.0.1:443":          "240.0.0.1:443",
		"240.0.0.1:444":          "240.0.0.1",
		"240.0.0.2:443":          "240.0.0.0/8:443",
		"240.0.0.2:444":          "240.0.0.0/8",
		"240.1.0.1:443":          "240.1.0.0/16:443",
		"240.1.0.1:444":          "240.0.0.0/8", // a longer prefix with another port is not for it
		"241.0.0.1:443":          "240.0.0.0/4",
		"192.0.2.1:443":          "",
		"192.0.2.1:53":           "0.0.0.0/0:53",
		"[::ffff:240.0.0.1]:443": "240.0.0.1:443",
		"[fd00::1]:443":          "[fd00::1]:443",
		"[fd00::1]:444":          "fd00::1",
		"[fd00::1%eth0]:443":     "[fd00::1]:443",
		"[fd00::2]:443":          "fd00::/64",
		"[fd00:0:0:1::2]:443":    "[fd00::/8]:443",
		"[fd00:0:0:1::2]:444":    "",
		"[2001:db8::1]:53":       "",
	} {
		if got := nameOf(table.byDestination(netip.MustParseAddrPort(d))); got != want {
			t.Errorf("%s leads to %q, want %q", d, got, want)
		}
	}
	if got := table.byDestination(netip.AddrPort{}); got != nil {
		t.Errorf("no address leads to %q", got.Name)
	}
}

// The default is for names alone, and what was told apart by one thing is not
// looked up by another.
func TestLookupKinds(t *testing.T) {
	routes := mustTable(t,
		&Route{Name: "a", SNI: []string{"a.b"}, Destinations: []Destination{dest("240.0.0.1")}, HeaderValues: []string{"v"}},
		&Route{Name: "default", Default: true})
	for _, c := range []struct {
		info Info
		want string
	}{
		{Info{By: BySNI, ServerName: "a.b"}, "a"},
		{Info{By: BySNI, ServerName: "v", HeaderValue: "v"}, "default"},
		{Info{By: ByHeader, HeaderValue: "v"}, "a"},
		{Info{By: ByHeader, HeaderValue: "V"}, ""},
		{Info{By: ByHeader, HeaderValue: "w", ServerName: "a.b"}, ""},
		{Info{By: ByDestination, Destination: netip.MustParseAddrPort("240.0.0.1:1")}, "a"},
		{Info{By: ByDestination, Destination: netip.MustParseAddrPort("240.0.0.2:1"), ServerName: "a.b"}, ""},
		{Info{ServerName: "a.b", HeaderValue: "v"}, ""},
	} {
		if got := nameOf(routes.lookup(&c.info)); got != c.want {
			t.Errorf("%+v leads to %q, want %q", c.info, got, c.want)
		}
	}
	if got := (*table)(nil).lookup(&Info{By: BySNI, ServerName: "a.b"}); got != nil {
		t.Errorf("without routes: %q", got.Name)
	}
}

// All that is wrong with a set is told at once, with the route that it is wrong
// with.
func TestTableErrors(t *testing.T) {
	ok := func(r Route) *Route {
		if r.Handler == nil {
			r.Handler = deaf{}
		}
		return &r
	}
	first := ok(Route{
		Name: "first", SNI: []string{"a.b", "*.a.b"}, Destinations: []Destination{dest("240.0.0.1:443"), dest("fd00::/64")},
		HeaderValues: []string{"v"}, Default: true,
	})
	_, err := newTable([]*Route{
		first,
		nil,
		ok(Route{Name: "first", SNI: []string{"other"}}),
		ok(Route{Name: "name", SNI: []string{"A.b"}}),
		ok(Route{Name: "wildcard", SNI: []string{"*.A.B"}}),
		ok(Route{Name: "address", Destinations: []Destination{dest("240.0.0.1:443")}}),
		ok(Route{Name: "prefix", Destinations: []Destination{dest("fd00::/64")}}),
		ok(Route{Name: "header", HeaderValues: []string{"v"}}),
		ok(Route{Name: "fallback", Default: true}),
		ok(Route{Name: "twice", SNI: []string{"twice.b", "twice.b"}}),
		{Name: "handless", SNI: []string{"handless.b"}},
		ok(Route{Name: "nowhere"}),
		ok(Route{SNI: []string{"nameless.b"}}),
		ok(Route{Name: "bad names", SNI: []string{
			"", "*", "*.", "*.*.b", "a.*.b", "b.", ".b", "a..b", "a b", "ä.b", "192.0.2.1", "fd00::1", strings.Repeat("a", 64) + ".b",
			strings.Repeat("a.", 127) + "a", "a.b:443",
		}}),
		ok(Route{Name: "bad values", HeaderValues: []string{"", " v", "v ", "v\r\nw", "\x7f"}}),
		ok(Route{Name: "bad destinations", Destinations: []Destination{
			{}, {Prefix: netip.PrefixFrom(netip.MustParseAddr("240.0.0.1"), 8)}, {Prefix: prefix("::ffff:240.0.0.1/128")},
		}}),
		ok(Route{Name: "bad clients", SNI: []string{"clients.b"}, Allow: []netip.Prefix{{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 8)}, Deny: []netip.Prefix{prefix("::ffff:10.0.0.0/104")}}),
		ok(Route{Name: "good", SNI: []string{"good.b", "*.good.b"}, Destinations: []Destination{dest("240.0.0.1"), dest("240.0.0.1:444")}}),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for part, n := range map[string]int{
		"nil route":                                   1,
		"the name is route \"first\"'s already":       1,
		"server name A.b is route \"first\"'s":        1,
		"server name *.A.B is route \"first\"'s":      1,
		"240.0.0.1:443 is route \"first\"'s":          1,
		"destination fd00::/64 is route \"first\"'s":  1,
		"header value \"v\" is route \"first\"'s":     1,
		"being the default is route \"first\"'s":      1,
		"server name twice.b is route \"twice\"'s":    1,
		"it has no handler":                           1,
		"nothing leads to it":                         1,
		"it has no name":                              1,
		"server name \"":                              15,
		"header value \"":                             5 + 1,
		"destination \"":                              3,
		"client prefix ":                              3,
		"route \"handless\"":                          1,
		"route \"good\"":                              0,
		"an address is no server name":                1, // the other has colons
		"there are bits behind the prefix":            1,
		"it is not valid, has bits behind the prefix": 3,
	} {
		if got := strings.Count(err.Error(), part); got != n {
			t.Errorf("%d times %q, want %d", got, part, n)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

// What ParseDestination reads String writes, and the other way round.
func TestParseDestination(t *testing.T) {
	for s, want := range map[string]string{
		"240.0.0.1":          "",
		"240.0.0.1:443":      "",
		"240.0.0.0/24":       "",
		"240.0.0.0/24:443":   "",
		"240.0.0.1/32":       "240.0.0.1",
		"[240.0.0.1]:443":    "240.0.0.1:443",
		"0.0.0.0/0":          "",
		"0.0.0.0/0:65535":    "",
		"fd00::1":            "",
		"fd00::1/128":        "fd00::1",
		"[fd00::1]:443":      "",
		"fd00::/64":          "",
		"[fd00::/64]:443":    "",
		"[fd00::1/128]:443":  "[fd00::1]:443",
		"::/0":               "",
		"FD00:0::1":          "fd00::1",
		"[fd00:0:0::1]:0443": "[fd00::1]:443",
	} {
		d, err := ParseDestination(s)
		if want == "" {
			want = s
		}
		if err != nil || d.String() != want {
			t.Errorf("%s: %s, %v; want %s", s, d, err, want)
			continue
		}
		if again, err := ParseDestination(d.String()); err != nil || again != d {
			t.Errorf("%s read again: %+v, %v; want %+v", d, again, err, d)
		}
	}
	for _, s := range []string{
		"", ":", ":443", "example.com", "example.com:443", "240.0.0.1:", "240.0.0.1:0", "240.0.0.1:65536", "240.0.0.1:-1", "240.0.0.1:x",
		"240.0.0.1:443:443", "240.0.0.1/24", "240.0.0.1/24:443", "240.0.0.0/33", "240.0.0.256", "fd00::1/64", "[fd00::1/64]:443",
		"[fd00::1]", "[fd00::1", "fd00::1]:443", "[[fd00::1]]:443", "[240.0.0.1:1]:443", "fe80::1%eth0", "[fe80::1%eth0]:443", "fe80::%eth0/64",
		"::ffff:240.0.0.1", "[::ffff:240.0.0.1]:443", "::ffff:0:0/96", "*", "*:443", " 240.0.0.1", "unix:/a",
	} {
		if d, err := ParseDestination(s); err == nil {
			t.Errorf("%q is taken for %+v", s, d)
		} else if !strings.HasPrefix(err.Error(), fmt.Sprintf("destination %q: ", s)) {
			t.Errorf("%q: the error does not name it: %v", s, err)
		}
	}
}

// Deny wins; who has no address is let in where nobody is asked for one.
func TestAdmits(t *testing.T) {
	list := func(s ...string) (ps []netip.Prefix) {
		for _, p := range s {
			ps = append(ps, prefix(p))
		}
		return ps
	}
	for _, c := range []struct {
		allow, deny []netip.Prefix
		in, out     []string
	}{
		{nil, nil, []string{"192.0.2.1", "2001:db8::1", ""}, nil},
		{list("192.0.2.0/24"), nil, []string{"192.0.2.1", "192.0.2.255"}, []string{"192.0.3.1", "2001:db8::1", ""}},
		{nil, list("192.0.2.0/24"), []string{"192.0.3.1", "2001:db8::1"}, []string{"192.0.2.1", ""}},
		{list("192.0.2.0/24", "2001:db8::/32"), list("192.0.2.7/32", "2001:db8:1::/48"), []string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.7", "2001:db8:1::1", ""}},
		{list("0.0.0.0/0"), nil, []string{"192.0.2.1"}, []string{"2001:db8::1", ""}},
		{list("192.0.2.1/32"), list("0.0.0.0/0"), nil, []string{"192.0.2.1", ""}},
	} {
		r := &Route{Allow: c.allow, Deny: c.deny}
		for _, s := range slices.Concat(c.in, c.out) {
			a, _ := netip.ParseAddr(s)
			if got, want := r.admits(a), slices.Contains(c.in, s); got != want {
				t.Errorf("allow %v, deny %v: %q is admitted: %v, want %v", c.allow, c.deny, s, got, want)
			}
		}
	}
}
