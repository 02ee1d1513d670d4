package pathcontrol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A routeHost is a network namespace of a test. The test's goroutine is locked to
// its thread and is in the namespace of the host under test but within do.
type routeHost struct {
	t  testing.TB
	ns netns.NsHandle
}

// inHost runs f on the host that the router under test runs on.
func inHost(t *testing.T, f func(t *testing.T, self *routeHost)) {
	t.Helper()
	tunneltest.InNetns(t, func(t *testing.T) {
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		self := &routeHost{t, ns}
		self.settings()
		f(t, self)
	})
}

// host makes one more namespace.
func (h *routeHost) host() *routeHost {
	h.t.Helper()
	ns, err := netns.New()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ns.Close() })
	other := &routeHost{h.t, ns}
	lo, err := netlink.LinkByName("lo")
	other.must(err)
	other.must(netlink.LinkSetUp(lo))
	other.settings()
	other.sysctl("ipv4/ip_forward", "1")
	other.sysctl("ipv6/conf/all/forwarding", "1")
	h.must(netns.Set(h.ns))
	return other
}

// settings make a host answer at once: addresses are not checked for duplicates,
// and refusals not limited.
func (h *routeHost) settings() {
	h.t.Helper()
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close() // IPv6 can be a module that is loaded when it is used
	}
	h.sysctl("ipv6/conf/default/accept_dad", "0")
	h.sysctl("ipv4/icmp_ratelimit", "0")
	h.sysctl("ipv6/icmp/ratelimit", "0")
}

func (h *routeHost) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *routeHost) sysctl(name, value string) {
	h.t.Helper()
	h.must(os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
}

// do runs f in the namespace.
func (h *routeHost) do(f func()) {
	h.t.Helper()
	back, err := netns.Get()
	h.must(err)
	defer back.Close()
	h.must(netns.Set(h.ns))
	defer func() {
		if err := netns.Set(back); err != nil {
			panic(err) // the thread must not go on in the wrong place
		}
	}()
	f()
}

// cable joins two hosts with a pair of interfaces.
func (h *routeHost) cable(name string, other *routeHost, otherName string) {
	h.t.Helper()
	h.do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: otherName, PeerNamespace: netlink.NsFd(other.ns)}))
	})
	for host, name := range map[*routeHost]string{h: name, other: otherName} {
		host.do(func() { host.up(name) })
	}
}

func (h *routeHost) up(name string) {
	h.t.Helper()
	link, err := netlink.LinkByName(name)
	h.must(err)
	h.must(netlink.LinkSetUp(link))
}

// address gives an interface an address, at once usable.
func (h *routeHost) address(name string, addresses ...string) {
	h.t.Helper()
	h.do(func() {
		link, err := netlink.LinkByName(name)
		h.must(err)
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			h.must(err)
			addr.Flags = unix.IFA_F_NODAD
			h.must(netlink.AddrAdd(link, addr))
			for { // the kernel adds its route to an IPv6 address later
				if routes, err := netlink.RouteGet(addr.IP); err == nil && routes[0].Type == unix.RTN_LOCAL {
					break
				}
			}
		}
	})
}

// route adds a route, in the way of an administrator.
func (h *routeHost) route(to, via, dev string, more func(*netlink.Route)) {
	h.t.Helper()
	h.do(func() {
		route := &netlink.Route{Protocol: unix.RTPROT_STATIC}
		var err error
		route.Dst, err = netlink.ParseIPNet(to)
		h.must(err)
		if via != "" {
			gw := netip.MustParseAddr(via)
			if gw.Is6() && route.Dst.IP.To4() != nil {
				route.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: gw.AsSlice()}
			} else {
				route.Gw = gw.AsSlice()
			}
		}
		if dev != "" {
			link, err := netlink.LinkByName(dev)
			h.must(err)
			route.LinkIndex = link.Attrs().Index
		}
		if more != nil {
			more(route)
		}
		h.must(netlink.RouteAdd(route))
	})
}

// dump are all routes and rules of the host, byte for byte except for the ages, but
// those that skip tells and those of link-local addresses, which the kernel adds
// when it likes.
func (h *routeHost) dump(skip func(routeEntry) bool) [][]byte {
	h.t.Helper()
	var all [][]byte
	h.do(func() {
		k := &routeKernel{done: make(chan struct{})}
		h.must(k.open())
		defer k.close()
		collect := func(m syscall.NetlinkMessage) error {
			if e, ok := parseRoute(m.Data); ok && m.Header.Type == unix.RTM_NEWROUTE && (skip(e) || e.to.Addr().IsLinkLocalUnicast()) {
				return nil
			}
			line := slices.Clone(m.Data[:unix.SizeofRtMsg])
			attributes(m.Data[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
				if kind != unix.RTA_CACHEINFO || m.Header.Type != unix.RTM_NEWROUTE {
					line = attribute(line, kind, value...)
				}
			})
			all = append(all, line)
			return nil
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			h.must(k.list(listRoutesMessage(family, 0, 0), func() {}, collect))
			h.must(k.list(listRulesMessage(family), func() {}, collect))
		}
	})
	slices.SortFunc(all, bytes.Compare)
	return all
}

func nobody(routeEntry) bool { return false }

// routesOf lists what is ours, in the words of ip route.
func routesOf(t *testing.T, r *NetlinkRouter) []string {
	t.Helper()
	k := &routeKernel{done: make(chan struct{})}
	if err := k.open(); err != nil {
		t.Fatal(err)
	}
	defer k.close()
	list, err := k.routes(0, r.protocol())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range list {
		for i := range e.hops {
			if link, err := netlink.LinkByIndex(e.hops[i].link); err == nil {
				e.hops[i].name = link.Attrs().Name
			}
		}
		lines = append(lines, e.String())
	}
	slices.Sort(lines)
	return lines
}

// want compares our routes with lines, of which those that Routes makes may lack
// the interface.
func wantRoutes(t *testing.T, r *NetlinkRouter, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := routesOf(t, r); !slices.Equal(got, want) {
		t.Errorf("routes\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// until polls for a state.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}

// running runs a router until the test ends, or stop.
func running(t *testing.T, r *NetlinkRouter) (stop func() error) {
	t.Helper()
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- r.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-failed
	})
	t.Cleanup(func() {
		if err := stop(); !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
	})
	return stop
}

// twoPaths is a host with two next hops on one link, behind each of which is the
// same target, 10.200.0.1 and fd00:200::1, by ways of its own; behind a alone is
// 10.201.0.1, behind b alone 10.201.0.2.
//
//	self ── link ──┬── a ──┬── target
//	               └── b ──┘
type twoPaths struct {
	self, bus, a, b, target *routeHost
}

const (
	selfAddr6 = "fd00::1"
	aAddr6    = "fd00::a"
	bAddr6    = "fd00::b"
)

func newTwoPaths(self *routeHost) *twoPaths {
	w := &twoPaths{self: self, bus: self.host(), a: self.host(), b: self.host(), target: self.host()}
	w.bus.do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		w.self.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		w.bus.up("br0")
	})
	w.plug(self, "link", "self")
	w.plug(w.a, "link", "a")
	w.plug(w.b, "link", "b")
	self.address("link", selfAddr6+"/64", "10.9.0.1/24")
	w.a.address("link", aAddr6+"/64", "10.9.0.10/24")
	w.b.address("link", bAddr6+"/64", "10.9.0.11/24")
	w.a.cable("inner", w.target, "viaa")
	w.b.cable("inner", w.target, "viab")
	w.a.address("inner", "fd00:a::1/64")
	w.b.address("inner", "fd00:b::1/64")
	w.target.address("viaa", "fd00:a::2/64")
	w.target.address("viab", "fd00:b::2/64")
	w.target.address("lo", "10.200.0.1/32", "fd00:200::1/128")
	w.a.address("lo", "10.201.0.1/32")
	w.b.address("lo", "10.201.0.2/32")
	for _, to := range []string{"10.200.0.0/16", "fd00:200::/32"} {
		w.a.route(to, "fd00:a::2", "inner", nil)
		w.b.route(to, "fd00:b::2", "inner", nil)
	}
	for _, to := range []string{"fd00::/64", "10.9.0.0/24"} {
		w.target.route(to, "fd00:b::1", "viab", func(r *netlink.Route) { r.Priority = 20 })
		w.target.route(to, "fd00:a::1", "viaa", func(r *netlink.Route) { r.Priority = 10 })
	}
	return w
}

// plug joins a host to the link that all share.
func (w *twoPaths) plug(h *routeHost, name, port string) {
	h.t.Helper()
	h.cable(name, w.bus, port)
	w.bus.do(func() {
		link, err := netlink.LinkByName(port)
		h.must(err)
		bridge, err := netlink.LinkByName("br0")
		h.must(err)
		h.must(netlink.LinkSetMaster(link, bridge))
	})
}

// router leads to what is behind the two.
func (w *twoPaths) router() *NetlinkRouter {
	return &NetlinkRouter{
		Networks: prefixes("10.200.0.0/16", "10.201.0.0/16", "fd00:200::/32"),
		Hops: map[string]NextHop{
			"a": {Via: netip.MustParseAddr(aAddr6), Interface: "link", Source: netip.MustParseAddr("10.9.0.1")},
			"b": {Via: netip.MustParseAddr(bAddr6), Interface: "link", Source: netip.MustParseAddr("10.9.0.1")},
		},
	}
}

// many are n networks, half of them IPv6.
func many(n int) (list []netip.Prefix) {
	for i := range n {
		if i%2 == 0 {
			list = append(list, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 128+i/256, i%256)))
		} else {
			list = append(list, netip.MustParsePrefix(fmt.Sprintf("fd01:%x::/64", i)))
		}
	}
	return list
}
