package pathcontrol

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// noTicks is a CheckInterval with which only the kernel's news help.
const noTicks = -1

func (h *routeHost) removeRoute(text string) {
	h.t.Helper()
	to, err := netlink.ParseIPNet(text)
	h.must(err)
	h.must(netlink.RouteDel(&netlink.Route{Dst: to, Priority: DefaultRouteMetric, Table: DefaultRouteTable}))
}

// TestRouterPutsBack: what others remove or change comes back by the kernel's news
// alone; what they put where ours has been stays, and ours comes after it.
func TestRouterPutsBack(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.CheckInterval = noTicks
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		whole := func() bool { return slices.Equal(routesOf(t, r), slices.Sorted(slices.Values(r.Routes("a")))) }
		for _, network := range []string{"10.200.0.0/16", "fd00:200::/32"} {
			before := r.Status().Reasserted
			self.removeRoute(network)
			until(t, network+" is back", func() bool { return r.Status().Reasserted > before && whole() })

			// Another next hop, under our name.
			to, err := netlink.ParseIPNet(network)
			self.must(err)
			link, err := netlink.LinkByName("link")
			self.must(err)
			changed := &netlink.Route{Dst: to, Priority: DefaultRouteMetric, Protocol: DefaultRouteProtocol, LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK}
			if to.IP.To4() == nil {
				changed.Gw, changed.Scope = net.ParseIP(bAddr6), 0
			}
			before = r.Status().Reasserted
			self.must(netlink.RouteReplace(changed))
			until(t, network+" is right", func() bool { return r.Status().Reasserted > before && whole() })

			// The same under another name is somebody else's.
			changed.Protocol = unix.RTPROT_STATIC
			self.must(netlink.RouteReplace(changed))
			until(t, "a conflict is seen", func() bool { return errors.Is(r.Status().Err, ErrConflict) })
			if s := r.Status(); s.Routes != 2 {
				t.Errorf("%d routes are said to be there", s.Routes)
			}
			if lines := routesOf(t, r); len(lines) != 2 {
				t.Errorf("routes %q", lines)
			}
			if err := r.Use(t.Context(), "b"); !errors.Is(err, ErrConflict) {
				t.Errorf("error %v", err)
			}
			self.must(netlink.RouteDel(changed))
			until(t, "the conflict is over", func() bool { s := r.Status(); return s.Err == nil && s.Routes == 3 && whole() })
		}
	})
}

// TestRouterSharedPlace: IPv6 holds routes with the same place together as one, and
// so somebody's can hang on ours. Neither is touched, ours goes alone.
func TestRouterSharedPlace(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		before := self.dump(nobody)
		r := w.router()
		r.CheckInterval = noTicks
		stop := running(t, r)
		self.must(r.Use(t.Context(), "a"))
		to, err := netlink.ParseIPNet("fd00:200::/32")
		self.must(err)
		link, err := netlink.LinkByName("link")
		self.must(err)
		foreign := &netlink.Route{Dst: to, Priority: DefaultRouteMetric, Protocol: unix.RTPROT_STATIC, LinkIndex: link.Attrs().Index, Gw: net.ParseIP("fd00::c")}
		self.must(netlink.RouteAppend(foreign))
		until(t, "a conflict is seen", func() bool { return errors.Is(r.Status().Err, ErrConflict) })
		if err := r.Use(t.Context(), "b"); !errors.Is(err, ErrConflict) {
			t.Errorf("error %v", err)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		self.must(netlink.RouteDel(foreign)) // fails unless it is there
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterInterface: routes come back after the interface was down, and after it
// was deleted and made again, by the kernel's news alone.
func TestRouterInterface(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.CheckInterval = noTicks
		stop := running(t, r)
		self.must(r.Use(t.Context(), "a"))
		whole := func() bool {
			s := r.Status()
			return s.Err == nil && s.Routes == 3 && slices.Equal(routesOf(t, r), slices.Sorted(slices.Values(r.Routes("a"))))
		}
		link, err := netlink.LinkByName("link")
		self.must(err)
		self.must(netlink.LinkSetDown(link))
		until(t, "the interface is missed", func() bool {
			s := r.Status()
			return s.Err != nil && strings.Contains(s.Err.Error(), "ip link set dev link up") && s.Routes == 0
		})
		if lines := routesOf(t, r); len(lines) != 0 {
			t.Errorf("routes %q", lines)
		}
		if err := r.Use(t.Context(), "b"); !errors.Is(err, unix.ENETDOWN) {
			t.Errorf("error %v", err)
		}
		self.must(netlink.LinkSetUp(link))
		self.address("link", selfAddr6+"/64") // went with the state
		until(t, "the routes are back", whole)

		self.must(netlink.LinkDel(link))
		until(t, "the interface is missed", func() bool {
			s := r.Status()
			return s.Err != nil && strings.Contains(s.Err.Error(), `no interface "link"`)
		})
		w.plug(self, "link", "self")
		self.address("link", selfAddr6+"/64", "10.9.0.1/24")
		until(t, "the routes are back", whole)
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		wantRoutes(t, r)
	})
}

// TestRouterNewsLost: when the kernel drops news because too many come at once,
// the router looks at everything.
func TestRouterNewsLost(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.Networks, r.CheckInterval = many(1000), noTicks
		self.must(r.Up())
		self.must(r.kernel.events.SetReceiveBufferSize(1, false)) // the least that there is
		running(t, r)
		self.must(r.Use(t.Context(), "a"))
		other := &routeKernel{done: make(chan struct{})}
		self.must(other.open())
		defer other.close()
		for r.Status().Lost == 0 {
			have, err := other.routes(r.table(), r.protocol())
			self.must(err)
			other.change(appendRemovals(nil, have))
		}
		until(t, "all routes are back", func() bool { return len(routesOf(t, r)) == 1000 })
	})
}

// TestRouterChecks: without news, the regular look finds it.
func TestRouterChecks(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.CheckInterval = 20 * time.Millisecond
		self.must(r.Up())
		r.kernel.events.Close()
		running(t, r)
		self.must(r.Use(t.Context(), "b"))
		self.removeRoute("10.200.0.0/16")
		until(t, "the route is back", func() bool { return r.Status().Reasserted > 0 && len(routesOf(t, r)) == 3 })
	})
}

// TestRouterClosed: Close ends Run.
func TestRouterClosed(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		stop := running(t, r)
		self.must(r.Use(t.Context(), "a"))
		// Run is at work then; before, it would begin anew, in its own namespace.
		self.removeRoute("10.200.0.0/16")
		until(t, "the route is back", func() bool { return r.Status().Reasserted > 0 })
		self.must(r.Close())
		if err := stop(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v", err)
		}
		wantRoutes(t, r)
		self.must(r.Use(t.Context(), "a")) // begins anew
		self.must(r.Close())
	})
}

// routeChild is the process that TestRouterKilled kills.
const routeChild = "RHIZOME_TEST_ROUTER"

// TestRouterKilled: what a killed process has left is taken over without a gap, and
// what is not wanted any more is removed.
func TestRouterKilled(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		before := self.dump(nobody)
		child := exec.Command(os.Args[0], "-test.run=^TestRouterChild$")
		child.Env = append(os.Environ(), routeChild+"=1")
		stdout, err := child.StdoutPipe()
		self.must(err)
		self.must(child.Start())
		b := make([]byte, 5)
		n, _ := stdout.Read(b)
		if string(b[:n]) != "ready" {
			t.Fatalf("child says %q", b[:n])
		}
		r := w.router()
		if err := r.Up(); err == nil || !strings.Contains(err.Error(), "another router") {
			t.Errorf("error of a second router: %v", err)
		}
		self.must(child.Process.Kill())
		_ = child.Wait()
		left := routesOf(t, r)
		if len(left) == 0 {
			t.Fatal("the child has left nothing")
		}
		r.Networks = slices.DeleteFunc(r.Networks, func(n netip.Prefix) bool { return n == netip.MustParsePrefix("10.201.0.0/16") })
		self.must(r.Up())
		wantRoutes(t, r, r.Routes("b")...)
		if s := r.Status(); s.Path != "b" || s.Routes != 2 {
			t.Errorf("status %+v", s)
		}
		if rules, err := r.kernel.rules(); err != nil || slices.ContainsFunc(rules, r.ownsRule) {
			t.Errorf("rules %v, %v", rules, err)
		}
		self.must(r.Use(t.Context(), "a"))
		self.must(r.Close())
		sameDump(t, before, self.dump(nobody))
	})
}

// TestRouterSweep: what killed routers have left goes, whatever the next process
// has, and what others have stays: a router that runs, another table or protocol.
func TestRouterSweep(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		runs := w.router()
		runs.Metric = 71
		self.must(runs.Use(t.Context(), "a"))
		self.route("10.200.0.0/16", aAddr6, "link", func(r *netlink.Route) { r.Protocol, r.Priority, r.Table = DefaultRouteProtocol, 70, 77 })
		self.route("10.200.0.0/16", aAddr6, "link", func(r *netlink.Route) { r.Priority = 72 })
		before := self.dump(nobody)
		for _, to := range []string{"10.201.0.0/16", "fd00:200::/32", "10.202.0.0/16"} {
			for _, metric := range []int{70, 72} {
				self.route(to, aAddr6, "link", func(r *netlink.Route) { r.Protocol, r.Priority = DefaultRouteProtocol, metric })
			}
		}
		for range 2 {
			self.must((&NetlinkRouter{}).Sweep())
			sameDump(t, before, self.dump(nobody))
		}
		self.must(runs.Close())
	})
}

// TestRouterChild is not a test: it is the process that TestRouterKilled kills.
func TestRouterChild(t *testing.T) {
	if os.Getenv(routeChild) == "" {
		return
	}
	r := (&twoPaths{}).router()
	r.PerPath = true
	if err := r.Use(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("ready")
	time.Sleep(time.Hour) // until it is killed
}

// TestRouterForbidden: without the right to, everything says so.
func TestRouterForbidden(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		up := w.router()
		up.PerPath = true
		self.must(up.Use(t.Context(), "a"))
		before := self.dump(nobody)
		self.withoutNetAdmin(func() {
			other := w.router()
			other.Metric = 60
			for what, err := range map[string]error{"Up": other.Up(), "Use": up.Use(t.Context(), "b"), "Control": dialBy(t, up, "a")} {
				if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
		sameDump(t, before, self.dump(nobody))
		self.must(up.Close())
	})
}

// withoutNetAdmin runs f on this thread without the capability.
func (h *routeHost) withoutNetAdmin(f func()) {
	h.t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, less [2]unix.CapUserData
	h.must(unix.Capget(&header, &had[0]))
	less = had
	for _, c := range []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		less[0].Effective &^= 1 << c
	}
	h.must(unix.Capset(&header, &less[0]))
	defer func() {
		if err := unix.Capset(&header, &had[0]); err != nil {
			panic(err)
		}
	}()
	f()
}

// dialBy sends a datagram by a path.
func dialBy(t *testing.T, r *NetlinkRouter, path string) error {
	t.Helper()
	c, err := (&net.Dialer{Control: r.Control(path)}).Dial("udp", "10.201.0.1:7")
	if err == nil {
		_, err = c.Write([]byte("hello"))
		c.Close()
	}
	return err
}
