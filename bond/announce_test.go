package bond

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestAnnouncement(t *testing.T) {
	mac := packet.MAC(netip.MustParseAddr("10.0.0.1"), 0)
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	all := netip.MustParseAddr("ff02::1")
	for a, want := range map[netip.Addr][]byte{
		four:                                   packettest.Ethernet(packettest.Broadcast(), mac, packettest.TypeARP, packettest.ARP(packettest.ARPRequest, mac, four, nil, four)),
		netip.MustParseAddr("::ffff:10.0.0.1"): packettest.Ethernet(packettest.Broadcast(), mac, packettest.TypeARP, packettest.ARP(packettest.ARPRequest, mac, four, nil, four)),
		six:                                    packettest.Ethernet(packettest.Multicast(all), mac, packettest.TypeIPv6, packettest.Advertise(six, all, six, mac)),
	} {
		if got := announcement(mac, a); !slices.Equal(got[packet.HeaderLen:], want) {
			t.Errorf("%v:\n%x\nwant\n%x", a, got[packet.HeaderLen:], want)
		}
	}
}

// announcements takes those that have come out of a link: their MACs.
func announcements(l *fakeLink) (macs []string) {
	synctest.Wait()
	for _, f := range drainPort(l.far) {
		if p := f.Packet(); p[12] == 0x08 && p[13] == 0x06 || len(p) == 86 {
			macs = append(macs, string(p[6:12]))
		}
	}
	return macs
}

// TestAnnounce: when a link comes up, each minute, and when the device shows another
// MAC than was taken for granted; and with no more than the addresses that go with
// it.
func TestAnnounce(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP})
		defer b.end()
		l := newFakeLink()
		second := netip.MustParseAddr("fd00::7:7")
		l.hello.Addresses = append(l.hello.Addresses, second)
		b.links["tap0"] = l
		b.work.Go(func() { _ = b.Serve(b.ctx, "tap0", l) })
		first, other := string(packet.MAC(memberAddr(1), 0)), string(packet.MAC(second, 0))
		if got := announcements(l); !slices.Equal(got, []string{first}) {
			t.Errorf("announced %x, want %x", got, first)
		}
		time.Sleep(announceEvery)
		if got := announcements(l); !slices.Equal(got, []string{first}) {
			t.Errorf("announced %x, want %x", got, first)
		}
		for range 3 { // the device shows its MAC, once
			f := frame(2, 1)
			copy(f.Packet()[6:], other)
			b.host.Send(f)
		}
		if got := announcements(l); !slices.Equal(got, []string{other, other}) {
			t.Errorf("announced %x, want %x twice", got, other)
		}
		f := frame(2, 1)
		f.Packet()[11]++ // somebody behind us, or a mistake
		b.host.Send(f)
		time.Sleep(announceEvery - time.Second)
		if got := announcements(l); got != nil {
			t.Errorf("announced %x", got)
		}
		time.Sleep(time.Second)
		if got := announcements(l); !slices.Equal(got, []string{other, other}) {
			t.Errorf("announced %x, want %x twice", got, other)
		}
	})
}

// TestServersKnowEverybody: where two members use different servers for each other,
// each server sees the frames of one of them only. Both know where the other is, and
// flood nothing.
func TestServersKnowEverybody(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		for _, s := range w.servers {
			s.packets.FloodRate = 20 // a second: no traffic can live of it
			s.packets.Aging = 2 * announceEvery
		}
		for m := range 3 {
			w.addBond(&Bond{Primary: tap(m % 2)})
		}
		time.Sleep(3 * time.Second)
		list := w.ping()
		time.Sleep(2*announceEvery + 10*time.Second) // longer than the servers remember
		if worst, lost, _, _ := list[1].take(); worst > 10*time.Millisecond || lost > 0 {
			t.Errorf("outage %v, %d lost", worst, lost)
		}
		for n, s := range w.servers {
			for _, p := range s.packets.Stats().Ports {
				for reason, drops := range p.Drops {
					if drops > 0 {
						t.Errorf("server %d: %d frames of %s were dropped: %v", n, drops, p.Name, reason)
					}
				}
			}
		}
	})
}
