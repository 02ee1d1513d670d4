package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

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
		time.Sleep(time.Minute + admit.Every + admit.Grace + admit.Every)
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
