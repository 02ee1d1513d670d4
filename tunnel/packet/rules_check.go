package packet

import (
	"encoding/binary"
	"net/netip"
)

// checkEthernet checks a frame of a peer, which has an Ethernet header at least.
func (r *rules) checkEthernet(f Frame, dst, src uint64, v *switchView, p *switchPort) Drop {
	if dst>>4 == 0x0180c2000000>>4 {
		return DropControl
	}
	if !r.mayMAC(src) {
		return DropMAC
	}
	b := f.Packet()
	body := b[ethernetLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if len(body) == 0 || body[0]>>4 != 4 {
			return DropMalformed
		}
	case 0x86dd:
		if len(body) == 0 || body[0]>>4 != 6 {
			return DropMalformed
		}
	case 0x0806:
		if d := f.checkHeader(p.s.Mode); d != dropNone {
			return d
		}
		return r.checkARP(body, src)
	default:
		return DropType
	}
	ip, d := parseIP(body)
	if d != dropNone {
		return d
	}
	return r.checkIP(f, &ip, src, v, p)
}

// checkTUN checks a packet of a peer and returns where it goes.
func (r *rules) checkTUN(f Frame, v *switchView, p *switchPort) (netip.Addr, Drop) {
	ip, d := parseIP(f.Packet())
	if d == dropNone {
		d = r.checkIP(f, &ip, noMAC, v, p)
	}
	return ip.dst, d
}

// noMAC says that there is no Ethernet.
const noMAC = 1 << 63

// checkIP checks an IP packet that came from mac.
func (r *rules) checkIP(f Frame, ip *parsed, mac uint64, v *switchView, p *switchPort) Drop {
	own := r.speaksFor(ip.src, mac)
	if !own && !(mac != noMAC && ip.mayBeNameless()) {
		if !r.maySend(ip.src) {
			return DropSource
		}
		if owner := v.owners[ip.src]; owner != nil && owner != p {
			return DropSource
		}
	}
	if !ip.later {
		switch ip.proto {
		case protoICMP, protoIGMP:
			if d := ip.checkICMPv4(); d != dropNone {
				return d
			}
		case protoICMPv6:
			if d := r.checkICMPv6(ip, own, mac); d != dropNone {
				return d
			}
		case protoUDP:
			if d := ip.checkUDP(); d != dropNone {
				return d
			}
		}
	}
	return f.checkHeader(p.s.Mode)
}

// speaksFor reports whether an address is the port's on the tunnel's network; a TUN
// has no link-local ones.
func (r *rules) speaksFor(a netip.Addr, mac uint64) bool {
	if mac == noMAC && a.IsLinkLocalUnicast() && a.Is6() {
		return false
	}
	return r.isOwn(a)
}

// mayBeNameless reports whether a packet comes from the unspecified address and is
// one that does: a solicitation that detects a duplicate, or a multicast report.
func (ip *parsed) mayBeNameless() bool {
	if ip.src != netip.IPv6Unspecified() || ip.proto != protoICMPv6 || len(ip.payload) == 0 {
		return false
	}
	switch ip.payload[0] {
	case icmpReport, icmpDone, icmpReport2, icmpSolicit:
		return true
	}
	return false
}

// checkUDP refuses the answers of DHCP servers, by the ports of both ends.
func (ip *parsed) checkUDP() Drop {
	if len(ip.payload) < udpLen {
		return DropMalformed
	}
	src, dst := binary.BigEndian.Uint16(ip.payload), binary.BigEndian.Uint16(ip.payload[2:])
	server, client := uint16(67), uint16(68)
	if ip.src.Is6() {
		server, client = 547, 546
	}
	if src == server || dst == client {
		return DropDHCP
	}
	return dropNone
}

// Types of ICMP for IPv4 and of IGMP, as IANA has them.
const (
	icmp4Redirect  = 5
	icmp4Router    = 9
	icmp4AskRouter = 10
	icmp4AskMask   = 17
	icmp4Mask      = 18
	igmpQuery      = 0x11
)

// checkICMPv4 refuses what only routers say, and what is said to them only.
func (ip *parsed) checkICMPv4() Drop {
	if len(ip.payload) == 0 {
		return DropMalformed
	}
	kind := ip.payload[0]
	if ip.proto == protoIGMP {
		if kind == igmpQuery {
			return DropRouter
		}
		return dropNone
	}
	switch kind {
	case icmp4Redirect, icmp4Router, icmp4AskRouter, icmp4AskMask, icmp4Mask:
		return DropRouter
	}
	return dropNone
}

// Types of ICMPv6, as IANA has them.
const (
	icmpQuery         = 130
	icmpReport        = 131
	icmpDone          = 132
	icmpAskRouter     = 133
	icmpRouter        = 134
	icmpSolicit       = 135
	icmpAdvertise     = 136
	icmpRedirect      = 137
	icmpRenumber      = 138
	icmpInverseAsk    = 141
	icmpInverse       = 142
	icmpReport2       = 143
	icmpRouterFirst   = 151 // of multicast router discovery
	icmpRouterLast    = 153
	optionSource      = 1 // link-layer addresses
	optionTarget      = 2
	neighborLen       = 24 // of a solicitation and an advertisement, without options
	hopsOfNeighbors   = 255
	bytesOfUnit       = 8 // in which options are measured
	bytesOfLinkOption = 8
)

// checkICMPv6 checks what an ICMPv6 message says of others. own is whether its source is
// an own address.
func (r *rules) checkICMPv6(ip *parsed, own bool, mac uint64) Drop {
	b := ip.payload
	if len(b) < 4 {
		return DropMalformed
	}
	switch kind := b[0]; {
	case kind == icmpQuery, kind == icmpAskRouter, kind == icmpRouter, kind == icmpRedirect, kind == icmpRenumber,
		icmpRouterFirst <= kind && kind <= icmpRouterLast:
		return DropRouter
	case kind == icmpInverseAsk, kind == icmpInverse:
		return DropNeighbor
	case kind == icmpSolicit, kind == icmpAdvertise:
		if mac == noMAC || ip.fragment || ip.hops != hopsOfNeighbors || b[1] != 0 || len(b) < neighborLen {
			return DropNeighbor
		}
		target := netip.AddrFrom16([16]byte(b[8:24]))
		nameless := ip.src.IsUnspecified()
		// Who asks may ask for everybody, but not pretend to detect a duplicate
		// of another's address: the other would give it up.
		if !own && !nameless || (nameless || kind == icmpAdvertise) && !r.isOwn(target) {
			return DropNeighbor
		}
		return checkLinkOptions(b[neighborLen:], mac, nameless)
	}
	return dropNone
}

// checkLinkOptions checks the options of neighbour discovery: link-layer addresses are
// the frame's, and who has no address names none.
func checkLinkOptions(b []byte, mac uint64, nameless bool) Drop {
	for len(b) > 0 {
		if len(b) < bytesOfUnit || b[1] == 0 || int(b[1])*bytesOfUnit > len(b) {
			return DropNeighbor
		}
		if b[0] == optionSource || b[0] == optionTarget {
			if nameless || int(b[1])*bytesOfUnit != bytesOfLinkOption || macOf(b[2:]) != mac {
				return DropNeighbor
			}
		}
		b = b[int(b[1])*bytesOfUnit:]
	}
	return dropNone
}

// checkARP checks an ARP packet, RFC 826: it comes from who it says, and that is an own
// address; or in a request, none yet, and it asks for an own one (RFC 5227): whoever
// detects a duplicate of another's address makes the other give it up.
func (r *rules) checkARP(b []byte, mac uint64) Drop {
	const (
		ethernetIPv4 = 0x0001_0800_0604 // types of hardware and protocol, lengths of addresses
		request      = 1
		reply        = 2
		length       = 28
	)
	if len(b) < length || macOf(b) != ethernetIPv4 || macOf(b[8:]) != mac {
		return DropARP
	}
	op, sender := binary.BigEndian.Uint16(b[6:]), netip.AddrFrom4([4]byte(b[14:18]))
	if op == request && sender.IsUnspecified() {
		sender = netip.AddrFrom4([4]byte(b[24:28]))
	}
	switch {
	case op != request && op != reply:
		return DropARP
	case !r.isOwn(sender):
		return DropARP
	}
	return dropNone
}

// checkHeader checks that the virtio-net header fits the packet, of which it has others
// change bytes. Most say nothing.
func (f Frame) checkHeader(m Mode) Drop {
	h := f.Data[:HeaderLen]
	if binary.LittleEndian.Uint64(h)|uint64(binary.LittleEndian.Uint16(h[8:])) != 0 && Check(f, m, MaxPacket) != nil {
		return DropOffload
	}
	return dropNone
}
