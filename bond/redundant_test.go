package bond

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

func TestWindow(t *testing.T) {
	for _, test := range []struct {
		name   string
		seqs   []uint64
		accept []bool
	}{
		{"in order", []uint64{1, 2, 3}, []bool{true, true, true}},
		{"twice", []uint64{1, 1, 2, 2, 1}, []bool{true, false, true, false, false}},
		{"out of order", []uint64{3, 1, 2, 1, 3}, []bool{true, true, true, false, false}},
		{"begins late", []uint64{1 << 40, 1<<40 - 1, 1 << 40}, []bool{true, true, false}},
		{"the last of the window", []uint64{5000, 5000 - windowLen + 1, 5000 - windowLen}, []bool{true, true, false}},
		{"a leap of a window", []uint64{7, 7 + 64*windowWords, 7}, []bool{true, true, false}},
		{"a leap clears what is between", []uint64{10, 100, 50, 99, 10}, []bool{true, true, true, true, false}},
		{"the highest numbers", []uint64{math.MaxUint64, math.MaxUint64 - 1, math.MaxUint64, 1}, []bool{true, true, false, false}},
	} {
		var w window
		for i, seq := range test.seqs {
			if got := w.accept(seq); got != test.accept[i] {
				t.Errorf("%s: %d of %v accepted: %v, want %v", test.name, seq, test.seqs, got, test.accept[i])
			}
		}
	}
}

// TestWindowRandom compares a window with a list of all numbers.
func TestWindowRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w window
	known, top := make(map[uint64]bool), uint64(0)
	for range 200_000 {
		seq := max(1, top+uint64(r.IntN(40))-uint64(min(top, uint64(r.IntN(6000)))))
		if r.IntN(10_000) == 0 {
			seq += uint64(r.IntN(20_000))
		}
		want := !known[seq] && (seq > top || top-seq < windowLen)
		if got := w.accept(seq); got != want {
			t.Fatalf("%d accepted: %v, want %v, the highest is %d", seq, got, want, top)
		}
		known[seq] = true
		top = max(top, seq)
	}
}

// tapTable is a table of one member per address, all of them reached over no link.
func tapTable(mode packet.Mode, addrs ...string) *table {
	b := &Bond{Mode: mode, peers: make(map[peerKey]*peer)}
	for i, a := range addrs {
		b.peers[peerKey{id: uint64(i)}] = &peer{number: uint64(i + 1), member: packet.Member{ID: uint64(i), Addresses: []netip.Addr{netip.MustParseAddr(a)}}}
	}
	return b.newTable(nil)
}

// numbered is a frame from one MAC to everybody.
func numbered(mac net.HardwareAddr, origin, seq uint64) packet.Frame {
	f := packettest.Frame(packettest.Ethernet(packettest.Broadcast(), mac, packettest.TypeIPv6, []byte("packet")))
	f.Origin, f.Seq = origin, seq
	return f
}

// TestFilterHostile: with the number of another, and with whatever numbers, a member
// spoils nothing but its own.
func TestFilterHostile(t *testing.T) {
	tab := tapTable(packet.TAP, "10.0.0.1", "10.0.0.2")
	good, bad := packet.MAC(netip.MustParseAddr("10.0.0.1"), 0), packet.MAC(netip.MustParseAddr("10.0.0.2"), 0)
	var d filter
	for seq := uint64(1); seq < 2500; seq++ {
		if !d.accept(tab, numbered(good, 1, seq)) {
			t.Fatalf("the %dth packet is lost", seq)
		}
		if d.accept(tab, numbered(good, 1, seq)) {
			t.Fatalf("the %dth packet is doubled", seq)
		}
		d.accept(tab, numbered(bad, 1, rand.Uint64()|1)) // the other's origin
		d.accept(tab, numbered(bad, rand.Uint64(), 1))   // a new one each time
		strange := net.HardwareAddr{2, 7, byte(seq >> 24), byte(seq >> 16), byte(seq >> 8), byte(seq)}
		d.accept(tab, numbered(strange, 1, seq+5000)) // a new source each time
		d.accept(tab, numbered(packet.MAC(netip.MustParseAddr("10.0.0.2"), int(seq)), 1, seq))
	}
	members := 0
	for s := range d.sources {
		if tab.knows(s) {
			members++
		}
	}
	if len(d.sources) > maxSources || members != 2 {
		t.Errorf("%d sources are kept, %d of them of members; the bound is %d", len(d.sources), members, maxSources)
	}
	if h := d.sources[source{lo: 0x02_00_0a_00_00_01}]; h == nil {
		t.Error("a member's history is given up for strangers")
	}
}

// TestFilterRestart: a process that begins again counts from 1.
func TestFilterRestart(t *testing.T) {
	tab := tapTable(packet.TAP, "10.0.0.1")
	mac := packet.MAC(netip.MustParseAddr("10.0.0.1"), 0)
	var d filter
	for origin := range uint64(10) {
		for seq := uint64(1); seq < 100; seq++ {
			if !d.accept(tab, numbered(mac, origin, seq)) {
				t.Fatalf("origin %d: packet %d is lost", origin, seq)
			}
		}
	}
	// The two of an update in progress do not disturb each other.
	for seq := uint64(100); seq < 200; seq++ {
		for _, origin := range []uint64{8, 9} {
			if !d.accept(tab, numbered(mac, origin, seq)) || d.accept(tab, numbered(mac, origin, seq)) {
				t.Fatalf("origin %d: packet %d", origin, seq)
			}
		}
	}
}

// TestFilterFull: of members, too, only so many histories are kept.
func TestFilterFull(t *testing.T) {
	tab := tapTable(packet.TUN)
	var d filter
	for i := range 2 * maxSources {
		src := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		f := packettest.Frame(packettest.IP(src, netip.MustParseAddr("224.0.0.1"), packettest.ProtoUDP, []byte("packet")))
		f.Origin, f.Seq = 1, 1
		if !d.accept(tab, f) {
			t.Fatalf("the first packet of %v is lost", src)
		}
	}
	if len(d.sources) != maxSources {
		t.Errorf("%d sources are kept, want %d", len(d.sources), maxSources)
	}
}

func TestFilterTUN(t *testing.T) {
	tab := tapTable(packet.TUN, "10.0.0.1", "fd00::2")
	var d filter
	for _, src := range []string{"10.0.0.1", "fd00::2", "10.0.0.9", "fd00::9"} {
		a := netip.MustParseAddr(src)
		dst := netip.MustParseAddr("224.0.0.1")
		if a.Is6() {
			dst = netip.MustParseAddr("ff02::1")
		}
		f := packettest.Frame(packettest.IP(a, dst, packettest.ProtoUDP, []byte("packet")))
		f.Origin, f.Seq = 1, 1
		if !d.accept(tab, f) || d.accept(tab, f) {
			t.Errorf("%s: the first is lost or the second is not", src)
		}
	}
	members := 0
	for s := range d.sources {
		if tab.knows(s) {
			members++
		}
	}
	if len(d.sources) != 4 || members != 2 {
		t.Errorf("%d sources, %d of members, want 4 and 2", len(d.sources), members)
	}
	f := packettest.Frame([]byte{0x45, 0})
	f.Seq = 1
	if d.accept(tab, f) {
		t.Error("half a packet is accepted")
	}
}

// TestFresh: what is left of a batch is in order, and the rest of it is written when
// there is no room.
func TestFresh(t *testing.T) {
	tab := tapTable(packet.TAP, "10.0.0.1")
	mac := packet.MAC(netip.MustParseAddr("10.0.0.1"), 0)
	list := func(b *packet.Batch) (seqs []uint64) {
		for f := range b.Frames() {
			seqs = append(seqs, binary.BigEndian.Uint64(f.Packet()[14:]))
		}
		return seqs
	}
	batch := func(size int, seqs ...uint64) *packet.Batch {
		b := packet.NewBatch(1 << 22)
		for _, seq := range seqs {
			body := binary.BigEndian.AppendUint64(nil, seq)
			body = append(body, make([]byte, size)...)
			f := packettest.Frame(packettest.Ethernet(packettest.Broadcast(), mac, packettest.TypeIPv6, body))
			if seq < 1000 { // from 1000 on without a number
				f.Origin, f.Seq = 1, seq
			}
			if !b.Append(f) {
				t.Fatal("no room")
			}
		}
		return b
	}
	var d filter
	var out packet.Batch
	var flushed []uint64
	for _, test := range []struct {
		name    string
		in      []uint64
		size    int
		want    []uint64
		doubles int
	}{
		{"nothing known", []uint64{1, 2, 1000}, 10, []uint64{1, 2, 1000}, 0},
		{"all known", []uint64{1, 2}, 10, nil, 2},
		{"some known", []uint64{3, 1, 4, 1000, 2, 5}, 10, []uint64{3, 4, 1000, 5}, 2},
		{"no number", []uint64{1000, 1000}, 10, []uint64{1000, 1000}, 0},
		{"more than has room", []uint64{6, 7, 8, 9, 5, 10, 11}, 60000, []uint64{6, 7, 8, 9, 10, 11}, 1},
	} {
		flushed = nil
		rest, doubles := d.fresh(tab, batch(test.size, test.in...), &out, func(b *packet.Batch) { flushed = append(flushed, list(b)...) })
		got := flushed
		if rest != nil {
			got = append(got, list(rest)...)
		}
		if !slices.Equal(got, test.want) || doubles != test.doubles {
			t.Errorf("%s: %v and %d doubles, want %v and %d", test.name, got, doubles, test.want, test.doubles)
		}
	}
}

// FuzzFilter gives the filter anything that a stranger can send: it accepts each
// number of an origin and source once, and what it keeps has a bound.
func FuzzFilter(f *testing.F) {
	mac := packet.MAC(netip.MustParseAddr("10.0.0.1"), 0)
	f.Add(true, numbered(mac, 1, 1).Packet(), uint64(1), uint64(1))
	f.Add(false, packettest.IP(netip.MustParseAddr("fd00::2"), netip.MustParseAddr("ff02::1"), 17, []byte("p")), uint64(1), uint64(math.MaxUint64))
	f.Add(true, []byte{}, uint64(0), uint64(1))
	tabs := map[bool]*table{true: tapTable(packet.TAP, "10.0.0.1", "fd00::2"), false: tapTable(packet.TUN, "10.0.0.1", "fd00::2")}
	filters := map[bool]*filter{true: new(filter), false: new(filter)}
	f.Fuzz(func(t *testing.T, isTAP bool, p []byte, origin, seq uint64) {
		if seq == 0 {
			seq = 1
		}
		frame := packettest.Frame(p)
		frame.Origin, frame.Seq = origin, seq
		tab, d := tabs[isTAP], filters[isTAP]
		d.accept(tab, frame)
		if d.accept(tab, frame) {
			t.Error("accepted twice")
		}
		if len(d.sources) > maxSources {
			t.Errorf("%d sources", len(d.sources))
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	tab := tapTable(packet.TAP, "10.0.0.1")
	f := numbered(packet.MAC(netip.MustParseAddr("10.0.0.1"), 0), 1, 1)
	var d filter
	b.ReportAllocs()
	for b.Loop() {
		f.Seq++
		d.accept(tab, f)
	}
}
