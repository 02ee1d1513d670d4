package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ParsePrefix reads IP or IP/BITS: a network, or an address as the network that
// has it alone. An address in a network is refused, for one of the two was meant.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("want IP or IP/BITS")
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("want IP or IP/BITS: the network of %d bits is %s", p.Bits(), p.Masked())
	}
	return p, nil
}

// ParsePrefixes reads a list of them, with commas.
func ParsePrefixes(s string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for one := range strings.SplitSeq(s, ",") {
		p, err := ParsePrefix(one)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// ParseAddress reads IP/BITS: the address of an interface and how much of it its
// network is.
func ParseAddress(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, errors.New("want IP/BITS, an address with the length of its network")
	case p.Addr().IsUnspecified() || p.Addr().IsMulticast():
		return netip.Prefix{}, errors.New("want IP/BITS: no interface can have that address")
	}
	return p, nil
}
