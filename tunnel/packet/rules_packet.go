package packet

import (
	"encoding/binary"
	"net/netip"
)

// maxHeaders is how many extension headers a packet may have.
const maxHeaders = 8

// parsed is what the checks found out about an IP packet.
type parsed struct {
	src, dst netip.Addr
	hops     byte   // hop limit
	proto    byte   // of what comes behind all headers
	payload  []byte // that, cut where the packet ends; nil behind the first fragment
	offset   int    // where payload begins in the packet
	fragment bool   // it is one, the first included
	later    bool   // and not the first
}

// parseIP takes an IP packet apart. What a receiver could understand in another way
// than this does is refused:
//
//   - lengths must agree; bytes behind the packet, which Ethernet adds to short
//     frames, are ignored;
//   - the first fragment must hold all headers, and eight bytes behind them
//     (RFC 7112): so each datagram is judged by its first fragment, and later ones
//     need a source that is allowed and nothing else;
//   - there may be eight extension headers. A routing header with segments left, a
//     home address option (RFC 6275), a jumbogram, and source routes of
//     IPv4 are refused: they change where a packet seems to come from or goes;
//   - what is encrypted (ESP) or in a protocol that is not known ends the search.
func parseIP(b []byte) (p parsed, d Drop) {
	if len(b) == 0 {
		return p, DropMalformed
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b)
	case 6:
		return parseIPv6(b)
	}
	return p, DropMalformed
}

func parseIPv4(b []byte) (p parsed, d Drop) {
	if len(b) < 20 {
		return p, DropMalformed
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || total < head || total > len(b) {
		return p, DropMalformed
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.hops, p.proto, p.offset = b[8], b[9], head
	for options := b[20:head]; len(options) > 0; {
		switch kind := options[0]; {
		case kind == 0:
			options = nil
		case kind == 1:
			options = options[1:]
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return p, DropHeaders
		case kind == 131 || kind == 137: // loose and strict source route
			return p, DropHeaders
		default:
			options = options[options[1]:]
		}
	}
	place := binary.BigEndian.Uint16(b[6:])
	p.fragment, p.later = place&0x3fff != 0, place&0x1fff != 0
	if p.later {
		return p, dropNone
	}
	p.payload = b[head:total]
	if p.fragment && len(p.payload) < 8 {
		return p, DropFragment
	}
	return p, dropNone
}

func parseIPv6(b []byte) (p parsed, d Drop) {
	if len(b) < 40 {
		return p, DropMalformed
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return p, DropMalformed
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.hops, p.proto, p.offset = b[7], b[6], 40
	for range maxHeaders + 1 {
		rest := b[p.offset:total]
		n := 8
		switch p.proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			if len(rest) < 8 {
				return p, p.short()
			}
			n = 8 + int(rest[1])*8
		case protoAuth:
			if len(rest) < 8 {
				return p, p.short()
			}
			n = 8 + int(rest[1])*4
		case protoFragment:
			if len(rest) < 8 {
				return p, p.short()
			}
			place := binary.BigEndian.Uint16(rest[2:])
			if p.fragment {
				return p, DropHeaders // a fragment of a fragment
			}
			if p.fragment = true; place>>3 != 0 {
				p.later, p.proto = true, rest[0]
				return p, dropNone
			}
		default:
			p.payload = rest
			if p.fragment && len(rest) < 8 {
				return p, DropFragment
			}
			return p, dropNone
		}
		if n > len(rest) {
			return p, p.short()
		}
		switch {
		case p.proto == protoRouting && rest[3] != 0:
			return p, DropHeaders
		case p.proto == protoHopByHop && p.offset != 40: // it is the first or none
			return p, DropHeaders
		case (p.proto == protoDestOpts || p.proto == protoHopByHop) && !plainOptions(rest[2:n]):
			return p, DropHeaders
		}
		p.proto = rest[0]
		p.offset += n
	}
	return p, DropHeaders
}

// short is what a chain of headers that ends too early is.
func (p *parsed) short() Drop {
	if p.fragment {
		return DropFragment
	}
	return DropHeaders
}

// plainOptions reports whether options are whole and none of them is a home address
// or the length of a jumbogram.
func plainOptions(b []byte) bool {
	for len(b) > 0 {
		if b[0] == 0 { // one byte of padding
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[0] == 0xc9 || b[0] == 0xc2 {
			return false
		}
		n := 2 + int(b[1])
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}
