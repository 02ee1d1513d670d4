package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// open asks for route a through a door, over a backend that is not TLS, and
// returns the client's end. Whatever came back is still to be read.
func (w *world) open(door string) net.Conn {
	w.Helper()
	c := w.dial("client", door)
	switch door {
	case doorSNI:
		send(c, hello(w, nameA))
	case doorDest:
		w.claim(c, proxyHeader("192.0.2.1:1000", destA))
	case doorHeader:
		send(c, crlf(connectHead(HeaderReversedVPN+": "+headerA)))
	}
	return c
}

// opened is open, and takes away what a door says before the backend does.
func (w *world) opened(door string) net.Conn {
	w.Helper()
	c := w.open(door)
	if door == doorHeader {
		if got := line(c); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			w.Fatalf("%q", got)
		}
		for line(c) != "\r" {
		}
	}
	return c
}

var kinds = []string{doorSNI, doorDest, doorHeader}

// raw has route a lead to a backend that does what serve says.
func (w *world) raw(serve func(net.Conn)) {
	w.Helper()
	w.handle(w.listen("backend-raw:1"), serve)
	routes := w.routes()
	routes[0].Handler = w.forward("backend-raw:1")
	w.set(routes...)
}

// Each way in which no backend answers is told in the way of the door, at once
// or when the dial's time is over, and is the backend's fault in the counters.
func TestBackendDoesNotAnswer(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.net.Freeze("frozen")
		w.net.Host("frozen")
		want := map[string]string{doorSNI: "alert 80", doorDest: "reset", doorHeader: "503"}
		n := uint64(0)
		for what, tc := range map[string]struct {
			backends []string
			after    time.Duration
		}{
			"refuses":            {[]string{"backend-a:1"}, 0},
			"all refuse":         {[]string{"backend-a:1", "backend-a:2", "backend-b:3"}, 0},
			"cannot be dialled":  {[]string{"[::1%zone]:1"}, 0},
			"does not answer":    {[]string{"frozen:1"}, 5 * time.Second},
			"two do not answer":  {[]string{"frozen:1", "frozen:2"}, 6 * time.Second},
			"a socket is absent": {[]string{"unix:/run/absent"}, 0},
		} {
			for _, door := range kinds {
				routes := w.routes()
				routes[1].Handler = w.forward("backend-a:443") // b leads to a backend that works
				routes[0].Handler = w.forward(tc.backends...)
				w.set(routes...)
				start := time.Now()
				c := w.open(door)
				if tc.after > 0 {
					time.Sleep(tc.after / 2)
				}
				w.greetedAt(nameB, nameA) // meanwhile
				if got := outcome(c); got != want[door] {
					t.Errorf("%s, %s: %s", what, door, got)
				}
				if d := time.Since(start); d != tc.after {
					t.Errorf("%s, %s: after %v", what, door, d)
				}
				c.Close()
				n++
				w.onlyRefused(map[Reason]uint64{ReasonBackend: n})
			}
		}
		if s := w.router.Stats(); s.Routes[0].Refused[ReasonBackend] != n || s.Routes[1].Refused != nil {
			t.Errorf("%+v", s.Routes)
		}
	})
}

// greetedAt goes to a name whose backend says that it is another one.
func (w *world) greetedAt(name, backend string) {
	w.Helper()
	c := w.dial("bystander", doorSNI)
	defer c.Close()
	send(c, hello(w, name))
	b := make([]byte, 1)
	if n, err := io.ReadFull(c, b); n != 1 || err != nil || b[0] != recordHandshake {
		w.Errorf("%s by %s: %x %v", name, backend, b, err)
	}
}

// A backend that accepts and then says nothing costs its client the time that
// the client has, or the route's IdleTimeout; the other end of a reset is one.
func TestBackendAcceptsAndHangs(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.raw(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		for _, door := range kinds {
			start := time.Now()
			c := w.opened(door)
			_ = c.SetReadDeadline(time.Now().Add(time.Hour))
			if err := ended(c); !isTimeout(err) {
				t.Errorf("%s: %v after %v", door, err, time.Since(start))
			}
			_ = relay.Reset(c)
		}
		w.until("none is left", func() bool { return w.router.Stats().Conns == 0 })
		routes := w.routes()
		routes[0].Handler = &Forward{Backends: []string{"backend-raw:1"}, Dial: w.net.Host("lb").Dial, IdleTimeout: time.Minute}
		w.set(routes...)
		for _, door := range kinds {
			start := time.Now()
			c := w.opened(door)
			if err := ended(c); !errors.Is(err, syscall.ECONNRESET) || time.Since(start).Round(time.Second) != time.Minute {
				t.Errorf("%s: %v after %v", door, err, time.Since(start))
			}
			w.greetedAt(nameB, nameB)
		}
		w.onlyRefused(nil)
		w.until("they are counted", func() bool {
			r := w.router.Stats().Routes[0]
			return r.ClientReset+r.BackendReset == 3 && r.Broken == 3
		})
	})
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// A reset stays a reset and an end an end, from either side, through each door.
func TestResetAndHalfClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		from := make(chan net.Conn)
		hold := make(chan bool)
		w.raw(func(c net.Conn) {
			from <- c
			<-hold
		})
		pair := func(door string) (client, backend net.Conn) {
			client = w.opened(door)
			backend = <-from
			if door == doorSNI { // the hello comes first
				if _, err := io.ReadFull(backend, make([]byte, len(hello(t, nameA)))); err != nil {
					t.Fatal(err)
				}
			}
			return client, backend
		}
		read := func(c net.Conn, want string) {
			t.Helper()
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
				t.Fatalf("%q %v, want %q", b, err, want)
			}
		}
		for _, door := range kinds {
			for what, end := range map[string]struct {
				how  func(c net.Conn) error
				want error // for the other one; nil: EOF, and the way back is open
			}{
				"reset":      {relay.Reset, syscall.ECONNRESET},
				"half-close": {relay.CloseWrite, nil},
			} {
				for _, by := range []string{"client", "backend"} {
					client, backend := pair(door)
					one, other := client, backend
					if by == "backend" {
						one, other = backend, client
					}
					send(one, "question")
					read(other, "question")
					send(other, "half an ans")
					read(one, "half an ans")
					if err := end.how(one); err != nil {
						t.Fatal(err)
					}
					n, err := other.Read(make([]byte, 1))
					if end.want != nil && !errors.Is(err, end.want) || end.want == nil && err != io.EOF {
						t.Errorf("%s, %s of the %s: %d %v", door, what, by, n, err)
					}
					if end.want == nil {
						time.Sleep(time.Hour) // takes its time
						send(other, "wer")
						read(one, "wer")
						_ = relay.CloseWrite(other)
						if n, err := one.Read(make([]byte, 1)); err != io.EOF {
							t.Errorf("%s, %s of the %s, back: %d %v", door, what, by, n, err)
						}
					}
					client.Close()
					hold <- true
				}
			}
		}
		w.onlyRefused(nil)
		w.until("the resets are counted", func() bool {
			return w.router.Stats().Routes[0].ClientReset == 3 && w.router.Stats().Routes[0].BackendReset == 3
		})
	})
}

// A backend that resets at once, or dies with half of an answer told: the client
// sees that it was no end. The same for clients.
func TestBackendDies(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		say := ""
		w.raw(func(c net.Conn) {
			send(c, say)
			_ = relay.Reset(c)
		})
		n := uint64(0)
		for _, say = range []string{"", "half an ans", strings.Repeat("x", 100000)} {
			for _, door := range kinds {
				c := w.open(door)
				w.greetedAt(nameB, nameB)
				b, err := io.ReadAll(c)
				if !errors.Is(err, syscall.ECONNRESET) || !strings.HasSuffix(say, string(b)) && door != doorHeader {
					t.Errorf("%s, %.20q: %.100q, %v", door, say, b, err)
				}
				if door == doorHeader && !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
					t.Errorf("%q", b)
				}
				n++
			}
		}
		w.onlyRefused(nil)
		w.until("they are counted", func() bool { return w.router.Stats().Routes[0].BackendReset == n })
	})
}

// scripted is a Handler.
type scripted func(ctx context.Context, c *Incoming) error

func (s scripted) ServeConn(ctx context.Context, c *Incoming) error { return s(ctx, c) }

// What a Handler returns before Accept is the answer over CONNECT where it says
// which, an alert over TLS and a reset else; behind another proxy, Forward keeps
// that one's words, which name the backend, to itself.
func TestHandlerErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		far := &connect.Error{Reason: connect.ErrRefused, Proxy: "http://far.internal", Target: "backend.internal:443", Detail: "dial tcp 10.9.9.9:443"}
		through := &Forward{Backends: []string{"x:1"}, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, fmt.Errorf("far: %w", far)
		}}
		n := uint64(0)
		for what, tc := range map[string]struct {
			handler Handler
			want    string
		}{
			"nothing":        {scripted(func(context.Context, *Incoming) error { return nil }), "503"},
			"any error":      {scripted(func(context.Context, *Incoming) error { return errors.New("backend.internal") }), "503"},
			"a chosen one":   {scripted(func(context.Context, *Incoming) error { return &connect.Error{Reason: connect.ErrLimit} }), "429"},
			"another proxy":  {through, "503"},
			"a dial timeout": {&Forward{Backends: []string{"x:1"}, Dial: hang, DialTimeout: time.Second}, "503"},
		} {
			routes := w.routes()
			routes[0].Handler = tc.handler
			time.Sleep(time.Second) // for the limit of the log
			w.set(routes...)
			for door, want := range map[string]string{doorSNI: "alert 80", doorDest: "reset", doorHeader: tc.want} {
				c := w.open(door)
				if got := outcome(c); got != want {
					t.Errorf("%s, %s: %s, want %s", what, door, got, want)
				}
				c.Close()
				c = w.open(door)
				if b, _ := io.ReadAll(c); strings.Contains(string(b), "internal") || strings.Contains(string(b), "10.") {
					t.Errorf("%s: the client is told %q", what, b)
				}
				c.Close()
				n += 2
				w.onlyRefused(map[Reason]uint64{ReasonBackend: n})
			}
		}
		if log := w.log.String(); !strings.Contains(log, "dial tcp 10.9.9.9:443") {
			t.Errorf("nor is the log\n%s", log)
		}
		_, err := through.dial(t.Context(), &Info{})
		if err := (noBackend{err}); !errors.Is(err, connect.ErrRefused) || errors.Is(err, connect.ErrLimit) {
			t.Errorf("%v", err)
		}
	})
}

func hang(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}
