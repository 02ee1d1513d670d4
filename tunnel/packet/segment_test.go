package packet

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// segmentsOf runs Segment and returns copies.
func segmentsOf(f Frame, m Mode, take Offload) (list []Frame, err error) {
	err = Segment(f, m, take, func(s Frame) error {
		s.Data = bytes.Clone(s.Data)
		list = append(list, s)
		return nil
	})
	return list, err
}

// TestSegmentProperty puts the segments of random packets together again: their payload
// is that of the packet, and every header is right.
func TestSegmentProperty(t *testing.T) {
	for seed := range uint64(600) {
		g := randomForged(rand.New(rand.NewPCG(seed, 4)))
		f := g.frame()
		before := bytes.Clone(f.Data)
		if err := Check(f, g.mode, 65535); err != nil {
			t.Fatalf("seed %d: Check: %v", seed, err)
		}
		take := OffloadChecksum * Offload(seed%2)
		list, err := segmentsOf(f, g.mode, take)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(f.Data, before) {
			t.Fatalf("seed %d: the frame was changed", seed)
		}
		checkSegments(t, g, list, take)
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, g.header)
		}
	}
}

func checkSegments(t testing.TB, g forged, list []Frame, take Offload) {
	t.Helper()
	size := int(g.header.size)
	if want := max(1, (len(g.payload)+size-1)/size); len(list) != want {
		t.Errorf("%d segments, want %d", len(list), want)
		return
	}
	var payload, headers []byte
	for i, s := range list {
		if partial := readHeader(s.Data).flags == flagPartial; partial != (take&OffloadChecksum != 0) {
			t.Errorf("segment %d: partial is %v", i, partial)
		}
		d := dissect(t, s, g.mode)
		first, last := i == 0, i == len(list)-1
		if !last && len(d.payload) != size {
			t.Errorf("segment %d has %d bytes, want %d", i, len(d.payload), size)
		}
		if g.version == 4 && d.id != g.id+uint16(i) {
			t.Errorf("segment %d has the identification %d, want %d", i, d.id, g.id+uint16(i))
		}
		if first {
			headers = d.headers
		} else if !bytes.Equal(headers, d.headers) {
			t.Errorf("segment %d differs in its headers", i)
		}
		if g.protocol == protoTCP {
			want := g.flags
			if !first {
				want &^= tcpCWR
			}
			if !last {
				want &^= tcpFIN | tcpPSH
			}
			if d.flags != want || d.seq != g.seq+uint32(len(payload)) {
				t.Errorf("segment %d: flags %#x, seq %d; want %#x, %d", i, d.flags, d.seq, want, g.seq+uint32(len(payload)))
			}
		}
		payload = append(payload, d.payload...)
	}
	if !bytes.Equal(payload, g.payload) {
		t.Error("the payload is another")
	}
}

// TestSegmentPasses gives frames on whole that the receiver takes, or that ask for
// nothing, even if nobody could segment them.
func TestSegmentPasses(t *testing.T) {
	tcp4 := forged{version: 4, protocol: protoTCP, payload: make([]byte, 5000), header: virtioHeader{gso: gsoTCPv4 | gsoECN, size: 1000}}
	tcp6, udp := tcp4, tcp4
	tcp6.version, tcp6.header.gso = 6, gsoTCPv6
	udp.protocol, udp.header.gso = protoUDP, gsoUDP
	plain := forged{version: 4, protocol: protoTCP, payload: make([]byte, 100)}
	whole := plain
	whole.whole = true
	for _, c := range []struct {
		name string
		f    Frame
		take Offload
		want int
	}{
		{"tcp4", tcp4.frame(), OffloadChecksum | OffloadTSO4, 1},
		{"tcp4 to tcp6 only", tcp4.frame(), OffloadAll &^ OffloadTSO4, 5},
		{"tcp4 without checksum", tcp4.frame(), OffloadTSO4, 5},
		{"tcp6", tcp6.frame(), OffloadChecksum | OffloadTSO6, 1},
		{"tcp6 to tcp4 only", tcp6.frame(), OffloadAll &^ OffloadTSO6, 5},
		{"udp", udp.frame(), OffloadAll, 1},
		{"udp without", udp.frame(), OffloadAll &^ OffloadUSO, 5},
		{"partial", plain.frame(), OffloadChecksum, 1},
		{"whole", whole.frame(), 0, 1},
		{"rubbish that is whole", Frame{Data: make([]byte, HeaderLen+1)}, 0, 1},
	} {
		list, err := segmentsOf(c.f, TUN, c.take)
		if err != nil || len(list) != c.want {
			t.Errorf("%s: %d frames, %v; want %d", c.name, len(list), err, c.want)
			continue
		}
		if same := bytes.Equal(list[0].Data, c.f.Data); same != (c.want == 1) {
			t.Errorf("%s: the frame is the same: %v", c.name, same)
		}
	}
}

// TestSegmentNumber keeps the number of what stays one frame, also where its checksum
// was completed, and gives none to pieces.
func TestSegmentNumber(t *testing.T) {
	g := forged{version: 4, protocol: protoTCP, payload: make([]byte, 5000)}
	f := g.frame()
	f.Origin, f.Seq = 7, 9
	list, err := segmentsOf(f, TUN, 0)
	if err != nil || len(list) != 1 || list[0].Origin != 7 || list[0].Seq != 9 {
		t.Fatalf("%v, %v; want one frame with its number", list, err)
	}
	g.header = virtioHeader{gso: gsoTCPv4, size: 1000}
	f.Data = g.frame().Data
	list, err = segmentsOf(f, TUN, 0)
	if err != nil || len(list) != 5 || list[0].Seq != 0 {
		t.Fatalf("%d frames, %v; want five without a number", len(list), err)
	}
}

func TestSegmentStopsAtError(t *testing.T) {
	enough := errors.New("enough")
	g := forged{version: 6, protocol: protoTCP, payload: make([]byte, 5000), header: virtioHeader{gso: gsoTCPv6, size: 1000}}
	n := 0
	err := Segment(g.frame(), TUN, 0, func(Frame) error {
		if n++; n == 2 {
			return enough
		}
		return nil
	})
	if err != enough || n != 2 {
		t.Errorf("%d calls, %v", n, err)
	}
}

// TestSegmentFinishes completes partial checksums of protocols that it does not cut,
// and of what is in a tunnel.
func TestSegmentFinishes(t *testing.T) {
	inner := forged{version: 4, protocol: protoTCP, payload: []byte("abc")}.frame().Packet()
	outer := forged{version: 6, protocol: protoUDP, payload: append(make([]byte, 8), inner...)}
	f := outer.frame()
	h := readHeader(f.Data)
	h.start, h.offset = uint16(ipv6Len+udpLen+8+ipv4Len), 16 // of the inner TCP
	h.put(f.Data)
	list, err := segmentsOf(f, TUN, 0)
	if err != nil {
		t.Fatal(err)
	}
	dissect(t, Frame{Data: append(make([]byte, HeaderLen), list[0].Packet()[ipv6Len+udpLen+8:]...)}, TUN)

	icmp := forged{version: 6, protocol: protoICMPv6, payload: []byte("echo of an odd length")}
	f = icmp.frame() // with a TCP header, of which ICMP reads the third word as its checksum
	h = readHeader(f.Data)
	h.offset = 2
	h.put(f.Data)
	p := f.Packet()
	copy(p[ipv6Len+2:], p[ipv6Len+16:ipv6Len+18])
	clear(p[ipv6Len+16 : ipv6Len+18])
	list, err = segmentsOf(f, TUN, 0)
	if err != nil {
		t.Fatal(err)
	}
	p = list[0].Packet()
	pseudo := append(bytes.Clone(p[8:40]), 0, 0, p[4], p[5], 0, 0, 0, protoICMPv6)
	if s := plainSum(append(pseudo, p[ipv6Len:]...)); s != 0xffff {
		t.Errorf("ICMPv6 sums up to %#x", s)
	}
}

// TestChecksumNeverZero: zero says that there is none in UDP.
func TestChecksumNeverZero(t *testing.T) {
	g := forged{version: 4, protocol: protoUDP, payload: make([]byte, 2)}
	for v := range 1 << 16 {
		g.payload[0], g.payload[1] = byte(v>>8), byte(v)
		list, err := segmentsOf(g.frame(), TUN, 0)
		if err != nil {
			t.Fatal(err)
		}
		dissect(t, list[0], TUN)
	}
}

// FuzzSegment cuts what a stranger sends: what Check lets pass can be cut, within the
// bounds, into frames that Check lets pass.
func FuzzSegment(f *testing.F) {
	for seed := range uint64(20) {
		g := randomForged(rand.New(rand.NewPCG(seed, 5)))
		g.payload = g.payload[:len(g.payload)%300]
		f.Add(g.frame().Data, seed%2 == 0, byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte, tap bool, take byte) {
		m := TUN
		if tap {
			m = TAP
		}
		in := Frame{Data: data}
		before := bytes.Clone(data)
		bad := Check(in, m, 1500)
		n := 0
		err := Segment(in, m, Offload(take), func(s Frame) error {
			n++
			if len(s.Data) <= HeaderLen || len(s.Data) > max(HeaderLen+MaxPacket, len(data)) {
				t.Fatalf("segment of %d bytes", len(s.Data))
			}
			if bad == nil {
				if needs := readHeader(s.Data).needs(); needs&^Offload(take).usable() != 0 {
					t.Fatalf("a segment needs %v", needs)
				}
				if err := Check(s, m, 1500); err != nil {
					t.Fatalf("segment %d: %v", n, err)
				}
			}
			return nil
		})
		if !bytes.Equal(data, before) {
			t.Fatal("the frame was changed")
		}
		if bad == nil && err != nil {
			t.Fatalf("Check finds nothing wrong, Segment %v", err)
		}
		if _, ok := err.(FrameError); err != nil && (!ok || n != 0) {
			t.Fatalf("%v after %d segments", err, n)
		}
		if n > MaxSegments || err == nil && n == 0 {
			t.Fatalf("%d segments", n)
		}
	})
}

func BenchmarkSegment(b *testing.B) {
	for _, c := range []struct {
		name string
		take Offload
	}{{"whole", 0}, {"partial", OffloadChecksum}, {"passed", OffloadAll}} {
		b.Run(c.name, func(b *testing.B) {
			g := forged{mode: TAP, version: 6, protocol: protoTCP, tcpOptions: make([]byte, 12), payload: make([]byte, 64000), header: virtioHeader{gso: gsoTCPv6, size: 1400}}
			f := g.frame()
			b.SetBytes(int64(len(f.Data)))
			b.ReportAllocs()
			n := 0
			emit := func(Frame) error { n++; return nil }
			for b.Loop() {
				if err := Segment(f, TAP, c.take, emit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("checksum", func(b *testing.B) {
		f := forged{version: 6, protocol: protoTCP, payload: make([]byte, 1400)}.frame()
		b.SetBytes(int64(len(f.Data)))
		b.ReportAllocs()
		emit := func(Frame) error { return nil }
		for b.Loop() {
			if err := Segment(f, TUN, 0, emit); err != nil {
				b.Fatal(err)
			}
		}
	})
}
