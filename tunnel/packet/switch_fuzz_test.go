package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// The attacker of FuzzSwitch may use one own address and one network of each version; the
// oracle below has them in the plainest form.
var (
	fuzzOwn6, fuzzOwn4 = netip.MustParseAddr("fd00::a:1"), netip.MustParseAddr("192.0.2.1")
	fuzzNet6, fuzzNet4 = netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("10.0.0.0/8")
	fuzzVictim6        = netip.MustParseAddr("fd00::b:1")
	fuzzVictim4        = netip.MustParseAddr("10.0.0.99") // in the attacker's network, but another's own
)

// fuzzOwn reports whether an address is the attacker's own.
func fuzzOwn(a netip.Addr) bool {
	for leg := range 256 {
		for _, own := range []netip.Addr{fuzzOwn6, fuzzOwn4} {
			m := MAC(own, leg)
			if a == netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}) {
				return true
			}
		}
	}
	return a == fuzzOwn6 || a == fuzzOwn4
}

// fuzzOracle says what is wrong with a packet that has passed, or nothing. It knows little
// of packets, so that it cannot share a mistake with the checks.
func fuzzOracle(m Mode, b []byte) string {
	mac := []byte{}
	if m == TAP {
		mac = b[6:12]
		if !bytes.Equal(mac[2:], MAC(fuzzOwn6, 0)[2:]) && !bytes.Equal(mac[2:], MAC(fuzzOwn4, 0)[2:]) || mac[0] != 2 {
			return "the source MAC"
		}
		if b[0] == 1 && b[1] == 0x80 && b[2] == 0xc2 {
			return "the destination MAC"
		}
		kind := binary.BigEndian.Uint16(b[12:])
		b = b[14:]
		switch kind {
		case 0x0806:
			if !bytes.Equal(b[8:14], mac) {
				return "ARP: the MAC"
			}
			if sender := netip.AddrFrom4([4]byte(b[14:18])); sender != fuzzOwn4 && !(sender.IsUnspecified() && b[7] == 1) {
				return "ARP: the sender"
			}
			return ""
		case 0x0800, 0x86dd:
		default:
			return "the type"
		}
	}
	if b[0]>>4 == 4 {
		src := netip.AddrFrom4([4]byte(b[12:16]))
		if src == fuzzVictim4 || src != fuzzOwn4 && !fuzzNet4.Contains(src) {
			return "the IPv4 source"
		}
		if n := int(b[0]&15) * 4; b[9] == 17 && b[6]&0x1f == 0 && b[7] == 0 && binary.BigEndian.Uint16(b[n:]) == 67 {
			return "DHCP"
		}
		return ""
	}
	src := netip.AddrFrom16([16]byte(b[8:24]))
	own := fuzzOwn(src) && (m == TAP || !src.IsLinkLocalUnicast())
	nameless := src.IsUnspecified() && m == TAP
	if !own && !nameless && !fuzzNet6.Contains(src) {
		return "the IPv6 source"
	}
	if nameless && b[6] != 0 && b[6] != 58 && b[6] != 60 && b[6] != 43 && b[6] != 44 && b[6] != 51 {
		return "a nameless source"
	}
	// Only what needs no search is looked at here: ICMPv6 right behind the header.
	if b[6] != 58 {
		return ""
	}
	switch b[40] {
	case 130, 133, 134, 137:
		return "a router's message"
	case 135, 136:
		target := netip.AddrFrom16([16]byte(b[48:64]))
		if (b[40] == 136 || nameless) && !fuzzOwn(target) {
			return "a neighbour's target"
		}
		if !own && !nameless {
			return "a neighbour's source"
		}
		if m == TUN {
			return "a neighbour in a TUN"
		}
		if rest := b[64 : 40+int(binary.BigEndian.Uint16(b[4:]))]; len(rest) >= 8 && (rest[0] == 1 || rest[0] == 2) && !bytes.Equal(rest[2:8], mac) {
			return "a neighbour's MAC"
		}
	}
	return ""
}

// Whatever a peer sends, nothing passes that speaks for another, also when it has been
// finished and cut up on its way, and the other ports live.
func FuzzSwitch(f *testing.F) {
	seed := func(header, packet []byte) {
		full := make([]byte, HeaderLen)
		copy(full, header)
		for _, tap := range []bool{true, false} {
			f.Add(full, packet, tap)
		}
	}
	macs := func(kind uint16, body []byte) []byte {
		b := append([]byte(MAC(fuzzVictim6, 0)), MAC(fuzzOwn6, 0)...)
		return append(binary.BigEndian.AppendUint16(b, kind), body...)
	}
	for _, from := range []netip.Addr{fuzzOwn6, fuzzVictim6, netip.MustParseAddr("2001:db8::1")} {
		udp := plainUDP(TUN, from, fuzzVictim6, 100).Packet()
		seed(nil, udp)
		seed(nil, macs(0x86dd, udp))
		seed([]byte{1, 5, 62, 0, 10, 0, 54, 0, 6, 0}, macs(0x86dd, udp))
		seed([]byte{1, 0, 0, 0, 0, 0, 22, 0, 8, 0}, macs(0x86dd, udp))
		extended := bytes.Clone(udp)
		extended[6], extended[40] = 60, 17
		seed(nil, macs(0x86dd, extended))
		extended[6] = 44
		seed(nil, macs(0x86dd, extended))
		neighbor := bytes.Clone(udp)
		copy(neighbor[40:], append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, fuzzOwn6.AsSlice()...))
		copy(neighbor[64:], append([]byte{2, 1}, MAC(fuzzOwn6, 0)...))
		neighbor[5], neighbor[6], neighbor[7] = 32, 58, 255
		seed(nil, macs(0x86dd, neighbor[:72]))
		neighbor[40] = 135
		seed(nil, macs(0x86dd, neighbor[:72]))
	}
	four := []byte{0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 10, 0, 0, 99, 0, 9, 0, 9, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	seed(nil, four)
	seed(nil, macs(0x0800, four))
	arp := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, MAC(fuzzOwn6, 0)...)
	arp = append(append(arp, fuzzOwn4.AsSlice()...), 0, 0, 0, 0, 0, 0, 10, 0, 0, 99)
	seed(nil, macs(0x0806, arp))

	f.Fuzz(func(t *testing.T, header, packet []byte, tap bool) {
		m := TUN
		if tap {
			m = TAP
		}
		s := &Switch{Mode: m}
		port := func(id uint64, networks []netip.Prefix, own ...netip.Addr) *switchPort {
			var rules []netip.Prefix
			for _, a := range own {
				rules = append(rules, netip.PrefixFrom(a, a.BitLen()))
			}
			return handPort(t, s, PortOptions{Member: Member{ID: id, Addresses: own, Networks: networks}, Addresses: rules, Networks: networks})
		}
		attacker := port(1, []netip.Prefix{fuzzNet6, fuzzNet4}, fuzzOwn6, fuzzOwn4)
		victim := port(2, nil, fuzzVictim6, fuzzVictim4)
		other := port(3, nil, netip.MustParseAddr("fd00::c:1"), netip.MustParseAddr("192.0.2.3"))

		data := make([]byte, HeaderLen, HeaderLen+len(packet))
		copy(data, header)
		frame := Frame{Data: append(data, packet...)}
		batch := NewBatch(0)
		if !batch.Append(frame) {
			return
		}
		attacker.forward(batch)
		passed := 0
		for _, p := range []*switchPort{victim, other} {
			if p.queue.waiting() == 0 {
				continue
			}
			for got := range p.queue.pending.Frames() {
				passed++
				if !bytes.Equal(got.Data, frame.Data) {
					t.Errorf("it was changed on its way")
				}
				if wrong := fuzzOracle(m, got.Packet()); wrong != "" {
					t.Errorf("%v: %s is not the sender's: %x", m, wrong, got.Data)
				}
				err := Segment(got, m, 0, func(part Frame) error {
					if wrong := fuzzOracle(m, part.Packet()); wrong != "" {
						t.Errorf("%v: once finished, %s is not the sender's: %x", m, wrong, part.Data)
					}
					return nil
				})
				if err != nil {
					t.Errorf("%v: it passed and cannot be finished: %v: %x", m, err, got.Data)
				}
			}
		}
		dropped := uint64(0)
		for _, n := range s.Stats().Drops {
			dropped += n
		}
		if (dropped == 0) != (passed > 0) {
			t.Errorf("%d passed, %d dropped", passed, dropped)
		}

		// The others talk as if nothing had been.
		before := victim.queue.Stats().Frames
		batch.Reset()
		batch.Append(plainUDP(m, netip.MustParseAddr("fd00::c:1"), fuzzVictim6, 100))
		other.forward(batch)
		if victim.queue.Stats().Frames != before+1 {
			t.Errorf("the others are cut off: %v", s.Stats().Drops)
		}
	})
}
