package bond

import (
	"net/netip"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

// FuzzRoute looks for the way of any packet: it is found without a panic, is
// everybody's unless the packet is long enough to name a member, and never
// nobody's if it is a packet.
func FuzzRoute(f *testing.F) {
	f.Add(true, frame(2, 1).Packet())
	f.Add(true, frame(everybody, 1).Packet())
	f.Add(true, []byte{2, 0, 10, 0, 0, 2})
	for _, to := range []string{"10.0.0.2", "10.7.7.7", "224.0.0.1", "fd00::2", "fd99::1", "ff02::1", "::ffff:10.0.0.2"} {
		a := netip.MustParseAddr(to)
		src := netip.MustParseAddr("10.0.0.1")
		if a.Is6() {
			src = netip.MustParseAddr("fd00::1")
		}
		f.Add(false, packettest.IP(src, a, packettest.ProtoUDP, []byte("packet")))
	}
	f.Add(false, []byte{0x45})
	tabs := make(map[bool]*table)
	for tap, mode := range map[bool]packet.Mode{true: packet.TAP, false: packet.TUN} {
		b := &Bond{Mode: mode, peers: make(map[peerKey]*peer)}
		m := aMember(2)
		m.Addresses = append(m.Addresses, netip.MustParseAddr("fd00::2"))
		m.Networks = []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("fd00::/64"), {}}
		b.peers[peerKey{2, "m2"}] = &peer{number: 1, member: m}
		tabs[tap] = b.newTable(nil)
	}
	f.Fuzz(func(t *testing.T, isTAP bool, p []byte) {
		tab := tabs[isTAP]
		r := tab.route(p)
		least := 20
		if isTAP {
			least = etherLen
		}
		switch {
		case r == nil && isTAP && len(p) >= least:
			t.Error("no way for a frame")
		case r != nil && len(p) < least:
			t.Error("a way for what is no packet")
		case r != nil && r != tab.all && isTAP && p[0]&1 != 0:
			t.Error("a multicast goes to one")
		}
		if _, ok := tab.source(p); ok != (r != nil) {
			t.Errorf("a packet has a source: %v, and a way: %v", ok, r != nil)
		}
	})
}
