package intercept

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestShutdownDrains(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, &tunneltest.Network{}, &Interceptor{Dialect: d})
			stop := w.start()
			defer stop()
			client, server := w.pair()
			begin := time.Now()
			done := make(chan error, 1)
			go func() { done <- w.i.Shutdown(t.Context()) }()
			time.Sleep(time.Second)
			if _, err := w.net.Dial(t.Context(), "tcp", w.front.Addr().String()); err == nil {
				t.Error("the listener is still open")
			}
			time.Sleep(3 * time.Second) // nobody is reset in the first 5 s
			roundTrip(t, client, server)
			must(t, <-done)
			must(t, w.i.Shutdown(t.Context())) // at once
			if d := time.Since(begin); d != 4*time.Second {
				t.Errorf("took %v", d)
			}
		})
	})
}

// TestShutdownDeadline has one connection, which is reset at its moment of
// DrainTimeout, or with the context.
func TestShutdownDeadline(t *testing.T) {
	for name, c := range map[string]struct {
		drain, ctx, from, to time.Duration
		want                 string
	}{
		"default":        {0, time.Hour, 5 * time.Second, 25 * time.Second, "intercept: 1 connections did not end by themselves: "},
		"given":          {time.Minute, time.Hour, 12 * time.Second, time.Minute, "intercept: 1 connections did not end by themselves: "},
		"least":          {1, time.Hour, 0, 1, "intercept: 1 connections did not end by themselves: "},
		"of context":     {-1, time.Minute, time.Minute, time.Minute, ""},
		"context before": {time.Hour, time.Minute, time.Minute, time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, &tunneltest.Network{}, &Interceptor{DrainTimeout: c.drain})
				stop := w.start()
				defer stop()
				client, server := w.pair()
				ctx, cancel := context.WithTimeout(t.Context(), c.ctx)
				defer cancel()
				begin := time.Now()
				if err := w.i.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), c.want) {
					t.Errorf("got %v, want %s", err, c.want)
				}
				if d := time.Since(begin); d < c.from || d > c.to {
					t.Errorf("took %v, want %v to %v", d, c.from, c.to)
				}
				wantReset(t, client)
				wantReset(t, server)
			})
		})
	}
}

// TestShutdownSpreads has many connections, of which each is reset at a moment of
// its own: none in the first fifth of DrainTimeout, and no tenth of the rest, of
// which chance owes each a tenth, has a third of them. A dial that is under way is
// one of them.
func TestShutdownSpreads(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		const n = 200
		w := newWorld(t, &tunneltest.Network{}, &Interceptor{Dialect: Connect, DialTimeout: -1, DrainTimeout: 50 * time.Second})
		defer w.start()()
		ended := make(chan time.Time, n)
		for i := range n {
			var client net.Conn
			if i == n-1 {
				client = w.dial() // nobody answers it
			} else {
				client, _ = w.pair()
			}
			go func() {
				wantReset(t, client)
				ended <- time.Now()
			}()
		}
		synctest.Wait()
		begin := time.Now()
		if err := w.i.Shutdown(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "intercept: 200 connections did not end") {
			t.Errorf("got %v", err)
		}
		var tenths [10]int
		for range n {
			d := (<-ended).Sub(begin)
			if d < 10*time.Second || d > 50*time.Second {
				t.Errorf("one was reset after %v", d)
				continue
			}
			tenths[min(9, (d-10*time.Second)/(4*time.Second))]++
		}
		for _, some := range tenths {
			if some > n/3 {
				t.Errorf("reset in each tenth: %v", tenths)
			}
		}
		if s := w.i.Stats(); s.Failed[ReasonClosed] != 1 || s.Broken[relay.OpContext] != n-1 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestShutdownTooLate has a listener that yields a connection just when nothing
// is let in any more.
func TestShutdownTooLate(t *testing.T) {
	w := newWorld(t, nil, &Interceptor{})
	stop := w.start()
	must(t, w.i.Shutdown(t.Context()))
	a, b := tunneltest.Pipe()
	defer a.Close()
	w.i.take(t.Context(), b)
	wantReset(t, a)
	if s := w.i.Stats(); s.Failed[ReasonClosed] != 1 || s.Open != 0 {
		t.Errorf("got %+v", s)
	}
	stop()
}

// TestClose ends connections and dials.
func TestClose(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		client, server := w.pair()
		dialling := w.dial() // nobody answers it
		eventually(t, "two open", func() bool { return w.i.Stats().Open == 2 })
		must(t, w.i.Close())
		wantReset(t, client)
		wantReset(t, server)
		if d == Connect {
			wantReset(t, dialling)
			w.failed(ReasonClosed, 1)
		}
		if err := w.i.Serve(w.listen()); !errors.Is(err, net.ErrClosed) || err.Error() != "intercept: closed" {
			t.Errorf("Serve after Close: %v", err)
		}
	})
}
