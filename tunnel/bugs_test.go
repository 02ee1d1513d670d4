package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// lead skips a test of a defect that is known and not mended yet. With
// RHIZOME_BUGS=1 it runs, and fails.
func lead(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("RHIZOME_BUGS") == "" {
		t.Skip("lead: " + what)
	}
}

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
func TestBugDialBeforeLivenessStarts(t *testing.T) {
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
func TestBugAgentServeOutlivesContext(t *testing.T) {
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
func TestBugByDestinationOutOfRange(t *testing.T) {
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
// millisecond.
func TestBugNegativeIntervalStorms(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		pings := 0
		heard := time.Now()
		var l *liveness
		l = &liveness{
			config: Liveness{Interval: -1}.withDefaults(),
			heard:  func() time.Time { return heard },
			ping: func(m pingMessage) {
				pings++
				heard = time.Now()
				l.pong(m)
			},
			dead: func() {}, onChange: func(bool) {},
		}
		l.start()
		time.Sleep(time.Minute)
		if pings != 0 {
			t.Errorf("%d PINGs without a dial", pings)
		}
		l.nudge()
		time.Sleep(time.Minute)
		l.stop()
		if pings > 2 {
			t.Errorf("%d PINGs in a minute after one dial", pings)
		}
	})
}

// A session that never suspects or never gives up is ended all the same after
// a minute of silence.
func TestBugNegativeDeadStillDies(t *testing.T) {
	for name, config := range map[string]Liveness{"Dead": {Dead: -1}, "Suspect": {Suspect: -1}} {
		tunneltest.Bubble(t, func(t *testing.T) {
			start := time.Now()
			died := make(chan time.Duration, 1)
			l := &liveness{
				config: config.withDefaults(),
				heard:  func() time.Time { return start },
				ping:   func(pingMessage) {}, dead: func() { died <- time.Since(start) }, onChange: func(bool) {},
			}
			l.start()
			time.Sleep(time.Hour)
			l.stop()
			if len(died) > 0 {
				t.Errorf("%s is off, and the session was ended after %v", name, <-died)
			}
		})
	}
}

// yamux waits for the carrier without a look at deadlines, so that a Write on a
// stalled one ends with the session, which liveness sees to.
func TestWriteOnStalledCarrierEndsWithSession(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		opener, accepter := sessionsOver(t, a, b)
		s1, s2 := streamPair(t, opener, accepter)
		s3, s4 := streamPair(t, opener, accepter)
		a.(*tunneltest.Conn).Freeze()
		go func() { _, _ = s3.Write(make([]byte, 2*streamWindow)) }() // fills the carrier
		time.Sleep(time.Millisecond)
		start := time.Now()
		_ = s1.SetWriteDeadline(start.Add(time.Second))
		if _, err := s1.Write([]byte("x")); err == nil {
			t.Error("the write succeeded")
		}
		if d := time.Since(start); d > 9*time.Second {
			t.Errorf("it took %v", d)
		}
		for _, s := range []stream{s1, s2, s3, s4} {
			s.Close()
		}
	})
}

// The same, seen by who dials: the carrier takes the SYN, not the CONNECT.
func TestBugDialOutlivesContextOnStalledCarrier(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		narrow := &narrowConn{Conn: a, room: make(chan struct{})}
		opener, accepter := sessionsOver(t, narrow, b)
		opener.live.stop()
		accepter.live.stop()
		s := &Server{}
		c, done := s.registry.use("a")
		defer done()
		agent := &remoteAgent{session: opener, cluster: c, addr: b.RemoteAddr()}
		if _, _, err := c.add(agent, 1); err != nil {
			t.Fatal(err)
		}
		narrow.left.Store(yamuxHeader + 1) // room for a SYN
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		returned := make(chan error, 1)
		go func() {
			_, err := s.Dialer("a")(ctx, "tcp", "10.0.0.7:10250")
			returned <- err
		}()
		select {
		case err := <-returned:
			if !errors.Is(err, connect.ErrTimeout) {
				t.Errorf("dial: %v", err)
			}
		case <-time.After(time.Hour):
			t.Errorf("a dial with 3 s is under way after %v", time.Since(start))
		}
		close(narrow.room)
		_ = opener.mux.Close(nil)
		_ = accepter.mux.Close(nil)
	})
}

// DRAIN says reconnect and finish, but how long the streams may take is
// decided by the smaller DrainTimeout of both sides, and neither knows.
func TestBugDrainTimeoutOfTheOtherSide(t *testing.T) {
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
func TestBugClustersAreNeverForgotten(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		s := &Server{AgentWait: -1}
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.DialAgent(ctx, "a", func(context.Context) (net.Conn, error) { return nil, io.EOF })
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
func TestBugDoorLeavesItsWatch(t *testing.T) {
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
func TestBugNegativeTimeoutsAreOneSecond(t *testing.T) {
	for name, set := range map[string]func(s *Server, a *Agent){
		"Head.Timeout": func(s *Server, _ *Agent) { s.Head.Timeout = -1 },
		"Connect":      func(_ *Server, a *Agent) { a.Connect = -1 },
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
// Run with -race; without it this rarely panics.
func TestBugGrownBeforeSessionExists(t *testing.T) {
	frame := func(flags uint16, n int) []byte {
		b := make([]byte, yamuxHeader+n)
		binary.BigEndian.PutUint16(b[2:], flags)
		binary.BigEndian.PutUint32(b[4:], 1)
		binary.BigEndian.PutUint32(b[8:], uint32(n))
		return b
	}
	for range 20 {
		// A hostile agent: 256 KiB on the control stream as soon as it can.
		w := &Server{ID: "server"}
		a, b := tunneltest.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			id := Identity{Cluster: "a", Check: func() error { return nil }}
			_ = w.attach(t.Context(), a, id, w.logger(), func() {})
		}()
		_, _ = io.ReadFull(b, make([]byte, yamuxHeader)) // the SYN
		_, _ = b.Write(frame(0, streamWindow))
		time.Sleep(time.Millisecond)
		b.Close()
		<-done
		// A hostile server: the same with its first bytes.
		c, d := tunneltest.Pipe()
		go func() {
			_, _ = d.Write(frame(yamuxSYN, streamWindow))
			time.Sleep(time.Millisecond)
			d.Close()
		}()
		_, _ = (&Agent{ID: "agent"}).newSession(t.Context(), c, func(*helloMessage) error { return nil })
		d.Close()
	}
}

// A BYE whose sender closes at once is taken for a lost connection, and its
// RetryAfter with it.
func TestBugByeLostToEOF(t *testing.T) {
	for range 200 {
		opener, accepter := sessionPairStopped(t)
		done := make(chan error, 1)
		if err := opener.write(typeBye, byeMessage{Code: byeQuota, Reason: "full", RetryAfter: 10}); err != nil {
			t.Fatal(err)
		}
		opener.close(nil)
		go func() { done <- accepter.run() }()
		err := <-done
		var bye *byeError
		if !errors.As(err, &bye) {
			t.Fatalf("run: %v, want the BYE that had arrived", err)
		}
	}
}

// sessionPairStopped is sessionPair before run.
func sessionPairStopped(t testing.TB) (opener, accepter *session) {
	t.Helper()
	a, b := tunneltest.Pipe()
	config := func(id string) sessionConfig {
		return sessionConfig{
			opener: id == "server", maxStreams: 1024, log: (&Server{}).logger(),
			hello: helloMessage{MinVersion: minVersion, MaxVersion: maxVersion, Features: features(), ID: id, Nonce: newNonce()},
		}
	}
	var wait sync.WaitGroup
	var errA, errB error
	wait.Go(func() {
		if opener, errA = newSession(context.Background(), a, config("server")); errA == nil {
			errA = opener.helloServer(context.Background())
		}
	})
	wait.Go(func() {
		if accepter, errB = newSession(context.Background(), b, config("agent")); errB == nil {
			errB = accepter.helloAgent(context.Background(), func(*helloMessage) error { return nil })
		}
	})
	wait.Wait()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return opener, accepter
}

// Two tls.Conns that say goodbye at the same time: TCP takes one more write
// after the peer's Close (see tunneltest.Conn.Write), a stream refuses it.
func TestBugTLSGoodbyeCrosses(t *testing.T) {
	server, client := tlsConfigs(t)
	opener, accepter := sessionPair(t)
	for range 200 {
		a, b := streamPair(t, opener, accepter)
		ca, cb := tls.Client(a, client), tls.Server(b, server)
		var wait sync.WaitGroup
		var errs [2]error
		wait.Go(func() {
			_ = ca.Handshake()
			errs[0] = ca.Close()
		})
		wait.Go(func() {
			_ = cb.Handshake()
			errs[1] = cb.Close()
		})
		wait.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
}

// A RESET(ack) that nobody asked for half-closes a healthy stream.
func TestBugAckOutOfTheBlue(t *testing.T) {
	opener, accepter := sessionPair(t)
	a, b := streamPair(t, opener, accepter)
	accepter.send(typeReset, resetMessage{Stream: b.ID(), Code: resetAck})
	_ = b.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := b.Read(make([]byte, 1)); err == io.EOF {
		t.Error("the stream was half-closed by an ack that nobody waited for")
	}
	if _, err := a.Write([]byte("x")); err != nil {
		t.Errorf("write: %v", err)
	}
	_, _ = a.Close(), b.Close()
}

// Two readers of one stream: the one that comes second to the last bytes gets
// ErrSessionLost in the place of io.EOF.
func TestBugTwoReadersAtTheEnd(t *testing.T) {
	lead(t, "concurrent Reads at the end of the data: one returns ErrSessionLost, because bytes are accounted as read after yamux gave them out")
	opener, accepter := sessionPair(t)
	for range 2000 {
		a, b := streamPair(t, opener, accepter)
		if _, err := b.Write([]byte("the end")); err != nil {
			t.Fatal(err)
		}
		_ = b.CloseWrite()
		var wait sync.WaitGroup
		var errs [4]error
		for i := range errs {
			wait.Go(func() {
				for errs[i] == nil {
					_, errs[i] = a.Read(make([]byte, 3))
				}
			})
		}
		wait.Wait()
		for _, err := range errs {
			if err != io.EOF {
				t.Fatalf("read: %v", err)
			}
		}
		_, _ = a.Close(), b.Close()
	}
}

// The text of a rule is what goes into a configuration.
func TestBugRuleDoesNotRoundTrip(t *testing.T) {
	lead(t, "ParseRule(r.String()) != r for names with several final dots and for addresses with a final dot, which become names; '..' is taken")
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
func TestBugSuffixWithoutItsName(t *testing.T) {
	lead(t, "doc of Rule (and served): .example.com is said to be the name with its subdomains, and does not cover example.com itself")
	r, err := ParseRule(".example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := (Rules{r}).Allow(target("example.com", 443, "10.0.0.7")); err != nil {
		t.Error(err)
	}
}

// HELLO is kept for the life of a session and logged.
func TestBugHelloWithoutBounds(t *testing.T) {
	lead(t, "helloMessage.check bounds neither Software nor the features' names: 60 KiB of them are kept and logged per session")
	long := strings.Repeat("x", 60_000)
	for name, h := range map[string]helloMessage{"software": {Software: long}, "feature": {Features: []string{long}}} {
		h.MinVersion, h.MaxVersion, h.ID, h.Nonce = 1, 1, "agent", "0123456789"
		if h.check() == nil {
			t.Errorf("a HELLO with %s of %d bytes was taken", name, len(long))
		}
	}
}
