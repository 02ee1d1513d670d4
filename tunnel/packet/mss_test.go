package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// mssOption is the option, with fillers in front to move it.
func mssOption(fillers int, mss uint16) []byte {
	o := bytes.Repeat([]byte{1}, fillers)
	o = append(o, 2, 4, byte(mss>>8), byte(mss))
	for len(o)%4 != 0 {
		o = append(o, 1)
	}
	return o
}

func TestClampMSS(t *testing.T) {
	fragment := func(offset, more byte) []byte { return []byte{protoTCP, 0, 0, offset<<3 | more, 0, 0, 0, 1} }
	for _, c := range []struct {
		name string
		g    forged
		mtu  int
		want uint16 // 0: as it was
	}{
		{"IPv4", forged{version: 4, tcpOptions: mssOption(0, 1460)}, 1400, 1360},
		{"IPv6", forged{version: 6, tcpOptions: mssOption(0, 1440)}, 1400, 1340},
		{"not raised", forged{version: 4, tcpOptions: mssOption(0, 1000)}, 1400, 0},
		{"the same", forged{version: 4, tcpOptions: mssOption(0, 1360)}, 1400, 0},
		{"one too many", forged{version: 4, tcpOptions: mssOption(0, 1361)}, 1400, 1360},
		{"at an odd place", forged{version: 4, tcpOptions: mssOption(1, 1460)}, 1400, 1360},
		{"behind others", forged{version: 6, tcpOptions: append([]byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1}, mssOption(0, 1440)...)}, 1400, 1340},
		{"no option", forged{version: 4}, 1400, 0},
		{"behind the end of options", forged{version: 4, tcpOptions: append([]byte{0, 0, 0, 0}, mssOption(0, 1460)...)}, 1400, 0},
		{"of another length", forged{version: 4, tcpOptions: []byte{2, 6, 5, 0xb4, 0, 0, 1, 1}}, 1400, 0},
		{"cut", forged{version: 4, tcpOptions: []byte{1, 1, 2, 4}}, 1400, 0},
		{"cut before its length", forged{version: 4, tcpOptions: []byte{1, 1, 1, 2}}, 1400, 0},
		{"behind an option of length 0", forged{version: 4, tcpOptions: []byte{8, 0, 2, 4, 5, 0xb4, 1, 1}}, 1400, 0},
		{"options of IPv4", forged{version: 4, options: []byte{1, 1, 1, 0}, tcpOptions: mssOption(0, 1460)}, 1400, 1360},
		{"extensions of IPv6", forged{version: 6, first: protoHopByHop, extensions: []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, tcpOptions: mssOption(0, 1440)}, 1400, 1340},
		{"first fragment", forged{version: 6, first: protoFragment, extensions: fragment(0, 1), tcpOptions: mssOption(0, 1440)}, 1400, 1340},
		{"later fragment", forged{version: 6, first: protoFragment, extensions: fragment(1, 1), tcpOptions: mssOption(0, 1440)}, 1400, 0},
		{"Ethernet", forged{mode: TAP, version: 4, tcpOptions: mssOption(0, 1460)}, 1400, 1360},
		{"two VLAN tags", forged{mode: TAP, vlan: 2, version: 6, tcpOptions: mssOption(0, 1440)}, 1400, 1340},
		{"an MTU that leaves nothing", forged{version: 4, tcpOptions: mssOption(0, 1460)}, 40, 0},
		{"an MTU that leaves one", forged{version: 4, tcpOptions: mssOption(0, 1460)}, 41, 1},
		{"no MTU", forged{version: 6, tcpOptions: mssOption(0, 1440)}, 0, 0},
		{"a large MTU", forged{version: 6, tcpOptions: mssOption(0, 65535)}, 65535, 65475},
	} {
		for _, flags := range []byte{tcpSYN, tcpSYN | 0x10} {
			for _, whole := range []bool{true, false} {
				g := c.g
				g.protocol, g.flags, g.whole, g.payload = protoTCP, flags, whole, []byte("fast open")
				f := g.frame()
				before := bytes.Clone(f.Data)
				if changed := ClampMSS(f, g.mode, c.mtu); changed != (c.want != 0) {
					t.Errorf("%s, whole %v: changed %v", c.name, whole, changed)
				}
				if c.want == 0 {
					if !bytes.Equal(before, f.Data) {
						t.Errorf("%s, whole %v: it is another packet", c.name, whole)
					}
					continue
				}
				d := dissect(t, f, g.mode) // asks for the checksum
				tcp := f.Packet()[d.transport:]
				if got := binary.BigEndian.Uint16(tcp[findMSS(tcp):]); got != c.want {
					t.Errorf("%s, whole %v: %d, want %d", c.name, whole, got, c.want)
				}
				if !whole { // who finishes it gets a right one
					list, err := segmentsOf(f, g.mode, 0)
					if err == nil {
						dissect(t, list[0], g.mode)
					} else if c.name != "first fragment" {
						t.Errorf("%s: %v", c.name, err)
					}
				}
			}
		}
	}
}

// TestClampMSSLeaves everything alone that is no SYN of TCP.
func TestClampMSSLeaves(t *testing.T) {
	syn := forged{version: 4, protocol: protoTCP, flags: tcpSYN, tcpOptions: mssOption(0, 1460), whole: true}
	ack := syn
	ack.flags = 0x10
	fragment := poke(syn.frame(), 6, 0, 1)
	for name, f := range map[string]Frame{
		"nothing":          {},
		"a header":         {Data: make([]byte, HeaderLen)},
		"an ACK":           ack.frame(),
		"UDP":              poke(syn.frame(), 9, protoUDP),
		"a later fragment": fragment,
		"version 5":        poke(syn.frame(), 0, 0x55),
		"a short IHL":      poke(syn.frame(), 0, 0x44),
		"a cut TCP header": cutShort(syn.frame(), 20+19),
		"cut options":      cutShort(syn.frame(), 20+23),
	} {
		before := bytes.Clone(f.Data)
		if ClampMSS(f, TUN, 1000) || !bytes.Equal(before, f.Data) {
			t.Errorf("%s was changed", name)
		}
	}
	f := arp(TAP)
	if ClampMSS(f, TAP, 100) {
		t.Error("ARP was changed")
	}
}

// FuzzClampMSS reads what a stranger sends: nothing but the option and the checksum
// changes, the sum of the whole stays what it was, and a second time nothing does.
func FuzzClampMSS(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 7))
	for i := range 24 {
		g := forged{mode: Mode(i % 2), version: 4 + 2*uint8(i/2%2), protocol: protoTCP, flags: tcpSYN, whole: i%3 == 0, tcpOptions: mssOption(r.IntN(8), uint16(r.Uint32()))}
		f.Add(g.frame().Data, i%2 == 1, 576+r.IntN(9000))
	}
	f.Fuzz(func(t *testing.T, data []byte, tap bool, mtu int) {
		m := TUN
		if tap {
			m = TAP
		}
		frame := Frame{Data: bytes.Clone(data)}
		if !ClampMSS(frame, m, mtu) {
			if !bytes.Equal(frame.Data, data) {
				t.Fatal("it says that nothing was changed")
			}
			return
		}
		n := 0
		for i := range data {
			if data[i] != frame.Data[i] {
				n++
			}
		}
		if n > 4 || !bytes.Equal(data[:HeaderLen], frame.Data[:HeaderLen]) {
			t.Fatalf("%d bytes changed", n)
		}
		l, _ := locate(frame.Packet(), m)
		_ = l.findTransport(frame.Packet())
		partial := data[0]&flagPartial != 0 && int(binary.LittleEndian.Uint16(data[6:])) == l.transport
		before, after := plainSum(data[HeaderLen+l.transport:]), plainSum(frame.Data[HeaderLen+l.transport:])
		if !partial && before%0xffff != after%0xffff {
			t.Fatalf("the sum was %#x and is %#x", before, after)
		}
		if ClampMSS(frame, m, mtu) {
			t.Fatal("it changes more the second time")
		}
	})
}

func BenchmarkClampMSS(b *testing.B) {
	for name, flags := range map[string]byte{"data": 0x10, "syn": tcpSYN} {
		b.Run(name, func(b *testing.B) {
			f := forged{mode: TAP, version: 6, protocol: protoTCP, flags: flags, tcpOptions: mssOption(0, 1440), payload: make([]byte, 1400), whole: true}.frame()
			p := f.Packet()
			at := ethernetLen + ipv6Len + tcpLen + 2
			b.ReportAllocs()
			for b.Loop() {
				p[at], p[at+1] = 0xff, 0xff
				ClampMSS(f, TAP, 1500)
			}
		})
	}
}
