package packet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestSwitchLearns(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		c := w.join("c", 3, []string{"fd00::c:1"})

		// Broadcast goes to all others.
		group := netip.MustParseAddr("ff02::1:ff0b:1")
		ask := ether(packettest.Multicast(group), a.mac, packettest.Solicit(a.addr, b.addr, a.mac))
		a.say(ask)
		a.hears()
		b.hears(ask)
		c.hears(ask)

		// The answer and what follows goes to one.
		answer := ether(a.mac, b.mac, packettest.Advertise(b.addr, a.addr, b.addr, b.mac))
		b.say(answer)
		a.hears(answer)
		c.hears()
		a.say(a.frameTo(b), a.frameTo(b))
		b.hears(a.frameTo(b), a.frameTo(b))
		c.hears()

		// A MAC that was never heard of goes to whose address it is made of, of any
		// leg; one that is nobody's to all.
		leg := ether(packet.MAC(c.addr, 1), a.mac, udp(a.addr, c.addr))
		a.say(leg)
		b.hears()
		c.hears(leg)
		nobody := ether(packet.MAC(netip.MustParseAddr("fd00::d:1"), 0), a.mac, udp(a.addr, c.addr))
		a.say(nobody)
		b.hears(nobody)
		c.hears(nobody)

		// To itself is nowhere.
		self := ether(a.mac, a.mac, udp(a.addr, a.addr))
		a.say(self)
		a.hears()
		b.hears()
		if w.dropped(packet.DropNoRoute) != 1 || w.total() != 1 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
		if st := w.Stats(); st.MACs != 2 || st.Frames != 7 || len(st.Ports) != 3 || st.Ports[1].FramesIn != 1 || st.Ports[1].MACs != 1 || st.Ports[2].Queue.Frames != 3 {
			t.Errorf("stats: %+v", st)
		}

		// Who leaves is not known any more.
		b.end()
		a.say(a.frameTo(b))
		c.hears(a.frameTo(b))
		if st := w.Stats(); st.MACs != 1 || st.Frames != 8 {
			t.Errorf("stats: %+v", st)
		}
	})
}

func TestSwitchAging(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		device := w.add(packet.PortOptions{Trusted: true, Name: "device"})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		mac := net.HardwareAddr{0x52, 1, 2, 3, 4, 5}
		hello := ether(packettest.Broadcast(), mac, udp(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("ff02::1")))
		device.say(hello)
		toDevice := ether(mac, a.mac, udp(a.addr, netip.MustParseAddr("fd00::1")))
		a.say(toDevice)
		device.hears(toDevice)
		b.hears(hello)

		time.Sleep(4 * time.Minute)
		device.say(hello) // it is still there
		time.Sleep(4 * time.Minute)
		b.hears(hello)
		a.say(toDevice)
		b.hears()
		time.Sleep(time.Minute + 2*time.Second)
		if n := w.Stats().MACs; n != 1 { // a's
			t.Errorf("%d MACs", n)
		}
		a.say(toDevice)
		device.hears(toDevice, toDevice)
		b.hears(toDevice)
	})
}

// A member that comes again takes its own place, and no other has it.
func TestSwitchReplaces(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		b.say(b.frameTo(a))

		again := w.join("b", 2, []string{"fd00::b:1"})
		if err := b.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Errorf("the older: %v", err)
		}
		if code := b.ByeCode(); code != "" {
			t.Errorf("a process that came again was told %q", code)
		}
		a.Written()
		a.say(a.frameTo(b))
		again.hears(a.frameTo(b))

		// Another process with the same address: a restart under a new ID.
		restarted := w.join("b", 20, []string{"fd00::b:1"})
		if err := again.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Errorf("the older: %v", err)
		}
		if code := again.ByeCode(); code != packet.ByeReplaced {
			t.Errorf("it was told %q", code)
		}
		a.say(a.frameTo(b))
		restarted.hears(a.frameTo(b))

		// Everybody is told IDs, so that one alone proves nothing and keeps nobody out,
		// whoever of the two comes first.
		thief := w.join("thief", 20, []string{"fd00::c:1"})
		a.say(a.frameTo(b))
		restarted.hears(a.frameTo(b))
		again = w.join("b", 20, []string{"fd00::b:1"})
		if err := restarted.ended(); !errors.Is(err, packet.ErrReplaced) || restarted.ByeCode() != "" {
			t.Errorf("the older: %v, told %q", err, restarted.ByeCode())
		}
		a.say(a.frameTo(b), a.frameTo(thief))
		again.hears(a.frameTo(b))
		thief.hears(a.frameTo(thief))
		if m := w.Members(); len(m) != 3 || m[1].ID != 20 || m[1].Name != "b" || m[2].ID != 20 || m[2].Name != "thief" {
			t.Errorf("members: %v", m)
		}
	})
}

func TestSwitchRefuses(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, MaxPorts: 2})
		device := w.add(packet.PortOptions{Trusted: true, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/96")}})
		network := []netip.Prefix{netip.MustParsePrefix("fd00::a:0/112")}
		member := func(id uint64, addresses ...string) packet.Member {
			m := packet.Member{ID: id, Name: "x"}
			for _, a := range addresses {
				m.Addresses = append(m.Addresses, netip.MustParseAddr(a))
			}
			return m
		}
		for _, tt := range []struct {
			what string
			o    packet.PortOptions
		}{
			{"no ID", packet.PortOptions{Member: member(0, "fd00::a:1"), Addresses: network}},
			{"no rule", packet.PortOptions{Member: member(1, "fd00::a:1")}},
			{"no address", packet.PortOptions{Member: member(1), Addresses: network}},
			{"addresses beyond the rule", packet.PortOptions{Member: member(1, "fd00::b:1", "fd00:1::a:1", "10.0.0.1"), Addresses: network}},
			{"addresses of nobody", packet.PortOptions{Member: member(1, "::", "::1", "ff02::1", "fe80::1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1"),
				Addresses: []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("0.0.0.0/0")}}},
			{"an unprintable name", packet.PortOptions{Member: packet.Member{ID: 1, Name: "x\n", Addresses: member(1, "fd00::a:1").Addresses}, Addresses: network}},
			{"nothing named of two addresses", packet.PortOptions{Member: member(1), Addresses: []netip.Prefix{
				netip.MustParsePrefix("fd00::a:8/128"), netip.MustParsePrefix("fd00::a:9/128")}}},
			{"nothing named of the one address but another", packet.PortOptions{Member: member(1, "fd00::a:7"), Addresses: []netip.Prefix{
				netip.MustParsePrefix("fd00::a:8/128")}}},
			{"the server's own address", packet.PortOptions{Member: member(1, "fd00::1"), Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}},
		} {
			p := w.add(tt.o)
			if err := p.ended(); !errors.Is(err, packet.ErrNotAllowed) || p.ByeCode() != packet.ByeDenied {
				t.Errorf("%s: %v, told %q", tt.what, err, p.ByeCode())
			}
		}

		// Of several only what is allowed is believed.
		some := w.add(packet.PortOptions{Member: member(1, "fd00::b:1", "fd00::a:1", "fd00::a:2"), Addresses: network})
		if m := w.Members(); len(m) != 1 || len(m[0].Addresses) != 2 || m[0].Addresses[0] != netip.MustParseAddr("fd00::a:1") {
			t.Errorf("members: %v", m)
		}
		// If the rules have a single address, it needs no naming.
		w.add(packet.PortOptions{Member: member(2), Addresses: append([]netip.Prefix{netip.MustParsePrefix("fd00::a:3/128")}, network...)})
		if m := w.Members(); len(m) != 2 || m[1].Addresses[0] != netip.MustParseAddr("fd00::a:3") {
			t.Errorf("members: %v", m)
		}
		full := w.add(packet.PortOptions{Member: member(3, "fd00::a:4"), Addresses: network})
		if err := full.ended(); !errors.Is(err, packet.ErrFull) || full.ByeCode() != packet.ByeFull {
			t.Errorf("one too many: %v, told %q", err, full.ByeCode())
		}
		// To replace needs no port more.
		w.add(packet.PortOptions{Member: member(4, "fd00::a:2"), Addresses: network})
		if err := some.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Errorf("replaced in a full switch: %v", err)
		}
		if st := w.Stats(); len(st.Ports) != 3 || !st.Ports[0].Trusted {
			t.Errorf("stats: %+v", st)
		}
		if err := device.end(); err != context.Canceled {
			t.Errorf("the device: %v", err)
		}
	})
}

// Nobody takes the place of the server's own device.
func TestSwitchKeepsDevice(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		device := w.add(packet.PortOptions{Trusted: true, Member: packet.Member{ID: 50, Name: "x"}})
		p := w.join("x", 50, []string{"fd00::a:1"})
		if err := p.ended(); !errors.Is(err, packet.ErrNotAllowed) {
			t.Errorf("a member with its ID: %v", err)
		}
		if m := w.Members(); len(m) != 1 || m[0].ID != 50 {
			t.Errorf("members: %v", m)
		}
		if err := device.end(); err != context.Canceled {
			t.Errorf("the device: %v", err)
		}
	})
}

// Why a port ended is the error of Serve, and a port is closed in the end.
func TestSwitchServeEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, new(packet.Switch))
		gone := errors.New("the device is gone")
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		a.Fail(gone)
		if err := a.ended(); err != gone {
			t.Errorf("a port that failed: %v", err)
		}
		if n := len(w.Members()); n != 1 {
			t.Errorf("%d members are left", n)
		}
		b.cancel()
		if err := b.ended(); err != context.Canceled {
			t.Errorf("a context that ended: %v", err)
		}
		if err := b.ReadBatch(new(packet.Batch)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a port that was served: %v", err)
		}

		// A port with a Run is run, and knows best.
		dead := errors.New("the peer is dead")
		c := &switchPeer{t: t, Recorder: new(packettest.Recorder), done: make(chan error, 1), options: packet.PortOptions{
			Member: packet.Member{ID: 3}, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::c:1/128")},
		}}
		link := &runningPort{Recorder: c.Recorder, end: make(chan struct{}), err: dead}
		w.serve(c, link)
		close(link.end)
		if err := c.ended(); err != dead {
			t.Errorf("a port whose Run ended: %v", err)
		}
	})
}

// runningPort closes itself before its Run returns.
type runningPort struct {
	*packettest.Recorder
	end chan struct{}
	err error
}

func (p *runningPort) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.end:
		p.Close()
		<-ctx.Done() // the reader sees it first
		return p.err
	}
}

// deafPort blocks whoever tells it something, until it is closed.
type deafPort struct {
	*packettest.Recorder
	closed chan struct{}
}

func (p *deafPort) SendReach([]packet.Member) error { <-p.closed; return net.ErrClosed }
func (p *deafPort) SendDrain() error                { <-p.closed; return net.ErrClosed }
func (p *deafPort) Bye(code, reason string) error   { <-p.closed; return net.ErrClosed }

func (p *deafPort) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return p.Recorder.Close()
}

// All ports are told at once who the members are, and that the server drains.
func TestSwitchReach(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		ids := func(p *switchPeer) (ids []uint64) {
			reaches := p.Reaches()
			for _, m := range reaches[len(reaches)-1] {
				ids = append(ids, m.ID)
			}
			return ids
		}
		equal := func(what string, got []uint64, want ...uint64) {
			t.Helper()
			if len(got) != len(want) {
				t.Errorf("%s: %v, want %v", what, got, want)
				return
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("%s: %v, want %v", what, got, want)
				}
			}
		}
		a := w.join("a", 9, []string{"fd00::a:1"}, "10.0.0.0/8")
		equal("alone", ids(a), 9)
		if m := a.Reaches()[0][0]; m.Name != "a" || len(m.Addresses) != 1 || len(m.Networks) != 1 {
			t.Errorf("member: %+v", m)
		}
		w.add(packet.PortOptions{Trusted: true}) // no member

		// One that does not listen keeps nobody waiting.
		deaf := &deafPort{Recorder: new(packettest.Recorder), closed: make(chan struct{})}
		d := &switchPeer{t: t, Recorder: deaf.Recorder, done: make(chan error, 1), options: packet.PortOptions{
			Member: packet.Member{ID: 5}, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::d:1/128")},
		}}
		w.serve(d, deaf)
		equal("a after the deaf one", ids(a), 5, 9)
		start := time.Now()
		b := w.join("b", 2, []string{"fd00::b:1"})
		equal("a after b", ids(a), 2, 5, 9)
		equal("b", ids(b), 2, 5, 9)
		b.end()
		equal("a without b", ids(a), 5, 9)

		w.Drain()
		synctest.Wait()
		w.Drain()
		synctest.Wait()
		if a.Drains() != 1 {
			t.Errorf("a was told %d times that the server drains", a.Drains())
		}
		late := w.join("late", 7, []string{"fd00::e:1"})
		if late.Drains() != 1 {
			t.Errorf("who came later was told %d times", late.Drains())
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}

		// Also to end it takes no longer than a goodbye may.
		d2 := w.join("d2", 55, []string{"fd00::d:1"})
		time.Sleep(3 * time.Second)
		if err := d.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Errorf("the deaf one: %v", err)
		}
		equal("in the end", ids(d2), 7, 9, 55)
	})
}

// A member that comes and goes all the time does not keep the others busy.
func TestSwitchReachIsPaced(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		a := w.join("a", 1, []string{"fd00::a:1"})
		for range 200 {
			w.join("b", 2, []string{"fd00::b:1"})
		}
		if n := len(a.Reaches()); n != 10 {
			t.Errorf("%d at once", n)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := len(a.Reaches()); n != 11 {
			t.Errorf("%d after 0.1 s", n)
		}
		time.Sleep(10 * time.Second)
		if n := len(a.Reaches()); n != 11 {
			t.Errorf("%d without a change", n)
		}
	})
}

// A slow peer loses its own frames and nobody else's.
func TestSwitchSlowPeer(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, QueueLimit: 10 << 10})
		a := w.join("a", 1, []string{"fd00::a:1"})
		slow := w.join("slow", 2, []string{"fd00::b:1"})
		c := w.join("c", 3, []string{"fd00::c:1"})
		slow.Stall()
		for range 1000 {
			a.say(a.frameTo(slow), a.frameTo(c))
		}
		if n := len(c.Written()); n != 1000 {
			t.Errorf("the other one hears %d of 1000", n)
		}
		st := w.Stats()
		if p := st.Ports[1]; p.Queue.Dropped < 800 || p.Queue.Waiting > 10<<10 || p.Drops[packet.DropQueue] != p.Queue.Dropped {
			t.Errorf("the slow one: %+v", p)
		}
		if st.Drops[packet.DropQueue] != st.Ports[1].Queue.Dropped || len(st.Ports[0].Drops) != 0 {
			t.Errorf("stats: %+v", st)
		}
		slow.Resume()
		synctest.Wait()
		if n := len(slow.Written()); n < 30 || uint64(n) != st.Ports[1].Queue.Frames {
			t.Errorf("the slow one hears %d", n)
		}
		a.say(a.frameTo(slow))
		slow.hears(a.frameTo(slow))
	})
}

// A device is waited for by nobody and waits for its only peer.
func TestSwitchPushesBack(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{QueueLimit: 10 << 10})
		device := w.add(packet.PortOptions{Trusted: true, Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}})
		a := w.join("a", 1, []string{"192.0.2.1"}, "10.0.0.0/8")
		packet1 := udp(netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("10.1.1.1"))
		a.Stall()
		for range 1000 {
			device.Give(packettest.Frame(packet1))
		}
		synctest.Wait() // it waits, and has lost nothing yet
		if n := w.total(); n != 0 {
			t.Errorf("%d were dropped", n)
		}
		a.Resume()
		synctest.Wait()
		if n := len(a.Written()); n != 1000 {
			t.Errorf("%d of 1000 came", n)
		}
		a.Stall()
		for range 1000 {
			device.Give(packettest.Frame(packet1))
		}
		time.Sleep(99 * time.Millisecond)
		if n := w.dropped(packet.DropQueue); n != 0 {
			t.Errorf("%d were dropped before it counts as stalled", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := w.dropped(packet.DropQueue); n < 700 {
			t.Errorf("%d of 1000 were dropped when it counts as stalled", n)
		}

		// With others to send to, it waits for nobody.
		a.Resume()
		synctest.Wait()
		a.Written()
		a.Stall()
		b := w.join("b", 2, []string{"192.0.2.2"})
		for range 1000 {
			device.Give(packettest.Frame(packet1))
		}
		packet2 := udp(netip.MustParseAddr("203.0.113.1"), b.addr)
		device.say(packet1, packet2, packet1, packet2)
		b.hears(packet2, packet2)
	})
}
