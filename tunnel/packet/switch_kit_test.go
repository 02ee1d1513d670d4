package packet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

// switchWorld is a switch in a bubble with peers that are recorders.
type switchWorld struct {
	t *testing.T
	*packet.Switch
	left []*switchPeer
}

func newSwitchWorld(t *testing.T, s *packet.Switch) *switchWorld {
	w := &switchWorld{t: t, Switch: s}
	t.Cleanup(func() {
		for _, p := range w.left {
			p.end()
		}
	})
	return w
}

// switchPeer is a peer at a port of a switch.
type switchPeer struct {
	t *testing.T
	*packettest.Recorder
	options packet.PortOptions
	addr    netip.Addr // the first of its own
	mac     net.HardwareAddr
	cancel  context.CancelFunc
	done    chan error
}

// join adds a peer that names its addresses, which its rules allow as they are, and the
// networks behind it.
func (w *switchWorld) join(name string, id uint64, addresses []string, networks ...string) *switchPeer {
	o := packet.PortOptions{Member: packet.Member{ID: id, Name: name}}
	for _, a := range addresses {
		addr := netip.MustParseAddr(a)
		o.Member.Addresses = append(o.Member.Addresses, addr)
		o.Addresses = append(o.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
	}
	for _, n := range networks {
		o.Member.Networks = append(o.Member.Networks, netip.MustParsePrefix(n))
	}
	o.Networks = o.Member.Networks
	return w.add(o)
}

// add serves a port with a new recorder, and returns when it is attached or refused.
func (w *switchWorld) add(o packet.PortOptions) *switchPeer {
	p := &switchPeer{t: w.t, Recorder: new(packettest.Recorder), options: o, done: make(chan error, 1)}
	if len(o.Member.Addresses) > 0 {
		p.addr = o.Member.Addresses[0]
		p.mac = packet.MAC(p.addr, 0)
	}
	w.serve(p, p.Recorder)
	return p
}

func (w *switchWorld) serve(p *switchPeer, port packet.Port) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.done <- w.Serve(ctx, port, p.options) }()
	w.left = append(w.left, p)
	synctest.Wait()
}

// end ends the peer's port and returns why it ended, if nobody asked before.
func (p *switchPeer) end() error {
	p.cancel()
	p.Resume()
	synctest.Wait()
	select {
	case err := <-p.done:
		return err
	default:
		return nil
	}
}

// ended returns why a port has ended, or fails the test.
func (p *switchPeer) ended() error {
	p.t.Helper()
	synctest.Wait()
	select {
	case err := <-p.done:
		return err
	default:
		p.t.Errorf("port %s has not ended", p.options.Member.Name)
		return errors.New("has not ended")
	}
}

// say has a peer send packets and returns when the switch has dealt with them.
func (p *switchPeer) say(packets ...[]byte) {
	for _, b := range packets {
		p.Give(packettest.Frame(b))
	}
	synctest.Wait()
}

// hears reports whether exactly these packets have come to the peer since the last
// look.
func (p *switchPeer) hears(packets ...[]byte) {
	p.t.Helper()
	var got [][]byte
	for _, f := range p.Written() {
		got = append(got, f.Packet())
	}
	if !slices.EqualFunc(got, packets, slices.Equal) {
		p.t.Errorf("%s hears %d packets, want %d:\n%x\n%x", p.options.Member.Name, len(got), len(packets), got, packets)
	}
}

// dropped returns how many frames were dropped so far for a reason.
func (w *switchWorld) dropped(d packet.Drop) uint64 { return w.Stats().Drops[d] }

// total returns how many were dropped for any reason.
func (w *switchWorld) total() (n uint64) {
	for _, d := range w.Stats().Drops {
		n += d
	}
	return n
}

// udp makes a datagram between two addresses.
func udp(src, dst netip.Addr) []byte {
	return packettest.UDP(netip.AddrPortFrom(src, 1000), netip.AddrPortFrom(dst, 2000), []byte("hello"))
}

// ether puts an IP packet into an Ethernet frame.
func ether(to, from net.HardwareAddr, ip []byte) []byte {
	kind := uint16(packettest.TypeIPv4)
	if ip[0]>>4 == 6 {
		kind = packettest.TypeIPv6
	}
	return packettest.Ethernet(to, from, kind, ip)
}

// frameTo is a datagram from one peer to another in an Ethernet frame.
func (p *switchPeer) frameTo(q *switchPeer) []byte { return ether(q.mac, p.mac, udp(p.addr, q.addr)) }
