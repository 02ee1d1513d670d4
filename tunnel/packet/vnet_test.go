package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// edit returns the frame with its virtio-net header changed.
func edit(f Frame, change func(h *virtioHeader)) Frame {
	h := readHeader(f.Data)
	change(&h)
	h.put(f.Data)
	return f
}

// poke returns the frame with bytes of its packet changed.
func poke(f Frame, at int, b ...byte) Frame {
	copy(f.Packet()[at:], b)
	return f
}

// cutShort returns the frame with only so much of the packet.
func cutShort(f Frame, n int) Frame {
	f.Data = f.Data[:HeaderLen+n]
	return f
}

// arp is a packet that is not IP.
func arp(mode Mode) Frame {
	b := make([]byte, HeaderLen+ethernetLen+28)
	b[HeaderLen+12], b[HeaderLen+13] = 8, 6
	return Frame{Data: b}
}

func TestCheck(t *testing.T) {
	plain := forged{version: 4, protocol: protoTCP, payload: make([]byte, 1460), whole: true}
	gso := forged{version: 4, protocol: protoTCP, payload: make([]byte, 14600), header: virtioHeader{gso: gsoTCPv4, size: 1460}}
	gso6 := forged{version: 6, protocol: protoTCP, payload: make([]byte, 14400), header: virtioHeader{gso: gsoTCPv6, size: 1440}}
	uso := forged{version: 4, protocol: protoUDP, payload: make([]byte, 14720), header: virtioHeader{gso: gsoUDP, size: 1472}}
	tap := func(g forged) forged { g.mode = TAP; return g }
	vlan := func(g forged, n int) forged { g.mode, g.vlan = TAP, n; return g }
	with := func(g forged, change func(g *forged)) Frame { change(&g); return g.frame() }

	for _, c := range []struct {
		name string
		f    Frame
		m    Mode
		want error
	}{
		// Lengths.
		{"nothing", Frame{}, TUN, ErrTooShort},
		{"a header alone", Frame{Data: make([]byte, HeaderLen)}, TUN, ErrTooShort},
		{"longer than any", Frame{Data: make([]byte, HeaderLen+MaxPacket+1)}, TAP, ErrTooLong},
		{"MTU", plain.frame(), TUN, nil},
		{"MTU in Ethernet", tap(plain).frame(), TAP, nil},
		{"MTU with a VLAN tag", vlan(plain, 1).frame(), TAP, nil},
		{"MTU with two", vlan(plain, 2).frame(), TAP, nil},
		{"three VLAN tags are no IP", vlan(plain, 3).frame(), TAP, ErrTooLong},
		{"MTU and one", with(plain, func(g *forged) { g.payload = make([]byte, 1461) }), TUN, ErrTooLong},
		{"MTU and one in Ethernet", with(tap(plain), func(g *forged) { g.payload = make([]byte, 1461) }), TAP, ErrTooLong},
		{"padded Ethernet", Frame{Data: append(with(tap(plain), func(g *forged) { g.payload = nil }).Data, make([]byte, 6)...)}, TAP, nil},
		{"ARP", arp(TAP), TAP, nil},
		{"cut Ethernet", cutShort(arp(TAP), 13), TAP, ErrTooShort},
		{"cut VLAN", cutShort(vlan(plain, 1).frame(), 17), TAP, ErrTooShort},
		{"Ethernet alone", cutShort(arp(TAP), 14), TAP, nil},
		{"no IP behind Ethernet", cutShort(tap(plain).frame(), 14), TAP, ErrTooShort},
		{"cut IPv4", cutShort(plain.frame(), 19), TUN, ErrTooShort},
		{"cut IPv6", cutShort(with(plain, func(g *forged) { g.version = 6 }), 39), TUN, ErrTooShort},

		// What it is.
		{"version 5", poke(plain.frame(), 0, 0x55), TUN, ErrNotIP},
		{"IPv6 called IPv4", poke(tap(plain).frame(), 14, 0x60), TAP, ErrMalformed},
		{"IPv4 called IPv6", poke(tap(gso6).frame(), 14, 0x45), TAP, ErrMalformed},

		// The virtio-net header.
		{"checksum verified", edit(plain.frame(), func(h *virtioHeader) { h.flags = flagDataValid }), TUN, nil},
		{"unknown flag", edit(plain.frame(), func(h *virtioHeader) { h.flags = 4 }), TUN, ErrHeader},
		{"headers longer than all", edit(plain.frame(), func(h *virtioHeader) { h.length = 1501 }), TUN, ErrHeader},
		{"headers as long as all", edit(plain.frame(), func(h *virtioHeader) { h.length = 1500 }), TUN, nil},
		{"UDP fragmentation", edit(gso.frame(), func(h *virtioHeader) { h.gso = 3 }), TUN, ErrHeader},
		{"ECN alone", edit(gso.frame(), func(h *virtioHeader) { h.gso = gsoECN }), TUN, ErrHeader},
		{"ECN of UDP", edit(uso.frame(), func(h *virtioHeader) { h.gso |= gsoECN }), TUN, ErrHeader},

		// Partial checksums.
		{"partial", with(plain, func(g *forged) { g.whole = false }), TUN, nil},
		{"partial in ARP", edit(arp(TAP), func(h *virtioHeader) { h.flags, h.start, h.offset = flagPartial, 34, 0 }), TAP, ErrPartial},
		{"on the source address", edit(gso.frame(), func(h *virtioHeader) { h.gso, h.start, h.offset = 0, 0, 12 }), TUN, ErrTooLong},
		{"on the source address, short", edit(with(plain, func(g *forged) { g.whole = false }), func(h *virtioHeader) { h.start, h.offset = 0, 12 }), TUN, ErrPartial},
		{"on a port", edit(with(plain, func(g *forged) { g.whole = false }), func(h *virtioHeader) { h.offset = 2 }), TUN, ErrPartial},
		{"on a port, from further on", edit(with(plain, func(g *forged) { g.whole = false }), func(h *virtioHeader) { h.start, h.offset = 21, 0 }), TUN, ErrPartial},
		{"behind the end", edit(with(plain, func(g *forged) { g.whole = false }), func(h *virtioHeader) { h.start, h.offset = 1484, 15 }), TUN, ErrPartial},
		{"far behind the end", edit(with(plain, func(g *forged) { g.whole = false }), func(h *virtioHeader) { h.start, h.offset = 65535, 65535 }), TUN, ErrPartial},
		{"field cut in two", cutShort(with(plain, func(g *forged) { g.whole = false }), 20+17), TUN, ErrPartial},
		{"of a tunnel in UDP", edit(with(uso, func(g *forged) { g.payload = g.payload[:100]; g.header = virtioHeader{} }), func(h *virtioHeader) { h.start = 20 + 8 + 8 + 20 }), TUN, nil},
		{"of a tunnel in UDP's own header", edit(with(uso, func(g *forged) { g.payload = g.payload[:100]; g.header = virtioHeader{} }), func(h *virtioHeader) { h.start, h.offset = 27, 0 }), TUN, ErrPartial},
		{"of a tunnel in IP", edit(poke(with(plain, func(g *forged) { g.whole = false }), 9, 4), func(h *virtioHeader) { h.start = 40 }), TUN, nil},
		{"of a tunnel in IP's header", edit(poke(with(plain, func(g *forged) { g.whole = false }), 9, 4), func(h *virtioHeader) { h.start, h.offset = 16, 0 }), TUN, ErrPartial},
		{"of a first fragment", poke(with(plain, func(g *forged) { g.whole = false }), 6, 0x20, 0), TUN, ErrPartial},
		{"of a later fragment", poke(with(plain, func(g *forged) { g.whole = false }), 6, 0, 9), TUN, ErrPartial},
		{"behind options that are not there", poke(with(plain, func(g *forged) { g.whole = false }), 0, 0x44), TUN, ErrMalformed},
		{"behind options that are cut", cutShort(poke(with(plain, func(g *forged) { g.whole = false }), 0, 0x4f), 50), TUN, ErrTooShort},

		// Segmentation.
		{"TCPv4", gso.frame(), TUN, nil},
		{"TCPv4 with a VLAN tag", vlan(gso, 1).frame(), TAP, nil},
		{"TCPv4 with CWR", edit(gso.frame(), func(h *virtioHeader) { h.gso |= gsoECN }), TUN, nil},
		{"TCPv6", gso6.frame(), TUN, nil},
		{"UDP", uso.frame(), TUN, nil},
		{"with a whole checksum", edit(gso.frame(), func(h *virtioHeader) { h.flags = 0 }), TUN, ErrSegmentation},
		{"a segment longer than the MTU", edit(gso.frame(), func(h *virtioHeader) { h.size = 1461 }), TUN, ErrTooLong},
		{"one short segment of any size", edit(with(gso, func(g *forged) { g.payload = g.payload[:1460] }), func(h *virtioHeader) { h.size = 65535 }), TUN, nil},
		{"no size", edit(gso.frame(), func(h *virtioHeader) { h.size = 0 }), TUN, ErrSegmentation},
		{"size of the least MSS", edit(gso.frame(), func(h *virtioHeader) { h.size = 8 }), TUN, nil},
		{"size below", edit(gso.frame(), func(h *virtioHeader) { h.size = 7 }), TUN, ErrSegmentation},
		{"too many segments", with(gso, func(g *forged) { g.payload = make([]byte, 8*MaxSegments+1); g.header.size = 8 }), TUN, ErrSegmentation},
		{"too many of UDP", edit(uso.frame(), func(h *virtioHeader) { h.size = 114 }), TUN, ErrSegmentation},
		{"as many as can be of UDP", edit(uso.frame(), func(h *virtioHeader) { h.size = 115 }), TUN, nil},
		{"TCPv6 called TCPv4", edit(gso6.frame(), func(h *virtioHeader) { h.gso = gsoTCPv4 }), TUN, ErrSegmentation},
		{"TCPv4 called TCPv6", edit(gso.frame(), func(h *virtioHeader) { h.gso = gsoTCPv6 }), TUN, ErrSegmentation},
		{"TCP called UDP", edit(gso.frame(), func(h *virtioHeader) { h.gso = gsoUDP }), TUN, ErrSegmentation},
		{"UDP called TCP", edit(uso.frame(), func(h *virtioHeader) { h.gso = gsoTCPv4 }), TUN, ErrSegmentation},
		{"TCP with a short header", poke(gso.frame(), 20+12, 0x40), TUN, ErrMalformed},
		{"TCP with a header behind the end", poke(with(gso, func(g *forged) { g.payload = nil }), 20+12, 0x60), TUN, ErrTooShort},
		{"TCP cut", cutShort(gso.frame(), 20+18), TUN, ErrTooShort},
		{"IPv4 length", poke(gso.frame(), 2, 1, 1), TUN, ErrMalformed},
		{"IPv6 length", poke(gso6.frame(), 4, 1, 1), TUN, ErrMalformed},
		{"UDP length", poke(uso.frame(), 24, 1, 1), TUN, ErrMalformed},
	} {
		if err := Check(c.f, c.m, 1500); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestCheckExtensions follows the extension headers of IPv6, within a bound.
func TestCheckExtensions(t *testing.T) {
	one := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	chain := func(n int) (e []byte) {
		for range n - 1 {
			e = append(e, one(protoDestOpts)...)
		}
		return append(e, one(protoTCP)...)
	}
	for _, c := range []struct {
		name       string
		first      uint8
		extensions []byte
		want       error
	}{
		{"one", protoDestOpts, chain(1), nil},
		{"hop by hop", protoHopByHop, chain(1), nil},
		{"seven", protoDestOpts, chain(7), nil},
		{"eight", protoDestOpts, chain(8), ErrMalformed},
		{"long", protoRouting, append([]byte{protoTCP, 1, 4, 0}, make([]byte, 12)...), nil},
		{"longer than the packet", protoRouting, []byte{protoTCP, 200, 4, 0, 0, 0, 0, 0}, ErrTooShort},
		{"authentication", protoAuth, append([]byte{protoTCP, 4}, make([]byte, 22)...), nil},
		{"fragment of one", protoFragment, []byte{protoTCP, 0, 0, 0, 0, 0, 0, 1}, nil},
		{"first fragment", protoFragment, []byte{protoTCP, 0, 0, 1, 0, 0, 0, 1}, ErrPartial},
		{"later fragment", protoFragment, []byte{protoTCP, 0, 0, 8, 0, 0, 0, 1}, ErrPartial},
	} {
		g := forged{version: 6, protocol: protoTCP, first: c.first, extensions: c.extensions, payload: make([]byte, 100)}
		if err := Check(g.frame(), TUN, 1500); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestCheckDoesNotAllocate: a flood of bad frames costs no memory.
func TestCheckDoesNotAllocate(t *testing.T) {
	for _, f := range []Frame{
		forged{version: 4, protocol: protoTCP, whole: true}.frame(),
		poke(forged{version: 4, protocol: protoTCP}.frame(), 0, 0x55),
	} {
		if n := testing.AllocsPerRun(100, func() { _ = Check(f, TUN, 1500) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// FuzzCheck looks at what a stranger sends: no frame panics, and none that passes
// reaches with its checksum into a header that was checked.
func FuzzCheck(f *testing.F) {
	for seed := range uint64(20) {
		g := randomForged(rand.New(rand.NewPCG(seed, 6)))
		g.payload = g.payload[:len(g.payload)%200]
		f.Add(g.frame().Data, seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, tap bool) {
		m, ip := TUN, 0
		if tap {
			m, ip = TAP, ethernetLen
		}
		if Check(Frame{Data: data}, m, 1500) != nil || data[0]&flagPartial == 0 {
			return
		}
		p := data[HeaderLen:]
		headers := ip + ipv4Len
		if p[ip]>>4 == 6 {
			headers = ip + ipv6Len
		}
		at := int(binary.LittleEndian.Uint16(data[6:])) + int(binary.LittleEndian.Uint16(data[8:]))
		if at < headers || at+2 > len(p) {
			t.Fatalf("a checksum at %d of %d", at, len(p))
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	for name, g := range map[string]forged{
		"whole":   {mode: TAP, version: 6, protocol: protoTCP, payload: make([]byte, 1400), whole: true},
		"partial": {mode: TAP, version: 6, protocol: protoTCP, payload: make([]byte, 1400)},
		"gso":     {mode: TAP, version: 6, protocol: protoTCP, payload: make([]byte, 64000), header: virtioHeader{gso: gsoTCPv6, size: 1400}},
	} {
		b.Run(name, func(b *testing.B) {
			f := g.frame()
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(f, TAP, 1500); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
