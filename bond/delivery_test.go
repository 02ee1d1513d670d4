package bond

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestDelivery: the device gets everything once, whatever the links bring twice.
func TestDelivery(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP})
		defer b.end()
		b.link("tap0", 1, 2)
		b.link("tap1", 1, 2)
		received := func() (numbers []uint32) {
			synctest.Wait()
			for _, f := range drainPort(b.host) {
				n, _ := numberOf(f)
				numbers = append(numbers, n)
			}
			return numbers
		}
		for i := range uint32(10) {
			f := frameFrom(2, everybody, i)
			f.Origin, f.Seq = 2, uint64(i+1)
			for _, l := range b.links {
				if err := l.far.Send(f); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := received(); !slices.Equal(got, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("received %v", got)
		}
		for _, l := range b.links { // without a number, both are meant
			l.far.Send(frameFrom(2, 1, 20))
		}
		if got := received(); !slices.Equal(got, []uint32{20, 20}) {
			t.Errorf("received %v", got)
		}
		s := b.Status()
		if s.Links[0].Received+s.Links[1].Received != 22 || s.Links[0].Doubles+s.Links[1].Doubles != 10 {
			t.Errorf("counted %+v", s.Links)
		}
	})
}

// TestRedundant: all links that reach the peer carry each frame.
func TestRedundant(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Policy: Redundant})
		defer b.end()
		b.link("tap0", 1, 2, 3)
		b.link("tap1", 1, 2)
		b.link("tap2")
		b.wantVia(2, "tap0", "tap1")
		b.wantVia(3, "tap0")
		b.wantVia(everybody, "tap0", "tap1", "tap2")
		b.wantVia(nobody, "tap0", "tap1", "tap2")
		b.links["tap0"].drain()
		b.wantVia(2, "tap0", "tap1")
		b.lose("tap0")
		b.wantVia(2, "tap1")
		var peers []string
		for _, e := range b.events(Switched) {
			peers = append(peers, fmt.Sprintf("%s %s>%s %s", e.Peer, e.From, e.To, e.Reason))
		}
		slices.Sort(peers)
		want := []string{
			"m2/10.0.0.2 >tap0 it is reached",
			"m2/10.0.0.2 tap0+tap1>tap1 link tap0 is down: lost",
			"m2/10.0.0.2 tap0>tap0+tap1 it is reached",
			"m3/10.0.0.3 >tap0 it is reached",
			"m3/10.0.0.3 tap0> link tap0 is down: lost",
		}
		if !slices.Equal(peers, want) {
			t.Errorf("switches:\n%s\nwant\n%s", strings.Join(peers, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestRedundantSegments: a packet that is to be segmented is cut before it is numbered.
func TestRedundantSegments(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Policy: Redundant})
		defer b.end()
		b.link("tap0", 1, 2)
		b.link("tap1", 1, 2)
		p := packettest.TCP(netip.AddrPortFrom(memberAddr(1), 1), netip.AddrPortFrom(memberAddr(2), 2),
			packettest.Segment{Flags: packettest.ACK, Payload: make([]byte, 5000)})
		f := packettest.Frame(packettest.Ethernet(packet.MAC(memberAddr(2), 0), packet.MAC(memberAddr(1), 0), packettest.TypeIPv4, p))
		copy(f.Data, []byte{1, 1, 54, 0, 1000 & 255, 1000 >> 8, 34, 0, 16, 0}) // checksum at 34+16, TCPv4 by 1000 bytes
		if err := b.host.Send(f); err != nil {
			t.Fatal(err)
		}
		f.Data = slices.Clone(f.Data)
		f.Data[1] = 9 // no such segmentation
		b.host.Send(f)
		synctest.Wait()
		for name, l := range b.links {
			var seqs []uint64
			for _, f := range drainPort(l.far) {
				if f.Seq == 0 {
					continue // an announcement
				}
				if len(f.Packet()) != 54+1000 {
					t.Errorf("%s: a packet of %d bytes", name, len(f.Packet()))
				}
				seqs = append(seqs, f.Seq)
			}
			if !slices.Equal(seqs, []uint64{1, 2, 3, 4, 5}) {
				t.Errorf("%s: numbers %v", name, seqs)
			}
		}
		if s := b.Status(); s.Malformed != 1 {
			t.Errorf("%d malformed, want 1", s.Malformed)
		}
	})
}

// TestStalledLink: a link that takes nothing holds up nobody else's frames.
func TestStalledLink(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Queue: 100 << 10})
		defer b.end()
		b.link("tap0", 1, 2)
		b.link("tap1", 1, 3)
		b.links["tap0"].Port.Stall() // the port's writer waits from now on
		start, most := time.Now(), time.Duration(0)
		big := frame(2, 1)
		big.Data = append(big.Data, make([]byte, 1400)...)
		for i := range uint32(2000) {
			before := time.Now()
			b.host.Send(big, frame(3, i))
			synctest.Wait()
			for len(b.sent()["tap1"]) == 0 {
				time.Sleep(time.Millisecond)
			}
			most = max(most, time.Since(before))
		}
		if all := time.Since(start); most > pushBackShared || all > 2*pushBackShared {
			t.Errorf("held up by %v, and %v in all", most, all)
		}
		if l := b.Status().Links[0]; l.Dropped == 0 || l.Waiting == 0 {
			t.Errorf("the stalled link has dropped %d frames and %d bytes wait", l.Dropped, l.Waiting)
		}
		b.links["tap0"].Port.Resume()
		synctest.Wait()
		b.wantVia(2, "tap0")
	})
}

// TestPushBack: a slow link alone slows the device down, and loses nothing.
func TestPushBack(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Queue: 64 << 10})
		defer b.end()
		l := b.link("tap0", 1, 2)
		go func() { // slow, but moving
			for range 2000 {
				l.Port.Stall()
				time.Sleep(10 * time.Millisecond)
				l.Port.Resume()
				time.Sleep(time.Millisecond)
			}
		}()
		const frames = 1000
		for i := range uint32(frames) {
			f := frame(2, i)
			f.Data = append(f.Data, make([]byte, 1400)...)
			b.host.Send(f)
		}
		got := 0
		for start := time.Now(); got < frames && time.Since(start) < time.Minute; time.Sleep(time.Millisecond) {
			for _, f := range drainPort(l.far) {
				if len(f.Data) > 1400 { // no announcement
					got++
				}
			}
		}
		if dropped := b.Status().Links[0].Dropped; got != frames || dropped != 0 {
			t.Errorf("%d of %d frames have come, %d were dropped", got, frames, dropped)
		}
		time.Sleep(time.Minute) // the goroutine above
	})
}

// TestPushBackKeepsOrder: what had to wait is not overtaken.
func TestPushBackKeepsOrder(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Queue: 20 << 10})
		defer b.end()
		l := b.link("tap0", 1, 2)
		l.Port.Stall()
		var frames []packet.Frame
		for i := range uint32(40) {
			f := frame(2, i)
			if i%3 == 0 {
				f.Data = append(f.Data, make([]byte, 1400)...)
			}
			frames = append(frames, f)
		}
		b.host.Send(frames...)
		synctest.Wait()
		time.Sleep(5 * time.Millisecond)
		l.Port.Resume()
		synctest.Wait()
		last := -1
		for _, f := range drainPort(l.far) {
			if len(f.Packet()) == 42 {
				continue // an announcement
			}
			n := int(f.Packet()[45])
			if n <= last {
				t.Errorf("%d behind %d", n, last)
			}
			last = n
		}
		if last != 39 {
			t.Errorf("the last is %d", last)
		}
	})
}
