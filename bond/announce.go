package bond

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// A switch learns where a MAC is from the frames that come from it, and floods what
// is for a MAC that it does not know: at a low rate, and to everybody. A member sends
// to a peer over one link only, and the others' servers would never see it.
// But its peers choose their ways without it: they may send to it through such a server.
// So a member announces itself on each link, when it comes up and
// before the server forgets it, by what announces an address anyway: an ARP
// request of its own IPv4 address (RFC 5227, §3), a neighbour advertisement that nobody
// has asked for (RFC 4861, §7.2.6).

// announceEvery is how often. Servers forget after five minutes.
const announceEvery = time.Minute

// announce announces this member on a link, if it is time, and returns when it will be.
// b.mu is held.
func (b *Bond) announce(l *lane, now time.Time) (next time.Time) {
	next = l.announced.Add(announceEvery)
	if !l.announced.IsZero() && now.Before(next) {
		return next
	}
	if b.Mode == packet.TAP {
		mac, addresses := b.self()
		for _, a := range addresses {
			l.queue.Put(packet.Frame{Data: announcement(mac, a)})
		}
	}
	l.announced = now
	return now.Add(announceEvery)
}

// self returns the MAC of the device and the addresses that go with it. Before the
// device has sent anything it is taken to have that of the first address.
func (b *Bond) self() (net.HardwareAddr, []netip.Addr) {
	addresses := b.hello.Addresses
	if mac := b.mac.Load(); mac != 0 {
		var m [8]byte
		binary.BigEndian.PutUint64(m[:], mac)
		return m[2:], addresses
	}
	if len(addresses) == 0 {
		return nil, nil
	}
	return packet.MAC(addresses[0], 0), addresses[:1]
}

// announcement is the frame that announces an address.
func announcement(mac net.HardwareAddr, a netip.Addr) []byte {
	f := make([]byte, packet.HeaderLen, packet.HeaderLen+86)
	if a = a.Unmap(); a.Is4() {
		ip := a.AsSlice()
		f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		f = append(f, mac...)
		f = append(f, 0x08, 0x06)             // ARP
		f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, a request
		f = append(append(f, mac...), ip...)  // from us
		f = append(f, 0, 0, 0, 0, 0, 0)       // to whoever
		return append(f, ip...)               // has our address
	}
	ip := a.As16()
	all := [16]byte{0: 0xff, 1: 0x02, 15: 1} // all nodes
	f = append(f, 0x33, 0x33, 0, 0, 0, 1)
	f = append(f, mac...)
	f = append(f, 0x86, 0xdd)
	f = append(f, 0x60, 0, 0, 0, 0, 32, 58, 255) // ICMPv6, hop limit 255
	f = append(append(f, ip[:]...), all[:]...)
	message := len(f)
	f = append(f, 136, 0, 0, 0, 0x20, 0, 0, 0) // advertisement, overrides
	f = append(f, ip[:]...)
	f = append(append(f, 2, 1), mac...) // target link-layer address
	sum := uint32(32 + 58)
	for _, b := range [][]byte{ip[:], all[:], f[message:]} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(f[message+2:], ^uint16(sum))
	return f
}
