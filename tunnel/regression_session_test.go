package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// millisecond.
func TestNegativeIntervalStorms(t *testing.T) {
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

// a minute of silence.
func TestNegativeDeadStillDies(t *testing.T) {
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

// stalled one ends with the session, which liveness sees to.
func TestWriteOnStalledCarrierEndsWithSession(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		opener, accepter := sessionsOver(t, a, b)
		s1, s2 := streamPair(t, opener, accepter)
		s3, s4 := streamPair(t, opener, accepter)
		s5, s6 := streamPair(t, opener, accepter)
		a.(*tunneltest.Conn).Freeze()
		go func() { _, _ = s3.Write(make([]byte, 2*streamWindow)) }() // these fill the carrier
		go func() { _, _ = s5.Write(make([]byte, 2*streamWindow)) }()
		time.Sleep(time.Millisecond)
		start := time.Now()
		_ = s1.SetWriteDeadline(start.Add(time.Second))
		// The carrier may take the byte in the moment in which it dies, so that
		// only the time counts.
		_, _ = s1.Write([]byte("x"))
		if d := time.Since(start); d < time.Second || d > 9*time.Second {
			t.Errorf("it took %v", d)
		}
		for _, s := range []stream{s1, s2, s3, s4, s5, s6} {
			s.Close()
		}
	})
}

// The same, seen by who dials: the carrier takes the SYN, not the CONNECT.
func TestDialOutlivesContextOnStalledCarrier(t *testing.T) {
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

// Run with -race; without it this rarely panics.
func TestGrownBeforeSessionExists(t *testing.T) {
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

// RetryAfter with it.
func TestByeLostToEOF(t *testing.T) {
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

// after the peer's Close (see tunneltest.Conn.Write), a stream refuses it.
func TestTLSGoodbyeCrosses(t *testing.T) {
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
func TestAckOutOfTheBlue(t *testing.T) {
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

// ErrSessionLost in the place of io.EOF.
func TestTwoReadersAtTheEnd(t *testing.T) {
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

// HELLO is kept for the life of a session and logged.
func TestHelloWithoutBounds(t *testing.T) {
	long := strings.Repeat("x", 60_000)
	for name, h := range map[string]helloMessage{"software": {Software: long}, "feature": {Features: []string{long}}} {
		h.MinVersion, h.MaxVersion, h.ID, h.Nonce = 1, 1, "agent", "0123456789"
		if h.check() == nil {
			t.Errorf("a HELLO with %s of %d bytes was taken", name, len(long))
		}
	}
}
