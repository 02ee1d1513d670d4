package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// seed is two clusters, each with a server of its own, whose agents come in by
// one entrypoint.
type seed struct {
	*clitest.CA
	t             *testing.T
	bin           string
	a, b          *world
	listen, admin string // of the entrypoint
	front         *clitest.Process
}

// newSeed starts the entrypoint; see connect for the rest.
func newSeed(t *testing.T, bin string) *seed {
	s := &seed{CA: clitest.NewCA(t), t: t, bin: bin, listen: freePort(t), admin: freePort(t)}
	s.a = newCluster(t, bin, s.CA, cluster, clitest.Target(t))
	s.b = newCluster(t, bin, s.CA, "shoot--dev--b", clitest.Target(t))
	s.a.echo, s.b.echo = echoTarget(t), echoTarget(t)
	s.routes(s.a, s.b)
	s.startFront()
	return s
}

// value is that of the header by which the entrypoint tells a cluster.
func (w *world) value() string { return "outbound|8132||" + w.host() }

// routes makes the entrypoint's configuration: a route for each cluster. It is
// replaced as a ConfigMap is, so that nobody reads half of it.
func (s *seed) routes(clusters ...*world) {
	s.t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "listeners:\n- {address: %q, by: [header], headers: [Reversed-VPN]}\nroutes:\n", s.listen)
	for _, w := range clusters {
		fmt.Fprintf(&text, "- {name: %s, headerValues: [%q], backends: [%q]}\n", w.cluster, w.value(), w.agents)
	}
	file := s.Path("entrypoint.yaml")
	if err := os.WriteFile(file+".new", []byte(text.String()), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		s.t.Fatal(err)
	}
}

// startFront starts the entrypoint, at the same port each time.
func (s *seed) startFront() {
	s.t.Helper()
	s.front = clitest.StartProcess(s.t, filepath.Join(s.bin, "entrypoint"),
		"--config", s.Path("entrypoint.yaml"), "--config-interval", "10ms", "--admin-listen", s.admin)
	s.front.Addr("admin") // the last one that it opens
}

// via is how agents come in with the header of a cluster.
func (s *seed) via(header *world) []string {
	return []string{"--via", "http://" + s.listen, "--via-header", entrypoint.HeaderReversedVPN + ": " + header.value()}
}

// url names the server to the agents. Nobody resolves it: it only tells what
// certificate the server must have.
func (w *world) url() string { return "https://" + w.host() + ":8132" }

// startOwnAgent starts the agent of w as it should be.
func (s *seed) startOwnAgent(w *world) *clitest.Process {
	s.t.Helper()
	return w.startAgent(append(s.via(w), "--server", w.url(), "--allow", w.echo)...)
}

// startStray starts a second agent of w, with its certificate, that comes in
// with the header of another cluster.
func (s *seed) startStray(w, header *world, more ...string) *clitest.Process {
	s.t.Helper()
	cert, key := w.Files("stray-of-"+w.cluster, tunneltest.CertOptions{CommonName: "proxy-agent", Cluster: w.cluster})
	args := append(s.via(header), "--server", w.url(), "--ca", w.File, "--cert", cert, "--key", key)
	return clitest.StartProcess(s.t, filepath.Join(s.bin, "proxy-agent"), append(args, more...)...)
}

// stats is what the entrypoint says of its routes.
func (s *seed) stats() (st entrypoint.Stats) {
	s.t.Helper()
	readJSON(s.t, "http://"+s.admin+"/routes", &st)
	return st
}

// route is what the entrypoint says of a cluster's route; empty if it has none.
func (s *seed) route(w *world) entrypoint.RouteStats {
	s.t.Helper()
	for _, r := range s.stats().Routes {
		if r.Name == w.cluster {
			return r
		}
	}
	return entrypoint.RouteStats{}
}

// readJSON reads an admin page.
func readJSON(t *testing.T, page string, v any) {
	t.Helper()
	c := clitest.Client(t, &http.Transport{DisableKeepAlives: true})
	status, body := clitest.Get(t, c, page)
	if err := json.Unmarshal([]byte(body), v); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %v %s", page, status, err, body)
	}
}

// echoTarget starts a target that says what it hears, until that ends.
func echoTarget(t *testing.T) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().String()
}
