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

// TestOnEventMayAsk: ask for a status, and end a link.
func TestOnEventMayAsk(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		dev, _ := packettest.Pair()
		ctx, cancel := context.WithCancel(t.Context())
		var kinds []EventKind
		b := &Bond{Mode: packet.TAP, Device: dev}
		b.OnEvent = func(e Event) {
			kinds = append(kinds, e.Kind)
			if e.Kind == LinkUp && e.Link == "b" {
				if s := b.Status(); len(s.Links) != 2 {
					t.Errorf("status %+v", s)
				}
				cancel()
			}
		}
		var work sync.WaitGroup
		work.Go(func() { b.Serve(ctx, "a", newFakeLink()) })
		synctest.Wait()
		other, stop := context.WithCancel(t.Context())
		work.Go(func() { b.Serve(other, "b", newFakeLink()) })
		synctest.Wait()
		stop()
		work.Wait()
		if want := []EventKind{LinkUp, LinkUp, LinkDown, LinkDown}; !slices.Equal(kinds, want) {
			t.Errorf("events %v, want %v", kinds, want)
		}
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
