package tunneltest

import (
	"context"
	"net"
	"net/netip"
)

// SetHost makes name resolve to exactly these IP addresses, in this order, from now
// on; with none the name is forgotten. Existing listeners and connections keep
// their addresses. It panics when an address is not one, which is a mistake in the
// test.
func (n *Network) SetHost(name string, ips ...string) {
	n.lock()
	defer n.mu.Unlock()
	delete(n.hosts, name)
	for _, s := range ips {
		n.hosts[name] = append(n.hosts[name], parseIP(netip.MustParseAddr(s)))
	}
}

// LookupNetIP resolves a name with the signature of (*net.Resolver).LookupNetIP.
// Network is "ip", "ip4" or "ip6".
func (n *Network) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.DNSError{Err: dialError(err).Error(), Name: host, IsTimeout: err == context.DeadlineExceeded, UnwrapErr: err}
	}
	n.lock()
	defer n.mu.Unlock()
	var found []netip.Addr
	for _, ip := range n.addrsOf(host, false) {
		a, _ := netip.AddrFromSlice(ip)
		if a = a.Unmap(); network == "ip" || a.Is4() == (network == "ip4") {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return nil, noSuchHost(host)
	}
	return found, nil
}

// LookupHost resolves a name with the signature of (*net.Resolver).LookupHost.
func (n *Network) LookupHost(ctx context.Context, host string) ([]string, error) {
	ips, err := n.LookupNetIP(ctx, "ip", host)
	var found []string
	for _, ip := range ips {
		found = append(found, ip.String())
	}
	return found, err
}

func noSuchHost(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func parseIP(a netip.Addr) net.IP { return net.IP(a.AsSlice()) }

// addrsOf returns the addresses of a host; with create a name that is not known gets
// one.
func (n *Network) addrsOf(host string, create bool) []net.IP {
	if a, err := netip.ParseAddr(host); err == nil {
		return []net.IP{parseIP(a.Unmap())}
	}
	if ips := n.hosts[host]; len(ips) > 0 || !create || host == "" {
		return ips
	}
	n.nextHost++
	n.hosts[host] = []net.IP{net.IPv4(10, byte(n.nextHost>>16), byte(n.nextHost>>8), byte(n.nextHost)).To4()}
	return n.hosts[host]
}

// resolve returns the addresses that a text means on a network, at least one. It
// fails with what net.Dial and net.Listen have inside their *net.OpError.
func (n *Network) resolve(self, network, address string, listen bool) ([]net.Addr, error) {
	switch network {
	case "unix":
		if address == "" {
			return nil, &net.AddrError{Err: "missing path"}
		}
		return []net.Addr{&net.UnixAddr{Net: network, Name: address}}, nil
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	host, port, err := splitPort(address)
	if err != nil {
		return nil, err
	}
	if isWildcard(address) {
		host = self
	}
	ips := n.addrsOf(host, listen)
	if len(ips) == 0 {
		return nil, noSuchHost(host)
	}
	var addrs []net.Addr
	for _, ip := range ips {
		if is4 := ip.To4() != nil; network == "tcp" || is4 == (network == "tcp4") {
			addrs = append(addrs, &net.TCPAddr{IP: ip, Port: port})
		}
	}
	if len(addrs) == 0 {
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	return addrs, nil
}

// isWildcard reports an address without a host, or with 0.0.0.0 or [::].
func isWildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	a, _ := netip.ParseAddr(host)
	return err == nil && (host == "" || a.IsUnspecified())
}
