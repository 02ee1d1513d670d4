package entrypoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// table finds the route of a connection with a few map lookups, however many
// routes there are: one for each label of a name, one for each length of prefix
// that is in use. It does not change once it is made.
type table struct {
	routes   map[string]*Route // by name
	sni      map[string]*Route // by whole name
	wildcard map[string]*Route // by what follows the *, with its dot
	headers  map[string]*Route
	fallback *Route

	destinations map[Destination]*Route
	bits4, bits6 []int // lengths of prefixes that are in use, the longest first
}

// newTable makes a table, or tells everything that is wrong with the routes.
func newTable(routes []*Route) (*table, error) {
	t := &table{
		routes:       make(map[string]*Route, len(routes)),
		sni:          make(map[string]*Route),
		wildcard:     make(map[string]*Route),
		headers:      make(map[string]*Route),
		destinations: make(map[Destination]*Route),
	}
	var errs []error
	for _, r := range routes {
		if r == nil {
			errs = append(errs, errors.New("entrypoint: nil route"))
			continue
		}
		errs = append(errs, within(fmt.Sprintf("entrypoint: route %q", r.Name), errors.Join(r.check(), t.add(r))))
	}
	slices.Sort(t.bits4)
	slices.Sort(t.bits6)
	slices.Reverse(t.bits4)
	slices.Reverse(t.bits6)
	return t, errors.Join(errs...)
}

func (t *table) add(r *Route) error {
	var errs []error
	taken := func(what string, by *Route) {
		errs = append(errs, fmt.Errorf("%s is route %q's already", what, by.Name))
	}
	if by, ok := t.routes[r.Name]; ok {
		taken("the name", by)
	}
	t.routes[r.Name] = r
	for _, name := range r.SNI {
		names, key := t.sni, strings.ToLower(name)
		if rest, ok := strings.CutPrefix(key, "*"); ok {
			names, key = t.wildcard, rest
		}
		if by, ok := names[key]; ok {
			taken("server name "+name, by)
		}
		names[key] = r
	}
	for _, v := range r.HeaderValues {
		if by, ok := t.headers[v]; ok {
			taken(fmt.Sprintf("header value %q", v), by)
		}
		t.headers[v] = r
	}
	for _, d := range r.Destinations {
		if by, ok := t.destinations[d]; ok {
			taken("destination "+d.String(), by)
		}
		t.destinations[d] = r
		bits := &t.bits6
		if d.Prefix.Addr().Is4() {
			bits = &t.bits4
		}
		if !slices.Contains(*bits, d.Prefix.Bits()) {
			*bits = append(*bits, d.Prefix.Bits())
		}
	}
	if r.Default {
		if t.fallback != nil {
			taken("being the default", t.fallback)
		}
		t.fallback = r
	}
	return errors.Join(errs...)
}

// lookup returns the route of a connection, or nil. t may be nil.
func (t *table) lookup(i *Info) *Route {
	if t == nil {
		return nil
	}
	switch i.By {
	case BySNI:
		return t.byName(i.ServerName)
	case ByDestination:
		return t.byDestination(i.Destination)
	case ByHeader:
		return t.headers[i.HeaderValue]
	}
	return nil
}

// maxServerName is the length of the longest DNS name.
const maxServerName = 253

func (t *table) byName(name string) *Route {
	name = lower(name)
	if !isName(name) {
		return t.fallback // no wildcard is for it
	}
	if r, ok := t.sni[name]; ok {
		return r
	}
	for rest := name; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return t.fallback
		}
		if r, ok := t.wildcard[rest[dot:]]; ok {
			return r
		}
		rest = rest[dot+1:]
	}
}

// isName reports whether s can be the name of a host, in lower case. A hello may
// have any bytes, and 64 KiB of them.
func isName(s string) bool {
	if len(s) == 0 || len(s) > maxServerName {
		return false
	}
	label := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && label == 0:
			return false
		case c == '.':
			label = 0
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return false
		}
	}
	return label > 0
}

func (t *table) byDestination(d netip.AddrPort) *Route {
	a := d.Addr().Unmap().WithZone("")
	bits := t.bits6
	if a.Is4() {
		bits = t.bits4
	}
	for _, n := range bits {
		p, err := a.Prefix(n)
		if err != nil {
			return nil // not an address
		}
		for _, port := range []uint16{d.Port(), 0} {
			if r, ok := t.destinations[Destination{Prefix: p, Port: port}]; ok {
				return r
			}
		}
	}
	return nil
}
