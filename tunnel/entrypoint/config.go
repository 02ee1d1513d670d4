package entrypoint

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/yamldoc"
)

// Config is what a configuration file says. [ParseConfig] reads one; its fields
// are those of [Router], [Door], [Route] and [Forward] under names for YAML. What is
// left out, or null, is the zero of its field. A Config is not changed once Apply
// or NewRouter has been called.
type Config struct {
	// Listeners holds the ports; there is at least one.
	Listeners []ListenerConfig `json:"listeners"`
	// Routes holds the routes, in an order that does not matter. A file must have
	// it, if only as [], because a file that was cut off may have lost it.
	Routes []RouteConfig `json:"routes"`
	// Limits bounds connections.
	Limits LimitsConfig `json:"limits"`

	// HeadTimeout bounds the time from accepting a connection until it has said
	// what it wants. 0 means 10 s, negative no bound.
	HeadTimeout Duration `json:"headTimeout"`
	// DrainTimeout is how long connections may go on when the entrypoint ends;
	// they are reset one by one within the last four fifths of it. 0 means 25 s,
	// negative that none is reset until the context of [Router.Shutdown] ends.
	DrainTimeout Duration `json:"drainTimeout"`
	// RemovedTimeout is how long the connections of a removed route may go on. 0
	// means until they end by themselves; negative ends them at once.
	RemovedTimeout Duration `json:"removedTimeout"`

	made map[string]madeRoute // by name, what Apply has given to a Router
}

// ListenerConfig is an address and its [Door].
type ListenerConfig struct {
	// Address is host:port, with a number; port 0 is any free one. An empty host is
	// every address, of both families.
	Address string `json:"address"`
	// By holds sni, destination and header, one or several: see [By]. Empty means
	// sni.
	By []string `json:"by"`
	// ProxyFrom holds load balancers whose connections must begin with a PROXY
	// header, which names the client: IP, or IP/BITS, of their sockets. Connections
	// without one are refused. From all others a PROXY header is refused, or, by
	// destination, only a key.
	ProxyFrom []string `json:"proxyFrom"`
	// ProxyMaybeFrom holds load balancers whose connections may begin with a PROXY
	// header. Whoever connects through one that adds none can write such a header
	// and name any client: no allow and no deny of a route holds for them. It
	// goes with neither destination, where a client's own header would be taken for
	// the balancer's, nor a prefix of ProxyFrom. The longest prefix counts.
	ProxyMaybeFrom []string `json:"proxyMaybeFrom"`
	// Headers holds names of the routing header, in any case; for header only.
	// Empty means Reversed-VPN and X-Gardener-Destination. A request has exactly one
	// of them, once.
	Headers []string `json:"headers"`
	// Unknown is the answer to requests that no route is for: deny, which an empty
	// one means, is 403, and redirect 301 to https at the same host; for header
	// only.
	Unknown string `json:"unknown"`
}

// RouteConfig is a [Route] with its [Forward].
type RouteConfig struct {
	// Name is what the route is known by in logs and counters, and when the file is
	// read again: a route of the same name is the same route. It is needed.
	Name string `json:"name"`
	// SNI holds server names: api.example.com, or *.example.com for all names below
	// that, however many labels they have.
	SNI []string `json:"sni"`
	// Destinations holds addresses in PROXY headers: IP:port, IP or IP/BITS for
	// every port, [IPv6]:port, [IPv6/BITS]:port.
	Destinations []string `json:"destinations"`
	// HeaderValues holds values of the routing header, compared byte by byte.
	HeaderValues []string `json:"headerValues"`
	// Default gives the route the TLS connections whose server name no other route
	// has, or that have none. At most one route may. It is for sni only.
	Default bool `json:"default"`

	// Allow holds the clients that may use the route, as IP or IP/BITS; empty means
	// all. With Allow or Deny, a client without an IP address is refused.
	Allow []string `json:"allow"`
	// Deny holds those that may not, also if Allow holds them.
	Deny []string `json:"deny"`
	// MaxConnections is how many connections the route may have at once. 0 and
	// negative mean as many as there may be in all.
	MaxConnections int `json:"maxConnections"`

	// Backends take turns: host:port, unix:/PATH, or unix:@NAME for a socket in
	// Linux's abstract namespace. There is at least one, and each once.
	Backends []string `json:"backends"`
	// SendProxy is the PROXY header that a backend gets first, with the true client:
	// none, which an empty one means, v1, or v2, which also has the server name.
	SendProxy string `json:"sendProxy"`
	// DialTimeout bounds the dial of each backend. 0 means 5 s, negative no bound.
	DialTimeout Duration `json:"dialTimeout"`
	// IdleTimeout resets a connection on which nothing went either way for so long.
	// 0 and negative mean never.
	IdleTimeout Duration `json:"idleTimeout"`
	// MaxDuration resets a connection of that age, or of up to a tenth less. 0 and
	// negative mean never.
	MaxDuration Duration `json:"maxDuration"`
}

// LimitsConfig is [Limits], which says more. What is more than the process has
// file descriptors for is lowered.
type LimitsConfig struct {
	// Connections is how many are carried at once, of all routes. 0 means 20000,
	// negative no bound.
	Connections int `json:"connections"`
	// Sniffing is how many connections of a listener may not have said yet what they
	// want. 0 means 1024, negative no bound.
	Sniffing int `json:"sniffing"`
	// PerClient is how many connections an IPv4 address or an IPv6 /64 may have. 0
	// and negative mean no bound but the fair share.
	PerClient int `json:"perClient"`
}

// madeRoute is a Route and what it was made of.
type madeRoute struct {
	from  RouteConfig
	route *Route
}

// ParseConfig reads a configuration file in YAML or JSON. It is strict: a field
// that does not exist or is spelled in another case, a field that is there twice, a
// second document, no routes (none are written as []), and anything that
// [Config.Apply] or [Config.Doors] would refuse is an error. The error tells all of
// it and where, one a line, but for syntax, where it tells the first.
func ParseConfig(data []byte) (*Config, error) {
	if yamldoc.Several(data) {
		return nil, errors.New("entrypoint: there is more than one YAML document")
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("entrypoint: %w", err)
	}
	switch {
	case string(text) == "null":
		return nil, errors.New("entrypoint: the file is empty")
	case text[0] != '{':
		return nil, fmt.Errorf("entrypoint: want fields with values, got %s", shown(text))
	}
	c, unread, err := decodeConfig(text)
	errs := []error{err, c.checkListeners(unread)}
	routes, made, err := c.build(nil, unread)
	if err == nil {
		_, err = newTable(routes)
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	c.made = made
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
	routes, made, err := c.build(old, unread{})
	if err != nil {
		return err
	}
	if err := r.SetRoutes(routes); err != nil {
		return err
	}
	c.made = made
	return nil
}

// Route returns the Route of that name, or nil, as ParseConfig has made it or
// Apply has given it to a Router: one that stayed the same is the same pointer as
// that of the Config before. It is for reading only.
func (c *Config) Route(name string) *Route { return c.made[name].route }

// build makes the routes, or takes those that are made already. The error tells
// everything that is wrong with the routes; without one they may still be wrong
// as newTable tells.
func (c *Config) build(old *Config, unread unread) ([]*Route, map[string]madeRoute, error) {
	var routes []*Route
	var errs []error
	made := make(map[string]madeRoute, len(c.Routes))
	for i := range c.Routes {
		rc := &c.Routes[i]
		m, ok := old.madeOf(rc)
		if !ok {
			m, ok = c.madeOf(rc)
		}
		if !ok {
			route, err := rc.route()
			if rc.Name == "" {
				route.Name = called(i, "")
			}
			switch {
			case unread.routes[i]: // what else is said of it may be in vain
				route.Handler = noHandler{}
			case rc.Name == "":
				err = errors.Join(errors.New("it has no name"), err)
			}
			errs = append(errs, within(fmt.Sprintf("entrypoint: route %q", route.Name), err))
			if (err != nil || unread.routes[i]) && !route.isLedTo() {
				continue // newTable would say so, but what leads to it may be what is wrong
			}
			m = madeRoute{*rc, route}
		}
		made[rc.Name] = m
		routes = append(routes, m.route)
	}
	if err := errors.Join(errs...); err != nil || len(unread.routes) > 0 {
		_, tableErr := newTable(routes)
		return nil, nil, errors.Join(err, tableErr)
	}
	return routes, made, nil
}

// madeOf finds what was made of a route that reads the same. c may be nil.
func (c *Config) madeOf(rc *RouteConfig) (m madeRoute, ok bool) {
	if c != nil {
		m, ok = c.made[rc.Name]
	}
	return m, ok && reflect.DeepEqual(m.from, *rc)
}

// noHandler stands for one that could not be made.
type noHandler struct{ Handler }

func (r *Route) isLedTo() bool {
	return len(r.SNI)+len(r.Destinations)+len(r.HeaderValues) > 0 || r.Default
}

// Doors makes the doors, in the order of c.Listeners.
func (c *Config) Doors() ([]*Door, error) {
	if err := c.checkListeners(unread{}); err != nil {
		return nil, err
	}
	var doors []*Door
	for i := range c.Listeners {
		d, _ := c.Listeners[i].door()
		doors = append(doors, d)
	}
	return doors, nil
}

func (c *Config) checkListeners(unread unread) error {
	var errs []error
	seen := make(map[string]bool)
	if len(c.Listeners) == 0 && len(unread.listeners) == 0 {
		errs = append(errs, errors.New("entrypoint: there are no listeners"))
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		var err error
		if !unread.listeners[i] {
			_, err = l.door()
		}
		if seen[l.Address] && l.Address != "" {
			err = errors.Join(err, errors.New("it is there twice"))
		}
		seen[l.Address] = true
		errs = append(errs, within(fmt.Sprintf("entrypoint: listener %q", called(i, l.Address)), err))
	}
	return errors.Join(errs...)
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
		field    string
	}{{l.ProxyFrom, proxyproto.Require, "proxyFrom"}, {l.ProxyMaybeFrom, proxyproto.Accept, "proxyMaybeFrom"}} {
		prefixes, err := parsePrefixes(from.prefixes)
		errs = append(errs, within(from.field, err))
		for _, p := range prefixes {
			if slices.ContainsFunc(d.Proxy, func(r proxyproto.Rule) bool { return r.From == p }) {
				errs = append(errs, fmt.Errorf("%s: prefix %v is in proxyFrom or proxyMaybeFrom already", from.field, p))
				continue
			}
			d.Proxy = append(d.Proxy, proxyproto.Rule{From: p, Policy: from.policy})
		}
	}
	errs = append(errs, d.check())
	return d, errors.Join(errs...)
}

// route makes the Route. It is not nil, and has what is right, also with an error,
// which tells what Route.check cannot.
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
		if errs = append(errs, err); err == nil {
			r.Destinations = append(r.Destinations, d)
		}
	}
	var err error
	r.Allow, err = parsePrefixes(rc.Allow)
	errs = append(errs, within("allow", err))
	r.Deny, err = parsePrefixes(rc.Deny)
	errs = append(errs, within("deny", err))
	switch rc.SendProxy {
	case "", "none":
	case "v1":
		f.SendProxy = 1
	case "v2":
		f.SendProxy = 2
	default:
		errs = append(errs, fmt.Errorf("sendProxy %q: want none, v1 or v2", rc.SendProxy))
	}
	return r, errors.Join(errs...)
}
