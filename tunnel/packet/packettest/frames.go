package packettest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// EtherTypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
)

// Broadcast returns the Ethernet address of everybody.
func Broadcast() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Multicast returns the Ethernet address that goes with an IP multicast address
// (RFC 1112, RFC 2464).
func Multicast(group netip.Addr) net.HardwareAddr {
	if group.Is4() {
		b := group.As4()
		return net.HardwareAddr{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// LinkLocal returns the IPv6 link-local address that a device makes of its Ethernet
// address (RFC 4291, appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 0x02, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// Frame puts an empty virtio-net header in front of a packet. The memory is new.
func Frame(p []byte) packet.Frame {
	return packet.Frame{Data: append(make([]byte, packet.HeaderLen, packet.HeaderLen+len(p)), p...)}
}

// Batch returns a batch of frames.
func Batch(frames ...packet.Frame) *packet.Batch {
	size := 0
	for _, f := range frames {
		size += len(f.Data) + 64
	}
	b := packet.NewBatch(max(size, 1))
	for _, f := range frames {
		b.Append(f)
	}
	return b
}

// Ethernet makes a frame. It is not padded, as a TAP device does not.
func Ethernet(to, from net.HardwareAddr, etherType uint16, payload []byte) []byte {
	return slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, etherType), payload)
}

// Operations of ARP.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP makes an ARP packet for IPv4 over Ethernet, which goes into an Ethernet frame. A
// nil address is all zeros.
func ARP(op uint16, sender net.HardwareAddr, senderIP netip.Addr, target net.HardwareAddr, targetIP netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op), 27: 0}
	copy(b[8:14], sender)
	copy(b[14:], senderIP.AsSlice())
	copy(b[18:24], target)
	copy(b[24:], targetIP.AsSlice())
	return b
}

// Types of ICMPv6 that neighbour discovery and multicast listeners use.
const (
	ListenerQuery    = 130
	ListenerReport   = 143
	RouterSolicit    = 133
	RouterAdvertise  = 134
	NeighborSolicit  = 135
	NeighborAdvert   = 136
	NeighborRedirect = 137
)

// Options of neighbour discovery that hold an Ethernet address.
const (
	SourceLinkAddr = 1
	TargetLinkAddr = 2
)

// LinkAddrOption makes an option of neighbour discovery.
func LinkAddrOption(kind byte, mac net.HardwareAddr) []byte {
	return append([]byte{kind, 1}, mac...)
}

// Solicit makes the IPv6 packet with which from asks for the Ethernet address of target.
// A nil mac leaves the option out, as it is when from is unspecified to detect a
// duplicate.
func Solicit(from, target netip.Addr, mac net.HardwareAddr) []byte {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return neighbor(NeighborSolicit, 0, from, group, target, SourceLinkAddr, mac)
}

// Advertise makes the IPv6 packet with which from answers to that target has mac.
func Advertise(from, to, target netip.Addr, mac net.HardwareAddr) []byte {
	const override = 0x20
	return neighbor(NeighborAdvert, override, from, to, target, TargetLinkAddr, mac)
}

func neighbor(kind, flags byte, from, to, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	t := target.As16()
	b := slices.Concat([]byte{flags, 0, 0, 0}, t[:])
	if mac != nil {
		b = append(b, LinkAddrOption(option, mac)...)
	}
	return ICMPv6(from, to, kind, 0, b)
}
