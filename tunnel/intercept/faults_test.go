package intercept

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestRefused has nobody at the entrypoint's port.
func TestRefused(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.entry.Close()
		w.start()
		w.wantReset()
		w.failed(string(connect.ErrRefused), 1)
	})
}

// TestAnswers has an entrypoint that answers something else than 200.
func TestAnswers(t *testing.T) {
	for answer, reason := range map[string]connect.Reason{
		"HTTP/1.1 403 Forbidden\r\n\r\n":                                       connect.ErrDenied,
		"HTTP/1.1 301 Moved Permanently\r\nLocation: https://h:443/\r\n\r\n":   connect.ErrProtocol,
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno":      connect.ErrUnavailable,
		"HTTP/1.1 502 no\r\nProxy-Status: e; error=connection_refused\r\n\r\n": connect.ErrRefused,
		"HTTP/1.1 200":                     connect.ErrTerminated,
		"SSH-2.0-OpenSSH_9.2p1 Debian\r\n": connect.ErrProtocol,
	} {
		t.Run(string(reason), func(t *testing.T) {
			var logs logBuffer
			w := newWorld(t, nil, &Interceptor{Dialect: Connect, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
			w.start()
			c := w.dial()
			e, err := w.entry.Accept()
			must(t, err)
			_, err = connect.ReadRequest(e, nil)
			must(t, err)
			_, err = io.WriteString(e, answer)
			must(t, errors.Join(err, e.Close()))
			wantReset(t, c)
			w.failed(string(reason), 1)
			if len(lines(logs.String(), "reason="+string(reason))) != 1 {
				t.Errorf("the log:\n%s", logs.String())
			}
		})
	}
}

// TestProxyRefused has an entrypoint that knows no such destination: it closes.
// That is an end in order, and so the client sees one.
func TestProxyRefused(t *testing.T) {
	w := newWorld(t, nil, &Interceptor{})
	w.start()
	client, server := w.pair()
	must(t, server.Close())
	if b, err := io.ReadAll(client); len(b) != 0 || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	client, server = w.pair()
	must(t, relay.Reset(server))
	wantReset(t, client)
}

// TestSlowEntrypoint has an entrypoint from which nothing comes: DialTimeout
// later the client is reset.
func TestSlowEntrypoint(t *testing.T) {
	for name, c := range map[string]struct {
		i      *Interceptor
		freeze bool
		want   time.Duration
	}{
		"ProxyV2, does not accept": {&Interceptor{}, true, 5 * time.Second},
		"Connect, does not accept": {&Interceptor{Dialect: Connect}, true, 5 * time.Second},
		"Connect, does not answer": {&Interceptor{Dialect: Connect}, false, 5 * time.Second},
		"another DialTimeout":      {&Interceptor{Dialect: Connect, DialTimeout: time.Second}, false, time.Second},
		"no DialTimeout":           {&Interceptor{DialTimeout: -1}, true, 127 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				n := &tunneltest.Network{}
				w := newWorld(t, n, c.i)
				stop := w.start()
				defer stop()
				if c.freeze {
					n.Freeze(w.entry.Addr().String())
				}
				begin := time.Now()
				w.wantReset()
				if d := time.Since(begin); d != c.want {
					t.Errorf("reset after %v, want %v", d, c.want)
				}
				stop() // so that it has counted
				if s := w.i.Stats(); s.Failed[string(connect.ErrTimeout)] != 1 {
					t.Errorf("got %+v", s)
				}
			})
		})
	}
}

// TestIdle has connections that say nothing: by default for ever.
func TestIdle(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, &tunneltest.Network{}, &Interceptor{})
		defer w.start()()
		client, server := w.pair()
		time.Sleep(100 * time.Hour)
		roundTrip(t, client, server)
	})
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, &tunneltest.Network{}, &Interceptor{IdleTimeout: time.Minute})
		stop := w.start()
		defer stop()
		client, server := w.pair()
		begin := time.Now()
		wantReset(t, client)
		wantReset(t, server)
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("ended after %v", d)
		}
		stop() // so that it has counted
		if s := w.i.Stats(); s.Broken[relay.OpIdle] != 1 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestFull has more clients than MaxConns.
func TestFull(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d, MaxConns: 2})
		w.start()
		client, server := w.pair()
		other, _ := w.pair()
		for range 3 {
			w.wantReset()
		}
		roundTrip(t, client, server) // nobody else pays for it
		eventually(t, "room for one", func() bool { return w.i.Stats().Open == 1 })
		client, server = w.pair()
		roundTrip(t, client, server)
		must(t, relay.Reset(other))
		eventually(t, "all ended", func() bool { return w.i.Stats().Open == 0 })
		if s := w.i.Stats(); s.Failed[ReasonFull] != 3 || s.Accepted != 6 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestOneClientLeavesRoom has one client take all that it can get.
func TestOneClientLeavesRoom(t *testing.T) {
	w := newWorld(t, nil, &Interceptor{MaxConns: 20})
	w.start()
	for range 18 {
		w.pair()
	}
	w.wantReset() // two are left, for others
	if s := w.i.Stats(); s.Failed[ReasonFull] != 1 || s.Open != 18 {
		t.Errorf("got %+v", s)
	}
}

// TestClientGone has clients that do not wait until the entrypoint is reached.
func TestClientGone(t *testing.T) {
	for name, leave := range map[string]func(net.Conn) error{
		"close": net.Conn.Close,
		"reset": relay.Reset,
		"speak and reset": func(c net.Conn) error {
			_, err := io.WriteString(c, "hello")
			return errors.Join(err, relay.Reset(c))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dialling, ended := make(chan struct{}), make(chan error, 1)
			var logs logBuffer
			log := slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
			w := newWorld(t, nil, &Interceptor{DialTimeout: -1, Logger: log})
			w.i.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
				close(dialling)
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return nil, ctx.Err()
			}
			w.start()
			c := w.dial()
			<-dialling
			must(t, leave(c))
			if err := <-ended; err != errClientGone {
				t.Errorf("the dial ended with %v", err)
			}
			w.failed(ReasonClientGone, 1)
			// A probe that only connects is no news.
			eventually(t, "logged", func() bool { return len(lines(logs.String(), "reason="+ReasonClientGone)) == 1 })
			if n := len(lines(logs.String(), "level=DEBUG")); n != 1 {
				t.Errorf("the log:\n%s", logs.String())
			}
		})
	}
}

// TestClientGoneWithDial has a dial that succeeds just after its client has
// gone.
func TestClientGoneWithDial(t *testing.T) {
	a, b := tunneltest.Pipe()
	defer b.Close()
	w := newWorld(t, nil, &Interceptor{DialTimeout: -1})
	w.i.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return a, nil
	}
	w.start()
	must(t, w.dial().Close())
	w.failed(ReasonClientGone, 1)
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the late conn ended with %v, want a reset", err)
	}
}

// TestLogLimit has a thousand clients that cause a line each, in one second and
// the next.
func TestLogLimit(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var logs logBuffer
		w := newWorld(t, &tunneltest.Network{}, &Interceptor{Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		w.entry.Close()
		stop := w.start()
		defer stop()
		for range 1000 {
			w.wantReset()
		}
		if n := len(lines(logs.String(), "client not forwarded")); n != 20 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Second)
		w.wantReset()
		stop() // so that it has counted
		if n := len(lines(logs.String(), "skipped=980")); n != 1 {
			t.Errorf("%d lines tell what was skipped", n)
		}
		if s := w.i.Stats(); s.Failed[string(connect.ErrRefused)] != 1001 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestServeFails has a listener that fails by itself, beside one that does not.
func TestServeFails(t *testing.T) {
	w := newWorld(t, nil, &Interceptor{})
	w.start()
	l := w.listen()
	must(t, l.Close())
	if err := w.i.Serve(l); !errors.Is(err, net.ErrClosed) || err == ErrClosed {
		t.Errorf("got %v", err)
	}
	client, server := w.pair()
	roundTrip(t, client, server)
}

// TestManyAtOnce opens and ends many connections of all fates at the same time.
func TestManyAtOnce(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d, MaxConns: 50})
		w.start()
		var work sync.WaitGroup
		work.Go(func() {
			for {
				c, err := w.entry.Accept()
				if err != nil {
					return
				}
				work.Go(func() {
					defer c.Close()
					if d == Connect {
						if _, err := connect.ReadRequest(c, nil); err != nil || (&connect.Response{Status: 200}).Write(c) != nil {
							return
						}
					}
					_, _ = io.Copy(c, c)
				})
			}
		})
		var clients sync.WaitGroup
		for n := range 200 {
			c, err := w.tryDial()
			if errors.Is(err, syscall.ECONNRESET) {
				continue // it is full
			}
			must(t, err)
			clients.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello")
				switch n % 4 {
				case 0:
					_ = relay.Reset(c)
				case 1:
					_ = relay.CloseWrite(c)
					_, _ = io.Copy(io.Discard, c)
				case 2:
					_, _ = io.ReadFull(c, make([]byte, 5))
				}
			})
		}
		clients.Wait()
		eventually(t, "all ended", func() bool { s := w.i.Stats(); return s.Open == 0 && s.Accepted == 200 })
		w.entry.Close()
		work.Wait()
	})
}
