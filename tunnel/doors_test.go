package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// plainDoor opens a door without TLS for one cluster, agents too.
func (w *world) plainDoor(address, cluster string) {
	w.Helper()
	l, err := w.net.Host("server").Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.server.ServeDoor(l, Door{Agents: FixedCluster(cluster), Clients: FixedCluster(cluster)})
	}()
	w.Cleanup(func() { w.server.Close(); <-done })
}

// say sends bytes to a door and returns the first line of the answer.
func (w *world) say(address, text string) (status string, err error) {
	w.Helper()
	c, err := w.net.Host("client").Dial(context.Background(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// Malformed, oversized and hostile heads are answered with what is wrong, and
// cost nobody else anything.
func TestHostileHeads(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plainDoor("server:80", "a")
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		steady, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		upgrade := "Connection: Upgrade\r\nUpgrade: rhizome/1\r\n"
		for _, tt := range []struct{ name, text, want string }{
			{"kube-apiserver's exact bytes", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "HTTP/1.1 200"},
			{"HTTP/1.0", "CONNECT 10.0.0.7:10250 HTTP/1.0\r\n\r\n", "HTTP/1.1 200"},
			{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 505"},
			{"garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "HTTP/1.1 400"},
			{"huge head", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 70_000), "HTTP/1.1 431"},
			{"no port", "CONNECT 10.0.0.7 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
			{"body", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 400"},
			{"smuggling", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "HTTP/1.1 400"},
			{"absolute https", "GET https://10.0.0.7/ HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
			{"another path", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404"},
			{"session without upgrade", "GET /v1/session HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 426"},
			{"a newer upgrade", "GET /v1/session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: rhizome/2\r\n\r\n", "HTTP/1.1 426"},
			{"upgrade in HTTP/1.0", "GET /v1/session HTTP/1.0\r\n" + upgrade + "\r\n", "HTTP/1.1 505"},
			{"claims another cluster", "GET /v1/session HTTP/1.1\r\nHost: x\r\n" + upgrade + "Rhizome-Cluster: b\r\n\r\n", "HTTP/1.1 403"},
			{"slow head", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\n", "HTTP/1.1 408"},
			{"refused", "CONNECT 10.0.0.7:1 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 502 connection_refused"},
		} {
			got, err := w.say("server:80", tt.text)
			if err != nil || !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s: %q, %v; want %s", tt.name, got, err, tt.want)
			}
		}
		if err := roundTrip(steady); err != nil {
			t.Errorf("the stream that was open meanwhile: %v", err)
		}
		w.until("nothing is left of them", func() bool { st := w.server.Clusters()[0]; return st.Streams == 0 && st.Clients == 0 })
	})
}

// A flood of slow connections does not keep an honest one out.
func TestSlowloris(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(s *Server) { s.Limits.Handshakes = 10 })
		w.plainDoor("server:80", "a")
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		for range 50 {
			c, err := w.net.Host("attacker").Dial(t.Context(), "tcp", "server:80")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "CONNECT 10.0.0.7")
		}
		if got, err := w.say("server:80", "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || !strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("%q, %v", got, err)
		}
		time.Sleep(11 * time.Second)
		if n := len(w.log.lines("refused")); n < 10 || n > 50 {
			t.Errorf("%d refusals logged", n)
		}
	})
}

// Whatever an agent or a server says after the upgrade, it costs only its own
// session.
func TestHostileSessions(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plainDoor("server:80", "a")
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		hello := func(edit func(*helloMessage)) []byte {
			h := helloMessage{MinVersion: 1, MaxVersion: 1, Features: features(), ID: "hostile", Nonce: newNonce()}
			edit(&h)
			b, err := encodeMessage(typeHello, h)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		many := make([]string, maxServes+1)
		for i := range many {
			many[i] = "10.0.0.0/8"
		}
		for name, first := range map[string][]byte{
			"silence":           nil,
			"no HELLO":          {byte(typePing), 0, 0, 2, '{', '}'},
			"too long":          {byte(typeHello), 0xff, 0xff, 0xff},
			"not JSON":          {byte(typeHello), 0, 0, 3, 'x', 'y', 'z'},
			"cut short":         {byte(typeHello), 0, 0, 30, '{'},
			"BYE":               {byte(typeBye), 0, 0, 2, '{', '}'},
			"no id":             hello(func(h *helloMessage) { h.ID = "" }),
			"id with a newline": hello(func(h *helloMessage) { h.ID = "a\nlevel=INFO" }),
			"short nonce":       hello(func(h *helloMessage) { h.Nonce = "1" }),
			"version 0":         hello(func(h *helloMessage) { h.MinVersion = 0 }),
			"newer only":        hello(func(h *helloMessage) { h.MinVersion, h.MaxVersion = 7, 9 }),
			"huge label":        hello(func(h *helloMessage) { h.Labels = map[string]string{"k": strings.Repeat("v", 1000)} }),
			"many destinations": hello(func(h *helloMessage) { h.Serves = many }),
			"bad destination":   hello(func(h *helloMessage) { h.Serves = []string{"a b"} }),
			"a second HELLO":    append(hello(func(*helloMessage) {}), hello(func(*helloMessage) {})...),
			"broken RESET":      append(hello(func(*helloMessage) {}), byte(typeReset), 0, 0, 1, 'x'),
		} {
			c := w.upgraded("server:80")
			m, err := newYamux(c, yamuxConfig{maxStreams: 10, later: func(f func()) { go f() }, sendReset: func(resetMessage) {}})
			if err != nil {
				t.Fatal(err)
			}
			control, err := m.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = control.Write(first)
			if name == "cut short" {
				_ = control.CloseWrite()
			}
			start := time.Now()
			select {
			case <-m.Done():
			case <-time.After(time.Minute):
				t.Errorf("%s: the session lives on", name)
			}
			if d := time.Since(start); name != "silence" && d > time.Second {
				t.Errorf("%s: it took %v", name, d)
			}
			_ = m.Close(nil)
		}
		// Raw bytes in the place of yamux.
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 100), "\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01", "\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00"} {
			c := w.upgraded("server:80")
			_, _ = io.WriteString(c, text)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%q: the session lives on", text)
			}
			c.Close()
		}
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Errorf("the honest agent: %v", err)
		}
	})
}

// upgraded is a connection that a plain door has switched to a session.
func (w *world) upgraded(address string) net.Conn {
	w.Helper()
	c, err := w.net.Host("hostile").Dial(context.Background(), "tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	r := &connect.Request{Method: http.MethodGet, Target: sessionPath, Host: "server", Header: make(http.Header)}
	early, err := requestUpgrade(c, r, "", nil)
	if err != nil {
		w.Fatal(err)
	}
	return withEarly(c, early)
}

// An older and a newer peer are understood on either side.
func TestVersionSkew(t *testing.T) {
	for _, tt := range []struct {
		name  string
		older func(*helloMessage)
		works bool
	}{
		{"older, without features", func(h *helloMessage) { h.Features = nil }, true},
		{"newer, with more", func(h *helloMessage) { h.MaxVersion = 9; h.Features = append(h.Features, "teleport") }, true},
		{"newer, which left version 1 behind", func(h *helloMessage) { h.MinVersion, h.MaxVersion = 2, 9 }, false},
	} {
		for _, side := range []string{"server", "agent"} {
			tunneltest.Bubble(t, func(t *testing.T) {
				a, b := tunneltest.Pipe()
				config := func(id string) sessionConfig {
					c := sessionConfig{opener: id == "server", maxStreams: 100, log: (&Server{}).logger()}
					c.hello = helloMessage{MinVersion: minVersion, MaxVersion: maxVersion, Features: features(), ID: id, Nonce: newNonce()}
					if id == side {
						tt.older(&c.hello)
					}
					return c
				}
				var server, agent *session
				var errs [2]error
				var wait sync.WaitGroup
				wait.Go(func() {
					if server, errs[0] = newSession(t.Context(), a, config("server")); errs[0] == nil {
						errs[0] = server.helloServer(t.Context())
					}
				})
				wait.Go(func() {
					if agent, errs[1] = newSession(t.Context(), b, config("agent")); errs[1] == nil {
						errs[1] = agent.helloAgent(t.Context(), func(*helloMessage) error { return nil })
					}
				})
				wait.Wait()
				if !tt.works {
					if errs[0] == nil || errs[1] == nil || !strings.Contains(errs[0].Error()+errs[1].Error(), "version") {
						t.Errorf("%s %s: %v", tt.name, side, errs)
					}
					server.close(nil)
					agent.close(nil)
					return
				}
				if err := errors.Join(errs[:]...); err != nil {
					t.Fatalf("%s %s: %v", tt.name, side, err)
				}
				if server.version != 1 || agent.version != 1 {
					t.Errorf("%s %s: versions %d, %d", tt.name, side, server.version, agent.version)
				}
				wait.Go(func() { _ = server.run() })
				wait.Go(func() { _ = agent.run() })
				server.send(messageType(200), map[string]string{"from": "the future"})
				s1, s2 := streamPair(t, server, agent)
				go func() {
					_, _ = io.Copy(s2, s2)
					s2.Close()
				}()
				if err := roundTrip(s1); err != nil {
					t.Errorf("%s %s: %v", tt.name, side, err)
				}
				server.close(nil)
				agent.close(nil)
				wait.Wait()
			})
		}
	}
}

// The old direction: the seed dials an agent that listens.
func TestDialAgent(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		l := w.listen("agent-1:4314")
		a := &Agent{ID: "agent-1", DialTarget: w.net.Host("agent-1").Dial, Logger: w.logger(), Cluster: "a"}
		served := make(chan error, 1)
		go func() { served <- a.Serve(context.Background(), l) }()
		dial := func(config *tls.Config) func(context.Context) (net.Conn, error) {
			return func(ctx context.Context) (net.Conn, error) {
				raw, err := w.net.Host("server").Dial(ctx, "tcp", "agent-1:4314")
				if err != nil {
					return nil, err
				}
				c := tls.Client(raw, config)
				if err := c.HandshakeContext(ctx); err != nil {
					raw.Close()
					return nil, err
				}
				return c, nil
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		dialled := make(chan error, 3)
		go func() { dialled <- w.server.DialAgent(ctx, "a", dial(w.clientTLS("seed")), nil) }()
		w.ready("a", 1)
		for range 3 {
			c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatal(err)
			}
			if err := roundTrip(c); err != nil {
				t.Error(err)
			}
			w.net.Cut("agent-1") // it comes back
		}
		// A server without a certificate, and one that wants another cluster.
		bare := w.clientTLS("x")
		bare.Certificates = nil
		go func() { dialled <- w.server.DialAgent(ctx, "c", dial(bare), nil) }()
		go func() { dialled <- w.server.DialAgent(ctx, "b", dial(w.clientTLS("seed")), nil) }()
		time.Sleep(time.Minute)
		for _, cluster := range []string{"b", "c"} {
			if n := w.agents(w.server, cluster); n != 0 {
				t.Errorf("%d agents in cluster %s", n, cluster)
			}
		}
		for _, parts := range [][]string{{"no session with the agent", "cluster=c", "401"}, {"no session with the agent", "cluster=b", "403"}} {
			if !w.log.has(parts...) {
				t.Errorf("no log line with %q\n%s", parts, w.log)
			}
		}
		cancel()
		for range 3 {
			if err := <-dialled; !errors.Is(err, context.Canceled) {
				t.Errorf("DialAgent: %v", err)
			}
		}
		if err := a.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrAgentClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// The doors also work inside an http.Server, with its limits.
func TestServeHTTP(t *testing.T) {
	w := newWorld(t, nil)
	s := &Server{ID: "mounted", Logger: w.logger()}
	hs := httptest.NewUnstartedServer(s)
	hs.TLS = w.serverTLS()
	hs.StartTLS()
	defer hs.Close()
	defer s.Close()
	address := hs.Listener.Addr().String()
	w.agent("a", "agent-1", func(a *Agent) {
		a.Servers = []string{"https://" + address}
		a.Dial = nil
	})
	w.until("an agent", func() bool { return s.HasAgent("a") })
	d := w.client("a")
	d.Address, d.Forward = address, nil
	c, err := d.DialContext(t.Context(), "tcp", "10.0.0.7:10250")
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(c); err != nil {
		t.Error(err)
	}
	d.TLS.Certificates = nil
	if _, err := d.DialContext(t.Context(), "tcp", "10.0.0.7:10250"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a certificate: %v", err)
	}
}

// Quotas hold one cluster and leave the other alone.
func TestQuotas(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(s *Server) {
			s.Limits = Limits{StreamsPerSession: 4, Streams: 6, Agents: 2, DialsPerSecond: 20}
		})
		w.agent("a", "agent-1", nil)
		w.agent("b", "agent-1", nil)
		w.ready("a", 1)
		w.ready("b", 1)
		dial := func(cluster string) (net.Conn, error) {
			return w.server.Dialer(cluster)(t.Context(), "tcp", "10.0.0.7:10250")
		}
		var open []net.Conn
		fill := func(n int) {
			t.Helper()
			for range n {
				c, err := dial("a")
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, c)
			}
		}
		fill(4)
		if _, err := dial("a"); !errors.Is(err, connect.ErrLimit) {
			t.Errorf("a fifth stream of one session: %v", err)
		}
		w.agent("a", "agent-2", nil)
		w.ready("a", 2)
		fill(2)
		_, err := dial("a")
		var de *DialError
		if !errors.As(err, &de) || de.Err.Reason != connect.ErrLimit || de.Err.RetryAfter <= 0 {
			t.Errorf("a seventh stream of the cluster: %v", err)
		}
		if _, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250"); err == nil || !strings.Contains(err.Error(), "429") {
			t.Errorf("at the door: %v", err)
		}
		w.agent("a", "agent-3", nil)
		w.until("the third agent is refused", func() bool { return w.log.has("agent refused", "limit") })
		w.ready("a", 2)
		for _, c := range open {
			if err := roundTrip(c); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		limited := 0
		for range 50 {
			c, err := dial("a")
			switch {
			case err == nil:
				c.Close()
			case errors.Is(err, connect.ErrLimit):
				limited++
			default:
				t.Error(err)
			}
		}
		if limited < 25 || limited > 46 {
			t.Errorf("%d of 50 dials at once were over the rate of 20 a second", limited)
		}
		c, err := dial("b")
		if err != nil {
			t.Fatalf("the other cluster: %v", err)
		}
		c.Close()
	})
}

// What agents send and nobody reads is bounded: new dials are refused, then
// the largest stream is reset, and the readers of others go on.
func TestReceiveMemory(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.ReceiveMemory = 1 << 20 })
	w.target("10.0.0.8:80", func(c net.Conn) {
		_, _ = io.Copy(flood{c}, zeros{})
	})
	w.agent("a", "agent-1", nil)
	w.ready("a", 1)
	dial := func(target string) (net.Conn, error) {
		return w.server.Dialer("a")(t.Context(), "tcp", target)
	}
	quiet, err := dial("10.0.0.7:10250")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	refused := false
	for i := 0; i < 40 && !refused; i++ {
		c, err := dial("10.0.0.8:80")
		if err != nil {
			refused = errors.Is(err, connect.ErrLimit)
			if !refused {
				t.Fatal(err)
			}
			break
		}
		open = append(open, c)
		w.until("it has flooded", func() bool {
			return w.server.Clusters()[0].Unread >= min(int64(len(open))*streamWindow*9/10, 1<<20)
		})
	}
	if !refused {
		t.Errorf("%d streams flood, and dials go on", len(open))
	}
	if got := w.server.Clusters()[0].Unread; got > 2<<20+growthStep {
		t.Errorf("%d bytes are unread", got)
	}
	if err := roundTrip(quiet); err != nil {
		t.Errorf("a stream that was read: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
	w.until("nothing is unread", func() bool { return w.server.Clusters()[0].Unread == 0 })
}

// flood hides the fast paths of a conn; zeros never ends.
type flood struct{ io.Writer }
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// The largest stream goes when a session holds twice what it may.
func TestLargestStreamIsReset(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.ReceiveMemory = 600 << 10 })
	start := make(chan struct{})
	w.target("10.0.0.8:80", func(c net.Conn) {
		<-start
		_, _ = io.Copy(flood{c}, zeros{})
	})
	w.agent("a", "agent-1", nil)
	w.ready("a", 1)
	var open []net.Conn
	for range 12 { // 3 MiB of windows, 1200 KiB allowed
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.8:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	close(start)
	reset := func() (n int) {
		for _, c := range open {
			if _, err := c.Write([]byte("x")); err != nil {
				n++
			}
		}
		return n
	}
	w.until("some are reset", func() bool { return reset() > 0 })
	w.until("it is bounded", func() bool { return w.server.Clusters()[0].Unread < 2*600<<10+growthStep })
	if n := reset(); n == len(open) {
		t.Error("all of them were reset")
	}
}
