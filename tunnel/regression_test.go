package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hookHandler calls hook for each line that is logged, in the goroutine that
// logs it: a place to stand between two steps of the code.
type hookHandler struct {
	slog.Handler
	hook func(message, line string)
	line string
}

func (h *hookHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *hookHandler) Handle(_ context.Context, r slog.Record) error {
	line := h.line
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	h.hook(r.Message, line)
	return nil
}

func (h *hookHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	line := h.line
	for _, a := range attrs {
		line += " " + a.String()
	}
	return &hookHandler{hook: h.hook, line: line}
}
func (h *hookHandler) WithGroup(string) slog.Handler { return h }

// An agent can be chosen from cluster.add on, but its liveness is started by
// run only: a dial in between (one that waits for an agent is woken by add)
// writes to a nil map, and the server dies.
func TestDialBeforeLivenessStarts(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		gap := make(chan struct{})
		w := newWorld(t, func(s *Server) {
			s.Picker = func(_ string, c []Candidate) int { return len(c) - 1 }
			s.Logger = slog.New(&hookHandler{hook: func(message, line string) {
				if message == "agent connected" && strings.Contains(line, "agent=agent-2") {
					close(gap)
					time.Sleep(time.Second)
				}
			}})
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		w.agent("a", "agent-2", nil)
		<-gap
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("panic: %v", p)
			}
		}()
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// Serve's goroutine that waits for the drain is counted in work, and is told to
// end by a defer that runs after work.Wait.
func TestAgentServeOutlivesContext(t *testing.T) {
	for name, end := range map[string]func(cancel func(), l net.Listener){
		"context":  func(cancel func(), _ net.Listener) { cancel() },
		"listener": func(_ func(), l net.Listener) { l.Close() },
	} {
		tunneltest.Bubble(t, func(t *testing.T) {
			var n tunneltest.Network
			l, err := n.Listen("tcp", "agent:4314")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			a := &Agent{ID: "agent"}
			served := make(chan error, 1)
			go func() { served <- a.Serve(ctx, l) }()
			time.Sleep(time.Second)
			end(cancel, l)
			select {
			case err := <-served:
				if name == "context" && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: Serve: %v", name, err)
				}
			case <-time.After(time.Hour):
				t.Errorf("%s: Serve has not returned after an hour", name)
			}
			a.Close()
		})
	}
}

// A wrong index from the inner picker is 500 without ByDestination, and a
// panic of the server with it.
func TestByDestinationOutOfRange(t *testing.T) {
	for _, i := range []int{-1, 2, 1 << 30} {
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("next returns %d: panic: %v", i, p)
				}
			}()
			pick := ByDestination(func(string, []Candidate) int { return i })
			if got := pick("10.0.0.7:80", []Candidate{{ID: "1"}, {ID: "2"}}); got >= 0 && got < 2 {
				t.Errorf("next returns %d, ByDestination %d: want an index that is refused", i, got)
			}
		}()
	}
}

// With Interval switched off, the first PING of a dial is followed by one each
// A session that never suspects or never gives up is ended all the same after
// yamux waits for the carrier without a look at deadlines, so that a Write on a
// DRAIN says reconnect and finish, but how long the streams may take is
// decided by the smaller DrainTimeout of both sides, and neither knows.
func TestDrainTimeoutOfTheOtherSide(t *testing.T) {
	for _, side := range []string{"server", "agent"} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, func(s *Server) {
				if side == "server" {
					s.DrainTimeout = -1
				}
			})
			a := w.agent("a", "agent-1", func(a *Agent) {
				if side == "agent" {
					a.DrainTimeout = -1
				}
			})
			w.ready("a", 1)
			c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				if side == "server" {
					done <- w.server.Shutdown(context.Background())
				} else {
					done <- a.Shutdown(context.Background())
				}
			}()
			time.Sleep(time.Minute)
			if err := roundTrip(c); err != nil {
				t.Errorf("%s drains without a bound, and after a minute: %v", side, err)
			}
			if err := <-done; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// Only a door of Serve sweeps.
func TestClustersAreNeverForgotten(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		s := &Server{AgentWait: -1}
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.DialAgent(ctx, "a", func(context.Context) (net.Conn, error) { return nil, io.EOF }, nil)
		}()
		time.Sleep(startupGrace + time.Second)
		for i := range 100 {
			if _, err := s.Dialer(fmt.Sprint("cluster-", i))(t.Context(), "tcp", "10.0.0.7:80"); err == nil {
				t.Fatal("dialled")
			}
		}
		time.Sleep(10 * time.Minute)
		if n := len(s.Clusters()); n > 1 {
			t.Errorf("%d clusters are remembered after ten minutes", n)
		}
		cancel()
		<-done
	})
}

// What a door started stays until the server ends, however its listener ended.
func TestDoorLeavesItsWatch(t *testing.T) {
	var n tunneltest.Network
	s := &Server{}
	defer s.Close()
	before := stacksWith("admissions).watch")
	for range 20 {
		l, err := n.Listen("tcp", "server:443")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if err := s.Serve(l); err == nil {
			t.Fatal("Serve of a closed listener")
		}
	}
	time.Sleep(10 * time.Millisecond)
	if left := stacksWith("admissions).watch") - before; left > 1 {
		t.Errorf("20 doors have come and gone and left %d goroutines", left)
	}
}

// "Negative disables": the request head has no bound then, but HELLO has one
// second, and so has all of Connect.
func TestNegativeTimeoutsAreOneSecond(t *testing.T) {
	for name, set := range map[string]func(s *Server, a *Agent){
		"Head.Timeout": func(s *Server, _ *Agent) { s.Head.Timeout = -1 },
		"Connect":      func(_ *Server, a *Agent) { a.ConnectTimeout = -1 },
	} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, func(s *Server) { set(s, &Agent{}) })
			w.net.Host("agent-1")
			w.net.SetDelay("", "", 600*time.Millisecond)
			w.agent("a", "agent-1", func(a *Agent) { set(&Server{}, a) })
			time.Sleep(2 * time.Minute)
			if n := w.agents(w.server, "a"); n != 1 {
				t.Errorf("%s is off, and with a round trip of 1.2 s %d agents are connected\n%s", name, n, w.log)
			}
		})
	}
}

// grown is called by goroutines that exist before what it uses: s.mux on the
// agent's side (session.later), a.session on the server's (boundUnread).
// A BYE whose sender closes at once is taken for a lost connection, and its
// Two tls.Conns that say goodbye at the same time: TCP takes one more write
// Two readers of one stream: the one that comes second to the last bytes gets
// The text of a rule is what goes into a configuration.
func TestRuleDoesNotRoundTrip(t *testing.T) {
	for _, text := range []string{"a..", "10.0.0.7.", "..", "10.0.0.7.:80", "::1."} {
		r, err := ParseRule(text)
		if err != nil {
			continue // also fine
		}
		if again, err := ParseRule(r.String()); err != nil || again != r {
			t.Errorf("%q is %+v, written %q, read again %+v, %v", text, r, r, again, err)
		}
	}
}

// "A name with its subdomains if it begins with a dot."
func TestSuffixWithoutItsName(t *testing.T) {
	r, err := ParseRule(".example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := (Rules{r}).Allow(target("example.com", 443, "10.0.0.7")); err != nil {
		t.Error(err)
	}
}
