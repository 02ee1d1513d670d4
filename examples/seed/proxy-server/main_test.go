package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

const (
	clusterA = "shoot--dev--a"
	clusterB = "shoot--dev--b"
)

// world is a CA and the files that it made.
type world struct {
	*clitest.CA
	t         *testing.T
	cert, key string // of the server
	target    string // what is behind the agents
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, CA: clitest.NewCA(t), target: clitest.Target(t)}
	w.cert, w.key = w.Files("server", tunneltest.CertOptions{CommonName: "server", DNS: []string{"*.tunnel.example"}, IPs: []string{"127.0.0.1"}})
	return w
}

// start runs a proxy-server with TLS, an admin page, and more flags.
func (w *world) start(args ...string) *clitest.Program {
	w.t.Helper()
	args = append(args, "--tls-cert", w.cert, "--tls-key", w.key, "--admin-listen", "127.0.0.1:0", "--server-id", "server-1")
	return clitest.Start(w.t, run, args...)
}

func (w *world) tls(cluster, serverName string) *tls.Config {
	c := &tls.Config{RootCAs: w.Pool(), ServerName: serverName}
	if cluster != "" {
		c.Certificates = []tls.Certificate{w.Issue(tunneltest.CertOptions{Cluster: cluster, Client: true}).TLS}
	}
	return c
}

// agent starts an agent that may dial loopback.
func (w *world) agent(p *clitest.Program, cluster string, configure func(*tunnel.Agent)) *tunnel.Agent {
	w.t.Helper()
	rule, _ := tunnel.ParseRule("127.0.0.0/8")
	a := &tunnel.Agent{ID: "agent-" + cluster, TLS: w.tls(cluster, "127.0.0.1"), Allow: tunnel.Rules{rule}.Allow}
	if configure != nil {
		configure(a)
	}
	var wait sync.WaitGroup
	w.t.Cleanup(func() { a.Close(); wait.Wait() })
	if p != nil {
		a.Servers = []string{"https://" + p.Addr("agents")}
		wait.Go(func() { _ = a.Run(context.Background()) })
		w.ready(p, cluster)
	}
	return a
}

// ready waits until /readyz says that an agent of the cluster is there.
func (w *world) ready(p *clitest.Program, cluster string) {
	w.t.Helper()
	admin := p.Addr("admin")
	c := clitest.Client(w.t, &http.Transport{})
	clitest.Eventually(w.t, func() error {
		status, body, err := clitest.TryGet(w.t.Context(), c, "http://"+admin+"/readyz?cluster="+cluster)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

// through is an HTTP client that dials through the program's door, and keeps
// no connection that a drain would wait for.
func (w *world) through(d *connect.Dialer) *http.Client {
	return clitest.Client(w.t, &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true})
}

func (w *world) mustHello(d *connect.Dialer) {
	w.t.Helper()
	status, body := clitest.Get(w.t, w.through(d), "http://"+w.target+"/there")
	if status != http.StatusOK || body != "hello /there" {
		w.t.Fatalf("got %d %q", status, body)
	}
}

func TestClientsAndAgentsWithCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
	admin := clitest.Client(t, &http.Transport{})
	pages := "http://" + p.Addr("admin")
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/readyz?cluster=" + clusterA: 503, "/readyz?cluster=": 503, "/clusters": 200, "/": 404,
	} {
		if status, body := clitest.Get(t, admin, pages+path); status != want {
			t.Errorf("%s before an agent is there: %d %q, want %d", path, status, body, want)
		}
	}
	w.agent(p, clusterA, nil)
	w.mustHello(&connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(clusterA, "127.0.0.1")})

	// Absolute-form requests, as Prometheus sends them.
	prometheus := clitest.Client(t, &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "https", Host: p.Addr("clients")}),
		TLSClientConfig:   w.tls(clusterA, "127.0.0.1"),
		DisableKeepAlives: true,
	})
	if status, body := clitest.Get(t, prometheus, "http://"+w.target+"/metrics"); status != 200 || body != "hello /metrics" {
		t.Errorf("absolute form: %d %q", status, body)
	}

	_, body := clitest.Get(t, admin, pages+"/clusters")
	var clusters []tunnel.ClusterStatus
	if err := json.Unmarshal([]byte(body), &clusters); err != nil {
		t.Fatal(err)
	}
	if len(clusters) != 1 || clusters[0].Cluster != clusterA || len(clusters[0].Agents) != 1 || clusters[0].Dials != 2 {
		t.Errorf("/clusters: %s", body)
	}

	// A client of another cluster reaches nothing of this one.
	d := &connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(clusterB, "127.0.0.1")}
	if _, err := d.DialContext(t.Context(), "tcp", w.target); !errors.Is(err, connect.ErrUnavailable) {
		t.Errorf("a client of cluster b got %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	socket := w.Path("p.sock")
	// One that was killed leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()

	p := w.start("--listen", "unix:"+socket+"="+clusterA, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
	w.agent(p, clusterA, nil)
	w.mustHello(&connect.Dialer{Network: "unix", Address: socket})
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v %v", info.Mode(), err)
	}
	second := w.start("--listen", "unix:"+socket+"="+clusterA, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
	if err := second.Wait(); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server on the same socket: %v", err)
	}
	w.mustHello(&connect.Dialer{Network: "unix", Address: socket})
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}

	other := w.Path("file")
	if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	third := w.start("--listen", "unix:"+other+"="+clusterA, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
	if err := third.Wait(); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the place of the socket: %v", err)
	}
	if b, _ := os.ReadFile(other); string(b) != "precious" {
		t.Error("the file was touched")
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tokens := w.Path("tokens.yaml")
	text := fmt.Sprintf("- cluster: %s\n  sha256: %s\n", clusterA, certs.HashToken("secret"))
	if err := os.WriteFile(tokens, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File, "--agent-listen", "127.0.0.1:0", "--agent-tokens", tokens)
	w.agent(p, clusterA, func(a *tunnel.Agent) {
		a.TLS = w.tls("", "127.0.0.1")
		a.Token = func(context.Context) (string, error) { return "secret", nil }
	})
	w.mustHello(&connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(clusterA, "127.0.0.1")})
	if strings.Contains(p.String(), "secret") {
		t.Error("the token stands in the logs")
	}
}

// TestClusterFrom has an operator select, and everyone else only what its
// certificate says.
func TestClusterFrom(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		from             string
		selectA, selectB func(*connect.Dialer)
	}{
		{
			"sni:tunnel.example",
			func(d *connect.Dialer) { d.TLS.ServerName = clusterA + ".tunnel.example" },
			func(d *connect.Dialer) { d.TLS.ServerName = clusterB + ".tunnel.example" },
		}, {
			"header:Reversed-VPN",
			func(d *connect.Dialer) { d.Header = http.Header{"Reversed-Vpn": {clusterA}} },
			func(d *connect.Dialer) { d.Header = http.Header{"Reversed-Vpn": {clusterB}} },
		},
	} {
		t.Run(tc.from, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File, "--cluster-from", tc.from,
				"--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
			w.agent(p, clusterA, nil)
			dialer := func(cluster string, pick func(*connect.Dialer)) *connect.Dialer {
				d := &connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(cluster, "127.0.0.1")}
				pick(d)
				return d
			}
			w.mustHello(dialer(clusterA, tc.selectA))
			operator := w.Issue(tunneltest.CertOptions{CommonName: "*", Client: true})
			d := dialer("", tc.selectA)
			d.TLS.Certificates = []tls.Certificate{operator.TLS}
			w.mustHello(d)
			for _, d := range []*connect.Dialer{dialer(clusterB, tc.selectA), dialer(clusterA, tc.selectB), dialer(clusterA, func(*connect.Dialer) {})} {
				_, err := d.DialContext(t.Context(), "tcp", w.target)
				var e *connect.Error
				if !errors.As(err, &e) || e.Status != http.StatusForbidden {
					t.Errorf("crossing over gave %v, want 403", err)
				}
			}
		})
	}
}

func TestDialAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := w.agent(nil, clusterA, nil)
	door := tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{Cluster: clusterA}).TLS},
		ClientCAs:    w.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	var wait sync.WaitGroup
	wait.Go(func() { _ = a.Serve(context.Background(), door) })
	t.Cleanup(func() { a.Close(); wait.Wait() })

	p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File,
		"--dial-agent", l.Addr().String()+"="+clusterA, "--agent-ca", w.File)
	w.ready(p, clusterA)
	w.mustHello(&connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(clusterA, "127.0.0.1")})
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestDrain stops a server with an open stream: it waits for it, is not ready
// meanwhile, and a second signal does not wait.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprintf("second=%t", second), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			echo := echoServer(t)
			p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File)
			w.agent(p, clusterA, nil)
			d := &connect.Dialer{Address: p.Addr("clients"), TLS: w.tls(clusterA, "127.0.0.1")}
			c, err := d.DialContext(t.Context(), "tcp", echo)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p.Drain()
			p.Find("draining")
			admin := clitest.Client(t, &http.Transport{})
			clitest.Eventually(t, func() error {
				status, _, err := clitest.TryGet(t.Context(), admin, "http://"+p.Addr("admin")+"/readyz")
				if err == nil && status != http.StatusServiceUnavailable {
					err = fmt.Errorf("/readyz while draining: %d", status)
				}
				return err
			})
			if second {
				p.Abort()
				if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "cut off") {
					t.Errorf("after the second signal: %v", err)
				}
				if _, err := io.ReadAll(c); err == nil {
					t.Error("the cut-off stream ended as if it were whole")
				}
				return
			}
			if _, err := io.WriteString(c, "still here"); err != nil {
				t.Fatal(err)
			}
			if err := c.(*tls.Conn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(c); string(b) != "still here" || err != nil {
				t.Errorf("while draining: %q %v", b, err)
			}
			c.Close()
			if err := p.Wait(); err != nil {
				t.Errorf("drain: %v", err)
			}
		})
	}
}

func echoServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wait.Wait() })
	return l.Addr().String()
}
