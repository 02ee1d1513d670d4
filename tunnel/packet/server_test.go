package packet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A client's packets come back through TLS, in fake time, in order.
func TestClientAndServer(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		marks := make(chan uint32, 1000)
		links := make(chan *Conn, 1)
		k := w.client("one", func(k *Client) {
			k.Serve = func(ctx context.Context, c *Conn) error {
				links <- c
				return w.wait(ctx, c, func(f Frame) { marks <- markOf(f) })
			}
		})
		stop, ended := w.start(k)
		c := <-links
		if c.below == nil {
			t.Error("the records of TLS are not gathered")
		}
		for i := range uint32(10) {
			if err := c.WriteBatch(linkBatch(50, 1400, i*50)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint32(500) {
			if m := <-marks; m != i {
				t.Fatalf("mark %d, want %d", m, i)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		all := w.server.Links()
		if len(all) != 1 || all[0].Identity.Cluster != "a" || all[0].Identity.Name != "one" || all[0].Remote.Name != "one" ||
			all[0].Stats.ReadPackets != 500 || all[0].Addr.String() != c.LocalAddr().String() {
			t.Errorf("%+v", all)
		}
		if c.Remote().ID != w.server.hello().ID {
			t.Error("the server's id changes")
		}
		stop()
		if err := <-ended; err != errLinkTest {
			t.Error(err)
		}
		synctest.Wait()
		if n := len(w.server.Links()); n != 0 {
			t.Errorf("%d links are left", n)
		}
		w.server.Close()
	})
}

// Everything that is refused, by status.
func TestRefusals(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, func(s *Server) {
			auth := s.Auth
			s.Auth = func(p *Peer) (Identity, error) {
				if p.Request.Header.Get("X-Odd") != "" {
					return Identity{}, errLinkTest
				}
				return auth(p)
			}
			s.MaxLinksPerName = 1
		})
		stop, _ := w.start(w.client("one", nil))
		defer stop()
		time.Sleep(time.Second)
		good := w.tlsFor(tunneltest.CertOptions{CommonName: "two", Cluster: "a"})
		const head = "GET /v1/packets HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: rhizome-packet/1\r\n"
		for _, tt := range []struct {
			name    string
			tls     *tls.Config
			request string
			status  int
		}{
			{"no certificate", &tls.Config{RootCAs: w.ca.Pool()}, head, 401},
			{"no certificate, any path", &tls.Config{RootCAs: w.ca.Pool()}, "GET / HTTP/1.1\r\nHost: x\r\n", 401},
			{"a token", good, head + "Authorization: Bearer x\r\n", 401},
			{"odd", good, head + "X-Odd: 1\r\n", 401},
			{"another cluster", w.tlsFor(tunneltest.CertOptions{CommonName: "two", Cluster: "b"}), head, 403},
			{"an operator", w.tlsFor(tunneltest.CertOptions{CommonName: "two", Cluster: "*"}), head, 403},
			{"no name", w.tlsFor(tunneltest.CertOptions{Cluster: "a"}), head, 403},
			{"another path", good, strings.Replace(head, "packets", "session", 1), 404},
			{"CONNECT", good, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n", 404},
			{"another version", good, strings.Replace(head, "packet/1", "packet/2", 1), 426},
			{"no upgrade", good, "GET /v1/packets HTTP/1.1\r\nHost: x\r\n", 426},
			{"HTTP/1.0", good, strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1), 505},
			{"malformed", good, "GET\r\n", 400},
			{"too large", good, head + "X: " + strings.Repeat("x", 70<<10) + "\r\n", 431},
			{"too many of one name", w.tlsFor(tunneltest.CertOptions{CommonName: "one", Cluster: "a"}), head, 429},
		} {
			c, err := w.net.Host("stranger").Dial(t.Context(), "tcp", "server:443")
			if err != nil {
				t.Fatal(err)
			}
			config := tt.tls.Clone()
			config.ServerName = "server"
			config.NextProtos = []string{"h2", "http/1.1"}
			secure := tls.Client(c, config)
			go func() { _, _ = io.WriteString(secure, tt.request+"\r\n") }()
			res, err := http.ReadResponse(bufio.NewReader(secure), nil)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			} else if res.StatusCode != tt.status {
				t.Errorf("%s: %s", tt.name, res.Status)
			} else if tt.status == 426 && res.Header.Get("Upgrade") != "rhizome-packet/1" {
				t.Errorf("%s: %v", tt.name, res.Header)
			} else if tt.status == 429 && res.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %v", tt.name, res.Header)
			}
			if p := secure.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
				t.Errorf("%s: ALPN %q", tt.name, p)
			}
			c.Close()
		}
		stop()
		w.server.Close()
	})
}

// Who sends its request, or its HELLO, one byte each second is cut off; nobody waits
// for it, and too many strangers cost themselves.
func TestSlowStrangers(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, func(s *Server) { s.MaxStrangers = 20; s.TLS = nil; s.Auth = anybody })
		open := new(atomic.Int64)
		var work sync.WaitGroup
		stage := []string{"GET /v1/packets HTTP/1.1\r\nHost: x\r\n", "GET /v1/packets HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: rhizome-packet/1\r\n\r\n"}
		start := time.Now()
		for i := range 60 {
			c, err := w.net.Host(fmt.Sprintf("stranger%d", i%3)).Dial(t.Context(), "tcp", "server:443")
			if err != nil {
				t.Fatal(err)
			}
			open.Add(1)
			work.Go(func() {
				defer open.Add(-1)
				defer c.Close()
				_, _ = io.WriteString(c, stage[i%2])
				work.Go(func() { _, _ = io.Copy(io.Discard, c) })
				for {
					time.Sleep(time.Second)
					if _, err := c.Write([]byte{typeHello}); err != nil {
						return
					}
				}
			})
		}
		k := w.client("one", func(k *Client) { k.TLS = nil })
		s := newStates(k)
		stop, _ := w.start(k)
		defer stop()
		c := <-s.up
		if d := time.Since(start); d > time.Second {
			t.Errorf("an honest client waited %v", d)
		}
		time.Sleep(2 * time.Second)
		if n := open.Load(); n > 21 {
			t.Errorf("%d strangers", n)
		}
		time.Sleep(20 * time.Second)
		if n := open.Load(); n != 0 {
			t.Errorf("%d strangers are left after 22 s", n)
		}
		if c.failure() != nil {
			t.Error(c.failure())
		}
		work.Wait()
		stop()
		w.server.Close()
	})
}

func anybody(p *Peer) (Identity, error) { return Identity{Cluster: "a", Name: p.Request.Host}, nil }

// The server says goodbye in order: DRAIN, a second, BYE, and a client comes again at
// once, to a server that is there again.
func TestShutdown(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		second := w.serve("server:444")
		drains := make(chan time.Time, 10)
		k := w.client("one", func(k *Client) {
			k.Serve = func(ctx context.Context, c *Conn) error {
				c.OnDrain(func() { drains <- time.Now() })
				return w.wait(ctx, c, nil)
			}
		})
		s := newStates(k)
		stop, _ := w.start(k)
		<-s.up
		time.Sleep(2 * time.Minute)
		start := time.Now()
		if err := w.server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		if at := <-drains; at != start {
			t.Errorf("DRAIN after %v", at.Sub(start))
		}
		if err := <-second; err != ErrServerClosed || !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := w.server.Serve(w.listen("server:1")); err != ErrServerClosed {
			t.Error(err)
		}
		synctest.Wait()
		if all, at := s.list(); len(all) < 2 || !strings.Contains(all[1], ByeShutdown) || at[1] != start.Add(time.Second) {
			t.Errorf("%v %v", all, at)
		}
		w.server = &Server{TLS: w.server.TLS, Hello: tunHello(), Admit: w.server.Admit, DrainTimeout: -1}
		w.serve("server:443")
		<-s.up
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it came again after %v", d)
		}
		// Without a bound of its own, the context's holds; with no links nothing does.
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start = time.Now()
		_ = w.server.Shutdown(ctx)
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		stop()
		start = time.Now()
		_ = w.server.Shutdown(t.Context())
		_ = new(Server).Shutdown(t.Context())
		_ = new(Server).Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("without links, Shutdown took %v", d)
		}
	})
}

// Shutdown that finds its links gone does not wait.
func TestShutdownDrained(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, func(s *Server) { s.DrainTimeout = time.Minute })
		k := w.client("one", func(k *Client) {
			k.Serve = func(ctx context.Context, c *Conn) error {
				c.OnDrain(func() { time.AfterFunc(5*time.Second, func() { c.Close() }) })
				return w.wait(ctx, c, nil)
			}
		})
		s := newStates(k)
		stop, _ := w.start(k)
		<-s.up
		start := time.Now()
		_ = w.server.Shutdown(t.Context())
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		stop()
	})
}

// A few identities that take all the links which they may leave some for the others.
func TestLinksAreShared(t *testing.T) {
	s := &Server{MaxLinks: 256, MaxLinksPerName: 64}
	s.init()
	defer s.cancel(nil)
	enter := func(name string) error { return s.enter(&serverLink{identity: Identity{Cluster: "a", Name: name}}) }
	for i := range 64 {
		for _, name := range []string{"one", "two", "three", "four"} {
			if err := enter(name); err != nil && i < 50 {
				t.Fatalf("%s, link %d: %v", name, i, err)
			}
		}
	}
	for i := range 10 {
		if err := enter(fmt.Sprint("other ", i)); err != nil {
			t.Errorf("another, of %d links: %v", len(s.links), err)
		}
	}
	small := &Server{MaxLinks: 2}
	small.init()
	defer small.cancel(nil)
	for i, want := range []bool{true, true, false} {
		if err := small.enter(&serverLink{}); (err == nil) != want {
			t.Errorf("link %d of a server with two: %v", i, err)
		}
	}
}

// A credential that does not hold any more has 30 s, with DRAIN, and then BYE denied.
func TestCredentialEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		k := w.client("one", func(k *Client) {
			k.TLS = w.tlsFor(tunneltest.CertOptions{CommonName: "one", Cluster: "a", NotAfter: time.Now().Add(time.Hour)})
		})
		s := newStates(k)
		stop, _ := w.start(k)
		c := <-s.up
		start := time.Now()
		time.Sleep(time.Hour + 11*time.Second)
		if c.failure() != nil || !c.Draining() {
			t.Errorf("%v, draining %v", c.failure(), c.Draining())
		}
		<-c.Done()
		var e *ByeError
		if d := time.Since(start); !errors.As(c.failure(), &e) || e.Code != ByeDenied || d < time.Hour+30*time.Second || d > time.Hour+50*time.Second {
			t.Errorf("%v after %v", c.failure(), d)
		}
		time.Sleep(time.Minute)
		if all, _ := s.list(); len(all) < 3 || len(all) > 40 {
			t.Errorf("%d tries in a minute: %v", len(all), all)
		}
		stop()
		w.server.Close()
	})
}

// A client that has a new certificate when the old one runs out comes back at once, and
// not after the time for those who are refused.
func TestCredentialRenewed(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, nil)
		k := w.client("one", func(k *Client) {
			old := w.tlsFor(tunneltest.CertOptions{CommonName: "one", Cluster: "a", NotAfter: time.Now().Add(time.Hour)}).Certificates[0]
			renewed := w.tlsFor(tunneltest.CertOptions{CommonName: "one", Cluster: "a"}).Certificates[0]
			start := time.Now()
			k.TLS = &tls.Config{RootCAs: w.ca.Pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if time.Since(start) < time.Minute {
					return &old, nil
				}
				return &renewed, nil
			}}
		})
		s := newStates(k)
		stop, _ := w.start(k)
		<-(<-s.up).Done()
		ended := time.Now()
		<-s.up
		if d := time.Since(ended); d > time.Second {
			t.Errorf("back after %v", d)
		}
		stop()
		w.server.Close()
	})
}

// An Admit that refuses is told to the client before it has a link.
func TestAdmitRefuses(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newLinkWorld(t, func(s *Server) {
			s.Admit = func(_ context.Context, id Identity, remote Hello) (ServeFunc, error) {
				return nil, fmt.Errorf("%s may not be %s", id.Name, remote.Name)
			}
		})
		k := w.client("one", func(k *Client) { k.Hello.Name = "two" })
		s := newStates(k)
		stop, _ := w.start(k)
		time.Sleep(time.Second)
		if all, _ := s.list(); len(all) != 1 || !strings.Contains(all[0], "one may not be two") {
			t.Errorf("%v", all)
		}
		stop()
		w.server.Close()
		if log := w.logged(); !strings.Contains(log, "link refused") {
			t.Error(log)
		}
	})
}
