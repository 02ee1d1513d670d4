package packet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Processes that share a certificate, and so its rules, each have what they name of them.
func TestSwitchSharedName(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		replica := func(id uint64, addresses ...string) *switchPeer {
			o := packet.PortOptions{Member: packet.Member{ID: id, Name: "seed"}}
			for _, rule := range []string{"fd00::a:1/128", "fd00::a:2/128", "192.0.2.1/32", "192.0.2.2/32"} {
				o.Addresses = append(o.Addresses, netip.MustParsePrefix(rule))
			}
			for _, a := range addresses {
				o.Member.Addresses = append(o.Member.Addresses, netip.MustParseAddr(a))
			}
			return w.add(o)
		}
		a := replica(1, "fd00::a:1", "192.0.2.1")
		b := replica(2, "fd00::a:2")
		if m := w.Members(); len(m) != 2 || len(m[0].Addresses) != 2 || len(m[1].Addresses) != 1 {
			t.Fatalf("members: %v", m)
		}
		a.say(a.frameTo(b))
		b.hears(a.frameTo(b))
		b.say(b.frameTo(a))
		a.hears(b.frameTo(a))

		// What is named is all that it has.
		four := netip.MustParseAddr("192.0.2.2")
		b.say(ether(a.mac, packet.MAC(four, 0), udp(four, netip.MustParseAddr("192.0.2.1"))))
		if n := w.dropped(packet.DropMAC); n != 1 {
			t.Errorf("an address that is not named: %v", w.Stats().Drops)
		}
		if silent := replica(3); !errors.Is(silent.ended(), packet.ErrNotAllowed) {
			t.Error("one that names none of several")
		}
		// The same address is the newer one's.
		again := replica(4, "fd00::a:2")
		if err := b.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Error(err)
		}
		a.say(a.frameTo(b))
		again.hears(a.frameTo(b))
	})
}

// Ports that are trusted are not counted, as a server's own device is no client.
func TestSwitchMaxPorts(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{MaxPorts: 1})
		w.add(packet.PortOptions{Trusted: true})
		w.join("a", 1, []string{"192.0.2.1"})
		w.add(packet.PortOptions{Trusted: true})
		if err := w.join("b", 2, []string{"192.0.2.2"}).ended(); !errors.Is(err, packet.ErrFull) {
			t.Error(err)
		}
		if n := len(w.Stats().Ports); n != 3 {
			t.Errorf("%d ports", n)
		}
	})
}

// A member that comes and goes all the time fills no disk.
func TestSwitchLogIsLimited(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		log := new(strings.Builder)
		w := newSwitchWorld(t, &packet.Switch{Logger: slog.New(slog.NewTextHandler(log, nil))})
		var networks []string
		for i := range 200 {
			networks = append(networks, fmt.Sprintf("10.%d.0.0/16", i))
		}
		for range 200 {
			w.join("a", 1, []string{"192.0.2.1"}, networks...).end()
		}
		if n := strings.Count(log.String(), "\n"); n == 0 || n > 50 || len(log.String()) > n*250 {
			t.Errorf("%d lines, %d bytes", n, len(log.String()))
		}
	})
}

// A packet that is longer than what is behind a member takes is dropped at the server, and
// all members know before how long it may be.
func TestSwitchMTU(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		join := func(id uint64, name, address string, mtu int) (client, server *packet.Conn) {
			near, far := tunneltest.Pipe()
			hello := packet.Hello{ID: id, Mode: packet.TAP, MTU: mtu, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Offload: packet.OffloadAll}
			made := make(chan error, 1)
			go func() {
				var err error
				client, err = packet.Handshake(context.Background(), near, hello, nil)
				made <- err
			}()
			server, err := packet.Handshake(t.Context(), far, packet.Hello{Mode: packet.TAP, Offload: packet.OffloadAll}, &packet.ConnOptions{NoReach: true})
			if err = errors.Join(err, <-made); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- client.Run(context.Background()) }()
			t.Cleanup(func() { client.Close(); <-ended })
			r := server.Remote()
			w.serve(&switchPeer{t: t, Recorder: new(packettest.Recorder), done: make(chan error, 1), options: packet.PortOptions{
				Member:    packet.Member{ID: r.ID, Name: name, Addresses: r.Addresses, MTU: r.MTU},
				Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			}}, server)
			return client, server
		}
		read := func(c *packet.Conn) chan int {
			lengths := make(chan int, 10)
			go func() {
				var b packet.Batch
				for c.ReadBatch(&b) == nil {
					for f := range b.Frames() {
						lengths <- len(f.Packet()) - 14
					}
				}
			}()
			return lengths
		}
		seed, _ := join(1, "seed", "192.0.2.1", 0)
		shoot, server := join(2, "shoot", "192.0.2.2", 1400)
		read(seed)
		heard := read(shoot)
		synctest.Wait()
		if m := seed.Reach(); len(m) != 2 || m[0].MTU != 1500 || m[1].MTU != 1400 {
			t.Errorf("the seed is told %+v", m)
		}
		to, from := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")
		for _, n := range []int{1400, 1401, 1500, 100} {
			ip := packettest.UDP(netip.AddrPortFrom(from, 1), netip.AddrPortFrom(to, 2), make([]byte, n-28))
			if err := seed.WriteBatch(packettest.Batch(packettest.Frame(ether(packet.MAC(to, 0), packet.MAC(from, 0), ip)))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if n, m := <-heard, <-heard; n != 1400 || m != 100 || len(heard) != 0 {
			t.Errorf("%d and %d bytes arrived, and %d more", n, m, len(heard))
		}
		if server.Stats().TooLong != 2 || shoot.Stats().Bad != 0 {
			t.Errorf("%d are too long, %d bad at the far side", server.Stats().TooLong, shoot.Stats().Bad)
		}
	})
}
