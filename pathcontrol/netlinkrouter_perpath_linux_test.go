package pathcontrol

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestRouterPerPath: a marked socket reaches what is behind its path, whichever
// path is in use.
func TestRouterPerPath(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		before := self.dump(nobody)
		listen := func(h *routeHost, address string) {
			h.do(func() {
				l, err := net.Listen("tcp", address)
				self.must(err)
				t.Cleanup(func() { l.Close() })
			})
		}
		listen(w.a, "10.201.0.1:80")
		listen(w.b, "10.201.0.2:80")
		listen(w.self, "["+selfAddr6+"]:80")
		r := w.router()
		r.PerPath, r.CheckInterval = true, noTicks
		if err := dialBy(t, r, "a"); !errors.Is(err, errRouterDown) {
			t.Errorf("before Up: %v", err)
		}
		stop := running(t, r)
		reaches := func(path, address string) bool {
			t.Helper()
			var d net.Dialer
			if path != "" {
				d.Control = r.Control(path)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := d.DialContext(ctx, "tcp", address)
			if err == nil {
				c.Close()
			}
			return err == nil
		}
		for _, use := range []string{"", "a", "b"} {
			self.must(r.Use(t.Context(), use))
			for _, tc := range []struct {
				path, address string
				want          bool
			}{
				{"a", "10.201.0.1:80", true}, {"a", "10.201.0.2:80", false},
				{"b", "10.201.0.2:80", true}, {"b", "10.201.0.1:80", false},
				{"", "10.201.0.1:80", use == "a"}, {"", "10.201.0.2:80", use == "b"},
				{"a", "[" + selfAddr6 + "]:80", true}, // not one of the networks
			} {
				if got := reaches(tc.path, tc.address); got != tc.want {
					t.Errorf("in use %q: a socket of path %q reaches %s: %v", use, tc.path, tc.address, got)
				}
			}
		}
		mark, err := r.Mark("b")
		if err != nil || mark != DefaultProbeMark+1 {
			t.Errorf("mark %#x, %v", mark, err)
		}

		// Rules and routes of the path's own table come back.
		rules := func() (n int) {
			list, err := r.kernel.rules()
			self.must(err)
			for _, e := range list {
				if r.ownsRule(e) {
					n++
				}
			}
			return n
		}
		if n := rules(); n != 4 {
			t.Errorf("%d rules", n)
		}
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.Mark = DefaultRulePriority, DefaultProbeTable, DefaultProbeMark
		self.must(netlink.RuleDel(rule))
		until(t, "the rule is back", func() bool { return rules() == 4 })
		to, err := netlink.ParseIPNet("10.201.0.0/16")
		self.must(err)
		self.must(netlink.RouteDel(&netlink.Route{Dst: to, Table: DefaultProbeTable, Priority: DefaultRouteMetric}))
		until(t, "the route is back", func() bool { return reaches("a", "10.201.0.1:80") })

		// Somebody's route in such a table is told.
		link, err := netlink.LinkByName("link")
		self.must(err)
		foreign := &netlink.Route{Dst: to, Table: DefaultProbeTable, Priority: 1, LinkIndex: link.Attrs().Index}
		self.must(netlink.RouteAdd(foreign))
		until(t, "the conflict is seen", func() bool { return errors.Is(r.Status().ProbeErr, ErrConflict) })
		self.must(netlink.RouteDel(foreign))
		until(t, "the conflict is over", func() bool { return r.Status().ProbeErr == nil })

		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterPerPathDead: when the interface of a path is gone, its mark leads
// nowhere and not by the other path.
func TestRouterPerPathDead(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		w.plug(w.self, "spare", "spare")
		self.address("spare", "fd00:1::1/64")
		r := w.router()
		r.PerPath, r.CheckInterval = true, noTicks
		r.Hops["b"] = NextHop{Via: netip.MustParseAddr("fd00:1::b"), Interface: "spare"}
		r.Hops["c"] = NextHop{Interface: "later"}
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		if err := dialBy(t, r, "c"); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("by a path whose interface is not there yet: %v", err)
		}
		if err := dialBy(t, r, "b"); err != nil {
			t.Errorf("by a path that is there: %v", err)
		}
		link, err := netlink.LinkByName("spare")
		self.must(err)
		self.must(netlink.LinkDel(link))
		if err := dialBy(t, r, "b"); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("by a path whose interface is gone: %v", err)
		}
		if err := dialBy(t, r, "a"); err != nil {
			t.Errorf("by the path in use: %v", err)
		}
		if s := r.Status(); s.Err != nil {
			t.Errorf("the path in use suffers: %v", s.Err)
		}
		until(t, "the dead paths are told", func() bool {
			err := r.Status().ProbeErr
			return err != nil && strings.Contains(err.Error(), `"b"`) && strings.Contains(err.Error(), `"c"`)
		})
		w.plug(w.self, "later", "later")
		until(t, "the path is there", func() bool { return dialBy(t, r, "c") == nil })
	})
}

// TestRouterProbeTablesTaken: without PerPath nobody's tables are touched.
func TestRouterProbeTablesTaken(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		first, second := w.router(), w.router()
		first.PerPath = true
		self.must(first.Use(t.Context(), "a"))
		before := self.dump(nobody)
		second.Metric = 60
		self.must(second.Use(t.Context(), "b"))
		self.must(second.Close())
		sameDump(t, before, self.dump(nobody))
		second.PerPath = true
		if err := second.Up(); err == nil || !strings.Contains(err.Error(), "probe tables") {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
		second.ProbeTable, second.ProbeMark = 22000, 0x40
		self.must(second.Use(t.Context(), "b"))
		self.must(second.Close())
		sameDump(t, before, self.dump(nobody))
		self.must(first.Close())
	})
}
