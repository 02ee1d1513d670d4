package netfilter

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
)

// TestGate: the seed reaches the networks behind the shoot's host and nothing else
// there, with masquerade and without, and nobody behind it begins anything.
func TestGate(t *testing.T) {
	for name, masquerade := range map[string]bool{"masquerade": true, "routes": false} {
		t.Run(name, func(t *testing.T) { testGate(t, masquerade) })
	}
}

func testGate(t *testing.T, masquerade bool) {
	w := newWorld(t)
	prefix := netip.MustParsePrefix
	named := []netip.Prefix{prefix("10.3.0.0/24"), prefix("fd03::/64")}
	// The node has more than the networks: a neighbour of the pods, and what a cloud
	// has beside it.
	w.behind("10.4.0.1/24", "10.4.0.2/24")
	w.behind("fd04::1/64", "fd04::2/64")
	w.behind("169.254.0.1/16", "169.254.169.254/16")
	must(t, w.seed.Route(prefix("169.254.0.0/16"), netip.MustParseAddr("10.2.0.2")))
	must(t, w.control.Route(prefix("169.254.0.0/16"), netip.MustParseAddr("10.1.0.1")))
	must(t, w.pod.Route(prefix("10.0.0.0/8"), netip.MustParseAddr("10.3.0.1")))
	must(t, w.pod.Route(prefix("fd00::/8"), netip.MustParseAddr("fd03::1")))
	in, out := []string{"10.3.0.2", "fd03::2"}, []string{"10.4.0.2", "fd04::2", "169.254.169.254"}
	for _, a := range append(in, out...) {
		w.serve(w.pod, net.JoinHostPort(a, "80"))
	}
	for h, addresses := range map[*netlab.Host][]string{w.control: {"10.1.0.2", "fd01::2"}, w.shoot: {"10.2.0.2", "fd02::2", "10.3.0.1", "fd03::1"}} {
		for _, a := range addresses {
			w.serve(h, net.JoinHostPort(a, "80"))
		}
	}
	must(t, w.shoot.Do(func() error { return Forward(named, nil) }))
	check := func(from *netlab.Host, open bool, addresses ...string) {
		t.Helper()
		patience := unsure
		if open {
			patience = sure
		}
		var wait sync.WaitGroup // all at once: what must not come takes its time
		for _, a := range addresses {
			for _, network := range []string{"tcp", "udp"} {
				wait.Go(func() {
					if got := w.ask(from, network, net.JoinHostPort(a, "80"), patience); (got != "") != open {
						t.Errorf("%s from %s to %s: answer %q", network, from.Name, a, got)
					}
				})
			}
			wait.Go(func() {
				if !w.pings(from, a, open) {
					t.Errorf("echo from %s to %s: %v", a, from.Name, !open)
				}
			})
		}
		wait.Wait()
	}
	apiserver := []string{"10.1.0.2", "fd01::2"}
	check(w.control, true, append(in, out...)...)
	check(w.pod, true, apiserver...)

	var up []interface {
		Up() error
		Close() error
	}
	host := false
	raise := func(networks ...netip.Prefix) {
		for _, d := range []string{device, device + "6"} {
			up = append(up, &Gate{Device: d, Networks: networks, Host: host})
			if masquerade && len(networks) > 0 {
				up = append(up, &Masquerade{Device: d, Networks: networks})
			}
		}
		for _, u := range up {
			must(t, w.shoot.Do(u.Up))
		}
	}
	lower := func() {
		for _, u := range up {
			must(t, u.Close())
		}
		up = nil
	}
	raise(named...)
	check(w.control, true, in...)
	check(w.seed, true, in...)
	check(w.control, false, out...)
	check(w.seed, false, out...)
	check(w.pod, false, apiserver...)
	// To the host itself: an echo, and its address in a network. From it: anything.
	own := []string{"10.2.0.2", "fd02::2"}
	for _, a := range own {
		if !w.pings(w.seed, a, true) {
			t.Errorf("no echo from %s", a)
		}
		for _, network := range []string{"tcp", "udp"} {
			if got := w.ask(w.seed, network, net.JoinHostPort(a, "80"), unsure); got != "" {
				t.Errorf("%s to %s: answer %q", network, a, got)
			}
		}
	}
	check(w.control, true, "10.3.0.1", "fd03::1")
	check(w.shoot, true, append(append(apiserver, in...), out...)...)
	list := w.list(w.shoot)
	lower()

	// Everything is not what is special, unless that is named.
	raise(prefix("0.0.0.0/0"), prefix("::/0"))
	check(w.control, true, "10.3.0.2", "10.4.0.2", "fd04::2")
	check(w.control, false, "169.254.169.254")
	lower()
	raise(prefix("0.0.0.0/0"), prefix("169.254.169.254/32"))
	check(w.control, true, "169.254.169.254")
	check(w.control, false, "fd03::2")
	lower()
	host = true
	raise(named...)
	check(w.seed, true, own...)
	check(w.control, false, "10.4.0.2", "fd04::2")
	lower()
	raise()
	check(w.control, false, "10.3.0.2", "fd03::2")
	lower()
	check(w.control, true, append(in, out...)...)
	check(w.pod, true, apiserver...)
	for _, want := range []string{
		"table inet rhizome-gate-tunnel {", "hook forward priority filter", `iifname "tunnel" oifname != "tunnel" ip daddr @networks4 accept`,
		`iifname "tunnel6" counter drop`, `oifname "tunnel" ct state new counter drop`,
	} {
		if !strings.Contains(list, want) {
			t.Errorf("no %s in\n%s", want, list)
		}
	}
	if list := w.list(w.shoot); list != "" {
		t.Errorf("left:\n%s", list)
	}
}

// behind gives the shoot's host and the pod one more network between them.
func (w *world) behind(host, pod string) {
	w.t.Helper()
	for h, a := range map[*netlab.Host]string{w.shoot: host, w.pod: pod} {
		name := map[bool]string{true: "out", false: "eth"}[h == w.shoot]
		if strings.Contains(a, ":") {
			name += "6"
		}
		must(w.t, h.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			return netlink.AddrAdd(l, addr)
		}))
	}
}

// TestGateSweep removes what another one has left.
func TestGateSweep(t *testing.T) {
	w := newWorld(t)
	left := &Gate{Device: device}
	must(t, w.seed.Do(left.Up))
	for range 2 {
		must(t, w.seed.Do((&Gate{Device: device}).Sweep))
	}
	if list := w.list(w.seed); list != "" {
		t.Errorf("left:\n%s", list)
	}
	must(t, left.Close())
	if err := (&Gate{}).Up(); err == nil {
		t.Error("a gate of no device")
	}
	if err := (&Gate{Device: device, Networks: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")}}).Up(); err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestReachable(t *testing.T) {
	for networks, want := range map[string]string{
		"":                               "",
		"10.0.0.0/8 fd00::/8":            "10.0.0.0/8 fd00::/8",
		"169.254.0.0/16 127.0.0.0/8":     "127.0.0.0/8 169.254.0.0/16",
		"169.254.169.254/32 fe80::1/128": "169.254.169.254/32 fe80::1/128",
		"169.254.0.0/15":                 "169.255.0.0/16",
		"168.0.0.0/6":                    "168.0.0.0/8 169.0.0.0/9 169.128.0.0/10 169.192.0.0/11 169.224.0.0/12 169.240.0.0/13 169.248.0.0/14 169.252.0.0/15 169.255.0.0/16 170.0.0.0/7",
		"::/127":                         "::/128",
		"fe00::/8":                       "fe00::/9 fec0::/10",
	} {
		var in []netip.Prefix
		for _, s := range strings.Fields(networks) {
			in = append(in, netip.MustParsePrefix(s))
		}
		got := reachable(in)
		slices.SortFunc(got, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		var text []string
		for _, p := range got {
			text = append(text, p.String())
		}
		if strings.Join(text, " ") != want {
			t.Errorf("%s: %s, want %s", networks, text, want)
		}
	}
	all := reachable([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")})
	for a, want := range map[string]bool{
		"169.254.0.0": false, "169.254.255.255": false, "127.0.0.1": false, "::1": false, "fe80::1": false, "febf::1": false,
		"169.253.255.255": true, "169.255.0.0": true, "126.0.0.1": true, "128.0.0.1": true, "::": true, "::2": true, "fec0::": true, "0.0.0.0": true, "255.255.255.255": true,
	} {
		n := 0
		for _, p := range all {
			if p.Contains(netip.MustParseAddr(a)) {
				n++
			}
		}
		if (n == 1) != want || n > 1 {
			t.Errorf("%s is in %d", a, n)
		}
	}
}
