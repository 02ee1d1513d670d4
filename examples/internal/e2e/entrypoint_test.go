package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// TestEntrypoint has two clusters behind one entrypoint: the agents of both come
// in by the value of a header, each to the server of its own cluster.
func TestEntrypoint(t *testing.T) {
	bin := build(t)
	t.Run("apart", func(t *testing.T) { testApart(newSeed(t, bin)) })
	t.Run("foreign header", func(t *testing.T) { testForeignHeader(newSeed(t, bin)) })
	t.Run("killed", func(t *testing.T) { testEntrypointKilled(newSeed(t, bin)) })
	t.Run("routes replaced", func(t *testing.T) { testRoutesReplaced(newSeed(t, bin)) })
}

// testApart reaches each cluster's target by its own server, and by the other
// one's not.
func testApart(s *seed) {
	s.connect()
	s.checkRequests()
	// A request of A's at B's server finds no agent of A, whatever it names.
	for name, tc := range map[string]struct {
		door   *connect.Dialer
		target string
		want   connect.Reason
	}{
		"at its own server, the other's target": {s.a.client, s.b.target, connect.ErrProhibited},
		"at the other server, its own target":   {s.a.clientAt(s.b.clients), s.a.target, connect.ErrUnavailable},
		"at the other server, the other's":      {s.a.clientAt(s.b.clients), s.b.target, connect.ErrUnavailable},
	} {
		s.t.Run(name, func(t *testing.T) {
			t.Parallel() // no agent is an answer only after some seconds
			refused(t, tc.door, tc.target, tc.want)
		})
	}
	// s.a.agents is the address where the route leads.
	values := []string{"", s.a.cluster, s.a.value() + ".", strings.ToUpper(s.a.value()), s.a.agents}
	for _, value := range values {
		d := &connect.Dialer{Address: s.listen, Header: http.Header{}}
		if value != "" {
			d.Header.Set(entrypoint.HeaderReversedVPN, value)
		}
		refused(s.t, d, s.a.agents, connect.ErrDenied)
	}
	if n := s.stats().Refused[entrypoint.ReasonUnknown]; n != uint64(len(values)) {
		s.t.Errorf("the entrypoint has counted %d of %d refusals", n, len(values))
	}
}

// testForeignHeader has an agent of B come in with the header of A. It ends at
// A's server, and what it can be there its certificate says: an agent of B.
func testForeignHeader(s *seed) {
	t := s.t
	own := s.connect()
	// With nothing but the header changed, what answers is not B's server.
	lost := s.startStray(s.b, s.a)
	if line := lost.Find("cannot connect"); !strings.Contains(line["error"].(string), "certificate is valid for "+s.a.host()) {
		t.Errorf("an agent with another cluster's header: %v", line)
	}
	// One that expects A's server and says that it is of A is found out, ...
	liar := s.startStray(s.b, s.a, "--server-name", s.a.host(), "--cluster", s.a.cluster)
	if line := liar.Find("cannot connect"); !strings.Contains(line["error"].(string), "403") {
		t.Errorf("an agent that claims another cluster: %v", line)
	}
	// ... and one that says nothing has a session there, even one with the same
	// id as A's agent and for A's target.
	stray := s.startStray(s.b, s.a, "--server-name", s.a.host(), "--agent-id", "agent-1", "--allow", s.a.target)
	s.a.waitReady("http://"+s.a.admin+"/readyz?cluster="+s.b.cluster, http.StatusOK)
	var clusters []tunnel.ClusterStatus
	readJSON(t, "http://"+s.a.admin+"/clusters", &clusters)
	for _, c := range clusters {
		if len(c.Agents) != 1 || c.Agents[0].ID != "agent-1" {
			t.Errorf("agents of %s: %+v", c.Cluster, c.Agents)
		}
	}
	if len(clusters) != 2 {
		t.Errorf("clusters at the server of %s: %+v", s.a.cluster, clusters)
	}
	s.checkRequests()
	// It works, for its own cluster.
	if err := get(t, s.b.clientAt(s.a.clients), s.a.target); err != nil {
		t.Errorf("a client of the stray agent's cluster: %v", err)
	}
	// Without its own agent A is lost, and not served by the stray one.
	if code := own[s.a].Stop(); code != 0 {
		t.Errorf("agent: exit code %d", code)
	}
	refused(t, s.a.client, s.a.target, connect.ErrUnavailable)
	if code := stray.Stop(); code != 0 {
		t.Errorf("stray agent: exit code %d", code)
	}
	s.startOwnAgent(s.a)
	s.a.waitAgent()
	s.checkRequests()
}

// testEntrypointKilled kills the entrypoint below both sessions and an open
// stream, and starts it again: the agents come back by themselves.
func testEntrypointKilled(s *seed) {
	t := s.t
	s.connect()
	stream := s.openStream(s.a)
	stream.ping("before")
	s.front.Kill()
	if _, err := stream.c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stream whose session was lost ended with %v", err)
	}
	for _, w := range []*world{s.a, s.b} {
		w.waitReady("http://"+w.admin+"/readyz?cluster="+w.cluster, http.StatusServiceUnavailable)
		w.waitReady("http://"+w.agentAdmin+"/readyz", http.StatusServiceUnavailable)
	}
	s.startFront()
	s.waitAgents()
	s.checkRequests()
	stream = s.openStream(s.b)
	stream.ping("after")
	stream.finish()
}

// testRoutesReplaced replaces the entrypoint's routes below open streams: one of
// a route that stays and one of a route that goes.
func testRoutesReplaced(s *seed) {
	t := s.t
	agents := s.connect()
	stays, goes := s.openStream(s.a), s.openStream(s.b)
	stays.ping("before")
	goes.ping("before")

	added := *s.b
	added.cluster = "shoot--dev--c"
	s.routes(s.a, &added)
	clitest.Eventually(t, func() error {
		if s.route(&added).Name == "" || !s.route(s.b).Removed {
			return errors.New("the routes are still the old ones")
		}
		return nil
	})
	stays.ping("with other routes")
	goes.ping("with other routes")
	s.checkRequests() // over the sessions that are there
	refused(t, &connect.Dialer{Address: s.listen, Header: http.Header{entrypoint.HeaderReversedVPN: {s.b.value()}}},
		s.b.agents, connect.ErrDenied)

	s.routes(s.b, s.a)
	clitest.Eventually(t, func() error {
		if r := s.route(s.b); r.Name == "" || r.Removed {
			return errors.New("the route is not back")
		}
		return nil
	})
	stays.ping("with the old routes")
	goes.ping("with the old routes")
	stays.finish()
	goes.finish()
	for _, w := range []*world{s.a, s.b} {
		if r := s.route(w); r.Conns != 1 || r.Total != 1 || r.ClientReset+r.BackendReset+r.Broken != 0 {
			t.Errorf("the agent of %s has connected again: %+v", w.cluster, r)
		}
	}
	for w, p := range agents {
		if code := p.Stop(); code != 0 {
			t.Errorf("agent of %s: exit code %d", w.cluster, code)
		}
	}
	if code := s.front.Stop(); code != 0 {
		t.Errorf("entrypoint: exit code %d", code)
	}
}

// connect starts the servers and agents of both clusters, and waits for them.
func (s *seed) connect() map[*world]*clitest.Process {
	s.t.Helper()
	agents := make(map[*world]*clitest.Process)
	for _, w := range []*world{s.a, s.b} {
		w.startServer("--agent-listen", w.agents)
		agents[w] = s.startOwnAgent(w)
	}
	s.waitAgents()
	return agents
}

func (s *seed) waitAgents() {
	s.t.Helper()
	s.a.waitAgent()
	s.b.waitAgent()
}

// checkRequests asks the target of each cluster as its client.
func (s *seed) checkRequests() {
	s.t.Helper()
	for _, w := range []*world{s.a, s.b} {
		if err := get(s.t, w.client, w.target); err != nil {
			s.t.Errorf("%s: %v", w.cluster, err)
		}
	}
}

// get asks a target by a client door.
func get(t *testing.T, door *connect.Dialer, target string) error {
	c := clitest.Client(t, &http.Transport{DialContext: door.DialContext, DisableKeepAlives: true})
	status, body, err := clitest.TryGet(t.Context(), c, "http://"+target+"/there")
	if err == nil && (status != http.StatusOK || body != "hello /there") {
		err = errors.New(body)
	}
	return err
}

// refused dials what must be refused for a reason.
func refused(t *testing.T, door *connect.Dialer, target string, want connect.Reason) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clitest.Patience)
	defer cancel()
	c, err := door.DialContext(ctx, "tcp", target)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, want) {
		t.Errorf("%s by %s: %v, want %v", target, door.Address, err, want)
	}
}

// stream is a tunnel to a target that echoes.
type stream struct {
	t *testing.T
	c net.Conn
}

func (s *seed) openStream(w *world) *stream {
	s.t.Helper()
	c, err := w.client.DialContext(s.t.Context(), "tcp", w.echo)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(3 * clitest.Patience)); err != nil {
		s.t.Fatal(err)
	}
	return &stream{s.t, c}
}

// ping sends and hears it again.
func (s *stream) ping(text string) {
	s.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.WriteString(s.c, text); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	if _, err := io.ReadFull(s.c, got); err != nil || string(got) != text {
		s.t.Fatalf("%s: %q %v", text, got, err)
	}
}

// finish half-closes, after which what was sent still comes, and then the end.
func (s *stream) finish() {
	s.t.Helper()
	const last = "the last words"
	if _, err := io.WriteString(s.c, last); err != nil {
		s.t.Fatal(err)
	}
	if err := relay.CloseWrite(s.c); err != nil {
		s.t.Fatal(err)
	}
	if b, err := io.ReadAll(s.c); err != nil || string(b) != last {
		s.t.Errorf("after the half-close: %q %v", b, err)
	}
}
