package entrypoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/yamldoc"
)

// Config is what a configuration file says. [ParseConfig] reads one; its fields
// are those of [Router], [Door], [Route] and [Forward] under names for YAML.
type Config struct {
	Listeners []ListenerConfig `json:"listeners"`
	Routes    []RouteConfig    `json:"routes"`
	Limits    LimitsConfig     `json:"limits"`

	HeadTimeout    Duration `json:"headTimeout"`
	DrainTimeout   Duration `json:"drainTimeout"`
	RemovedTimeout Duration `json:"removedTimeout"`

	made map[string]*Route // by name, what Apply has given to a Router
}

// ListenerConfig is an address and its [Door].
type ListenerConfig struct {
	// Address is host:port; an empty host is every address, of both families.
	Address string `json:"address"`
	// By holds sni, destination and header, one or several; empty means sni.
	By []string `json:"by"`
	// ProxyFrom holds the prefixes of load balancers that must name the client
	// in a PROXY header, and ProxyMaybeFrom those of some that may.
	ProxyFrom      []string `json:"proxyFrom"`
	ProxyMaybeFrom []string `json:"proxyMaybeFrom"`
	// Headers is Door.Headers.
	Headers []string `json:"headers"`
	// Unknown is deny, which an empty one means, or redirect.
	Unknown string `json:"unknown"`
}

// RouteConfig is a [Route] with its [Forward].
type RouteConfig struct {
	Name         string   `json:"name"`
	SNI          []string `json:"sni"`
	Destinations []string `json:"destinations"`
	HeaderValues []string `json:"headerValues"`
	Default      bool     `json:"default"`

	Allow          []string `json:"allow"`
	Deny           []string `json:"deny"`
	MaxConnections int      `json:"maxConnections"`

	Backends    []string `json:"backends"`
	SendProxy   string   `json:"sendProxy"` // none, which an empty one means, v1 or v2
	DialTimeout Duration `json:"dialTimeout"`
	IdleTimeout Duration `json:"idleTimeout"`
	MaxDuration Duration `json:"maxDuration"`
}

// LimitsConfig is [Limits].
type LimitsConfig struct {
	Connections int `json:"connections"`
	Sniffing    int `json:"sniffing"`
	PerClient   int `json:"perClient"`
}

// Duration is written as in Go: "250ms", "10s", "1h30m", or the number 0.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if string(b) == "0" {
		s = "0"
	} else if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a number with a unit, as in 10s: %s", b)
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// ParseConfig reads a configuration file in YAML or JSON. It is strict: a field
// that does not exist, a field that is there twice, a second document, and
// anything that [Config.Apply] or [Config.Doors] would refuse is an error, and the
// error tells all of it but for syntax, where it tells the first.
func ParseConfig(data []byte) (*Config, error) {
	if yamldoc.Several(data) {
		return nil, errors.New("entrypoint: there is more than one YAML document")
	}
	c := new(Config)
	if err := yaml.UnmarshalStrict(data, c); err != nil {
		return nil, fmt.Errorf("entrypoint: %w", err)
	}
	_, doorErr := c.Doors()
	if err := errors.Join(doorErr, c.Apply(new(Router), nil)); err != nil {
		return nil, err
	}
	return c, nil
}

// NewRouter makes a Router with the limits and timeouts of c, and its routes.
func (c *Config) NewRouter() (*Router, error) {
	r := &Router{
		HeadTimeout:    time.Duration(c.HeadTimeout),
		DrainTimeout:   time.Duration(c.DrainTimeout),
		RemovedTimeout: time.Duration(c.RemovedTimeout),
		Limits:         Limits{Conns: c.Limits.Connections, Sniffing: c.Limits.Sniffing, PerClient: c.Limits.PerClient},
	}
	return r, c.Apply(r, nil)
}

// Apply replaces the routes of r by those of c; see [Router.SetRoutes]. A route
// that stands in old in the same way goes on with what it knows of the health of
// its backends; old is the Config that was applied before, or nil.
func (c *Config) Apply(r *Router, old *Config) error {
	before := make(map[string]*RouteConfig)
	if old != nil {
		for i := range old.Routes {
			before[old.Routes[i].Name] = &old.Routes[i]
		}
	}
	var routes []*Route
	var errs []error
	made := make(map[string]*Route, len(c.Routes))
	for i := range c.Routes {
		rc := &c.Routes[i]
		if b, ok := before[rc.Name]; ok && reflect.DeepEqual(b, rc) && old.made[rc.Name] != nil {
			made[rc.Name] = old.made[rc.Name]
		} else if route, err := rc.route(); err != nil {
			errs = append(errs, fmt.Errorf("entrypoint: route %q: %w", rc.Name, err))
		} else {
			made[rc.Name] = route
		}
		routes = append(routes, made[rc.Name])
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := r.SetRoutes(routes); err != nil {
		return err
	}
	c.made = made
	return nil
}

// Doors makes the doors, in the order of c.Listeners.
func (c *Config) Doors() ([]*Door, error) {
	var doors []*Door
	var errs []error
	seen := make(map[string]bool)
	if len(c.Listeners) == 0 {
		errs = append(errs, errors.New("entrypoint: there are no listeners"))
	}
	for _, l := range c.Listeners {
		d, err := l.door()
		if seen[l.Address] {
			err = errors.Join(err, errors.New("it is there twice"))
		}
		seen[l.Address] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("entrypoint: listener %q: %w", l.Address, err))
		}
		doors = append(doors, d)
	}
	return doors, errors.Join(errs...)
}

// SameFront reports whether c and other differ in nothing but routes, which alone
// can be replaced while a Router serves.
func (c *Config) SameFront(other *Config) bool {
	a, b := *c, *other
	a.Routes, a.made, b.Routes, b.made = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}

// Kind is what the listener tells connections apart by, for people.
func (l *ListenerConfig) Kind() string {
	if len(l.By) == 0 {
		return BySNI.String()
	}
	return strings.Join(l.By, ", ")
}

func (l *ListenerConfig) door() (*Door, error) {
	d := &Door{Headers: l.Headers}
	errs := []error{checkAddress(l.Address)}
	for _, name := range l.By {
		by := map[string]By{"sni": BySNI, "destination": ByDestination, "header": ByHeader}[name]
		if by == 0 {
			errs = append(errs, fmt.Errorf("by %q: want sni, destination or header", name))
		}
		d.By |= by
	}
	switch l.Unknown {
	case "", "deny":
	case "redirect":
		d.Unknown = Redirect
	default:
		errs = append(errs, fmt.Errorf("unknown %q: want deny or redirect", l.Unknown))
	}
	if d.By&ByHeader == 0 && (len(l.Headers) > 0 || l.Unknown != "") {
		errs = append(errs, errors.New("headers and unknown are for by: [header]"))
	}
	for _, from := range []struct {
		prefixes []string
		policy   proxyproto.Policy
	}{{l.ProxyFrom, proxyproto.Require}, {l.ProxyMaybeFrom, proxyproto.Accept}} {
		prefixes, err := parsePrefixes(from.prefixes)
		errs = append(errs, err)
		for _, p := range prefixes {
			d.Proxy = append(d.Proxy, proxyproto.Rule{From: p, Policy: from.policy})
		}
	}
	errs = append(errs, d.check())
	return d, errors.Join(errs...)
}

func (rc *RouteConfig) route() (*Route, error) {
	f := &Forward{
		Backends: rc.Backends, DialTimeout: time.Duration(rc.DialTimeout),
		IdleTimeout: time.Duration(rc.IdleTimeout), MaxDuration: time.Duration(rc.MaxDuration),
	}
	r := &Route{
		Name: rc.Name, SNI: rc.SNI, HeaderValues: rc.HeaderValues, Default: rc.Default,
		MaxConns: rc.MaxConnections, Handler: f,
	}
	var errs []error
	for _, s := range rc.Destinations {
		d, err := ParseDestination(s)
		r.Destinations = append(r.Destinations, d)
		errs = append(errs, err)
	}
	var err error
	r.Allow, err = parsePrefixes(rc.Allow)
	errs = append(errs, err)
	r.Deny, err = parsePrefixes(rc.Deny)
	errs = append(errs, err)
	switch rc.SendProxy {
	case "", "none":
	case "v1":
		f.SendProxy = 1
	case "v2":
		f.SendProxy = 2
	default:
		errs = append(errs, fmt.Errorf("sendProxy %q: want none, v1 or v2", rc.SendProxy))
	}
	return r, errors.Join(append(errs, checkBackends(rc.Backends))...)
}

// checkBackends wants at least one, and each once.
func checkBackends(backends []string) error {
	if len(backends) == 0 {
		return errors.New("it has no backends")
	}
	var errs []error
	seen := make(map[string]bool)
	for _, b := range backends {
		path, isUnix := strings.CutPrefix(b, "unix:")
		err := checkBackendAddress(b)
		switch {
		case isUnix && path != "" && path != "@" && strings.ContainsAny(path[:1], "/@"):
			err = nil
		case isUnix:
			err = errors.New("want unix:/PATH or unix:@NAME")
		}
		if seen[b] {
			err = errors.Join(err, errors.New("it is there twice"))
		}
		seen[b] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("backend %q: %w", b, err))
		}
	}
	return errors.Join(errs...)
}

func checkBackendAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil && host == "" {
		err = errors.New("no host")
	}
	if err == nil && port == "0" {
		err = errors.New("port 0")
	}
	return errors.Join(err, checkAddress(s))
}

// checkAddress wants host:port with a number.
func checkAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("want host:port: port %q", port)
	}
	return nil
}

// parsePrefixes reads prefixes and single addresses.
func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	var errs []error
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		switch {
		case err != nil:
			err = fmt.Errorf("prefix %q: want IP or IP/BITS", s)
		case p.Addr().Zone() != "" || p.Addr().Is4In6():
			err = fmt.Errorf("prefix %q: no zone, and IPv4 as such", s)
		case p != p.Masked():
			err = fmt.Errorf("prefix %q: there are bits behind the prefix, want %s", s, p.Masked())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, errors.Join(errs...)
}
