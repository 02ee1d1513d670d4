package netfilter

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// A Gate bounds what this host forwards between a tunnel device and all others:
// from the device to the networks only, and into it no packet that begins
// something. What else would be forwarded there is dropped. Of this host itself the
// far side reaches what is in the networks, too; else only answers, echo requests and
// what IPv6 needs to find neighbours come in. Device must be set. It needs linux with
// nftables, and CAP_NET_ADMIN.
//
//	tunnel ═► device ─► gate ─► networks
//	       ◄═        ◄─ no beginnings ─
//
// It says nothing about packets that this host sends, nor about what goes between
// other devices. Destinations are those after the translation that others do when a
// packet comes in, as for services of a cluster; sources are not looked at.
//
// Up comes before the device does, and before this host forwards: else a connection
// that was begun before counts as one of ours.
//
// It stays when the process is killed, until the next one replaces it.
//
// The fields must not be changed while it is up.
type Gate struct {
	// Device is the tunnel's, by its name.
	Device string
	// Networks are the destinations that may be reached, IPv4 or IPv6. They may
	// overlap. A network that has loopback or link-local addresses among others, as
	// 0.0.0.0/0 has, does not open the way to these: a cloud's metadata are there.
	// They have to be named themselves. Nil lets nothing through.
	Networks []netip.Prefix
	// Host lets the far side reach all of this host itself.
	Host bool
	// Logger gets a line when the rules come and go. Nil means silent.
	Logger *slog.Logger

	table table
}

// Up makes the rules, in the place of those that a predecessor has left. A second
// call makes them anew.
func (g *Gate) Up() error {
	if err := checkDevice(g.Device); err != nil {
		return err
	}
	if err := checkNetworks("gate", g.Networks); err != nil {
		return err
	}
	return g.table.up(gateTable+g.Device, g.Logger, func(b *batch) { b.gate(g.Device, reachable(g.Networks), g.Host) })
}

// Close removes the rules. A second call does nothing.
func (g *Gate) Close() error { return g.table.close(g.Logger) }

// Sweep is that of [Firewall.Sweep], for where nothing is forwarded any more.
func (g *Gate) Sweep() error { return sweep(gateTable + g.Device) }

const gateTable = "rhizome-gate-"

func checkNetworks(what string, networks []netip.Prefix) error {
	for _, n := range networks {
		if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
			return fmt.Errorf("netfilter: %s to %v, which is not a network", what, n)
		}
	}
	return nil
}

// special are addresses that mean something else on each host.
func special() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"),
	}
}

// reachable are networks without the special addresses that they do not name.
func reachable(networks []netip.Prefix) (all []netip.Prefix) {
	for _, n := range networks {
		rest := []netip.Prefix{n}
		for _, s := range special() {
			var less []netip.Prefix
			for _, r := range rest {
				less = append(less, without(r, s)...)
			}
			rest = less
		}
		all = append(all, rest...)
	}
	return all
}

// without is n less the addresses of s, or n if s is all of it or more.
func without(n, s netip.Prefix) []netip.Prefix {
	if !n.Overlaps(s) || n.Bits() >= s.Bits() {
		return []netip.Prefix{n}
	}
	low := netip.PrefixFrom(n.Addr(), n.Bits()+1)
	high := netip.PrefixFrom(end(low), low.Bits())
	if low.Overlaps(s) {
		low, high = high, low
	}
	if high.Bits() == s.Bits() { // it is s
		return []netip.Prefix{low}
	}
	return append(without(high, s), low)
}
