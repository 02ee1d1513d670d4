package packet

import (
	"maps"
	"net/netip"
	"slices"
)

// routeTable says which port has an address. It is made anew with each change, and read
// without a lock. A look-up costs one look into a map for each length of prefixes
// that there is.
type routeTable struct {
	ports              map[netip.Prefix]*switchPort
	lengths4, lengths6 []int // that there are, longest first
}

// newRouteTable makes the routes to ports that are given from the oldest to the newest. The
// newest wins where two have the same prefix; a trusted port gets what no other has,
// but for its own addresses, which no other can have.
func newRouteTable(ports []*switchPort) routeTable {
	r := routeTable{ports: make(map[netip.Prefix]*switchPort)}
	for _, trusted := range []bool{true, false} {
		for _, p := range ports {
			if p.trusted != trusted {
				continue
			}
			for _, n := range p.member.Networks {
				r.ports[n.Masked()] = p
			}
		}
	}
	for _, p := range ports {
		for _, a := range p.member.Addresses {
			r.ports[netip.PrefixFrom(a, a.BitLen())] = p
		}
	}
	four, six := make(map[int]bool), make(map[int]bool)
	for p := range r.ports {
		if p.Addr().Is4() {
			four[p.Bits()] = true
		} else {
			six[p.Bits()] = true
		}
	}
	descending := func(a, b int) int { return b - a }
	r.lengths4 = slices.SortedFunc(maps.Keys(four), descending)
	r.lengths6 = slices.SortedFunc(maps.Keys(six), descending)
	return r
}

// find returns the port with the longest prefix around a, or nil.
func (r *routeTable) find(a netip.Addr) *switchPort {
	lengths := r.lengths6
	if a.Is4() {
		lengths = r.lengths4
	}
	for _, n := range lengths {
		prefix, _ := a.Prefix(n)
		if p := r.ports[prefix]; p != nil {
			return p
		}
	}
	return nil
}

// destinationOf returns where an IP packet goes, without a look at anything else.
func destinationOf(b []byte) (dst netip.Addr, ok bool) {
	switch {
	case len(b) >= ipv4Len && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[16:20])), true
	case len(b) >= ipv6Len && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[24:40])), true
	}
	return dst, false
}
