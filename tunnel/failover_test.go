package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A frozen agent (no FIN) is suspected within a second of a dial, and the dial
// moves to another agent.
func TestFrozenAgentIsSuspected(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(s *Server) { s.Picker = func(string, []Candidate) int { return 0 } })
		w.agent("a", "agent-1", nil)
		w.agent("a", "agent-2", nil)
		w.ready("a", 2)
		time.Sleep(200 * time.Millisecond) // since something was heard
		w.net.Freeze("agent-1")
		start := time.Now()
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		if took > time.Second+50*time.Millisecond {
			t.Errorf("the dial took %v, want it to move after 1 s", took)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		if got := stateOf(w.server, "agent-1"); got != "suspect" {
			t.Errorf("agent-1 is %q", got)
		}
		// The next dial does not even try it.
		start = time.Now()
		c, err = w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("a dial beside a suspect took %v", took)
		}
		c.Close()
		// Three seconds after suspicion it is given up.
		w.until("agent-1 is given up", func() bool { return stateOf(w.server, "agent-1") == "" })
		if d := time.Since(start); d > 3*time.Second+100*time.Millisecond {
			t.Errorf("given up after %v", d)
		}
	})
}

func stateOf(s *Server, agent string) string {
	for _, c := range s.Clusters() {
		for _, a := range c.Agents {
			if a.ID == agent {
				return a.State
			}
		}
	}
	return ""
}

// Without a dial the PING finds a frozen agent.
func TestPingFindsFrozenAgent(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		time.Sleep(time.Minute)
		if rtt := w.server.Clusters()[0].Agents[0]; rtt.State != "ready" || rtt.Loss != 0 {
			t.Errorf("after a minute: %+v", rtt)
		}
		w.net.Freeze("agent-1")
		start := time.Now()
		w.until("it is given up", func() bool { return stateOf(w.server, "agent-1") == "" })
		if d := time.Since(start); d > 9*time.Second+100*time.Millisecond {
			t.Errorf("given up after %v, want at most 5 s + 1 s + 3 s", d)
		}
		if !w.log.has("agent disconnected", ErrAgentDead.Error()) {
			t.Error("the log does not say why")
		}
		w.net.Thaw("agent-1")
		w.ready("a", 1)
	})
}

// A busy session is not suspected because its PONG waits behind the data.
func TestBusySessionIsNotSuspected(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.target("10.0.0.8:80", func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 1000)); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.8:80")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, c) }()
		time.Sleep(time.Minute)
		if w.log.has("suspected") {
			t.Errorf("suspected\n%s", w.log)
		}
		c.Close()
	})
}

// A dial while no agent is there waits for the one that reconnects.
func TestDialWaitsForReconnect(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		time.Sleep(time.Minute)
		w.net.Cut("agent-1")
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
	})
}

func TestNoAgentComesBack(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		time.Sleep(time.Minute)
		a.Close()
		dial := func() (time.Duration, error) {
			start := time.Now()
			_, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			return time.Since(start), err
		}
		for _, want := range []time.Duration{5 * time.Second, 0} {
			took, err := dial()
			if !errors.Is(err, connect.ErrUnavailable) || took != want {
				t.Errorf("after %v: %v; want 503 after %v", took, err, want)
			}
			time.Sleep(2 * remembered) // then nobody is expected any more
		}
		if n := len(w.server.Clusters()); n != 0 {
			t.Errorf("%d clusters are remembered", n)
		}
	})
}

// After a restart of the server, requests find their agent again as soon as
// the outage was long, and none waits beyond its patience.
func TestServerRestart(t *testing.T) {
	for _, outage := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, nil)
			w.agent("a", "agent-1", nil)
			w.ready("a", 1)
			time.Sleep(2 * time.Minute)
			w.net.Cut("server")
			w.server.Close()
			time.Sleep(outage)
			w.startServer(nil)
			start := time.Now()
			c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatalf("outage %v: %v", outage, err)
			}
			if d := time.Since(start); d > max(outage, 200*time.Millisecond) {
				t.Errorf("outage %v: the first request took %v", outage, d)
			}
			if err := roundTrip(c); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShutdownDrains(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- w.server.Shutdown(context.Background()) }()
		time.Sleep(10 * time.Second)
		if _, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250"); !errors.Is(err, connect.ErrUnavailable) {
			t.Errorf("a dial while draining: %v", err)
		}
		if err := roundTrip(c); err != nil { // still alive
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if !w.log.has("agent agent-1", "drains the session", drainShutdown) {
			t.Errorf("the agent was not told\n%s", w.log)
		}
	})
}

func TestShutdownDeadline(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		if err := w.server.Shutdown(context.Background()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if d := time.Since(start); d != 25*time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		if _, err := io.ReadAll(c); err == nil {
			t.Error("the client of a stream that was cut off read a clean end")
		}
	})
}

func TestAgentShutdownDrains(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		w.agent("a", "agent-2", nil)
		w.ready("a", 2)
		done := make(chan error, 1)
		go func() { done <- a.Shutdown(context.Background()) }()
		w.ready("a", 1)
		time.Sleep(5 * time.Second)
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// One agent finds every server behind a name, and follows the name.
func TestAgentFollowsDNS(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		addresses := []string{"10.1.0.1", "fd00::1", "10.1.0.3"}
		var servers []*Server
		for i, ip := range addresses {
			s := &Server{ID: fmt.Sprintf("server-%d", i+1), Logger: w.logger()}
			w.serve(s, net.JoinHostPort(ip, "9443"))
			servers = append(servers, s)
		}
		connected := func() (n int) {
			for _, s := range servers {
				n += w.agents(s, "a")
			}
			return n
		}
		w.net.SetHost("tunnel.example", addresses[:2]...)
		w.agent("a", "agent-1", func(a *Agent) {
			a.Servers = []string{"https://tunnel.example:9443"}
			a.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
				return w.net.LookupNetIP(ctx, "ip", host)
			}
		})
		w.until("sessions with both", func() bool { return connected() == 2 })
		w.net.SetHost("tunnel.example", addresses[1:]...)
		w.until("a session with the new one", func() bool { return connected() == 3 })
		w.net.Cut("10.1.0.1") // its address is gone: it is not dialled again
		time.Sleep(time.Minute)
		if n := connected(); n != 2 {
			t.Errorf("%d sessions", n)
		}
	})
}

// Behind one address the agent redials until it has met all servers.
func TestAgentMeetsPeersBehindLoadBalancer(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ids := []string{"server-1", "server-2", "server-3"}
		var servers []*Server
		for i, id := range ids {
			s := &Server{ID: id, Logger: w.logger()}
			s.SetPeers(ids)
			w.serve(s, fmt.Sprintf("10.1.0.%d:9443", i+1))
			servers = append(servers, s)
		}
		var mu sync.Mutex
		dials := 0
		balance := func(ctx context.Context, network, _ string) (net.Conn, error) {
			mu.Lock()
			dials++
			to := fmt.Sprintf("10.1.0.%d:9443", 1+(dials*dials/3)%3) // not in turn
			mu.Unlock()
			return w.net.Host("agent-1").Dial(ctx, network, to)
		}
		w.agent("a", "agent-1", func(a *Agent) {
			a.Servers = []string{"https://lb.example:9443"}
			a.Dial = balance
			a.TLS.ServerName = "server"
		})
		all := func() bool {
			for _, s := range servers {
				if w.agents(s, "a") != 1 {
					return false
				}
			}
			return true
		}
		w.until("a session with each", all)
		mu.Lock()
		before := dials
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		if dials != before {
			t.Errorf("%d dials while all are connected", dials-before)
		}
		mu.Unlock()
		if w.log.has("older session drains") {
			t.Error("a try for PEERS disturbed a session")
		}
		w.net.Cut("10.1.0.2") // one is lost
		w.until("all again", all)
	})
}

// Two processes with one id do not take the place from each other for ever,
// and a reconnecting process replaces its own older session.
func TestTwoProcessesWithOneID(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var replaced int
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		w.agent("a", "agent-1", nil)
		start := time.Now()
		for time.Since(start) < 10*time.Minute {
			time.Sleep(time.Second)
			if w.agents(w.server, "a") != 1 {
				t.Fatalf("%d agents after %v", w.agents(w.server, "a"), time.Since(start))
			}
			c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatal(err)
			}
			if err := roundTrip(c); err != nil {
				t.Fatal(err)
			}
		}
		for _, line := range w.log.lines("older session drains") {
			_ = line
			replaced++
		}
		// Once at the start, then about once a minute.
		if replaced < 5 || replaced > 21 {
			t.Errorf("replaced %d times in ten minutes", replaced)
		}
	})
}

// Streams of a session that is replaced by its own process go on.
func TestNewerSessionWinsOlderDrains(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		// A second session of the same process, as after a DRAIN.
		raw, err := w.net.Dial(t.Context(), "tcp", serverAddr)
		if err != nil {
			t.Fatal(err)
		}
		u, _ := parseServer("http://" + serverAddr)
		tlsConn := tlsClient(raw, w.clientTLS("a"))
		s, err := a.upgrade(t.Context(), tlsConn, u, func(*helloMessage) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.serve(t.Context()) }()
		w.until("the older one drains", func() bool { return w.log.has("older session drains", drainRenewed) })
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		c, err = w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		w.until("one session is left", func() bool { return len(w.server.Clusters()[0].Agents) == 1 })
		_ = s.mux.Close(nil)
	})
}
