package entrypoint

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// say sends a word and waits for its echo.
func say(t testing.TB, c net.Conn, word string) {
	t.Helper()
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatalf("%s: %v", word, err)
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		t.Fatalf("echo of %s: %q, %v", word, b, err)
	}
}

// endedAfter waits for the reset of a connection and returns how much fake time
// that took.
func endedAfter(t testing.TB, c net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if err := ended(c); err == nil {
		t.Error("the end of the connection was no reset")
	}
	return time.Since(start)
}

// stats returns the counters of a route, or nil.
func (w *world) stats(route string) *RouteStats {
	for _, s := range w.router.Stats().Routes {
		if s.Name == route {
			return &s
		}
	}
	return nil
}

// A connection does not notice that the routes are replaced: neither of a route
// that stays, whatever becomes of its backends, nor of one that goes.
func TestSetRoutesKeepsConns(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.backend("other-a:443", nameA)
		kept := w.greeted(w.dial("client", doorSNI), nameA)
		gone := w.greeted(w.dial("client", doorSNI), nameB)
		for n := range 20 {
			routes := w.routes()[:1]
			routes[0].Handler = w.forward("other-a:443")
			for m := range n {
				routes = append(routes, &Route{Name: fmt.Sprint("other", m), SNI: []string{fmt.Sprint("other", m)}, Handler: deaf{}})
			}
			w.set(routes...)
			say(t, kept, fmt.Sprint("kept ", n))
			say(t, gone, fmt.Sprint("gone ", n))
			time.Sleep(time.Hour)
		}
		if s := w.stats("b"); s == nil || !s.Removed || s.Conns != 1 {
			t.Errorf("the removed route: %+v", s)
		}
		if _, err := w.tls(w.dial("client", doorSNI), nameB); err == nil {
			t.Error("a removed route takes a new connection")
		}
		w.net.Freeze("backend-a") // new connections have nothing to do with it any more
		w.greeted(w.dial("client", doorSNI), nameA).Close()
		w.net.Thaw("backend-a")
		w.set() // all gone
		gone.Close()
		kept.Close()
		w.until("no routes", func() bool { return len(w.router.Stats().Routes) == 0 })
	})
}

// A set that is replaced all the time is seen whole: a name that each version
// has is served each time.
func TestSetRoutesIsAtomic(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		there, back := w.routes(), w.routes()
		back[0].Name, back[1].Name = back[1].Name, back[0].Name // the names change sides
		done := make(chan struct{})
		var replace sync.WaitGroup
		replace.Go(func() {
			for {
				w.set(back...)
				w.set(there...)
				select {
				case <-done:
					return
				case <-time.After(time.Microsecond):
				}
			}
		})
		const each = 25
		var clients sync.WaitGroup
		for _, name := range []string{nameA, nameB} {
			for range 4 {
				clients.Go(func() {
					for range each {
						c := w.dial("client", doorSNI)
						tls, err := w.tls(c, name)
						if err != nil {
							t.Errorf("%s: %v", name, err)
							return
						}
						if got := line(tls); got != name {
							t.Errorf("%s: greeted by %q", name, got)
						}
						tls.Close()
						time.Sleep(time.Microsecond)
					}
				})
			}
		}
		clients.Wait()
		close(done)
		replace.Wait()
		s := w.router.Stats()
		if len(s.Routes) != 2 || s.Routes[0].Total+s.Routes[1].Total != 8*each || len(s.Refused) > 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRemovedTimeout(t *testing.T) {
	const limit = 5 * time.Minute
	for name, c := range map[string]struct {
		timeout time.Duration
		change  func(w *world)
		want    time.Duration // negative: it goes on
	}{
		"goes on":    {0, func(w *world) { w.set() }, -1},
		"cut":        {limit, func(w *world) { w.set() }, limit},
		"at once":    {-1, func(w *world) { w.set() }, 0},
		"comes back": {limit, func(w *world) { w.set(); time.Sleep(limit - 1); w.set(w.routes()...) }, -1},
		"goes again": {limit, func(w *world) { w.set(); time.Sleep(limit - 1); w.set(w.routes()...); w.set() }, limit},
		"others go":  {limit, func(w *world) { w.set(); time.Sleep(time.Minute); w.set(w.routes()[1]) }, limit - time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, func(r *Router) { r.RemovedTimeout = c.timeout })
				conn := w.greeted(w.dial("client", doorSNI), nameA)
				say(t, conn, "before")
				c.change(w)
				if c.want < 0 {
					time.Sleep(10 * limit)
					say(t, conn, "after")
					return
				}
				if d := endedAfter(t, conn); d != c.want {
					t.Errorf("cut after %v, want %v", d, c.want)
				}
				w.until("the track is gone", func() bool { return w.stats("a") == nil })
				if !strings.Contains(w.log.String(), errRemoved.Error()) {
					t.Errorf("the log does not tell why\n%s", w.log)
				}
			})
		})
	}
}

// The timer of a removed route that is late, because somebody holds the lock,
// does not touch the connections of the route's next life.
func TestRemovedTimerIsLate(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		const limit = time.Minute
		w := newWorld(t, func(r *Router) { r.RemovedTimeout = limit })
		c := w.greeted(w.dial("client", doorSNI), nameA)
		w.set()
		back, err := newTable(w.routes())
		if err != nil {
			t.Fatal(err)
		}
		w.router.mu.Lock()
		time.Sleep(limit) // the timer waits for the lock
		track := w.router.tracks["a"]
		w.router.keep(track, back.routes["a"])
		w.router.remove(track)
		w.router.mu.Unlock()
		if d := endedAfter(t, c); d != limit {
			t.Errorf("cut %v after it was removed again, want %v", d, limit)
		}
	})
}

// A client that has lost the right to its route is cut off after 30 s, unless it
// is allowed again before.
func TestRevoke(t *testing.T) {
	without := []netip.Prefix{prefix("192.0.2.7/32")}
	allow := func(r *Route) { r.Allow = []netip.Prefix{prefix("192.0.2.0/24")} }
	deny := func(r *Route) { allow(r); r.Deny = without }
	elsewhere := func(r *Route) { r.Allow = []netip.Prefix{prefix("192.0.2.8/32")} }
	for name, c := range map[string]struct {
		steps []func(*Route) // 10 s apart
		want  time.Duration  // after the first step; 0: it goes on
	}{
		"denied":          {[]func(*Route){deny}, revokeTimeout},
		"not allowed":     {[]func(*Route){elsewhere}, revokeTimeout},
		"denied twice":    {[]func(*Route){deny, elsewhere, deny}, revokeTimeout},
		"allowed again":   {[]func(*Route){deny, elsewhere, allow}, 0},
		"and denied then": {[]func(*Route){deny, allow, deny}, 20*time.Second + revokeTimeout},
		"as it was":       {[]func(*Route){allow, allow}, 0},
		"open to all":     {[]func(*Route){deny, func(*Route) {}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, nil)
				set := func(step func(*Route)) {
					routes := w.routes()
					step(routes[0])
					w.set(routes...)
				}
				set(allow)
				open := func(client string) net.Conn {
					c := w.dial("balancer", doorSNI)
					w.claim(c, proxyHeader(client+":1000", "10.99.0.1:443"))
					return w.greeted(c, nameA)
				}
				cut, kept := open("192.0.2.7"), open("192.0.2.8")
				start := time.Now()
				for n, step := range c.steps {
					if n > 0 {
						time.Sleep(10 * time.Second)
					}
					set(step)
				}
				if c.want == 0 {
					time.Sleep(10 * revokeTimeout)
					say(t, cut, "still there")
				} else {
					endedAfter(t, cut)
					if d := time.Since(start); d != c.want {
						t.Errorf("cut after %v, want %v", d, c.want)
					}
					w.until("one connection less", func() bool { return w.router.Stats().Conns == 1 })
					if !strings.Contains(w.log.String(), errRevoked.Error()) {
						t.Errorf("the log does not tell why\n%s", w.log)
					}
				}
				say(t, kept, "never in doubt")
			})
		})
	}
}

// A set with an error changes nothing.
func TestSetRoutesInvalid(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.RemovedTimeout = -1 })
		c := w.greeted(w.dial("client", doorSNI), nameA)
		bad := w.routes()[1:]
		bad[0].SNI = []string{nameA}
		bad = append(bad, &Route{Name: "c"})
		if err := w.router.SetRoutes(bad); err == nil {
			t.Fatal("no error")
		}
		time.Sleep(time.Hour)
		say(t, c, "still there")
		w.greeted(w.dial("client", doorSNI), nameA)
		w.greeted(w.dial("client", doorSNI), nameB)
		if s := w.router.Stats(); len(s.Routes) != 2 || s.Routes[0].Removed || len(s.Refused) > 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Counters belong to the name of a route, as long as it is there or has
// connections.
func TestCountersPersist(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.RemovedTimeout = time.Hour })
		open := func() net.Conn { return w.greeted(w.dial("client", doorSNI), nameA) }
		first, second := open(), open()
		first.Close()
		w.until("one conn", func() bool { return w.stats("a").Conns == 1 })
		before := *w.stats("a")
		if before.Total != 2 || before.Up == 0 || before.Down == 0 {
			t.Errorf("before: %+v", before)
		}
		w.set(w.routes()...)
		w.set(w.routes()[1])
		if s := w.stats("a"); s == nil || !s.Removed || s.Total != 2 || s.Up != before.Up || s.Down != before.Down {
			t.Errorf("removed: %+v, before %+v", s, before)
		}
		w.set(w.routes()...)
		third := open()
		if s := w.stats("a"); s.Removed || s.Total != 3 || s.Conns != 2 || s.Up <= before.Up {
			t.Errorf("back: %+v, before %+v", s, before)
		}
		w.set()
		track := w.router.tracks["a"]
		second.Close()
		third.Close()
		w.until("the track is gone", func() bool { return w.stats("a") == nil })
		if track.cut.Stop() {
			t.Error("the timer of the removed route runs")
		}
		w.set(w.routes()...)
		if s := w.stats("a"); s.Total != 0 || s.Up != 0 {
			t.Errorf("a new life: %+v", s)
		}
	})
}

// A lower MaxConns ends no connection, and holds from then on.
func TestSetRoutesMaxConns(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		first := w.greeted(w.dial("client", doorSNI), nameA)
		second := w.greeted(w.dial("client", doorSNI), nameA)
		routes := w.routes()
		routes[0].MaxConns = 1
		w.set(routes...)
		say(t, first, "first")
		say(t, second, "second")
		first.Close()
		w.until("one conn", func() bool { return w.stats("a").Conns == 1 })
		if _, err := w.tls(w.dial("client", doorSNI), nameA); err == nil {
			t.Error("one above MaxConns")
		}
		w.refused(ReasonLimit, 1)
		if s := w.stats("a"); s.Refused[ReasonLimit] != 1 {
			t.Errorf("the route does not count its refusals: %+v", s)
		}
		second.Close()
		w.until("no conn", func() bool { return w.stats("a").Conns == 0 })
		w.greeted(w.dial("client", doorSNI), nameA)
	})
}
