package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// egressMTU is the least MTU of the interfaces that lead to the networks, and of
// the routes where they have one of their own.
func egressMTU(networks []netip.Prefix) (int, error) {
	least := maxMTU
	for _, network := range networks {
		mtu, err := mtuTowards(network)
		if err != nil {
			return 0, fmt.Errorf("--network %s: the way there: %w: is it reached from here? Else name --mtu", network, err)
		}
		least = min(least, mtu)
	}
	return least, nil
}

// mtuTowards asks for the route to an address of the network. Its first may be
// this host's own: they lead to the loopback, and the next one counts.
func mtuTowards(network netip.Prefix) (mtu int, err error) {
	for a, tries := network.Addr(), 3; tries > 0 && network.Contains(a); a, tries = a.Next(), tries-1 {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil {
			return 0, err
		}
		for _, r := range routes {
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return 0, err
			}
			mtu = link.Attrs().MTU
			if r.MTU > 0 {
				mtu = min(mtu, r.MTU)
			}
			if link.Attrs().Flags&net.FlagLoopback == 0 {
				return mtu, nil
			}
		}
	}
	return mtu, nil
}
