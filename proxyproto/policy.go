package proxyproto

import (
	"net"
	"net/netip"
	"time"
)

const defaultTimeout = 10 * time.Second

// Policy says what to do about a header. The zero value trusts nobody.
type Policy int

const (
	// Refuse ends a connection that begins with a header.
	Refuse Policy = iota
	// Require ends a connection that does not begin with a header.
	Require
	// Accept takes the header if there is one. It has to wait for the peer's
	// first bytes to know, so it does not suit protocols in which the server
	// speaks first.
	Accept
)

// String returns the name in lower case.
func (p Policy) String() string {
	switch p {
	case Require:
		return "require"
	case Accept:
		return "accept"
	}
	return "refuse"
}

// A Rule is the policy for some peers.
type Rule struct {
	// From holds the peers' addresses. 0.0.0.0/0 is all of IPv4 and ::/0 all of
	// IPv6; a prefix within ::ffff:0:0/96 means the IPv4 addresses in it. The
	// zero Prefix holds nobody.
	From netip.Prefix
	// Policy is what holds for them.
	Policy Policy
}

// Options says whose headers count. The zero value, and a nil pointer, refuse
// all headers. They must not be changed once in use.
type Options struct {
	// Rules are asked for the TCP peer's address, IPv4 within IPv6 unmapped.
	// The longest prefix that holds it counts, and of equal ones the first.
	// Whoever is required or allowed to send a header can name any client:
	// load balancers and nobody else.
	Rules []Rule
	// Default is for peers in no rule, those on UNIX sockets and others without
	// a *net.TCPAddr included.
	Default Policy
	// Inner is for a header behind the one that names the client, and for the
	// only header of a peer that may not name a client. It is read from
	// anyone. With Refuse it is not looked for: what comes behind the first
	// header is data.
	Inner Policy
	// Timeout bounds the time spent waiting for headers, all of a connection
	// together. 0 means 10 s; negative means no bound. A peer from which no
	// header is awaited may be silent for ever.
	Timeout time.Duration
}

func (o *Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return defaultTimeout
	}
	return o.Timeout
}

// policy finds the policy for a peer.
func (o *Options) policy(peer net.Addr) Policy {
	tcp, ok := peer.(*net.TCPAddr)
	if !ok {
		return o.Default
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	policy, longest := o.Default, -1
	for _, r := range o.Rules {
		if from := unmapPrefix(r.From); from.Contains(addr) && from.Bits() > longest {
			policy, longest = r.Policy, from.Bits()
		}
	}
	return policy
}

func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// peerOf returns the address at the other end of the wire, whatever wrappers
// say: they may have it from a header.
func peerOf(c net.Conn) net.Addr {
	for {
		n, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c.RemoteAddr()
		}
		below := n.NetConn()
		if below == nil {
			return c.RemoteAddr()
		}
		c = below
	}
}
