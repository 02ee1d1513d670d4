package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// A Drop is why a [Switch] does not pass a frame on.
type Drop int

// The reasons.
const (
	dropNone Drop = iota

	// DropMalformed: cut short, or with lengths that contradict each other.
	DropMalformed
	// DropControl: to 01:80:c2:00:00:00 … 0f, which a bridge keeps (spanning tree,
	// pause, LLDP, LACP).
	DropControl
	// DropType: an EtherType other than IPv4, IPv6 and ARP. VLAN tags are such.
	DropType
	// DropMAC: the source MAC is none of the peer's.
	DropMAC
	// DropTaken: the source MAC is that of another live port.
	DropTaken
	// DropTable: the peer, or all together, have as many MACs as they may.
	DropTable
	// DropSource: the source address is none of the peer's, nor in a network behind it.
	DropSource
	// DropARP: it speaks for another, or is malformed.
	DropARP
	// DropNeighbor: a neighbour solicitation or advertisement (RFC 4861) that speaks
	// for another, or is malformed.
	DropNeighbor
	// DropRouter: it solicits or advertises a router, redirects, renumbers, tells or asks
	// for an address mask, or queries multicast listeners. None of that is for peers.
	DropRouter
	// DropDHCP: the answer of a DHCP server, version 4 or 6.
	DropDHCP
	// DropHeaders: extension headers or options that could lead round a check, more
	// than eight of them, or cut short.
	DropHeaders
	// DropFragment: a first fragment that does not show what it is, or one of what
	// may not be fragmented.
	DropFragment
	// DropOffload: a virtio-net header that does not describe its packet, and could
	// have it changed behind the checks.
	DropOffload
	// DropOrigin: it is numbered in the name of another.
	DropOrigin
	// DropFlood: more broadcast, multicast and unknown unicast than the peer may send.
	DropFlood
	// DropIsolated: from peer to peer, where that is not wanted.
	DropIsolated
	// DropNoRoute: nobody has the destination, or who sent it does.
	DropNoRoute
	// DropQueue: the queue of the port that it should have gone to was full. It
	// counts at that port.
	DropQueue

	drops
)

var dropNames = [drops]string{
	"none", "malformed", "control", "type", "mac", "taken", "table", "source", "arp", "neighbor", "router",
	"dhcp", "headers", "fragment", "offload", "origin", "flood", "isolated", "no-route", "queue",
}

// String returns the name in statistics, such as "source".
func (d Drop) String() string {
	if d < 0 || d >= drops {
		return "unknown"
	}
	return dropNames[d]
}

// MarshalText returns the name, so that statistics are readable as JSON.
func (d Drop) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// rules are what a port may say.
type rules struct {
	own      []netip.Addr   // its addresses on the tunnel's network
	tails    []uint32       // their last four bytes, which its MACs end in
	networks []netip.Prefix // what else it may send from
	id       uint64         // of what it numbers
}

func newRules(own []netip.Addr, networks []netip.Prefix, id uint64) rules {
	r := rules{own: own, id: id}
	for _, a := range own {
		if tail := tailOf(a); !slices.Contains(r.tails, tail) {
			r.tails = append(r.tails, tail)
		}
	}
	for _, n := range networks {
		r.networks = append(r.networks, n.Masked())
	}
	return r
}

// tailOf is the last four bytes of an address.
func tailOf(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	b := a.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// mayMAC reports whether the port may have an Ethernet address: one that [MAC] makes
// of an own address, with any leg.
func (r *rules) mayMAC(mac uint64) bool {
	return mac>>40 == 0x02 && slices.Contains(r.tails, uint32(mac))
}

// isOwn reports whether an address is the port's on the tunnel's network, or a
// link-local one that a device makes of its MAC (RFC 4291, appendix A).
func (r *rules) isOwn(a netip.Addr) bool {
	if slices.Contains(r.own, a) {
		return true
	}
	if !a.Is6() {
		return false
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:]) == 0xfe80<<48 && b[11] == 0xff && b[12] == 0xfe &&
		r.mayMAC(uint64(b[8]^0x02)<<40|uint64(b[9])<<32|uint64(b[10])<<24|uint64(b[13])<<16|uint64(b[14])<<8|uint64(b[15]))
}

// maySend reports whether an address that is not own may be a source, because it
// is in a network behind the port.
func (r *rules) maySend(a netip.Addr) bool {
	return isSomebodys(a) && contain(r.networks, a)
}

// isSomebodys reports whether an address can be that of one host, seen from others,
// whatever rules say: not so the unspecified one, loopback, multicast, broadcast, and
// the link-local and mapped ones of IPv6.
func isSomebodys(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() || a.Is4() && a.IsLinkLocalUnicast()
}

// allowedAddresses returns the addresses of those that a member names which its rules allow,
// at most maxAddresses, and the others. One that names none has the one
// address that its rules allow, if that is a single one.
func allowedAddresses(named []netip.Addr, may []netip.Prefix) (own, beyond []netip.Addr) {
	if len(named) == 0 {
		for _, p := range may {
			if p.IsSingleIP() {
				named = append(named, p.Addr())
			}
		}
		if len(named) > 1 {
			return nil, nil // which of them it has, nobody knows
		}
	}
	for _, a := range named {
		a = a.Unmap()
		switch {
		case slices.Contains(own, a):
		case len(own) < maxAddresses && isSomebodys(a) && contain(may, a):
			own = append(own, a)
		default:
			beyond = append(beyond, a)
		}
	}
	return own, beyond
}

func contain(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// allowedNetworks returns what the networks that a member names and those of its
// rules have in common, at most maxNetworks, and whether there is more.
func allowedNetworks(named, may []netip.Prefix) (common []netip.Prefix, more bool) {
	for _, n := range named {
		for _, m := range may {
			if !n.IsValid() || !m.IsValid() || !n.Overlaps(m) {
				continue
			}
			p := n
			if m.Bits() > n.Bits() {
				p = m
			}
			if p = p.Masked(); slices.Contains(common, p) {
				continue
			}
			if len(common) == maxNetworks {
				return common, true
			}
			common = append(common, p)
		}
	}
	return common, false
}
