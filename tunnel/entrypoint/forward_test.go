package entrypoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// plain starts backends without TLS, which say their address and then echo.
func (w *world) plain(addresses ...string) {
	w.Helper()
	for _, address := range addresses {
		w.handle(w.listen(address), func(c net.Conn) {
			fmt.Fprintln(c, address)
			io.Copy(c, c)
		})
	}
}

// only makes f the only route, and returns f with the dialer of the world.
func (w *world) only(f *Forward) *Forward {
	w.Helper()
	if f.Dial == nil {
		f.Dial = w.net.Host("lb").Dial
	}
	w.set(&Route{Name: "only", SNI: []string{"only.example.com"}, HeaderValues: []string{"only"}, Handler: hidden{f}})
	return f
}

// hidden is a Handler that SetRoutes cannot look into, which refuses what some
// tests need.
type hidden struct{ Handler }

// through asks for the only route and returns the status, who answered, and how
// much fake time it took.
func (w *world) through() (c net.Conn, status int, backend string, took time.Duration) {
	w.Helper()
	start := time.Now()
	c = w.dial("client", doorHeader)
	status, _ = w.connect(c, connectHead(HeaderReversedVPN+": only"))
	took = time.Since(start)
	if status == http.StatusOK {
		backend = line(c)
	}
	return c, status, backend, took
}

// Backends take turns, and go on doing so when one is out.
func TestForwardTakesTurns(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("b1:1", "b2:1", "b3:1")
		w.only(&Forward{Backends: []string{"b1:1", "b2:1", "b3:1"}})
		var order []string
		for range 6 {
			_, _, backend, _ := w.through()
			order = append(order, backend)
		}
		if want := []string{"b1:1", "b2:1", "b3:1", "b1:1", "b2:1", "b3:1"}; !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
		f := w.only(&Forward{Backends: []string{"b1:1", "nobody:1", "b2:1", "b3:1"}})
		f.health.bad("nobody:1")
		share := map[string]int{}
		for range 30 {
			_, _, backend, _ := w.through()
			share[backend]++
		}
		if want := map[string]int{"b1:1": 10, "b2:1": 10, "b3:1": 10}; !maps.Equal(share, want) {
			t.Errorf("with one out: %v, want %v", share, want)
		}
	})
}

// What a dead backend costs a client.
func TestForwardCost(t *testing.T) {
	const (
		alive   = "alive:1"
		refused = "nobody:1" // answers with a reset
		frozen1 = "frozen:1" // does not answer at all
		frozen2 = "frozen:2"
		frozen3 = "frozen:3"
	)
	for name, c := range map[string]struct {
		forward *Forward
		status  int
		took    time.Duration
	}{
		"alive":                   {&Forward{Backends: []string{alive}}, 200, 0},
		"refused, alive":          {&Forward{Backends: []string{refused, alive}}, 200, 0},
		"frozen, alive":           {&Forward{Backends: []string{frozen1, alive}}, 200, time.Second},
		"two frozen, alive":       {&Forward{Backends: []string{frozen1, frozen2, alive}}, 200, 2 * time.Second},
		"frozen, refused, alive":  {&Forward{Backends: []string{frozen1, refused, alive}}, 200, time.Second},
		"refused, frozen, alive":  {&Forward{Backends: []string{refused, frozen1, alive}}, 200, time.Second},
		"frozen":                  {&Forward{Backends: []string{frozen1}}, 503, 5 * time.Second},
		"three frozen":            {&Forward{Backends: []string{frozen1, frozen2, frozen3}}, 503, 7 * time.Second},
		"three frozen, 2s":        {&Forward{Backends: []string{frozen1, frozen2, frozen3}, DialTimeout: 2 * time.Second}, 503, 4 * time.Second},
		"three frozen, 0.3s":      {&Forward{Backends: []string{frozen1, frozen2, frozen3}, DialTimeout: 300 * time.Millisecond}, 503, 900 * time.Millisecond},
		"frozen, no bound":        {&Forward{Backends: []string{frozen1}, DialTimeout: -1}, 503, 127 * time.Second},
		"frozen, PROXY, no bound": {&Forward{Backends: []string{frozen1}, DialTimeout: -1, SendProxy: 2}, 503, 127 * time.Second},
		"frozen, PROXY, a minute": {&Forward{Backends: []string{frozen1}, DialTimeout: time.Minute, SendProxy: 1}, 503, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, nil)
				w.plain(alive, frozen1, frozen2, frozen3)
				w.net.Freeze("frozen")
				w.only(c.forward)
				_, status, backend, took := w.through()
				if status != c.status || took != c.took || status == 200 && backend != alive {
					t.Errorf("%d by %q after %v, want %d after %v", status, backend, took, c.status, c.took)
				}
				if status != 200 {
					w.refused(ReasonBackend, 1)
				}
				w.net.Thaw("frozen")
			})
		})
	}
}

// A backend that does not answer costs one client a second, and then again one
// after each pause, which grows to half a minute. When it is back it gets its
// share at once.
func TestForwardPause(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("b1:1", "b2:1")
		f := w.only(&Forward{Backends: []string{"b1:1", "b2:1"}})
		w.net.Freeze("b1")
		start := time.Now()
		var slow []time.Duration
		for len(slow) < 9 {
			c, status, backend, took := w.through()
			c.Close()
			switch {
			case status != 200 || backend != "b2:1" || took != 0 && took != time.Second:
				t.Fatalf("%d by %q after %v", status, backend, took)
			case took > 0:
				slow = append(slow, time.Since(start))
			}
			time.Sleep(100 * time.Millisecond)
		}
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
			// The second of the dial, and up to two clients until it is its turn.
			want = want*time.Second + time.Second
			if got := slow[i+1] - slow[i]; got < want || got > want+300*time.Millisecond {
				t.Errorf("pause %d is %v, want %v", i, got, want)
			}
		}
		w.net.Thaw("b1")
		time.Sleep(maxPause)
		share := map[string]int{}
		for range 10 {
			c, _, backend, took := w.through()
			c.Close()
			share[backend]++
			if took != 0 {
				t.Errorf("back, and it took %v", took)
			}
		}
		if share["b1:1"] != 5 || len(f.health.sick) > 0 {
			t.Errorf("back: %v, %v", share, f.health.sick)
		}
	})
}

// Where all backends are sick they are tried all the same, the one that has been
// so longest first.
func TestHealthAllSick(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := new(health)
		for _, b := range []string{"b", "c", "a"} {
			h.bad(b)
			h.bad(b) // at the same moment: counts once
			if p := h.sick[b].pause; p != firstPause {
				t.Errorf("%s pauses for %v", b, p)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := h.order([]string{"a", "b", "c"}); !slices.Equal(got, []string{"b", "c", "a"}) {
			t.Errorf("order is %v", got)
		}
		time.Sleep(750 * time.Millisecond) // b is on trial
		if got := h.order([]string{"a", "b", "c"}); !slices.Equal(got, []string{"b", "c", "a"}) {
			t.Errorf("with b on trial order is %v", got)
		}
		h.good("a")
		if got := h.order([]string{"a", "b", "c"}); !slices.Equal(got, []string{"b", "a", "c"}) {
			t.Errorf("with a back order is %v", got)
		}
	})
}

// Only a backend that had a second's lead counts as dead when another one
// answers first.
func TestForwardSlowBackend(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("dead:1", "slow:1", "fresh:1")
		w.net.Freeze("dead")
		w.net.Freeze("fresh")
		w.net.SetDelay("lb", "slow", 600*time.Millisecond) // 1.2 s for a dial
		w.net.SetDelay("slow", "lb", 600*time.Millisecond)
		f := w.only(&Forward{Backends: []string{"dead:1", "slow:1", "fresh:1"}})
		_, status, backend, took := w.through() // fresh has 0.2 s
		if status != 200 || backend != "slow:1" || took != 2200*time.Millisecond {
			t.Errorf("%d by %q after %v", status, backend, took)
		}
		if sick := slices.Collect(maps.Keys(f.health.sick)); !slices.Equal(sick, []string{"dead:1"}) {
			t.Errorf("sick are %v, want dead:1", sick)
		}
		w.net.Thaw("dead")
		w.net.Thaw("fresh")
	})
}

// A dial that succeeds too late is reset, so that the backend does not wait for a
// client.
func TestForwardResetsLoser(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("alive:1")
		far := make(chan net.Conn, 1)
		w.only(&Forward{Backends: []string{"stubborn:1", "alive:1"}, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "stubborn:1" {
				return w.net.Host("lb").Dial(ctx, network, address)
			}
			<-ctx.Done()
			near, c := tunneltest.Pipe()
			far <- c
			return near, nil
		}})
		c, status, backend, _ := w.through()
		if status != 200 || backend != "alive:1" {
			t.Errorf("%d by %q", status, backend)
		}
		loser := <-far
		defer loser.Close()
		if err := ended(loser); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the loser ends with %v, want a reset", err)
		}
		say(t, c, "served")
	})
}

// A client that is cut off while a backend is dialled leaves nothing behind, and
// does not make the backend sick.
func TestForwardCancelled(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("frozen:1", "frozen:2")
		w.net.Freeze("frozen")
		f := &Forward{Backends: []string{"frozen:1", "frozen:2"}, Dial: w.net.Host("lb").Dial}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		near, far := tunneltest.Pipe()
		defer near.Close()
		defer far.Close()
		err := f.ServeConn(ctx, &Incoming{Info: &Info{By: BySNI}, conn: near})
		if err == nil || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		w.net.Thaw("frozen")
		if open := w.net.Conns(); len(open) > 0 || len(f.health.sick) > 0 {
			t.Errorf("left are %d connections, and sick %v", len(open), f.health.sick)
		}
	})
}

// A client that goes away during the dial ends it, and that is no fault of the
// backend. It costs no seat for as long as a dial may take.
func TestForwardClientGone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("late:1")
		w.net.Freeze("late")
		f := w.only(&Forward{Backends: []string{"late:1"}})
		for n, door := range []string{doorHeader, doorSNI} {
			c := w.dial("client", door)
			if door == doorHeader {
				send(c, strings.ReplaceAll(connectHead(HeaderReversedVPN+": only"), "\n", "\r\n"))
			} else {
				send(c, helloOf(t, &tls.Config{ServerName: "only.example.com"}))
			}
			w.until("it waits for the backend", func() bool { return w.router.Stats().Conns == 1 })
			start := time.Now()
			relay.Reset(c)
			w.refused(ReasonBroken, uint64(n+1))
			w.until("it is over", func() bool { return w.stats("only").Conns == 0 })
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: after %v", door, d)
			}
		}
		if len(f.health.sick) > 0 {
			t.Errorf("sick are %v", f.health.sick)
		}
		w.net.Thaw("late")
	})
}

// A reset of either side reaches the other one as a reset.
func TestForwardReset(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		backends := make(chan net.Conn)
		w.handle(w.listen("backend:1"), func(c net.Conn) {
			fmt.Fprintln(c, "backend")
			backends <- c
			<-backends
		})
		w.only(&Forward{Backends: []string{"backend:1"}})
		for _, which := range []string{"client", "backend"} {
			client, _, _, _ := w.through()
			backend := <-backends
			from, to := client, backend
			if which == "backend" {
				from, to = backend, client
			}
			fmt.Fprint(from, "half an answ")
			io.ReadFull(to, make([]byte, len("half an answ")))
			relay.Reset(from)
			if err := ended(to); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the %s resets, and the other side sees %v", which, err)
			}
			backends <- nil
		}
		w.until("both are counted", func() bool { return w.stats("only").ClientReset == 1 && w.stats("only").BackendReset == 1 })
	})
}

// IdleTimeout counts from the last byte either way.
func TestForwardIdleTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plain("b1:1")
		w.only(&Forward{Backends: []string{"b1:1"}, IdleTimeout: time.Minute})
		c, _, _, _ := w.through()
		for range 10 {
			time.Sleep(59 * time.Second)
			say(t, c, "not idle")
		}
		if d := endedAfter(t, c); d != time.Minute {
			t.Errorf("reset after %v", d)
		}
		w.until("it is in the log", func() bool { return strings.Contains(w.log.String(), relay.ErrIdle.Error()) })
	})
}
