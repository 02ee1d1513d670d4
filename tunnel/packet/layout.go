package packet

import "encoding/binary"

// layout says where the parts of a packet begin, and what they are.
type layout struct {
	network   int   // IP header, or what follows the Ethernet header
	version   uint8 // of IP; 0 if it is something else
	transport int   // behind the IP header with its options or extensions
	protocol  uint8 // what is there
	fragment  uint8 // whether this is a piece of a packet
	payload   int   // behind the transport header
}

// Values of fragment.
const (
	fragmentNone  = iota
	fragmentFirst // has the transport header
	fragmentLater
)

// Numbers of protocols.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoDCCP     = 33
	protoRouting  = 43
	protoFragment = 44
	protoAuth     = 51
	protoICMPv6   = 58
	protoDestOpts = 60
	protoUDPLite  = 136
)

const (
	ethernetLen = 14
	vlanLen     = 4
	ipv4Len     = 20
	ipv6Len     = 40
	tcpLen      = 20
	udpLen      = 8
)

// locate finds the IP header.
func locate(p []byte, m Mode) (l layout, err error) {
	var want byte
	if m == TAP {
		if len(p) < ethernetLen {
			return l, ErrTooShort
		}
		l.network = ethernetLen
		etherType := binary.BigEndian.Uint16(p[ethernetLen-2:])
		for tags := 0; (etherType == 0x8100 || etherType == 0x88a8) && tags < 2; tags++ {
			l.network += vlanLen
			if len(p) < l.network {
				return l, ErrTooShort
			}
			etherType = binary.BigEndian.Uint16(p[l.network-2:])
		}
		switch etherType {
		case 0x0800:
			want = 4
		case 0x86dd:
			want = 6
		default:
			return l, nil
		}
	}
	if len(p) == l.network {
		return l, ErrTooShort
	}
	switch l.version = p[l.network] >> 4; {
	case l.version != want && m == TAP:
		return l, ErrMalformed
	case l.version == 4:
		if len(p)-l.network < ipv4Len {
			return l, ErrTooShort
		}
	case l.version == 6:
		if len(p)-l.network < ipv6Len {
			return l, ErrTooShort
		}
	default:
		return l, ErrNotIP
	}
	return l, nil
}

// findTransport looks behind the IP header, which locate has found.
func (l *layout) findTransport(p []byte) error {
	switch l.version {
	case 4:
		ip := p[l.network:]
		n := int(ip[0]&0xf) * 4
		if n < ipv4Len {
			return ErrMalformed
		}
		if len(ip) < n {
			return ErrTooShort
		}
		switch flags := binary.BigEndian.Uint16(ip[6:]); {
		case flags&0x1fff != 0:
			l.fragment = fragmentLater
		case flags&0x2000 != 0:
			l.fragment = fragmentFirst
		}
		l.transport, l.protocol = l.network+n, ip[9]
		return nil
	case 6:
		l.transport, l.protocol = l.network+ipv6Len, p[l.network+6]
		return l.skipExtensions(p)
	}
	return ErrNotIP
}

// maxExtensions bounds the extension headers of IPv6 that are skipped. RFC 8200 knows
// fewer.
const maxExtensions = 8

func (l *layout) skipExtensions(p []byte) error {
	for range maxExtensions {
		n := 8
		switch l.protocol {
		case protoHopByHop, protoRouting, protoFragment, protoAuth, protoDestOpts:
		default:
			return nil
		}
		if len(p) < l.transport+n {
			return ErrTooShort
		}
		extension := p[l.transport:]
		switch l.protocol {
		case protoFragment:
			switch flags := binary.BigEndian.Uint16(extension[2:]); {
			case flags&^7 != 0:
				l.fragment = fragmentLater
			case flags&1 != 0:
				l.fragment = max(l.fragment, fragmentFirst)
			}
		case protoAuth:
			n = 4 * (int(extension[1]) + 2)
		default:
			n = 8 * (int(extension[1]) + 1)
		}
		if len(p) < l.transport+n {
			return ErrTooShort
		}
		l.protocol = extension[0]
		l.transport += n
		if l.fragment == fragmentLater {
			return nil
		}
	}
	return ErrMalformed
}
