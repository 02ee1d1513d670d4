package packet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A flood of broadcast is cut to the rate, and costs nobody else anything.
func TestSwitchBroadcastFlood(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, FloodRate: 100})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		c := w.join("c", 3, []string{"fd00::c:1"})
		all := ether(packettest.Broadcast(), a.mac, udp(a.addr, netip.MustParseAddr("ff02::1")))
		unknown := ether(packet.MAC(netip.MustParseAddr("fd00::d:1"), 0), a.mac, udp(a.addr, b.addr))
		for range 500 {
			a.say(all, unknown)
		}
		if n, m := len(b.Written()), len(c.Written()); n != 100 || m != 100 {
			t.Errorf("of 1000 %d and %d passed", n, m)
		}
		if st := w.Stats(); st.Drops[packet.DropFlood] != 900 || st.Ports[0].Drops[packet.DropFlood] != 900 || len(st.Ports[1].Drops) != 0 {
			t.Errorf("drops: %v", st.Drops)
		}
		// What has one destination passes, and so does what others broadcast.
		hello := ether(packettest.Broadcast(), b.mac, udp(b.addr, netip.MustParseAddr("ff02::1")))
		b.say(hello)
		a.hears(hello)
		c.hears(hello)
		a.say(a.frameTo(b))
		b.hears(a.frameTo(b))

		time.Sleep(500 * time.Millisecond)
		for range 100 {
			a.say(all)
		}
		if n := len(b.Written()); n != 50 {
			t.Errorf("%d passed after half a second", n)
		}
		// A frame that is to be segmented counts as what it becomes.
		time.Sleep(time.Second)
		large := ether(packettest.Broadcast(), a.mac, packettest.UDP(port(a.addr, 1), port(b.addr, 2), make([]byte, 60000)))
		for range 10 {
			a.say(large)
		}
		if n := len(b.Written()); n != 2 {
			t.Errorf("%d frames of 60,000 bytes passed", n)
		}
	})
}

func TestSwitchFloodWithoutBound(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, FloodRate: -1})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		for range 3000 {
			a.say(ether(packettest.Broadcast(), a.mac, udp(a.addr, b.addr)))
		}
		if n := len(b.Written()); n != 3000 {
			t.Errorf("of 3000 %d passed", n)
		}
	})
}

// A peer that floods the table is cut to its part, and others still learn.
func TestSwitchTableFlood(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, MaxMACsPerPort: 20})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		for leg := range 256 {
			a.say(ether(b.mac, packet.MAC(a.addr, leg), udp(a.addr, b.addr)))
		}
		if st := w.Stats(); st.MACs != 20 || st.Ports[0].MACs != 20 || st.Drops[packet.DropTable] != 236 {
			t.Errorf("stats: %+v", st)
		}
		if n := len(b.Written()); n != 20 {
			t.Errorf("%d frames passed", n)
		}
		// The MACs that it has go on, as do others.
		a.say(a.frameTo(b))
		b.hears(a.frameTo(b))
		b.say(b.frameTo(a))
		a.hears(b.frameTo(a))
		if st := w.Stats(); st.Ports[1].MACs != 1 {
			t.Errorf("stats: %+v", st)
		}
		// What is too old makes room.
		time.Sleep(5*time.Minute + 2*time.Second)
		a.say(ether(b.mac, packet.MAC(a.addr, 100), udp(a.addr, b.addr)))
		if st := w.Stats(); st.Ports[0].MACs != 1 || st.Drops[packet.DropTable] != 236 {
			t.Errorf("stats: %+v", st)
		}
	})
}

// A table that many peers fill has room for each other one.
func TestSwitchTableShares(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, MaxPorts: 10, MaxMACs: 100, MaxMACsPerPort: -1})
		flood := func(p *switchPeer) {
			for leg := range 100 {
				p.say(ether(p.mac, packet.MAC(p.addr, leg), udp(p.addr, p.addr)))
			}
		}
		var peers []*switchPeer
		for i := range 10 {
			peers = append(peers, w.join("p", uint64(i+1), []string{fmt.Sprintf("fd00::%x:1", i+1)}))
		}
		for _, p := range peers {
			flood(p)
		}
		st := w.Stats()
		for i, p := range st.Ports {
			if want := map[bool]int{true: 55, false: 5}[i == 0]; p.MACs != want {
				t.Errorf("port %d has %d MACs, want %d", i, p.MACs, want)
			}
		}
		if st.MACs != 100 {
			t.Errorf("%d MACs", st.MACs)
		}
		peers[0].end()
		flood(peers[1])
		if st := w.Stats(); st.MACs != 95 || st.Ports[0].MACs != 55 {
			t.Errorf("after the first has left: %+v", st)
		}
	})
}

// The MAC of a live port is nobody else's, even where rules overlap; only the server's own
// device may take one.
func TestSwitchTaken(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		// Two networks whose addresses have the same last four bytes.
		a := w.join("a", 1, []string{"fd00:1::a:1"})
		b := w.join("b", 2, []string{"fd00:2::a:1"})
		c := w.join("c", 3, []string{"fd00::c:1"})
		a.say(a.frameTo(c))
		c.hears(a.frameTo(c))
		b.say(b.frameTo(c))
		c.hears()
		if w.dropped(packet.DropTaken) != 1 || w.total() != 1 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
		c.say(ether(a.mac, c.mac, udp(c.addr, a.addr)))
		a.hears(ether(a.mac, c.mac, udp(c.addr, a.addr)))
		b.hears()

		device := w.add(packet.PortOptions{Trusted: true})
		device.say(ether(c.mac, a.mac, udp(a.addr, c.addr)))
		c.hears(ether(c.mac, a.mac, udp(a.addr, c.addr)))
		a.say(a.frameTo(c))
		c.hears()
		if w.dropped(packet.DropTaken) != 2 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
		device.end()
		b.say(b.frameTo(c)) // it is free again
		c.hears(b.frameTo(c))
		// Where two have it and neither was heard, nobody is preferred.
		a.end()
		b.end()
		a = w.join("a", 1, []string{"fd00:1::a:1"})
		b = w.join("b", 2, []string{"fd00:2::a:1"})
		c.say(ether(a.mac, c.mac, udp(c.addr, a.addr)))
		a.hears(ether(a.mac, c.mac, udp(c.addr, a.addr)))
		b.hears(ether(a.mac, c.mac, udp(c.addr, a.addr)))
	})
}

// Members that are kept apart reach the server's own device and nobody else.
func TestSwitchIsolates(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, Isolate: true})
		device := w.add(packet.PortOptions{Trusted: true})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		a.say(a.frameTo(b))
		b.hears()
		device.hears()
		if w.dropped(packet.DropIsolated) != 1 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
		all := ether(packettest.Broadcast(), a.mac, udp(a.addr, netip.MustParseAddr("ff02::1")))
		a.say(all)
		b.hears()
		device.hears(all)
		mac := packet.MAC(netip.MustParseAddr("fd00::1"), 0)
		hello := ether(packettest.Broadcast(), mac, udp(netip.MustParseAddr("fd00::1"), b.addr))
		device.say(hello)
		a.hears(hello)
		b.hears(hello)
		b.say(ether(mac, b.mac, udp(b.addr, netip.MustParseAddr("fd00::1"))))
		device.hears(ether(mac, b.mac, udp(b.addr, netip.MustParseAddr("fd00::1"))))
	})
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Isolate: true})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		a.say(udp(a.addr, b.addr))
		b.hears()
		if w.dropped(packet.DropIsolated) != 1 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
	})
}

// A port that vanishes in the middle takes nothing with it: not from those that send to
// it, nor from those that it was about to hear.
func TestSwitchPortVanishes(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		c := w.join("c", 3, []string{"fd00::c:1"})
		b.Stall()
		a.say(a.frameTo(b), a.frameTo(b), a.frameTo(c))
		c.hears(a.frameTo(c))
		gone := errors.New("no such device")
		b.Fail(gone)
		if err := b.ended(); err != gone {
			t.Errorf("the port: %v", err)
		}
		a.say(a.frameTo(b), a.frameTo(c)) // b is unknown now
		c.hears(a.frameTo(b), a.frameTo(c))
		c.say(c.frameTo(a))
		a.hears(c.frameTo(a))
		for _, p := range []*switchPeer{a, c} {
			if r := p.Reaches(); len(r[len(r)-1]) != 2 {
				t.Errorf("reach: %v", r)
			}
		}
		st := w.Stats()
		if st.Drops[packet.DropQueue] != 2 || st.Frames != 6 || len(st.Ports) != 2 {
			t.Errorf("stats: %+v", st)
		}
	})
}

// Ports that come, go and are replaced under traffic from many.
func TestSwitchChurn(t *testing.T) {
	s := &packet.Switch{Mode: packet.TAP, FloodRate: -1}
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, s)
		steady := []*switchPeer{w.join("a", 1, []string{"fd00::a:1"}), w.join("b", 2, []string{"fd00::b:1"})}
		heard := 0
		for i := range 300 {
			id := uint64(10 + i%3)
			p := w.join(fmt.Sprint("p", id), id, []string{fmt.Sprintf("fd00::ff:%x", id)})
			for range 5 {
				p.Give(packettest.Frame(p.frameTo(steady[0])), packettest.Frame(ether(packettest.Broadcast(), p.mac, udp(p.addr, steady[1].addr))))
			}
			steady[0].Give(packettest.Frame(steady[0].frameTo(p)), packettest.Frame(steady[0].frameTo(steady[1])))
			if i%7 == 0 {
				p.Fail(errors.New("gone"))
			}
			if i%11 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		for _, f := range steady[1].Written() {
			if string(f.Packet()) == string(steady[0].frameTo(steady[1])) {
				heard++
			}
		}
		if heard != 300 {
			t.Errorf("of 300 frames between two that stay %d came", heard)
		}
		if n := len(w.Members()); n > 5 {
			t.Errorf("%d members are left", n)
		}
	})
}
