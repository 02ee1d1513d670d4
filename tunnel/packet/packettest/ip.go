package packettest

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Protocols, as the headers of IP name them.
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoOptions  = 60
)

// IP makes a packet, of version 4 or 6 as its addresses are. Its hop limit is 64, or 255
// for ICMPv6, as neighbour discovery wants it.
func IP(src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is4() {
		return IPv4(src, dst, proto, payload)
	}
	return IPv6(src, dst, proto, payload)
}

// IPv4 makes a packet without options.
func IPv4(src, dst netip.Addr, proto byte, payload []byte) []byte {
	total := 20 + len(payload)
	b := slices.Concat([]byte{0x45, 0, byte(total >> 8), byte(total), 0, 0, 0x40, 0, 64, proto, 0, 0}, src.AsSlice(), dst.AsSlice())
	SetIPv4Checksum(b)
	return append(b, payload...)
}

// SetIPv4Checksum computes the checksum of an IPv4 header anew, after something in it
// was changed.
func SetIPv4Checksum(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:int(b[0]&15)*4])))
}

// IPv6 makes a packet. Extension headers are part of the payload then, and proto is the
// number of the first.
func IPv6(src, dst netip.Addr, proto byte, payload []byte) []byte {
	hops := byte(64)
	if proto == ProtoICMPv6 {
		hops = 255
	}
	head := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), proto, hops}
	return slices.Concat(head, src.AsSlice(), dst.AsSlice(), payload)
}

// UDP makes a packet with a datagram.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	n := 8 + len(payload)
	b := ports(src, dst)
	b = append(b, byte(n>>8), byte(n), 0, 0)
	b = append(b, payload...)
	c := checksum(src.Addr(), dst.Addr(), ProtoUDP, b)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], c)
	return IP(src.Addr(), dst.Addr(), ProtoUDP, b)
}

// Flags of TCP.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
)

// Segment is what a TCP segment holds.
type Segment struct {
	Seq, Ack uint32
	Flags    byte
	MSS      uint16 // an option, left out if 0
	Payload  []byte
}

// TCP makes a packet with a segment. Its window is 65,535.
func TCP(src, dst netip.AddrPort, s Segment) []byte {
	b := ports(src, dst)
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, 5<<4, s.Flags, 0xff, 0xff, 0, 0, 0, 0)
	if s.MSS != 0 {
		b[12] = 6 << 4
		b = append(b, 2, 4, byte(s.MSS>>8), byte(s.MSS))
	}
	b = append(b, s.Payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(src.Addr(), dst.Addr(), ProtoTCP, b))
	return IP(src.Addr(), dst.Addr(), ProtoTCP, b)
}

// Echo makes a ping, or with reply its answer, of ICMP or ICMPv6 as the addresses are.
func Echo(src, dst netip.Addr, reply bool, id, seq uint16, payload []byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	body = binary.BigEndian.AppendUint16(body, seq)
	body = append(body, payload...)
	kind := byte(8)
	if src.Is6() {
		kind = 128
	}
	if reply && src.Is4() {
		kind = 0
	} else if reply {
		kind = 129
	}
	if src.Is6() {
		return ICMPv6(src, dst, kind, 0, body)
	}
	b := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(b[2:], ^fold(sum(0, b)))
	return IPv4(src, dst, ProtoICMP, b)
}

// ICMPv6 makes a packet with a message; body is what is behind its checksum.
func ICMPv6(src, dst netip.Addr, kind, code byte, body []byte) []byte {
	b := append([]byte{kind, code, 0, 0}, body...)
	binary.BigEndian.PutUint16(b[2:], checksum(src, dst, ProtoICMPv6, b))
	return IPv6(src, dst, ProtoICMPv6, b)
}

func ports(src, dst netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// checksum is that of a transport protocol, with the pseudo header (RFC 8200, §8.1).
func checksum(src, dst netip.Addr, proto byte, b []byte) uint16 {
	s := sum(0, src.AsSlice())
	s = sum(s, dst.AsSlice())
	return ^fold(sum(s+uint32(proto)+uint32(len(b)), b))
}

// sum adds up words; an odd byte at the end counts as if a zero followed.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
