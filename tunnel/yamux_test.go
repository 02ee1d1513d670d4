package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// sessionPair makes two sessions over an in-memory connection, as a server and
// an agent have them, with HELLO done and both running.
func sessionPair(t testing.TB) (opener, accepter *session) {
	t.Helper()
	a, b := tunneltest.Pipe()
	return sessionsOver(t, a, b)
}

func sessionsOver(t testing.TB, a, b net.Conn) (opener, accepter *session) {
	t.Helper()
	ctx := context.Background()
	config := func(id string) sessionConfig {
		return sessionConfig{
			hello: helloMessage{
				MinVersion: minVersion, MaxVersion: maxVersion, Features: features(), ID: id, Nonce: newNonce(),
			},
			maxStreams: 1024, log: (&Server{}).logger(),
		}
	}
	var wait sync.WaitGroup
	var errA, errB error
	wait.Go(func() {
		c := config("server")
		c.opener = true
		if opener, errA = newSession(ctx, a, c); errA == nil {
			errA = opener.helloServer(ctx)
		}
	})
	wait.Go(func() {
		if accepter, errB = newSession(ctx, b, config("agent")); errB == nil {
			errB = accepter.helloAgent(ctx, func(*helloMessage) error { return nil })
		}
	})
	wait.Wait()
	if errA != nil || errB != nil {
		t.Fatalf("session: %v, %v", errA, errB)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = opener.run() })
	running.Go(func() { _ = accepter.run() })
	t.Cleanup(func() {
		_ = opener.mux.Close(nil)
		_ = accepter.mux.Close(nil)
		running.Wait()
	})
	return opener, accepter
}

// streamPair opens one stream between two sessions.
func streamPair(t testing.TB, opener, accepter *session) (a, b stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a, err := opener.mux.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b, err = accepter.mux.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestStreamIsConn(t *testing.T) {
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		opener, accepter := sessionPair(t)
		a, b := streamPair(t, opener, accepter)
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestStreamInsideTLSIsConn(t *testing.T) {
	server, client := tlsConfigs(t)
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		opener, accepter := sessionPair(t)
		a, b := streamPair(t, opener, accepter)
		ca, cb := tls.Client(a, client), tls.Server(b, server)
		var wait sync.WaitGroup
		var errA, errB error
		wait.Go(func() { errA = ca.Handshake() })
		wait.Go(func() { errB = cb.Handshake() })
		wait.Wait()
		return ca, cb, func() { ca.Close(); cb.Close() }, errors.Join(errA, errB)
	})
}

// tlsConfigs is a throw-away pair.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert.TLS}},
		&tls.Config{RootCAs: ca.Pool(), ServerName: "server"}
}

// yamux with its default cuts a half-closed stream after five minutes and
// calls that a clean end of the data.
func TestSlowAnswerAfterHalfClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		opener, accepter := sessionPair(t)
		a, b := streamPair(t, opener, accepter)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer b.Close()
			for range 10 {
				time.Sleep(time.Minute)
				if _, err := b.Write([]byte{'x'}); err != nil {
					t.Error(err)
				}
			}
		}()
		start := time.Now()
		got, err := io.ReadAll(a)
		if err != nil || len(got) != 10 {
			t.Errorf("read %d bytes, %v; want 10", len(got), err)
		}
		if d := time.Since(start).Round(time.Minute); d != 10*time.Minute {
			t.Errorf("took %v", d)
		}
		a.Close()
	})
}

// With yamux alone a writer waits for ever once its reader is gone.
func TestResetUnblocksWriter(t *testing.T) {
	for name, end := range map[string]func(stream) error{
		"reset": stream.Reset,
		"close": func(s stream) error { return s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				opener, accepter := sessionPair(t)
				a, b := streamPair(t, opener, accepter)
				done := make(chan error, 1)
				go func() {
					_, err := b.Write(make([]byte, 10*streamWindow))
					done <- err
				}()
				time.Sleep(time.Second) // fake: the writer is stuck by now
				if err := end(a); err != nil {
					t.Fatal(err)
				}
				if err := <-done; !errors.Is(err, ErrReset) || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("write: %v, want a reset", err)
				}
				b.Close()
				waitStreams(t, opener, accepter)
			})
		})
	}
}

// waitStreams waits until both ends have forgotten every stream.
func waitStreams(t testing.TB, sessions ...*session) {
	t.Helper()
	for _, s := range sessions {
		for i := 0; s.streams() > 0 || s.mux.Unread() != 0; i++ {
			if i > 500 {
				t.Fatalf("%d streams and %d unread bytes are left", s.streams(), s.mux.Unread())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// A reset drops what is under way and is never seen as the end of the data,
// whatever was sent before it.
func TestResetIsNotEOF(t *testing.T) {
	for range 50 {
		opener, accepter := sessionPair(t)
		a, b := streamPair(t, opener, accepter)
		if _, err := b.Write([]byte("part of the answer")); err != nil {
			t.Fatal(err)
		}
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		_, err := io.ReadAll(a)
		if !errors.Is(err, ErrReset) {
			t.Fatalf("read: %v, want a reset", err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("read after own reset: %v", err)
		}
		a.Close()
		waitStreams(t, opener, accepter)
	}
}

// What was written before Close arrives, although the closer reads no more.
func TestCloseDelivers(t *testing.T) {
	opener, accepter := sessionPair(t)
	want := bytes.Repeat([]byte("all of it "), 10_000)
	for range 20 {
		a, b := streamPair(t, opener, accepter)
		go func() {
			_, _ = b.Write(want)
			b.Close()
		}()
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(want))
		}
		a.Close()
	}
	waitStreams(t, opener, accepter)
}

// yamux calls the loss of a session the end of the data.
func TestLostSessionIsNotEOF(t *testing.T) {
	a, b := tunneltest.Pipe()
	opener, accepter := sessionsOver(t, a, b)
	s1, s2 := streamPair(t, opener, accepter)
	if _, err := s2.Write([]byte("half an ans")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s1, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	_, err := io.ReadAll(s1)
	if !errors.Is(err, ErrSessionLost) || !errors.Is(err, ErrReset) {
		t.Errorf("read: %v, want the loss of the session", err)
	}
	if _, err := s1.Write([]byte("x")); !errors.Is(err, ErrSessionLost) {
		t.Errorf("write: %v, want the loss of the session", err)
	}
	s1.Close()
	s2.Close()
}

// yamux ends the session 75 s after one stream was not accepted.
func TestOneStuckStreamSparesSession(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		opener, accepter := sessionPair(t)
		ctx := context.Background()
		stuck, err := opener.mux.Open(ctx) // nobody accepts yet
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		b1, err := accepter.mux.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a2, b2 := streamPair(t, opener, accepter)
		if _, err := a2.Write([]byte("alive")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b2, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		for _, s := range []stream{stuck, b1, a2, b2} {
			s.Close()
		}
		waitStreams(t, opener, accepter)
	})
}

func TestOpenHonoursContextWhileStalled(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		opener, accepter := sessionsOver(t, a, b)
		opener.live.stop()
		accepter.live.stop()
		a.(*tunneltest.Conn).Freeze()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		var err error
		for err == nil { // until the buffers below are full
			_, err = opener.mux.Open(ctx)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open: %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("took %v", d)
		}
	})
}
