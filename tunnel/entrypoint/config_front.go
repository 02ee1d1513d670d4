package entrypoint

import (
	"net/textproto"
	"reflect"
	"slices"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

// SameFront reports whether c and other mean the same in all but routes, which
// alone can be replaced while a Router serves. How they say it does not matter: a
// default may be left out or written, and listeners may stand in any order.
func (c *Config) SameFront(other *Config) bool {
	a, aErr := c.front()
	b, bErr := other.front()
	return aErr == nil && bErr == nil && reflect.DeepEqual(a, b)
}

// front is what a Config means but for its routes.
type front struct {
	doors                map[string]Door // by address
	limits               Limits
	head, drain, removed time.Duration
}

func (c *Config) front() (*front, error) {
	doors, err := c.Doors()
	f := &front{
		doors:   make(map[string]Door),
		head:    meant(c.HeadTimeout, 10*time.Second),
		drain:   meant(c.DrainTimeout, 25*time.Second),
		removed: meant(c.RemovedTimeout, 0),
	}
	l := Limits{Conns: c.Limits.Connections, Sniffing: c.Limits.Sniffing, PerClient: c.Limits.PerClient}
	f.limits = Limits{Conns: l.conns(), Sniffing: l.sniffing(), PerClient: l.perClient()}
	for i, d := range doors {
		own := *d
		if own.By == 0 {
			own.By = BySNI
		}
		own.Headers = nil
		for _, name := range d.Headers {
			own.Headers = append(own.Headers, textproto.CanonicalMIMEHeaderKey(name))
		}
		if len(own.Headers) == 0 {
			own.Headers = []string{HeaderGardenerDestination, textproto.CanonicalMIMEHeaderKey(HeaderReversedVPN)}
		}
		slices.Sort(own.Headers)
		own.Proxy = slices.Clone(d.Proxy)
		slices.SortFunc(own.Proxy, func(a, b proxyproto.Rule) int { return a.From.Compare(b.From) })
		f.doors[c.Listeners[i].Address] = own
	}
	return f, err
}

// meant is what a timeout means where zero is a default and negative ones are one.
func meant(d Duration, fallback time.Duration) time.Duration {
	switch {
	case d == 0:
		return fallback
	case d < 0:
		return -1
	}
	return time.Duration(d)
}
