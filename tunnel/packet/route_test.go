package packet_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestRoutes(t *testing.T) {
	addr := netip.MustParseAddr
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, new(packet.Switch))
		device := w.add(packet.PortOptions{
			Name: "device", Trusted: true,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fd00::1/96")},
			Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0")},
		})
		a := w.join("a", 1, []string{"192.0.2.2", "fd00::2"}, "10.1.0.0/16", "2001:db8::/32")
		b := w.join("b", 2, []string{"192.0.2.3", "fd00::3"}, "10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8")
		names := []*switchPeer{device, a, b}
		for _, tt := range []struct {
			from     *switchPeer
			src, dst string
			want     *switchPeer // nil: nobody
			drop     packet.Drop
		}{
			{a, "192.0.2.2", "192.0.2.3", b, 0},
			{a, "fd00::2", "fd00::3", b, 0},
			{a, "10.1.9.9", "192.0.2.3", b, 0},
			{b, "192.0.2.3", "10.1.0.7", nil, packet.DropNoRoute}, // it has it itself, as the newest
			{a, "192.0.2.2", "10.1.0.7", b, 0},
			{device, "192.0.2.1", "10.1.0.7", b, 0},
			{device, "203.0.113.1", "10.1.2.7", b, 0},
			{device, "203.0.113.1", "2001:db8::7", a, 0},
			{device, "203.0.113.1", "10.9.0.7", b, 0}, // a member goes before the device
			{device, "203.0.113.1", "203.0.113.9", nil, packet.DropNoRoute},
			{a, "192.0.2.2", "192.0.2.1", device, 0},
			{a, "192.0.2.2", "203.0.113.1", device, 0}, // by default
			{a, "fd00::2", "fd00::1", device, 0},
			{a, "fd00::2", "2001:db8:f::1", nil, packet.DropNoRoute}, // a itself
			{b, "fd00::3", "2001:dead::1", nil, packet.DropNoRoute},
			{b, "fd00::3", "ff02::1", nil, packet.DropNoRoute},
			{a, "192.0.2.3", "192.0.2.1", nil, packet.DropSource},
			{a, "10.2.0.1", "192.0.2.1", nil, packet.DropSource},
			{b, "10.2.0.1", "192.0.2.1", device, 0},
			{a, "192.0.2.1", "192.0.2.3", nil, packet.DropSource},
		} {
			src, dst := addr(tt.src), addr(tt.dst)
			if src.Is4() != dst.Is4() { // to one without an address of the version
				src = map[*switchPeer]netip.Addr{device: addr("fd00::1"), a: addr("fd00::2"), b: addr("fd00::3")}[tt.from]
			}
			before := w.Stats().Drops[tt.drop]
			p := udp(src, dst)
			tt.from.say(p)
			for _, q := range names {
				if n := len(q.Written()); q == tt.want && n != 1 || q != tt.want && n != 0 {
					t.Errorf("%s to %s: %s hears %d, drops: %v", tt.src, tt.dst, q.options.Name+q.options.Member.Name, n, w.Stats().Drops)
				}
			}
			if tt.drop != 0 && w.Stats().Drops[tt.drop] != before+1 {
				t.Errorf("%s to %s: drops: %v", tt.src, tt.dst, w.Stats().Drops)
			}
		}
		// The newest wins, and leaves the older one its place back.
		b.end()
		device.say(udp(addr("203.0.113.1"), addr("10.1.2.7")))
		a.hears(udp(addr("203.0.113.1"), addr("10.1.2.7")))
		a.end()
		a2 := w.join("a", 1, []string{"192.0.2.2"})
		a2.say(udp(a2.addr, addr("10.1.2.7"))) // to the device's network
		device.hears(udp(a2.addr, addr("10.1.2.7")))
	})
}

// What a member names beyond its rules leads nowhere, and what overlaps them as far
// as they go.
func TestRoutesWithinRules(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, new(packet.Switch))
		device := w.add(packet.PortOptions{Trusted: true})
		a := w.add(packet.PortOptions{
			Member:   packet.Member{ID: 1, Name: "a", Networks: append(prefixes("10.0.0.0/8", "10.1.2.0/24", "172.16.0.0/12", "2001:db8::/32", "0.0.0.0/0", "10.1.2.3/24"), netip.Prefix{})},
			Networks: prefixes("10.1.0.0/16", "2001:db8:7::/48"),
		})
		want := prefixes("10.1.0.0/16", "10.1.2.0/24", "2001:db8:7::/48")
		if m := w.Members(); len(m) != 1 || !slices.Equal(m[0].Networks, want) {
			t.Errorf("members: %v, want networks %v", m, want)
		}
		src4, src6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")
		for dst, comes := range map[string]bool{
			"10.1.0.1": true, "10.1.2.3": true, "2001:db8:7::1": true,
			"10.2.0.1": false, "172.16.0.1": false, "2001:db8:8::1": false, "203.0.113.2": false,
		} {
			to, src := netip.MustParseAddr(dst), src4
			if to.Is6() {
				src = src6
			}
			device.say(udp(src, to))
			if n := len(a.Written()); n == 1 != comes {
				t.Errorf("%s: %d came", dst, n)
			}
		}
	})
}

// The rules of IP hold in a router as in a switch.
func TestSwitchChecksTUN(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			ip   []byte
			want packet.Drop
		}{
			{"UDP over IPv6", udp(aAddr6, bAddr6), 0},
			{"UDP over IPv4", udp(aAddr4, bAddr4), 0},
			{"from a network behind", udp(aNet4, bAddr4), 0},
			{"later fragment", fragment4(udp(aAddr4, bAddr4), 8, false), 0},
			{"no IP", []byte("hello, world, this is no packet"), packet.DropMalformed},
			{"one byte", []byte{0x60}, packet.DropMalformed},
			{"from elsewhere", udp(far4, bAddr4), packet.DropSource},
			{"from the other", udp(bAddr6, bAddr6), packet.DropSource},
			{"from a link-local address", udp(aLocal, bAddr6), packet.DropSource},
			{"duplicate detection", icmp6(noAddr, bAddr6, 135, 20), packet.DropSource},
			{"neighbour solicitation", icmp6(aAddr6, bAddr6, 135, 20), packet.DropNeighbor},
			{"redirect", icmp6(aAddr6, bAddr6, 137, 36), packet.DropRouter},
			{"DHCP answer", packettest.UDP(port(aAddr4, 67), port(bAddr4, 68), nil), packet.DropDHCP},
			{"tiny fragment", fragment4(udp(aAddr4, bAddr4)[:20], 0, true), packet.DropMalformed},
		} {
			w := newSwitchWorld(t, new(packet.Switch))
			a, b := twoPeers(w)
			a.say(tt.ip)
			if n := len(b.Written()); tt.want == 0 && (n != 1 || w.total() != 0) || tt.want != 0 && (n != 0 || w.dropped(tt.want) != 1) {
				t.Errorf("%s: heard %d, want drop %v, got %v", tt.name, n, tt.want, w.Stats().Drops)
			}
			a.end()
			b.end()
		}
	})
}
