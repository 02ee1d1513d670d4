package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Handler carries the connections of a route. [Forward] is the one that most
// routes have.
type Handler interface {
	// ServeConn carries c and returns when it has ended, which it must do soon
	// after ctx has. It calls [Incoming.Accept] as soon as it knows that it can serve
	// c, and owns the connection from then on. An error before that is answered
	// by the Router: over CONNECT with the status that it stands for (see
	// connect.Classify), over TLS with an alert, else with a reset. One
	// ServeConn runs for each connection, all at the same time.
	ServeConn(ctx context.Context, c *Incoming) error
}

// Route says which connections go where. It is given to [Router.SetRoutes] and
// must not be changed afterwards.
//
// A connection belongs to the route that names it most exactly: a whole server
// name before a wildcard, a longer wildcard before a shorter one, a longer prefix
// before a shorter one, and a port before none. Two routes that name the same are
// an error, so that their order never counts.
type Route struct {
	// Name is what the route is known by in logs, counters, and when routes are
	// replaced: a route of the same name is the same route.
	Name string

	// SNI holds server names: "api.example.com", or "*.example.com" for all names
	// that end in ".example.com", however many labels they have.
	SNI []string
	// Destinations holds addresses in PROXY headers; see [ParseDestination].
	Destinations []Destination
	// HeaderValues holds values of the routing header, compared byte by byte. A
	// value is never taken apart nor dialled.
	HeaderValues []string
	// Default routes TLS connections whose name no other route has, or that have
	// none. At most one route may.
	Default bool

	// Allow holds the clients that may use the route, empty for all, and Deny
	// those that may not, which wins. A client without an IP address is
	// let in only if both are empty.
	Allow, Deny []netip.Prefix
	// MaxConns is how many connections the route may have at once. Zero and
	// negative: as many as the Router takes.
	MaxConns int

	// Handler carries the connections; it is needed.
	Handler Handler
}

// Destination is an address in PROXY headers that a route is for: all addresses
// of a prefix, at one port or at all.
type Destination struct {
	Prefix netip.Prefix
	Port   uint16 // 0: every port
}

// ParseDestination reads "240.0.0.1:443", "240.0.0.1", "240.0.0.0/24",
// "[fd00::1]:443", "fd00::/64" or "[fd00::/64]:443".
func ParseDestination(s string) (Destination, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return Destination{Prefix: p}.checked(s)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" { // a prefix has none
			return Destination{}, fmt.Errorf("destination %q: no zone may stand there", s)
		}
		return Destination{Prefix: netip.PrefixFrom(a, a.BitLen())}.checked(s)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Destination{}, fmt.Errorf("destination %q: want IP, IP:port or prefix", s)
	}
	host := s[:i]
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	} else if strings.Contains(host, ":") {
		return Destination{}, fmt.Errorf("destination %q: an IPv6 address before a port stands in brackets", s)
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return Destination{}, fmt.Errorf("destination %q: port %q", s, s[i+1:])
	}
	d, err := ParseDestination(host)
	if err != nil || d.Port != 0 {
		return Destination{}, fmt.Errorf("destination %q: want IP, IP:port or prefix", s)
	}
	d.Port = uint16(port)
	return d, nil
}

// checked refuses what would never match, or match other than it looks.
func (d Destination) checked(s string) (Destination, error) {
	switch a := d.Prefix.Addr(); {
	case !d.Prefix.IsValid():
		return Destination{}, fmt.Errorf("destination %q: no address", s)
	case a.Is4In6():
		return Destination{}, fmt.Errorf("destination %q: write an IPv4 address as such", s)
	case d.Prefix != d.Prefix.Masked():
		return Destination{}, fmt.Errorf("destination %q: there are bits behind the prefix, want %s", s, d.Prefix.Masked())
	}
	return d, nil
}

// String returns d as ParseDestination reads it.
func (d Destination) String() string {
	s := d.Prefix.String()
	if d.Prefix.IsSingleIP() {
		s = d.Prefix.Addr().String()
	}
	if d.Port == 0 {
		return s
	}
	if d.Prefix.Addr().Is6() {
		s = "[" + s + "]"
	}
	return s + ":" + strconv.Itoa(int(d.Port))
}

// check tells what is wrong with a route by itself.
func (r *Route) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Name == "" {
		bad("it has no name")
	}
	if r.Handler == nil {
		bad("it has no handler")
	}
	if f, ok := r.Handler.(*Forward); ok {
		errs = append(errs, f.check())
	}
	if len(r.SNI)+len(r.Destinations)+len(r.HeaderValues) == 0 && !r.Default {
		bad("nothing leads to it: it has no server name, destination or header value, and is not the default")
	}
	for _, name := range r.SNI {
		if err := checkServerName(name); err != nil {
			errs = append(errs, err)
		}
	}
	for _, d := range r.Destinations {
		if _, err := d.checked(d.String()); err != nil {
			errs = append(errs, err)
		}
	}
	for _, v := range r.HeaderValues {
		if v == "" || strings.TrimSpace(v) != v || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			bad("header value %q: it is empty, or has blanks around it or control characters", v)
		}
	}
	for _, p := range append(r.Allow[:len(r.Allow):len(r.Allow)], r.Deny...) {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			bad("client prefix %v: it is not valid, has bits behind the prefix, or is an IPv4 one in IPv6", p)
		}
	}
	return errors.Join(errs...)
}

// checkServerName accepts a DNS name, or one behind "*.".
func checkServerName(name string) error {
	rest := strings.TrimPrefix(name, "*.")
	if rest == "" || len(rest) > maxServerName || strings.Trim(rest, ".") != rest {
		return fmt.Errorf("server name %q: want a DNS name without a dot at its end, or *.NAME", name)
	}
	for label := range strings.SplitSeq(rest, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return fmt.Errorf("server name %q: label %q", name, label)
		}
	}
	if _, err := netip.ParseAddr(rest); err == nil {
		return fmt.Errorf("server name %q: an address is no server name (RFC 6066 §3); such clients send none, see Default", name)
	}
	return nil
}

// admits reports whether a client may use the route.
func (r *Route) admits(client netip.Addr) bool {
	if !client.IsValid() {
		return len(r.Allow)+len(r.Deny) == 0
	}
	return !contains(r.Deny, client) && (len(r.Allow) == 0 || contains(r.Allow, client))
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
