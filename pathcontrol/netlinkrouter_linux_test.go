package pathcontrol

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func sameDump(t *testing.T, before, after [][]byte) {
	t.Helper()
	missing := func(in, from [][]byte) (list [][]byte) {
		for _, line := range from {
			if !slices.ContainsFunc(in, func(other []byte) bool { return bytes.Equal(line, other) }) && len(list) < 5 {
				list = append(list, line)
			}
		}
		return list
	}
	if !slices.EqualFunc(before, after, bytes.Equal) {
		t.Errorf("the routes and rules of others have changed: %d instead of %d\nnew: %x\ngone: %x", len(after), len(before), missing(before, after), missing(after, before))
	}
}

// TestRouterMoves: routes of both families go by one next hop, then by another,
// then they are gone, and what others have there is the same byte for byte.
func TestRouterMoves(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		self.route("10.200.0.0/16", "10.9.0.10", "link", func(r *netlink.Route) { r.Priority = 4000 })
		self.route("fd00:200::/32", aAddr6, "link", func(r *netlink.Route) { r.Priority = 4000 })
		self.route("10.200.0.0/16", "10.9.0.10", "link", func(r *netlink.Route) { r.Table = 77; r.Priority = DefaultRouteMetric })
		before := self.dump(nobody)
		r := w.router()
		for _, path := range []string{"a", "b", "b", "a"} {
			if err := r.Use(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			wantRoutes(t, r, r.Routes(path)...)
			if s := r.Status(); s.Path != path || s.Routes != 3 || s.Err != nil {
				t.Errorf("status %+v", s)
			}
		}
		if s := r.Status(); s.Moved != 3 {
			t.Errorf("moved %d times", s.Moved)
		}
		sameDump(t, before, self.dump(r.owns))
		if err := r.Use(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		wantRoutes(t, r)
		if err := r.Use(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterForwards: a TCP connection and a stream of datagrams go through one
// router and then the other, and nothing is lost.
func TestRouterForwards(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		var l net.Listener
		var echo net.PacketConn
		w.target.do(func() {
			var err error
			l, err = net.Listen("tcp", "10.200.0.1:80")
			self.must(err)
			echo, err = net.ListenPacket("udp", "[fd00:200::1]:7")
			self.must(err)
		})
		defer l.Close()
		defer echo.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := echo.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = echo.WriteTo(b[:n], from)
			}
		}()
		r := w.router()
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		c, err := net.Dial("tcp", "10.200.0.1:80")
		self.must(err)
		defer c.Close()
		u, err := net.Dial("udp", "[fd00:200::1]:7")
		self.must(err)
		defer u.Close()
		counter := func(h *routeHost) (n uint64) {
			h.do(func() {
				link, err := netlink.LinkByName("inner")
				self.must(err)
				n = link.Attrs().Statistics.TxPackets
			})
			return n
		}
		b := make([]byte, 100)
		ping := func(c net.Conn) {
			t.Helper()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if n, err := io.ReadAtLeast(c, b, 5); err != nil || string(b[:n]) != "hello" {
				t.Fatalf("%q %v", b[:n], err)
			}
		}
		for i := range 40 {
			path, gone := "a", w.b
			if i%2 == 1 {
				path, gone = "b", w.a
			}
			self.must(r.Use(t.Context(), path))
			idle := counter(gone)
			for range 25 {
				ping(u) // a lost datagram is a missing answer
				ping(c)
			}
			// Answers come by a, whatever the path.
			if now := counter(gone); path == "a" && now > idle+3 {
				t.Errorf("%d packets by b on path a", now-idle)
			}
		}
	})
}

// TestRouterManyNetworks: of 1,000 networks none is without a route at any moment
// while they move, and the time that it takes is told.
func TestRouterManyNetworks(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.Networks = many(1000)
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		asker, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		self.must(err)
		defer asker.Close()
		stop, stopped := make(chan struct{}), make(chan int)
		go func() {
			asked := 0
			defer func() { stopped <- asked }()
			for {
				for _, n := range r.Networks {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := asker.RouteGet(n.Addr().Next().AsSlice()); err != nil {
						t.Errorf("%v: %v", n, err)
						return
					}
					asked++
				}
			}
		}()
		var took []time.Duration
		for i := range 20 {
			start := time.Now()
			self.must(r.Use(t.Context(), []string{"b", "a"}[i%2]))
			took = append(took, time.Since(start))
		}
		close(stop)
		asked := <-stopped
		wantRoutes(t, r, r.Routes("a")...)
		slices.Sort(took)
		t.Logf("1,000 networks moved in %v (median), %v (worst of %d); %d questions meanwhile", took[len(took)/2], took[len(took)-1], len(took), asked)
		if s := r.Status(); s.Reasserted != 0 || s.Err != nil {
			t.Errorf("status %+v", s)
		}
	})
}

// TestRouterConflict: a route of somebody else with the place of ours is named, and
// nothing is changed.
func TestRouterConflict(t *testing.T) {
	for name, add := range map[string]func(*routeHost){
		"IPv4": func(h *routeHost) {
			h.route("10.201.0.0/16", "10.9.0.10", "link", func(r *netlink.Route) { r.Priority = DefaultRouteMetric })
		},
		"IPv6": func(h *routeHost) {
			h.route("fd00:200::/32", "fd00::c", "link", func(r *netlink.Route) { r.Priority = DefaultRouteMetric })
		},
	} {
		t.Run(name, func(t *testing.T) {
			inHost(t, func(t *testing.T, self *routeHost) {
				w := newTwoPaths(self)
				add(self)
				before := self.dump(nobody)
				r := w.router()
				err := r.Use(t.Context(), "a")
				if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "proto 4") {
					t.Errorf("error %v", err)
				}
				sameDump(t, before, self.dump(nobody))
				self.must(r.Close())
				sameDump(t, before, self.dump(nobody))
			})
		})
	}
}

// TestRouterRollsBack: when the kernel refuses a part, all is as it was before.
func TestRouterRollsBack(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.Networks = append(r.Networks, prefixes("10.202.0.0/16", "fd00:300::/32")...)
		// Only the routes that have the source are refused: those of IPv4.
		r.Hops["b"] = NextHop{Via: netip.MustParseAddr(bAddr6), Interface: "link", Source: netip.MustParseAddr("10.77.0.1")}
		err := r.Use(t.Context(), "b")
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "as before") {
			t.Errorf("error %v", err)
		}
		wantRoutes(t, r)
		self.must(r.Use(t.Context(), "a"))
		before := self.dump(nobody)
		err = r.Use(t.Context(), "b")
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "3 of 5 routes") || !strings.Contains(err.Error(), "as before") {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
		if s := r.Status(); s.Path != "a" {
			t.Errorf("status %+v", s)
		}
		err = r.Use(t.Context(), "c")
		if err == nil || !strings.Contains(err.Error(), `no path "c" among the next hops: a, b`) {
			t.Errorf("error %v", err)
		}
		gone, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("too late")
		cancel(cause)
		if err := r.Use(gone, "b"); err != cause {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
		self.must(r.Close())
	})
}

// TestRouterShapes goes from every form of next hop to every other. IPv6 replaces
// a route with a router only by one with a router, so some of these go by two steps.
func TestRouterShapes(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		self.address("link", "fd00::2/64", "10.9.0.2/24")
		r := w.router()
		a := netip.MustParseAddr(aAddr6)
		r.Hops = map[string]NextHop{
			"a":        {Via: a, Interface: "link"},
			"b":        {Via: netip.MustParseAddr(bAddr6)},
			"direct":   {Interface: "link"},
			"onlink":   {Via: netip.MustParseAddr("fd99::1"), Interface: "link", OnLink: true},
			"source4":  {Via: a, Interface: "link", Source: netip.MustParseAddr("10.9.0.2")},
			"source6":  {Via: a, Interface: "link", Source: netip.MustParseAddr("fd00::2")},
			"source6b": {Via: a, Interface: "link", Source: netip.MustParseAddr("fd00::1")},
			"direct6":  {Interface: "link", Source: netip.MustParseAddr("fd00::2")},
			"local":    {Via: netip.MustParseAddr("fe80::1"), Interface: "link"},
		}
		names := r.names()
		for _, from := range names {
			for _, to := range names {
				self.must(r.Use(t.Context(), from))
				self.must(r.Use(t.Context(), to))
				want := r.Routes(to)
				for i := range want {
					if !strings.Contains(want[i], " dev ") {
						want[i] = strings.Replace(want[i], " proto", " dev link proto", 1)
					}
				}
				wantRoutes(t, r, want...)
				if t.Failed() {
					t.Fatalf("from %s to %s", from, to)
				}
			}
		}
		self.must(r.Close())
		wantRoutes(t, r)
	})
}

// TestRouterTable: another table and metric, a default route that is asked for, and
// networks within networks.
func TestRouterTable(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		before := self.dump(nobody)
		r := w.router()
		r.Table, r.Metric, r.Protocol, r.AllowDefault = 1000, 7, 99, true
		r.Networks = prefixes("0.0.0.0/0", "::/0", "10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "fd00::/16")
		self.must(r.Use(t.Context(), "b"))
		wantRoutes(t, r, r.Routes("b")...)
		if n := len(r.Routes("b")); n != 6 {
			t.Errorf("%d routes", n)
		}
		self.must(r.Use(t.Context(), "a"))
		sameDump(t, before, self.dump(r.owns))
		self.must(r.Close())
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterIPv4Alone: a host that has never used IPv6, on a kernel where that is a
// module, is no worse for it.
func TestRouterIPv4Alone(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "link"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); err != nil {
			t.Fatal(err)
		}
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		self := &routeHost{t, ns}
		self.up("link")
		self.up("other")
		self.address("link", "10.9.0.1/24")
		r := &NetlinkRouter{
			Networks: prefixes("10.200.0.0/16", "0.0.0.0/0"), AllowDefault: true, PerPath: true, Logger: slog.New(slog.DiscardHandler),
			Hops: map[string]NextHop{"a": {Via: netip.MustParseAddr("10.9.0.10")}, "b": {Via: netip.MustParseAddr("10.9.0.11"), Interface: "link"}},
		}
		running(t, r)
		for _, path := range []string{"a", "b", "a"} {
			self.must(r.Use(t.Context(), path))
		}
		if n := len(routesOf(t, r)); n != 2+2*4 {
			t.Errorf("%d routes: %q", n, routesOf(t, r))
		}
		rules, err := r.kernel.rules()
		self.must(err)
		if n := len(slices.DeleteFunc(rules, func(e ruleEntry) bool { return !r.ownsRule(e) })); n != 2 {
			t.Errorf("%d rules", n)
		}
		until(t, "Run looks", func() bool { s := r.Status(); return s.Err == nil && s.ProbeErr == nil })
	})
}
