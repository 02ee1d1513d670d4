package bond

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestChoice: over which link frames go, as links, servers and their members come
// and go.
func TestChoice(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0"})
		defer b.end()
		b.wantVia(2) // nothing is there

		b.link("tap1")
		b.wantVia(2, "tap1") // its server has said nothing, and may reach him
		b.links["tap1"].tell(1, 2, 3)
		b.wantVia(2, "tap1")
		b.link("tap0", 1, 2, 3)
		b.wantVia(2, "tap1") // not yet
		time.Sleep(defaultHold)
		b.wantVia(2, "tap0")
		b.wantVia(3, "tap0")

		// One leg of one peer: he alone is reached by the other server.
		b.links["tap0"].tell(1, 3)
		b.wantVia(2, "tap1")
		b.wantVia(3, "tap0")
		b.links["tap0"].tell(1, 2, 3)
		b.wantVia(2, "tap1")
		time.Sleep(defaultHold)
		b.wantVia(2, "tap0")

		// Our own leg.
		b.lose("tap0")
		b.wantVia(2, "tap1")
		b.wantVia(3, "tap1")
		b.link("tap0", 1, 2, 3)
		time.Sleep(defaultHold)
		b.wantVia(2, "tap1") // which was lost for the second time within a minute
		b.wantVia(3, "tap0")
		time.Sleep(defaultHold)
		b.wantVia(2, "tap0")

		// A server that drains.
		b.links["tap0"].drain()
		b.wantVia(2, "tap1")
		b.links["tap1"].drain()
		b.wantVia(2, "tap1")
		b.lose("tap1")
		b.wantVia(2, "tap0")

		reasons := []string{}
		for _, e := range b.events(Switched) {
			if e.Peer == "m2/10.0.0.2" {
				reasons = append(reasons, fmt.Sprintf("%s>%s %s", e.From, e.To, e.Reason))
			}
		}
		want := []string{
			">tap1 it is reached",
			"tap1>tap0 the primary reaches it since 1s",
			"tap0>tap1 the server of tap0 does not reach it any more",
			"tap1>tap0 the primary reaches it since 1s",
			"tap0>tap1 link tap0 is down: lost",
			"tap1>tap0 the primary reaches it since 2s",
			"tap0>tap1 the server of tap0 is draining",
			"tap1>tap0 link tap1 is down: lost",
		}
		if !slices.Equal(reasons, want) {
			t.Errorf("switches of member 2:\n%s\nwant\n%s", strings.Join(reasons, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestChoiceWithoutPrimary: what is good enough stays, and the shortest round trip is
// chosen, else the first name.
func TestChoiceWithoutPrimary(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP})
		defer b.end()
		b.link("c", 1, 2)
		for name, rtt := range map[string]time.Duration{"a": 0, "b": 0, "d": 5 * time.Millisecond, "e": 3 * time.Millisecond} {
			b.link(name, 1, 2).setRTT(rtt)
		}
		time.Sleep(time.Minute)
		b.wantVia(2, "c")
		for _, want := range []string{"e", "d", "a", "b"} {
			for name := range b.links {
				if got := b.via(2); slices.Equal(got, []string{name}) {
					b.lose(name)
					break
				}
			}
			b.wantVia(2, want)
		}
	})
}

func TestReselect(t *testing.T) {
	for _, test := range []struct {
		reselect Reselect
		hold     time.Duration
		rtt      time.Duration // of the primary; the other's is 10 ms
		want     time.Duration // when it is taken again; negative: not
	}{
		{ReselectAlways, 0, 20 * time.Millisecond, time.Second},
		{ReselectAlways, 3 * time.Second, 20 * time.Millisecond, 3 * time.Second},
		{ReselectAlways, -1, 20 * time.Millisecond, 0},
		{ReselectBetter, 0, 5 * time.Millisecond, time.Second},
		{ReselectBetter, 0, 20 * time.Millisecond, -1},
		{ReselectBetter, 0, 0, -1},
		{ReselectFailure, 0, 5 * time.Millisecond, -1},
	} {
		t.Run(fmt.Sprintf("%v %v %v", test.reselect, test.hold, test.rtt), func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0", Reselect: test.reselect, Hold: test.hold})
				defer b.end()
				b.link("tap0", 1, 2)
				b.link("tap1", 1, 2).setRTT(10 * time.Millisecond)
				b.wantVia(2, "tap0")
				b.lose("tap0")
				time.Sleep(time.Minute)
				b.wantVia(2, "tap1")
				l := newFakeLink()
				l.setRTT(test.rtt)
				b.add("tap0", l, 1, 2)
				if test.want != 0 {
					if test.want > 0 {
						time.Sleep(test.want - time.Millisecond)
					} else {
						time.Sleep(time.Minute)
					}
					b.wantVia(2, "tap1")
					time.Sleep(time.Millisecond)
				}
				if test.want >= 0 {
					b.wantVia(2, "tap0")
				}
				b.lose("tap1") // the link in use fails
				b.wantVia(2, "tap0")
			})
		})
	}
}

// TestBetterLater: a round trip that becomes shorter is noticed.
func TestBetterLater(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0", Reselect: ReselectBetter})
		defer b.end()
		b.link("tap1", 1, 2).setRTT(10 * time.Millisecond)
		primary := b.link("tap0", 1, 2)
		time.Sleep(time.Minute)
		b.wantVia(2, "tap1")
		primary.setRTT(time.Millisecond)
		time.Sleep(time.Second)
		b.wantVia(2, "tap0")
	})
}

// TestFlapping: a leg that comes and goes is used less and less.
func TestFlapping(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0"})
		defer b.end()
		b.link("tap0", 1, 2)
		b.link("tap1", 1, 2)
		b.events(Switched)
		for range 120 { // ten minutes
			b.links["tap0"].tell(1)
			time.Sleep(2500 * time.Millisecond)
			b.links["tap0"].tell(1, 2)
			time.Sleep(2500 * time.Millisecond)
		}
		// Away, back after 1 s, away, back after 2 s, away.
		if n := len(b.events(Switched)); n != 5 {
			t.Errorf("%d switches in ten minutes, want 5", n)
		}
		time.Sleep(maxHold)
		b.wantVia(2, "tap0")
	})
}

// TestEverybody: what is for all goes over as few links as reach all, and numbered
// if these are several.
func TestEverybody(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0"})
		defer b.end()
		b.link("tap0", 1, 2, 3)
		b.link("tap1", 1, 2, 3)
		b.wantVia(everybody, "tap0")
		b.wantVia(nobody, "tap0")

		b.links["tap0"].tell(1, 2)
		b.wantVia(everybody, "tap1") // which reaches all
		b.links["tap1"].tell(1, 3)
		b.wantVia(everybody, "tap0", "tap1")
		b.wantVia(nobody, "tap0", "tap1")
		b.wantVia(2, "tap0")
		b.wantVia(3, "tap1")

		b.host.Send(frame(everybody, 1))
		synctest.Wait()
		numbers := make(map[[2]uint64]int)
		for _, l := range b.links {
			for _, f := range drainPort(l.far) {
				numbers[[2]uint64{f.Origin, f.Seq}]++
			}
		}
		if len(numbers) != 1 || slices.Collect(mapKeys(numbers))[0][0] != 1 {
			t.Errorf("frames are numbered %v, want one number of origin 1, twice", numbers)
		}
		b.link("tap2", 1, 2, 3)
		b.wantVia(everybody, "tap2")
		b.links["tap2"].drain()
		b.wantVia(everybody, "tap2") // it still reaches all
		b.lose("tap2")
		b.lose("tap1")
		b.lose("tap0")
		b.wantVia(everybody)
		if s := b.Status(); s.Unsent != 1 {
			t.Errorf("%d packets without a link, want 1", s.Unsent)
		}
	})
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

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

// TestRouting: in mode TUN the longest prefix counts, of two members with the same one
// the later.
func TestRouting(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TUN})
		defer b.end()
		net := func(list ...string) (nets []netip.Prefix) {
			for _, s := range list {
				nets = append(nets, netip.MustParsePrefix(s))
			}
			return nets
		}
		two, three, four := aMember(2), aMember(3), aMember(4)
		two.Networks = net("192.168.0.0/16", "fd00::/16", "0.0.0.0/0")
		three.Networks = net("192.168.7.0/24", "fd00:7::/32")
		four.Networks = net("192.168.7.0/24", "fd00:7::/32", "::ffff:1.2.3.0/120")
		four.Addresses = append(four.Addresses, netip.MustParseAddr("fd01::4"))
		b.link("a").tellMembers([]packet.Member{two, three})
		b.link("b").tellMembers([]packet.Member{aMember(1), three})
		b.link("c").tellMembers([]packet.Member{four})
		for to, want := range map[string]string{
			"10.0.0.2": "a", "10.0.0.3": "a", "10.0.0.4": "c", "fd01::4": "c",
			"192.168.1.1": "a", "192.168.7.1": "c", "8.8.8.8": "a", "fd00:1::1": "a", "fd00:7::1": "c",
			"224.0.0.1": "a c", "ff02::1": "a c", "fd99::1": "a c", "10.0.0.1": "a",
		} {
			a, src := netip.MustParseAddr(to), netip.MustParseAddr("10.0.0.1")
			if a.Is6() {
				src = netip.MustParseAddr("fd00::1")
			}
			b.host.Send(packettest.Frame(packettest.IP(src, a, packettest.ProtoUDP, []byte("packet"))))
			synctest.Wait()
			var got []string
			for name, l := range b.links {
				if len(drainPort(l.far)) > 0 {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if strings.Join(got, " ") != want {
				t.Errorf("to %s over %v, want %v", to, got, want)
			}
		}
		b.host.Send(packettest.Frame([]byte{0x45}), packettest.Frame([]byte{0x60}), packettest.Frame([]byte{0}))
		synctest.Wait()
		if s := b.Status(); s.Malformed != 3 {
			t.Errorf("%d malformed, want 3", s.Malformed)
		}
	})
}

// TestNewerMember: of a member that has begun again, the servers know the old
// process for a while, and the new one counts.
func TestNewerMember(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0"})
		defer b.end()
		b.link("tap0", 1, 2)
		b.link("tap1", 1, 2)
		again := aMember(2)
		again.ID = 22
		b.links["tap1"].tellMembers([]packet.Member{aMember(1), again})
		b.wantVia(2, "tap1")
		b.links["tap0"].tellMembers([]packet.Member{aMember(1), again})
		b.wantVia(2, "tap1")
		time.Sleep(time.Second)
		b.wantVia(2, "tap0")

		// Somebody else with his number is somebody else.
		thief := aMember(9)
		thief.ID = 22
		b.links["tap1"].tellMembers([]packet.Member{thief})
		b.wantVia(2, "tap0")
		b.wantVia(9, "tap1")
		for _, p := range b.Status().Peers {
			if p.Name == "m1" {
				t.Errorf("we are our own peer: %+v", p)
			}
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

// TestDeviceEnds: Run returns why, and links end as well once they have something for
// it.
func TestDeviceEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		dev, _ := packettest.Pair()
		b := startBond(t, &Bond{Mode: packet.TAP, Device: dev})
		l := b.link("tap0", 1, 2)
		dev.Fail(packet.ErrGone)
		synctest.Wait()
		if !errors.Is(b.ran, packet.ErrGone) {
			t.Errorf("Run: %v", b.ran)
		}
		l.far.Send(frameFrom(2, 1, 1))
		synctest.Wait()
		if err := b.served["tap0"]; !errors.Is(err, net.ErrClosed) && !errors.Is(err, packet.ErrGone) {
			t.Errorf("Serve: %v", err)
		}
		b.end()
	})
}

func TestServeEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP})
		b.link("tap0", 1, 2)
		if err := b.Serve(t.Context(), "tap0", newFakeLink()); err == nil || !strings.Contains(err.Error(), "being served already") {
			t.Errorf("the name twice: %v", err)
		}
		other := newFakeLink()
		other.hello.ID = 5
		if err := b.Serve(t.Context(), "tap1", other); err == nil || !strings.Contains(err.Error(), "packet.Hello.ID") {
			t.Errorf("another ID: %v", err)
		}
		b.lose("tap0")
		if err := b.served["tap0"]; err == nil || err.Error() != "lost" {
			t.Errorf("Serve: %v", err)
		}
		b.link("tap0", 1, 2).far.Close()
		synctest.Wait()
		if err := b.served["tap0"]; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
		b.link("tap0", 1, 2)
		b.end()
		if err := b.served["tap0"]; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
		if !errors.Is(b.ran, context.Canceled) {
			t.Errorf("Run: %v", b.ran)
		}
		if n := len(b.events(LinkUp)); n != 3 {
			t.Errorf("%d times up, want 3", n)
		}
		if n := len(b.events(LinkDown)); n != 3 {
			t.Errorf("%d times down, want 3", n)
		}
	})
}

// TestOnEventMayDoAnything: ask for a status, and end a link and wait for it.
func TestOnEventMayDoAnything(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		dev, _ := packettest.Pair()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		var kinds []EventKind
		b := &Bond{Mode: packet.TAP, Device: dev}
		b.OnEvent = func(e Event) {
			kinds = append(kinds, e.Kind)
			if e.Kind == LinkUp && e.Link == "b" {
				if s := b.Status(); len(s.Links) != 2 {
					t.Errorf("status %+v", s)
				}
				cancel()
				<-ended
			}
		}
		go func() {
			b.Serve(ctx, "a", newFakeLink())
			close(ended)
		}()
		synctest.Wait()
		other, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { b.Serve(other, "b", newFakeLink()) })
		synctest.Wait()
		stop()
		work.Wait()
		if want := []EventKind{LinkUp, LinkUp, LinkDown, LinkDown}; !slices.Equal(kinds, want) {
			t.Errorf("events %v, want %v", kinds, want)
		}
	})
}

// device is a Port with what a packet.Device has beyond it.
type device struct {
	*packettest.Port
	mu     sync.Mutex
	told   []string
	refuse error
}

func (d *device) SetCarrier(up bool) error { return d.tell("carrier %v", up) }
func (d *device) SetMTU(n int) error       { return d.tell("mtu %d", n) }
func (d *device) SetOffload(take packet.Offload) error {
	return d.tell("offload %v", take)
}

func (d *device) tell(format string, arg any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse == nil {
		d.told = append(d.told, fmt.Sprintf(format, arg))
	}
	return d.refuse
}

func (d *device) setRefuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// TestDeviceFollows: the device has what all links have in common.
func TestDeviceFollows(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		port, host := packettest.Pair()
		d := &device{Port: port}
		b := startBond(t, &Bond{Mode: packet.TAP, Device: d})
		b.host = host
		defer b.end()
		want := func(told ...string) {
			t.Helper()
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			if !slices.Equal(d.told, told) {
				t.Errorf("told %q, want %q", d.told, told)
			}
			d.told = nil
		}
		want()
		b.link("tap0", 1, 2)
		want("mtu 1500", "offload checksum+tso4+tso6+uso", "carrier true")
		l := newFakeLink()
		l.other.MTU, l.other.Offload = 1400, packet.OffloadChecksum
		b.add("tap1", l, 1, 2)
		want("mtu 1400", "offload checksum")

		host.Send(frame(2, 1))
		b.sent()
		syn := packettest.TCP(netip.AddrPortFrom(memberAddr(1), 1), netip.AddrPortFrom(memberAddr(2), 2), packettest.Segment{Flags: packettest.SYN, MSS: 1460})
		f := packettest.Frame(packettest.Ethernet(packet.MAC(memberAddr(2), 0), packet.MAC(memberAddr(1), 0), packettest.TypeIPv4, syn))
		mss := func(f packet.Frame) int { return int(f.Packet()[14+20+22])<<8 | int(f.Packet()[14+20+23]) }
		host.Send(f)
		b.links["tap0"].far.Send(f)
		synctest.Wait()
		for _, p := range []*packettest.Port{host, b.links["tap0"].far} {
			for _, f := range drainPort(p) {
				if got := mss(f); got != 1360 {
					t.Errorf("MSS %d, want 1360", got)
				}
			}
		}

		b.lose("tap1")
		want("mtu 1500", "offload checksum+tso4+tso6+uso")
		b.lose("tap0")
		want("carrier false")

		d.setRefuse(errors.New("no"))
		b.link("tap0", 1, 2)
		var reasons []string
		for _, e := range b.events(Failed) {
			reasons = append(reasons, e.Reason)
		}
		if !slices.Equal(reasons, []string{"the device takes no carrier: no"}) {
			t.Errorf("failures %q", reasons)
		}
		d.setRefuse(nil)
		time.Sleep(carrierRetry)
		want("carrier true")
	})
}

// TestStatus: the page that people look at.
func TestStatus(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		if s := new(Bond).Status(); s.Links == nil || s.Peers == nil || s.Everybody == nil {
			t.Errorf("the status of nothing is %+v", s)
		}
		b := startBond(t, &Bond{Mode: packet.TAP, Primary: "tap0"})
		defer b.end()
		b.link("tap0", 1, 3, 2)
		b.link("tap1", 1, 2).setRTT(time.Millisecond)
		b.wantVia(2, "tap0")
		text, err := json.Marshal(b.Status())
		if err != nil {
			t.Fatal(err)
		}
		at := `"2000-01-01T00:00:00Z"`
		want := `{"policy":"active-backup","mode":"tap","primary":"tap0","links":[` +
			`{"name":"tap0","since":` + at + `,"told":true,"members":3,"peers":2,"sent":1,"received":0,"dropped":0,"doubles":0,"waiting":0},` +
			`{"name":"tap1","since":` + at + `,"told":true,"members":2,"peers":0,"rtt_ns":1000000,"sent":0,"received":0,"dropped":0,"doubles":0,"waiting":0}],` +
			`"peers":[{"id":"2","name":"m2","addresses":["10.0.0.2"],"links":["tap0"],"reachable":["tap0","tap1"],"since":` + at + `},` +
			`{"id":"3","name":"m3","addresses":["10.0.0.3"],"links":["tap0"],"reachable":["tap0"],"since":` + at + `}],` +
			`"everybody":["tap0"],"unsent":0,"malformed":0}`
		if string(text) != want {
			t.Errorf("%s\nwant\n%s", text, want)
		}
	})
}

func TestStrings(t *testing.T) {
	for got, want := range map[string]string{
		ActiveBackup.String(): "active-backup", Redundant.String(): "redundant", Policy(9).String(): "unknown",
		ReselectAlways.String(): "always", ReselectBetter.String(): "better", ReselectFailure.String(): "failure", Reselect(9).String(): "unknown",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
