package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
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

const cluster = "shoot--dev--a"

// world is a CA, a server, and a target on loopback.
type world struct {
	*clitest.CA
	t         *testing.T
	cert, key string // of the agent
	target    string
	server    *tunnel.Server
	tokens    *certs.Tokens
	wait      sync.WaitGroup
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, CA: clitest.NewCA(t), target: clitest.Target(t)}
	w.cert, w.key = w.Files("agent", tunneltest.CertOptions{Cluster: cluster})
	w.tokens = &certs.Tokens{File: w.Path("tokens.yaml")}
	w.write("tokens.yaml", fmt.Sprintf("- cluster: %s\n  sha256: %s\n", cluster, certs.HashToken("secret")))
	w.server = &tunnel.Server{ID: "server-1", AgentAuth: tunnel.AgentAuth(nil, w.tokens)}
	t.Cleanup(func() { w.server.Close(); w.wait.Wait() })
	return w
}

func (w *world) write(name, text string) string {
	w.t.Helper()
	if err := os.WriteFile(w.Path(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.Path(name)
}

// listen opens the server's door, for a certificate with the given names.
func (w *world) listen(o tunneltest.CertOptions) (url string) {
	w.t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{w.Issue(o).TLS},
		ClientCAs:    w.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	server := w.server
	w.wait.Go(func() { _ = server.Serve(l) })
	return "https://" + l.Addr().String()
}

func (w *world) start(args ...string) *clitest.Program {
	w.t.Helper()
	return clitest.Start(w.t, run, append(args, "--ca", w.File, "--agent-id", "agent-1",
		"--allow", "127.0.0.1:"+port(w.target), "--admin-listen", "127.0.0.1:0")...)
}

// mustHello asks the target through the tunnel, and the agent whether it is
// ready.
func (w *world) mustHello(p *clitest.Program) {
	w.t.Helper()
	admin := clitest.Client(w.t, &http.Transport{})
	clitest.Eventually(w.t, func() error {
		status, body, err := clitest.TryGet(w.t.Context(), admin, "http://"+p.Addr("admin")+"/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	})
	c := clitest.Client(w.t, &http.Transport{DialContext: w.server.Dialer(cluster), DisableKeepAlives: true})
	if status, body := clitest.Get(w.t, c, "http://"+w.target+"/x"); status != 200 || body != "hello /x" {
		w.t.Errorf("through the tunnel: %d %q", status, body)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.listen(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
	p := w.start("--server", url, "--cert", w.cert, "--key", w.key, "--cluster", cluster,
		"--label", "zone=a", "--serves", "127.0.0.0/8", "--serves", ".svc")
	w.mustHello(p)
	a := w.server.Clusters()[0].Agents[0]
	if a.ID != "agent-1" || a.Labels["zone"] != "a" || len(a.Serves) != 2 {
		t.Errorf("the agent as the server sees it: %+v", a)
	}
	// What no rule covers is refused by the agent, whatever the server wants.
	_, err := w.server.Dialer(cluster)(t.Context(), "tcp", "127.0.0.1:1")
	if !errors.Is(err, connect.ErrProhibited) {
		t.Errorf("a target without a rule gave %v", err)
	}
	admin := clitest.Client(t, &http.Transport{})
	for path, want := range map[string]string{"/healthz": "ok\n", "/sessions": `"server": "server-1"`} {
		if status, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestServers has a server that is named by its address and one by its name, each
// with a certificate for that only.
func TestServers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second := w.server, &tunnel.Server{ID: "server-2", AgentAuth: tunnel.AgentAuth(nil, w.tokens)}
	t.Cleanup(func() { first.Close() }) // before newWorld's, which closes second
	address := w.listen(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
	w.server = second
	name := "https://localhost:" + port(w.listen(tunneltest.CertOptions{DNS: []string{"localhost"}}))
	p := w.start("--server", address, "--server", name, "--cert", w.cert, "--key", w.key)
	admin := clitest.Client(t, &http.Transport{})
	clitest.Eventually(t, func() error {
		_, body, err := clitest.TryGet(t.Context(), admin, "http://"+p.Addr("admin")+"/sessions")
		if err == nil && !(strings.Contains(body, `"server-1"`) && strings.Contains(body, `"server-2"`)) {
			err = errors.New(body)
		}
		return err
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}

	// A name of --server-name wins.
	for _, o := range []*options{{}, {serverName: "server.example"}} {
		want := "localhost"
		if o.serverName != "" {
			want = o.serverName
		}
		if got := (&program{options: o}).clientTLS("localhost").ServerName; got != want {
			t.Errorf("verifies %q, want %q", got, want)
		}
	}
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start("--server", "https://127.0.0.1:1", "--cert", w.cert, "--key", w.key)
	p.Find("cannot connect")
	admin := clitest.Client(t, &http.Transport{})
	if status, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz without a session: %d %q", status, body)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestToken rotates the token while the agent is away.
func TestToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.listen(tunneltest.CertOptions{DNS: []string{"server.example"}})
	token := w.write("token", "wrong\n")
	p := w.start("--server", url, "--server-name", "server.example", "--token-file", token)
	p.Find("cannot connect")
	w.write("token", "secret\n")
	w.mustHello(p)
	if strings.Contains(p.String(), "secret") {
		t.Error("the token stands in the logs")
	}
}

// TestVia goes through an HTTP proxy that wants a header and a password.
func TestVia(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	url := w.listen(tunneltest.CertOptions{DNS: []string{"server.example"}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &connect.Handler{
		Allow: func(_ context.Context, r *connect.Request, target string) error {
			if r.Header.Get("Reversed-VPN") != cluster || r.Header.Get("Proxy-Authorization") == "" || target != "server.example:"+port(url) {
				return connect.ErrDenied
			}
			return nil
		},
		// The proxy knows the server's name, and the agent need not.
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port(address))
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.wait.Go(func() { _ = proxy.Serve(ctx, l) })
	t.Cleanup(cancel)
	p := w.start("--server", "https://server.example:"+port(url), "--cert", w.cert, "--key", w.key,
		"--via", "http://user:hidden@"+l.Addr().String(), "--via-header", "Reversed-VPN: "+cluster)
	w.mustHello(p)
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if strings.Contains(p.String(), "hidden") {
		t.Error("the password stands in the logs")
	}
}

// TestListen is the old direction, with a server that may and one that may not.
func TestListen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start("--listen", "127.0.0.1:0", "--cert", w.cert, "--key", w.key, "--server-name", "server.example")
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	dial := func(o tunneltest.CertOptions) {
		config := &tls.Config{RootCAs: w.Pool(), InsecureSkipVerify: true, Certificates: []tls.Certificate{w.Issue(o).TLS}}
		addr := p.Addr("servers")
		w.wait.Go(func() {
			_ = w.server.DialAgent(ctx, cluster, func(ctx context.Context) (net.Conn, error) {
				return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
			}, nil)
		})
	}
	dial(tunneltest.CertOptions{DNS: []string{"other.example"}})
	p.Find("server refused")
	dial(tunneltest.CertOptions{DNS: []string{"server.example"}})
	w.mustHello(p)
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(strings.TrimPrefix(address, "https://"))
	return p
}
