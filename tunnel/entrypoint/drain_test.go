package entrypoint

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Shutdown returns when the last connection has ended by itself.
func TestShutdownWaits(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.DrainTimeout = time.Hour })
		c := w.greeted(w.dial("client", doorSNI), nameA)
		start := time.Now()
		time.AfterFunc(3*time.Second, func() {
			say(t, c, "still served")
			c.Close()
		})
		if err := w.router.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("it took %v, want 3s", d)
		}
		if s := w.router.Stats(); !s.Draining || s.Conns != 0 || s.Sniffing != 0 {
			t.Errorf("%+v", s)
		}
		w.wait.Go(func() { w.router.Close() }) // once more does not hurt
		if err := w.router.Shutdown(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// Connections are cut one by one in the last four fifths of the time.
func TestDrainIsSpread(t *testing.T) {
	for name, c := range map[string]struct{ set, want time.Duration }{
		"set":     {10 * time.Second, 10 * time.Second},
		"default": {0, 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, func(r *Router) { r.DrainTimeout = c.set })
				const n = 100
				var open []net.Conn
				for range n {
					open = append(open, w.greeted(w.dial("client", doorSNI), nameA))
				}
				start := time.Now()
				cut := make([]time.Duration, n)
				var wait sync.WaitGroup
				for i, c := range open {
					wait.Go(func() {
						endedAfter(t, c)
						cut[i] = time.Since(start)
					})
				}
				if err := w.router.Shutdown(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), " 100 connections ") {
					t.Errorf("Shutdown = %v, which is to tell how many were cut", err)
				}
				took := time.Since(start)
				wait.Wait()
				slices.Sort(cut)
				if cut[0] < c.want/5 || cut[n-1] > c.want || took != cut[n-1] {
					t.Errorf("cut from %v to %v, want from %v to %v; it took %v", cut[0], cut[n-1], c.want/5, c.want, took)
				}
				// That one of four parts has none happens once in 10^12 runs.
				var parts [4]int
				for _, d := range cut {
					parts[min(int(4*(d-c.want/5)/(c.want-c.want/5)), 3)]++
				}
				if slices.Contains(parts[:], 0) {
					t.Errorf("they are not spread: %v", parts)
				}
				if !strings.Contains(w.log.String(), errDrained.Error()) {
					t.Errorf("the log does not tell why\n%s", w.log)
				}
			})
		})
	}
}

// Who leaves by itself is none of those that Shutdown tells of, though its moment
// comes as well.
func TestShutdownCounts(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.DrainTimeout = 10 * time.Second })
		for range 20 {
			leaves := w.greeted(w.dial("client", doorSNI), nameA)
			time.AfterFunc(time.Second, func() { leaves.Close() })
		}
		stays := []net.Conn{w.greeted(w.dial("client", doorSNI), nameA), w.greeted(w.dial("client", doorSNI), nameB)}
		err := w.router.Shutdown(t.Context())
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), " 2 connections ") {
			t.Errorf("Shutdown = %v, want 2 that did not end", err)
		}
		for _, c := range stays {
			endedAfter(t, c)
		}
	})
}

// With a negative DrainTimeout, and whenever the context ends before it, the end
// of the context is the end of all connections.
func TestShutdownContext(t *testing.T) {
	for name, drain := range map[string]time.Duration{"never": -1, "too late": 1000 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, func(r *Router) { r.DrainTimeout = drain })
				c := w.greeted(w.dial("client", doorSNI), nameA)
				start := time.Now()
				time.AfterFunc(59*time.Minute, func() { say(t, c, "still served") })
				gone := errors.New("enough")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, gone)
				defer cancel()
				if err := w.router.Shutdown(ctx); err != gone {
					t.Errorf("Shutdown = %v", err)
				}
				if err := ended(c); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != time.Hour {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// While it drains, nothing new is taken: the ports are closed, and who had not
// said yet what it wants is told so when it does, or is reset after a second.
func TestDrainingRefuses(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.DrainTimeout = -1 })
		head, hello, claim := w.dial("client", doorHeader), w.dial("client", doorSNI), w.dial("client", doorDest)
		mute := w.dial("client", doorAll)
		w.until("four strangers", func() bool { return w.router.Stats().Sniffing == 4 })
		start := time.Now()
		done := make(chan error)
		go func() { done <- w.router.Shutdown(t.Context()) }()
		w.until("it drains", func() bool { return w.router.Stats().Draining })
		for _, door := range []string{doorSNI, doorDest, doorHeader, doorAll} {
			if _, err := w.net.Host("client").Dial(t.Context(), "tcp", door); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v, want refused", door, err)
			}
		}
		if status, header := w.connect(head, connectHead(HeaderReversedVPN+": "+headerA)); status != 503 {
			t.Errorf("%d %v, want 503", status, header)
		}
		if _, err := w.tls(hello, nameA); err == nil || !strings.Contains(err.Error(), "internal error") {
			t.Errorf("TLS: %v, want the alert internal error", err)
		}
		w.claim(claim, proxyHeader("192.0.2.1:1", destA))
		if err := ended(claim); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("PROXY: %v, want a reset", err)
		}
		w.refused(ReasonDraining, 3)
		if err := ended(mute); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("who says nothing: %v, want a reset", err)
		}
		if err := <-done; err != nil || time.Since(start) != time.Second {
			t.Errorf("Shutdown = %v after %v, want that of who says nothing", err, time.Since(start))
		}
		w.refused(ReasonDraining, 4)
	})
}

// Close resets at once whatever there is: who is served, who has said nothing,
// who waits for a backend and who waits to be authorized.
func TestClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) {
			r.AuthorizeTimeout = time.Hour
			r.Authorize = func(ctx context.Context, i *Info) error {
				if i.HeaderValue == headerB {
					<-ctx.Done()
				}
				return ctx.Err()
			}
		})
		dead := w.routes()
		dead[0].HeaderValues = nil
		w.set(append(dead, &Route{Name: "dead", HeaderValues: []string{headerA}, Handler: w.forward("dead:443")})...)
		w.listen("dead:443")
		w.net.Freeze("dead")
		served := w.greeted(w.dial("client", doorSNI), nameA)
		mute, dialling, asking := w.dial("client", doorSNI), w.dial("client", doorHeader), w.dial("client", doorHeader)
		io.WriteString(dialling, strings.ReplaceAll(connectHead(HeaderReversedVPN+": "+headerA), "\n", "\r\n"))
		io.WriteString(asking, strings.ReplaceAll(connectHead(HeaderReversedVPN+": "+headerB), "\n", "\r\n"))
		w.until("three with a route", func() bool { s := w.router.Stats(); return s.Conns == 3 && s.Sniffing == 1 })
		draining := make(chan error)
		go func() { draining <- w.router.Shutdown(t.Context()) }()
		w.until("it drains", func() bool { return w.router.Stats().Draining })
		start := time.Now()
		if err := w.router.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %v", d)
		}
		if err := <-draining; err != nil {
			t.Errorf("Shutdown meanwhile = %v", err)
		}
		for name, c := range map[string]net.Conn{"served": served, "mute": mute, "dialling": dialling, "asking": asking} {
			if err := ended(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", name, err)
			}
		}
		s := w.router.Stats()
		if s.Conns != 0 || s.Sniffing != 0 || s.Refused[ReasonDraining] != 3 || len(s.Refused) != 1 {
			t.Errorf("%+v\n%s", s, w.log)
		}
		w.net.Thaw("dead")
	})
}

// Close and Shutdown wait for a hook that does not heed its context: it may use
// what the caller is about to tear down.
func TestCloseWaitsForAuthorize(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		asked := make(chan struct{})
		w := newWorld(t, func(r *Router) {
			r.Authorize = func(context.Context, *Info) error {
				close(asked)
				time.Sleep(5 * time.Second)
				return nil
			}
		})
		c := w.dial("client", doorHeader)
		io.WriteString(c, strings.ReplaceAll(connectHead(HeaderReversedVPN+": "+headerA), "\n", "\r\n"))
		<-asked
		start := time.Now()
		w.router.Close()
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("Close took %v, want the 5s of Authorize", d)
		}
		w.refused(ReasonDraining, 1)
	})
}

// A router that was closed takes no listener, and closes it.
func TestServeAfterClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		network := new(tunneltest.Network)
		r := new(Router)
		if err := r.Close(); err != nil { // of the zero value, too
			t.Fatal(err)
		}
		l, err := network.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Serve(l, nil); err != ErrRouterClosed || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve = %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
		if err := r.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
	})
}

// A Door that cannot be is told by Serve, which owns the listener then as well.
func TestServeBadDoor(t *testing.T) {
	for _, d := range []*Door{{By: 8}, {Headers: []string{""}}, {Headers: []string{"a b"}}, {Headers: []string{"a:"}}} {
		l, err := new(tunneltest.Network).Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		if err := new(Router).Serve(l, d); err == nil {
			t.Errorf("%+v is served", d)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
	}
}

// failing is a listener whose Accept fails as told.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) == 0 {
		return f.Listener.Accept()
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

// A listener that fails ends its Serve with its own error, and nothing else: other
// doors and all connections go on. What is temporary is waited out.
func TestServeFailingListener(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		broken := errors.New("broken")
		l := &failing{w.listen("lb:444"), []error{syscall.EMFILE, syscall.ENFILE, broken}}
		c := w.greeted(w.dial("client", doorSNI), nameA)
		if err := w.router.Serve(l, nil); err != broken {
			t.Errorf("Serve = %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
		say(t, c, "still served")
		w.greeted(w.dial("client", doorSNI), nameB)
	})
}
