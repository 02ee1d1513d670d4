package tunnel

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Peers cannot fill the disk: the lines that they cause are limited, and the
// next one says how many are missing.
func TestLimitLog(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var b logBuffer
		log := limitLog(slog.New(slog.NewTextHandler(&b, nil)), &logLimit{perSecond: 5}).With("cluster", "a")
		for range 100 {
			log.Info("flood")
		}
		if n := len(b.lines("flood")); n != 5 {
			t.Errorf("%d lines at once, want 5", n)
		}
		time.Sleep(time.Second)
		log.Info("after")
		if !b.has("after", "skipped=95", "cluster=a") {
			t.Errorf("no word of what was skipped\n%s", &b)
		}
	})
}

// addrConn is a conn from an address.
type addrConn struct {
	net.Conn
	from string
}

func (c addrConn) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.from)
	return a
}

// A flood hits itself: the oldest stranger of the network that has most goes.
func TestFloodHitsItself(t *testing.T) {
	s := strangers{limit: 3}
	gone := func(c net.Conn) bool {
		_, err := c.Write(nil)
		return err != nil
	}
	enter := func(from string) (net.Conn, func()) {
		c, far := tunneltest.Pipe()
		t.Cleanup(func() { c.Close(); far.Close() })
		return c, s.enter(addrConn{c, from})
	}
	honest, known := enter("10.1.1.1:1000")
	first, _ := enter("10.9.9.1:1")
	second, secondKnown := enter("10.9.9.2:1")
	third, _ := enter("10.9.9.3:1") // one too many
	if gone(honest) || !gone(first) || gone(second) || gone(third) {
		t.Errorf("gone: honest %v, flood %v %v %v", gone(honest), gone(first), gone(second), gone(third))
	}
	known()
	secondKnown()
	if s.all != 1 || len(s.from) != 1 {
		t.Errorf("%d strangers of %d networks are left", s.all, len(s.from))
	}
}

// An agent that takes no more streams sends the dial on to another one.
func TestFullAgentSendsDialOn(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(s *Server) { s.Picker = func(string, []Candidate) int { return 0 } })
		w.agent("a", "agent-1", func(a *Agent) { a.MaxStreams = 1 })
		w.agent("a", "agent-2", nil)
		w.ready("a", 2)
		for i := range 6 {
			c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatalf("dial %d: %v", i, err)
			}
			defer c.Close()
		}
	})
}

// In the old direction credentials expire as well.
func TestDialledAgentExpires(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		expires := time.Now().Add(5 * time.Minute)
		raw, err := w.net.Host("agent-1").Listen("tcp", "agent-1:4314")
		if err != nil {
			t.Fatal(err)
		}
		l := tls.NewListener(raw, &tls.Config{
			Certificates: []tls.Certificate{w.cert(tunneltest.CertOptions{DNS: []string{"server"}, Server: true, NotAfter: expires})},
		})
		a := &Agent{ID: "agent-1", AuthServer: func(*Peer) error { return nil }, Logger: w.logger()}
		served := make(chan struct{})
		go func() { defer close(served); _ = a.Serve(context.Background(), l) }()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.server.DialAgent(ctx, "a", func(ctx context.Context) (net.Conn, error) {
				c, err := w.net.Host("server").Dial(ctx, "tcp", "agent-1:4314")
				if err != nil {
					return nil, err
				}
				t := tls.Client(c, w.clientTLS("seed"))
				if err := t.HandshakeContext(ctx); err != nil {
					c.Close()
					return nil, err
				}
				return t, nil
			}, nil)
		}()
		w.ready("a", 1)
		time.Sleep(4 * time.Minute)
		if w.agents(w.server, "a") != 1 {
			t.Error("gone before its time")
		}
		time.Sleep(time.Minute + recheckEvery + recheckGrace + recheckEvery)
		if n := w.agents(w.server, "a"); n != 0 || !w.log.has("credential no longer holds") {
			t.Errorf("%d agents after the certificate has expired\n%s", n, strings.Join(w.log.lines("credential"), ""))
		}
		cancel()
		<-done
		a.Close()
		<-served
	})
}

// Two servers with one id do not take an agent from each other for ever.
func TestTwoServersWithOneID(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		raw, err := w.net.Host("agent-1").Listen("tcp", "agent-1:4314")
		if err != nil {
			t.Fatal(err)
		}
		a := &Agent{ID: "agent-1", AuthServer: func(*Peer) error { return nil }, Logger: w.logger()}
		served := make(chan struct{})
		go func() { defer close(served); _ = a.Serve(context.Background(), raw) }()
		other := &Server{ID: "server", Logger: w.logger()}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{}, 2)
		for _, s := range []*Server{w.server, other} {
			go func() {
				_ = s.DialAgent(ctx, "a", func(ctx context.Context) (net.Conn, error) {
					return w.net.Host("server").Dial(ctx, "tcp", "agent-1:4314")
				}, nil)
				done <- struct{}{}
			}()
		}
		time.Sleep(10 * time.Minute)
		if n := len(w.log.lines("server connected")); n < 2 || n > 40 {
			t.Errorf("%d sessions in ten minutes", n)
		}
		cancel()
		<-done
		<-done
		other.Close()
		a.Close()
		<-served
	})
}
