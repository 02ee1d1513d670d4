package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// full waits for an answer that says that there is no room.
func (w *world) full(from, door string, reason Reason, n uint64) {
	w.Helper()
	c := w.dial(from, door)
	defer c.Close()
	if door != doorHeader {
		if _, err := w.tls(c, nameA); err == nil || !strings.Contains(err.Error(), "internal error") {
			w.Errorf("%s: %v", from, err)
		}
	} else if status, h := w.connect(c, connectHead(HeaderReversedVPN+": "+headerA)); status != 503 || h.Get("Retry-After") != "1" {
		w.Errorf("%s: %d %v", from, status, h)
	}
	w.refused(reason, n)
}

// The Router has so many connections and no more, and one that ends makes room.
func TestLimitTotal(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.Limits.Conns = 5 })
		first := w.greeted(w.dial("client-0", doorSNI), nameA)
		for n := range 4 {
			w.greeted(w.dial(fmt.Sprint("client-", n+1), doorSNI), nameB)
		}
		w.full("client-5", doorSNI, ReasonLimit, 1)
		w.full("client-6", doorHeader, ReasonLimit, 2)
		c := w.dial("client-7", doorDest)
		w.claim(c, proxyHeader("192.0.2.1:1000", destA))
		if got := outcome(c); got != "reset" {
			t.Error(got)
		}
		first.Close()
		w.until("there is room", func() bool { return w.router.Stats().Conns == 4 })
		w.greeted(w.dial("client-5", doorSNI), nameA)
		if s := w.router.Stats(); s.Conns != 5 {
			t.Errorf("%+v", s)
		}
	})
}

// Who takes all it can leaves a tenth to the others, and is refused then.
func TestLimitFairShare(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.Limits.Conns = 20 })
		for range 18 {
			w.greeted(w.dial("greedy", doorSNI), nameA)
		}
		w.full("greedy", doorSNI, ReasonLimit, 1)
		w.full("greedy", doorHeader, ReasonLimit, 2)
		w.greeted(w.dial("modest", doorSNI), nameA)
		w.full("greedy", doorSNI, ReasonLimit, 3)
		w.greeted(w.dial("other", doorSNI), nameA)
		w.full("third", doorSNI, ReasonLimit, 4)
	})
}

// A client has so many connections, whichever load balancer it comes through.
func TestLimitPerClient(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.Limits.PerClient = 2 })
		for _, client := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
			open := func(client string) string {
				c := w.dial("balancer", doorDest)
				a := netip.MustParseAddr(client)
				local := "203.0.113.1:8443"
				if a.Is6() {
					local = "[2001:db8:f::1]:8443"
				}
				w.claim(c, proxyHeader(netip.AddrPortFrom(a, 1000).String(), local))
				w.claim(c, proxyHeader("198.51.100.9:9", destA))
				if _, err := w.tls(c, nameA); err != nil {
					return "refused"
				}
				return "served"
			}
			if a, b, c := open(client), open(client), open(client); a+b+c != "servedservedrefused" {
				t.Errorf("%s: %s %s %s", client, a, b, c)
			}
			if strings.Contains(client, ":") {
				if got := open("2001:db8::2"); got != "refused" {
					t.Errorf("the same network: %s", got)
				}
			}
		}
		w.onlyRefused(map[Reason]uint64{ReasonLimit: 4})
		w.meanwhile()
	})
}

// A route that is full leaves the others alone.
func TestLimitPerRoute(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		routes := w.routes()
		routes[0].MaxConns = 2
		w.set(routes...)
		first := w.greeted(w.dial("one", doorSNI), nameA)
		w.greeted(w.dial("two", doorSNI), nameA)
		w.full("three", doorSNI, ReasonLimit, 1)
		w.full("three", doorHeader, ReasonLimit, 2)
		w.greeted(w.dial("three", doorSNI), nameB)
		first.Close()
		w.until("there is room", func() bool { return w.router.Stats().Routes[0].Conns == 1 })
		w.greeted(w.dial("three", doorSNI), nameA)
		s := w.router.Stats().Routes
		if s[0].Refused[ReasonLimit] != 2 || s[0].Total != 3 || s[1].Refused != nil {
			t.Errorf("%+v", s)
		}
	})
}

// A flood of connections that say nothing hits itself: the oldest of the largest
// network goes for a new one, so that honest clients have the time they need.
func TestFlood(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.Limits.Sniffing = 10 })
		for i := range 4 {
			w.net.SetHost(fmt.Sprint("bot-", i), fmt.Sprintf("203.0.113.%d", i+1))
			w.net.SetHost(fmt.Sprint("honest-", i), fmt.Sprintf("198.51.%d.1", i))
		}
		honest := w.dial("honest-0", doorSNI)
		first := w.dial("bot-0", doorSNI)
		send(first, hello(t, nameA)[:50])
		for i := range 8 {
			w.dial(fmt.Sprint("bot-", i%4), doorSNI)
		}
		w.until("ten are sniffed", func() bool { return w.router.Stats().Sniffing == 10 })
		second := w.dial("honest-1", doorSNI)
		if err := ended(first); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the oldest of the flood: %v", err)
		}
		w.onlyRefused(map[Reason]uint64{ReasonFlood: 1})
		for i := range 1000 {
			w.dial(fmt.Sprint("bot-", i%4), doorSNI)
			if i%100 == 0 {
				w.meanwhile()
			}
		}
		time.Sleep(5 * time.Second) // slow, but not the oldest of many
		w.greeted(honest, nameA)
		w.greeted(second, nameA)
		w.until("the flood is over", func() bool { return w.router.Stats().Sniffing == 0 })
		s := w.router.Stats().Refused
		if s[ReasonFlood]+s[ReasonSlow] != 1009 || len(s) != 2 || s[ReasonSlow] > 10 {
			t.Errorf("%v", s)
		}
		// The other doors have limits of their own.
		for range 20 {
			w.dial("bot-0", doorHeader)
		}
		w.greeted(w.dial("honest-2", doorSNI), nameA)
	})
}

// One that is reset for another while Authorize thinks about it is not served
// any more, and counts as flood.
func TestFloodWhileAuthorized(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		asked, say := make(chan bool), make(chan error)
		w := newWorld(t, func(r *Router) {
			r.Limits.Sniffing = 1
			r.AuthorizeTimeout = -1
			r.Authorize = func(context.Context, *Info) error {
				asked <- true
				return <-say
			}
		})
		for _, verdict := range []error{nil, errors.New("no")} {
			before := w.router.Stats().Refused[ReasonFlood]
			c := w.open(doorSNI)
			<-asked
			w.dial("other", doorSNI).Close()
			if err := ended(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			say <- verdict
			w.refused(ReasonFlood, before+1)
		}
		w.until("the others are gone", func() bool { return w.router.Stats().Sniffing == 0 })
		if s := w.router.Stats(); s.Routes[0].Up != 0 || s.Routes[0].Conns != 0 || !maps.Equal(s.Refused, map[Reason]uint64{ReasonFlood: 2, ReasonEmpty: 2}) {
			t.Errorf("%+v", s)
		}
	})
}

// No limit is more than the process can keep.
func TestLimitsWithinDescriptors(t *testing.T) {
	for _, tc := range []struct {
		set         Limits
		descriptors int
		want        Limits
		lowered     bool
	}{
		{Limits{}, 0, Limits{}, false},
		{Limits{}, 1 << 20, Limits{Conns: 20000, Sniffing: 1024}, false},
		{Limits{}, 1024, Limits{Conns: 409, Sniffing: 64}, true},
		{Limits{Conns: 100, Sniffing: 10, PerClient: 3}, 1024, Limits{Conns: 100, Sniffing: 10, PerClient: 3}, false},
		{Limits{Conns: -1, Sniffing: 10}, 20000, Limits{Conns: 8000, Sniffing: 10}, true},
	} {
		if got, lowered := tc.set.within(tc.descriptors); got != tc.want || lowered != tc.lowered {
			t.Errorf("%+v within %d: %+v %v", tc.set, tc.descriptors, got, lowered)
		}
	}
}
