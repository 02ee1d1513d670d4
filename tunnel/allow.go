package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Target is an address that an agent is asked to dial.
type Target struct {
	// Host is the host as it was asked for, in lower case without a final
	// dot: a name or an IP address.
	Host string
	// Port is 1 to 65535.
	Port uint16
	// Addr is the address that will be dialled: Host itself, or one that it
	// resolved to. IPv4 addresses inside IPv6 ones (mapped, NAT64) are taken
	// out, so that no spelling gets around a rule.
	Addr netip.Addr
}

// AllowFunc tells an agent whether it may dial a target: nil, or why not. For
// a name it is asked for each address that the name resolved to, and only an
// address that was allowed is dialled. It is asked again every 10 s for the
// targets of open streams, which are reset when they were not allowed any more
// for 30 s.
type AllowFunc func(t Target) error

// Rule allows some targets: a network, or a name with its subdomains if it
// begins with a dot.
type Rule struct {
	Prefix netip.Prefix // valid: a rule about addresses
	Host   string       // otherwise: a rule about names
	Port   uint16       // 0: any
}

// ParseRule reads a rule: CIDR, CIDR:port, address:port, host:port, host or
// .suffix, with an IPv6 network before a port in brackets:
//
//	10.0.0.0/8   100.64.0.0/10:10250   [2001:db8::/32]:443   10.0.0.7:9100
//	metrics-server.kube-system.svc:443   .svc.cluster.local
func ParseRule(s string) (Rule, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && (strings.HasPrefix(s, "[") || strings.Count(s, ":") == 1) {
		if strings.HasPrefix(s, "[") && s[i-1] != ']' {
			i = len(s) // the colon is inside the brackets
		}
		host = s[:i]
		if i < len(s) {
			port = s[i+1:]
		}
	}
	if h, ok := strings.CutPrefix(host, "["); ok {
		h, ok = strings.CutSuffix(h, "]")
		if !ok {
			return Rule{}, fmt.Errorf("tunnel: rule %q: missing ]", s)
		}
		host = h
	}
	var r Rule
	if port != "" || host != s && strings.HasSuffix(s, ":") {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Rule{}, fmt.Errorf("tunnel: rule %q: port %q is not 1 to 65535", s, port)
		}
		r.Port = uint16(n)
	}
	to, err := parseServed(host)
	if err != nil || strings.ContainsAny(host, "[]*") {
		return Rule{}, fmt.Errorf("tunnel: rule %q: want CIDR, CIDR:port or host:port", s)
	}
	r.Prefix, r.Host = to.prefix, to.name
	if r.Prefix.IsValid() && r.Prefix.Addr().Is4In6() {
		return Rule{}, fmt.Errorf("tunnel: rule %q: write the IPv4 network itself", s)
	}
	return r, nil
}

// String is the rule as ParseRule reads it.
func (r Rule) String() string {
	s := r.Host
	if r.Prefix.IsValid() {
		s = r.Prefix.String()
		if r.Port != 0 && r.Prefix.Addr().Is6() {
			s = "[" + s + "]"
		}
	}
	if r.Port != 0 {
		s += ":" + strconv.Itoa(int(r.Port))
	}
	return s
}

// Rules is a list of what may be dialled. Its Allow method is an [AllowFunc].
//
// An empty list allows everything but addresses that reach the agent's own
// host or its cloud's metadata: loopback, link-local, multicast, unspecified
// and the metadata addresses outside link-local. A list allows what one of its
// rules covers, and of those classes only what a rule inside the class covers:
// 127.0.0.1:9100 or 169.254.169.254/32 does, 0.0.0.0/0 and a name do not.
type Rules []Rule

// Allow returns nil for a target that the rules allow.
func (rules Rules) Allow(t Target) error {
	class := classOf(t.Addr)
	if len(rules) == 0 {
		if class.IsValid() {
			return fmt.Errorf("%w: %s is in %s, which needs a rule of its own", errNotAllowed, t.Addr, class)
		}
		return nil
	}
	for _, r := range rules {
		if r.covers(t, class) {
			return nil
		}
	}
	if class.IsValid() {
		return fmt.Errorf("%w: %s is in %s, and no rule inside that covers it", errNotAllowed, t.Addr, class)
	}
	return fmt.Errorf("%w: no rule covers it", errNotAllowed)
}

var errNotAllowed = errors.New("target is not allowed")

func (r Rule) covers(t Target, class netip.Prefix) bool {
	if r.Port != 0 && r.Port != t.Port {
		return false
	}
	if !r.Prefix.IsValid() {
		return !class.IsValid() && served{name: r.Host}.match(t.Host, netip.Addr{}) >= 0
	}
	if !r.Prefix.Contains(t.Addr) {
		return false
	}
	return !class.IsValid() || class.Bits() <= r.Prefix.Bits() && class.Contains(r.Prefix.Addr())
}

// classes need a rule of their own: they lead to the agent's host, or to what
// trusts it for being there.
func classes() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("169.254.0.0/16"), // link-local, cloud metadata
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("0.0.0.0/8"), // Linux dials 0.0.0.0 to itself
		netip.MustParsePrefix("::/128"),
		netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("ff00::/8"),
		netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud's metadata
		netip.MustParsePrefix("168.63.129.16/32"),   // Azure's host
		netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS's metadata
		netip.MustParsePrefix("fd20:ce::254/128"),   // Google Cloud's metadata
	}
}

// classOf is the class that the address is in, invalid if it is in none.
func classOf(a netip.Addr) netip.Prefix {
	for _, p := range classes() {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

// unmap takes the IPv4 address out of an IPv6 one that only carries it:
// mapped (RFC 4291 §2.5.5.2), compatible (§2.5.5.1), NAT64 (RFC 6052, with the
// well-known prefix, and RFC 8215's 64:ff9b:1::/48 at its usual /96), SIIT's
// translated form (RFC 2765 §2.1), 6to4 (RFC 3056).
func unmap(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:]))
	nat64 := b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b
	zero := func(b []byte) bool {
		for _, x := range b {
			if x != 0 {
				return false
			}
		}
		return true
	}
	switch {
	case nat64 && (zero(b[4:12]) || b[4] == 0 && b[5] == 1):
		return last
	case zero(b[:12]) && !zero(b[12:15]): // not :: and ::1
		return last
	case zero(b[:8]) && b[8] == 0xff && b[9] == 0xff && b[10] == 0 && b[11] == 0:
		return last
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}
