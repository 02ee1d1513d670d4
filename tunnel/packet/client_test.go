package packet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// How long a client stays away after what it was told.
func TestStayAway(t *testing.T) {
	for _, tt := range []struct {
		code     string
		min, max time.Duration
	}{
		{ByeReplaced, 30 * time.Second, 90 * time.Second},
		{ByeVersion, 30 * time.Second, 90 * time.Second},
		{ByeMismatch, 30 * time.Second, 90 * time.Second},
		{ByeDenied, 5 * time.Second, 10 * time.Second},
		{ByeFull, 5 * time.Second, 10 * time.Second},
		{ByeShutdown, 0, 200 * time.Millisecond},
		{"unheard of", 0, 200 * time.Millisecond},
	} {
		t.Run(tt.code, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				n := 0
				w := newLinkWorld(t, func(s *Server) {
					s.Admit = func(context.Context, Identity, Hello) (ServeFunc, error) {
						return func(ctx context.Context, c *Conn) error {
							if n++; n > 1 {
								<-ctx.Done()
								return nil
							}
							return &ByeError{Code: tt.code, Reason: "test"}
						}, nil
					}
				})
				k := w.client("one", nil)
				s := newStates(k)
				stop, _ := w.start(k)
				<-s.up
				<-s.up
				all, at := s.list()
				if len(all) != 3 || !strings.Contains(all[1], tt.code) {
					t.Fatalf("%q", all)
				}
				if d := at[2].Sub(at[1]); d < tt.min || d > tt.max {
					t.Errorf("it came again after %v", d)
				}
				stop()
				w.server.Close()
			})
		})
	}
	for _, tt := range []struct {
		status   int
		retry    time.Duration
		min, max time.Duration
	}{
		{401, 0, 5 * time.Second, 10 * time.Second},
		{403, 0, 5 * time.Second, 10 * time.Second},
		{426, 0, 30 * time.Second, 90 * time.Second},
		{503, 3 * time.Second, 3 * time.Second, 3 * time.Second},
		{503, time.Hour, time.Minute, time.Minute},
		{500, 0, 0, 0},
	} {
		err := (&connect.Response{Status: tt.status, Header: http.Header{}}).Refusal("server", "")
		err.RetryAfter = tt.retry
		if d := stayAway(err); d < tt.min || d > tt.max {
			t.Errorf("%d, retry %v: %v", tt.status, tt.retry, d)
		}
	}
	if stayAway(io.EOF) != 0 || stayAway(&ByeError{Code: ByeShutdown, RetryAfter: time.Minute}) != time.Minute {
		t.Error("stayAway")
	}
}

// Who is denied stays away, unless the link had worked before.
func TestWasAdmitted(t *testing.T) {
	denied := &ByeError{Code: ByeDenied, Remote: true}
	for _, tt := range []struct {
		err    error
		lasted time.Duration
		want   bool
	}{
		{denied, time.Minute, true},
		{denied, time.Second, false},
		{&ByeError{Code: ByeDenied, RetryAfter: time.Second}, time.Minute, false},
		{&ByeError{Code: ByeReplaced}, time.Minute, false},
		{io.EOF, time.Minute, false},
	} {
		if got := wasAdmitted(tt.err, tt.lasted); got != tt.want {
			t.Errorf("%v after %v: %v", tt.err, tt.lasted, got)
		}
	}
}

// A client that comes and goes all the time fills no disk.
func TestServerLogIsLimited(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		k := w.client("one", func(k *Client) {
			k.Backoff = Backoff{Min: time.Millisecond, Max: time.Millisecond}
			k.Serve = func(context.Context, *Conn) error { return errLinkTest }
		})
		s := newStates(k)
		stop, _ := w.start(k)
		for range 100 {
			<-s.up
		}
		stop()
		w.server.Close()
		if n := strings.Count(w.logged(), "\n"); n == 0 || n > 50 {
			t.Errorf("%d lines of 100 links", n)
		}
	})
}

// A server that is away for a while is come back to soon, and is not stormed.
func TestReconnect(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		k := w.client("one", nil)
		s := newStates(k)
		stop, _ := w.start(k)
		<-s.up
		time.Sleep(2 * time.Minute)
		w.net.Freeze("server")
		start := time.Now()
		time.Sleep(30 * time.Second)
		w.net.Thaw("server")
		<-s.up
		all, at := s.list()
		if !strings.Contains(all[1], "silent") || at[1].Sub(start) > 2500*time.Millisecond {
			t.Errorf("%v after %v", all[1], at[1].Sub(start))
		}
		if n := len(all); n > 20 {
			t.Errorf("%d tries", n)
		}
		if d := time.Since(start); d > 45*time.Second {
			t.Errorf("back after %v", d)
		}
		w.net.Cut("server")
		start = time.Now()
		<-s.up
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("back %v after a reset", d)
		}
		stop()
		w.server.Close()
	})
}

// What cannot work is an error at once, for both.
func TestBadConfiguration(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return nil, errLinkTest }
	serve := func(context.Context, *Conn) error { return nil }
	for name, k := range map[string]*Client{
		"no Dial":  {Serve: serve},
		"no Serve": {Dial: dial},
		"MTU":      {Dial: dial, Serve: serve, Hello: Hello{MTU: 100}},
	} {
		if err := k.Run(t.Context()); err == nil {
			t.Error(name)
		}
	}
	var n tunneltest.Network
	for name, s := range map[string]*Server{
		"no Admit": {},
		"mode": {Hello: Hello{Mode: 5}, Admit: func(context.Context, Identity, Hello) (ServeFunc, error) {
			return nil, errLinkTest
		}},
	} {
		l, err := n.Listen("tcp", "server:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(l); err == nil {
			t.Error(name)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the listener is open: %v", name, err)
		}
	}
	// A token does not go over a plain connection.
	a, b := tunneltest.Pipe()
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan error, 1)
	k := &Client{
		Dial: func(context.Context) (net.Conn, error) { return a, nil }, Serve: serve,
		Token:   func(context.Context) (string, error) { return "secret", nil },
		OnState: func(_ *Conn, err error) { told <- err; cancel() },
	}
	_ = k.Run(ctx)
	if err := <-told; err == nil || !strings.Contains(err.Error(), "TLS only") {
		t.Error(err)
	}
	if got, _ := io.ReadAll(b); strings.Contains(string(got), "secret") {
		t.Errorf("%q", got)
	}
}
