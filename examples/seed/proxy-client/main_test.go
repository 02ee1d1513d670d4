package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
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

// world is a server with an agent, and the files of a client.
//
//	client ─► proxy-client ─ mTLS ─► server ◄─ session ─ agent ─► target
type world struct {
	*clitest.CA
	t         *testing.T
	cert, key string // of the client
	target    string // says hello over HTTP, behind the agent
	door      string // host:port of the server's door, with TLS
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, CA: clitest.NewCA(t), target: clitest.Target(t)}
	w.cert, w.key = w.Files("client", tunneltest.CertOptions{Cluster: cluster, Client: true})
	w.door = w.serve(cluster)
	return w
}

// serve starts a server whose clients need a certificate for the cluster, with
// an agent that may dial loopback.
func (w *world) serve(cluster string) (door string) {
	w.t.Helper()
	pool := &certs.Pool{CAs: []certs.CA{{File: w.File}}}
	server := &tunnel.Server{ID: "server-1", AgentAuth: tunnel.AgentAuth(pool, nil), ClientAuth: tunnel.ClientAuth(pool, nil)}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{DNS: []string{"proxy.example"}, IPs: []string{"127.0.0.1"}}).TLS},
		ClientCAs:    w.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = server.Serve(l) })
	rule, _ := tunnel.ParseRule("127.0.0.0/8")
	agent := &tunnel.Agent{
		Servers: []string{"https://" + l.Addr().String()}, ID: "agent-1", Allow: tunnel.Rules{rule}.Allow,
		TLS: &tls.Config{RootCAs: w.Pool(), Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{Cluster: cluster, Client: true}).TLS}},
	}
	wait.Go(func() { _ = agent.Run(context.Background()) })
	w.t.Cleanup(func() { agent.Close(); server.Close(); wait.Wait() })
	clitest.Eventually(w.t, func() error {
		if !server.HasAgent(cluster) {
			return errors.New("no agent")
		}
		return nil
	})
	return l.Addr().String()
}

// start runs a proxy-client that dials through the world's server.
func (w *world) start(args ...string) *clitest.Program {
	w.t.Helper()
	return w.startVia(append(args, "--proxy", "https://"+w.door, "--ca", w.File, "--cert", w.cert, "--key", w.key)...)
}

func (w *world) startVia(args ...string) *clitest.Program {
	w.t.Helper()
	return clitest.Start(w.t, run, append(args, "--admin-listen", "127.0.0.1:0")...)
}

// forwardAddr is the address of the forward to a target.
func forwardAddr(p *clitest.Program, target string) string {
	addr, _ := p.Find("listening", "door", "forward", "target", target)["addr"].(string)
	return addr
}

// through is an HTTP client that knows of no TLS and no certificate.
func through(t *testing.T, p *clitest.Program) *http.Client {
	t.Helper()
	return clitest.Client(t, &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: p.Addr("proxy")}),
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // of the target
		DisableKeepAlives: true,
	})
}

func (w *world) mustHello(p *clitest.Program) {
	w.t.Helper()
	if status, body := clitest.Get(w.t, through(w.t, p), "http://"+w.target+"/there"); status != 200 || body != "hello /there" {
		w.t.Errorf("through the proxy: %d %q", status, body)
	}
}

// page asks for an admin page.
func page(t *testing.T, p *clitest.Program, path string) (int, string) {
	t.Helper()
	return clitest.Get(t, clitest.Client(t, &http.Transport{DisableKeepAlives: true}), "http://"+p.Addr("admin")+path)
}

// eventually waits until /readyz has the status and says the text.
func eventually(t *testing.T, p *clitest.Program, status int, text string) {
	t.Helper()
	clitest.Eventually(t, func() error {
		if code, body := page(t, p, "/readyz"); code != status || !strings.Contains(body, text) {
			return fmt.Errorf("/readyz: %d %q, want %d %q", code, body, status, text)
		}
		return nil
	})
}

// TestProxy is what Prometheus does: absolute form for http, CONNECT for https.
func TestProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start("--listen", "127.0.0.1:0")
	w.mustHello(p)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "secure") }))
	t.Cleanup(secure.Close)
	if status, body := clitest.Get(t, through(t, p), secure.URL); status != 200 || body != "secure" {
		t.Errorf("an https target: %d %q", status, body)
	}
	eventually(t, p, 200, "ok")
	if status, body := page(t, p, "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	if status, _ := page(t, p, "/debug/pprof/"); status != 200 {
		t.Errorf("/debug/pprof/: %d", status)
	}

	// The proxy's own reason comes through.
	for _, url := range []string{"http://127.0.0.1:1/", "http://readyz.invalid/"} {
		status, body := clitest.Get(t, through(t, p), url)
		want := "connection_refused"
		if strings.Contains(url, "invalid") {
			want = "dns_"
		}
		if status != http.StatusBadGateway && status != http.StatusGatewayTimeout || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q, want %s", url, status, body, want)
		}
	}
	d := &connect.Dialer{Address: p.Addr("proxy")}
	_, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	var e *connect.Error
	if !errors.As(err, &e) || e.Status != http.StatusBadGateway || !errors.Is(err, connect.ErrRefused) {
		t.Errorf("CONNECT to nobody: %v", err)
	}
	if line := p.Find("connect", "target", "127.0.0.1:1"); !strings.Contains(line["outcome"].(string), "connection_refused") {
		t.Errorf("the log says %v", line)
	}

	clitest.Eventually(t, func() error { // a request counts when it is over
		_, body := page(t, p, "/doors")
		var list []doorStatus
		if json.Unmarshal([]byte(body), &list) != nil || len(list) != 1 || list[0].Failed < 3 { // a client that closes early may be a fourth
			return fmt.Errorf("/doors: %s", body)
		}
		if list[0].Failed = 0; list[0] != (doorStatus{Door: "proxy", Addr: p.Addr("proxy"), Total: 5}) {
			return fmt.Errorf("/doors: %s", body)
		}
		return nil
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestForward has a client half-close and read a late answer, over TCP and a
// Unix socket.
func TestForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := lateEcho(t)
	socket := w.socket()
	p := w.start("--forward", "127.0.0.1:0="+target, "--forward", "unix:"+socket+"="+w.target, "--forward", "127.0.0.1:0=127.0.0.1:1")
	c, err := net.Dial("tcp", forwardAddr(p, target))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "all that I have"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "you said all that I have" || err != nil {
		t.Errorf("after a half-close: %q %v", b, err)
	}
	unix := clitest.Client(t, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}})
	if status, body := clitest.Get(t, unix, "http://any.example/x"); status != 200 || body != "hello /x" {
		t.Errorf("by the socket: %d %q", status, body)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v %v", info.Mode(), err)
	}

	// A failed dial resets the client, and the log has the proxy's words.
	nobody, err := net.Dial("tcp", forwardAddr(p, "127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if n, err := nobody.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("a forward to nobody gave %d bytes and %v, want a reset", n, err)
	}
	line := p.Find("forward", "target", "127.0.0.1:1")
	if outcome := line["outcome"].(string); !strings.Contains(outcome, "502 connection_refused: dial tcp 127.0.0.1:1") || line["level"] != "INFO" {
		t.Errorf("the log says %v", line)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// TestProxyFlags goes by a Unix socket and by plain HTTP to a proxy that wants a
// header, and by TLS to one that is known by another name.
func TestProxyFlags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serve := func(network, address string) string {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		h := &connect.Handler{Allow: func(_ context.Context, r *connect.Request, _ string) error {
			if r.Header.Get("Cluster") != cluster || r.Header.Get("Proxy-Authorization") == "" && network == "tcp" {
				return connect.ErrDenied
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(context.Background())
		var wait sync.WaitGroup
		t.Cleanup(func() { cancel(); wait.Wait() })
		wait.Go(func() { _ = h.Serve(ctx, l) })
		return l.Addr().String()
	}
	for name, args := range map[string][]string{
		"Plain":      {"--proxy", "http://user:hidden@" + serve("tcp", "127.0.0.1:0"), "--header", "Cluster: " + cluster},
		"Unix":       {"--proxy", "http+unix://" + serve("unix", w.socket()), "--header", "Cluster: " + cluster},
		"ServerName": {"--proxy", "https://" + w.door, "--server-name", "proxy.example", "--ca", w.File, "--cert", w.cert, "--key", w.key},
	} {
		t.Run(name, func(t *testing.T) {
			p := w.startVia(append(args, "--listen", "127.0.0.1:0")...)
			w.mustHello(p)
			if strings.Contains(p.String(), "hidden") {
				t.Error("the password stands in the logs")
			}
		})
	}
	t.Run("OtherName", func(t *testing.T) {
		p := w.start("--listen", "127.0.0.1:0", "--server-name", "other.example")
		eventually(t, p, 503, "other.example")
	})
}

// TestReady is about the proxy and nothing behind it.
func TestReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	t.Run("Gone", func(t *testing.T) {
		p := w.startVia("--listen", "127.0.0.1:0", "--proxy", "http://127.0.0.1:1")
		eventually(t, p, 503, "refused")
		p.Find("the proxy cannot be reached")
	})
	t.Run("NoAgent", func(t *testing.T) {
		cert, key := w.Files("other", tunneltest.CertOptions{Cluster: "shoot--dev--b", Client: true})
		p := w.startVia("--listen", "127.0.0.1:0", "--proxy", "https://"+w.door, "--ca", w.File, "--cert", cert, "--key", key)
		if status, body := clitest.Get(t, through(t, p), "http://"+w.target); status != 503 || !strings.Contains(body, "destination_unavailable") {
			t.Errorf("without an agent: %d %q", status, body)
		}
		eventually(t, p, 200, "ok")
		p.Find("the proxy can be reached")
	})
	t.Run("NoCertificate", func(t *testing.T) {
		p := w.startVia("--listen", "127.0.0.1:0", "--proxy", "https://"+w.door, "--ca", w.File)
		eventually(t, p, 503, "certificate required")
	})
}

// TestFollow changes the certificate of --proxy and the egress configuration
// while the programs run. What bad content does is a test of package cli.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.serve("shoot--dev--b")
	file := w.write("egress.yaml", egressConfig(w.door, w.File, w.cert, w.key))
	byFile := w.startVia("--listen", "127.0.0.1:0", "--egress-config", file)
	cert, key := w.Files("rotated", tunneltest.CertOptions{Cluster: "shoot--dev--c", Client: true})
	byFlag := w.startVia("--listen", "127.0.0.1:0", "--proxy", "https://"+w.door, "--ca", w.File, "--cert", cert, "--key", key)
	w.mustHello(byFile)

	w.Files("rotated", tunneltest.CertOptions{Cluster: cluster, Client: true})
	cert, key = w.Files("b", tunneltest.CertOptions{Cluster: "shoot--dev--b", Client: true})
	w.write("egress.yaml", egressConfig(other, w.File, cert, key))
	clitest.Eventually(t, func() error {
		if status, body, err := clitest.TryGet(t.Context(), through(t, byFlag), "http://"+w.target); err != nil || status != 200 {
			return fmt.Errorf("with the new certificate: %d %q %v", status, body, err)
		}
		return nil
	})
	byFile.Find("file loaded", "file", file)
	w.mustHello(byFile)
	for _, p := range []*clitest.Program{byFile, byFlag} {
		if err := p.Stop(); err != nil {
			t.Errorf("drain: %v", err)
		}
	}
}

// TestEgressConfig is about entries that are no way through a proxy over TCP.
func TestEgressConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	head := "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n"
	direct := w.write("direct.yaml", head+"- name: etcd\n  connection: {proxyProtocol: Direct}\n")
	p := w.startVia("--listen", "127.0.0.1:0", "--egress-config", direct, "--selection", "etcd")
	eventually(t, p, 200, "ok")
	w.mustHello(p)
	if status, body := clitest.Get(t, through(t, p), "http://127.0.0.1:1/"); status != 502 {
		t.Errorf("nobody, directly: %d %q", status, body)
	}
	eventually(t, p, 200, "ok")

	for name, tc := range map[string]struct{ text, want string }{
		"Missing": {head + "- name: etcd\n  connection: {proxyProtocol: Direct}\n", `no egressSelection "cluster"`},
		"GRPC":    {head + "- name: cluster\n  connection: {proxyProtocol: GRPC, transport: {uds: {udsName: /x}}}\n", "GRPC is not supported"},
		"Twice":   {head + strings.Repeat("- name: cluster\n  connection: {proxyProtocol: Direct}\n", 2), "several selections"},
		"Files":   {egressConfig(w.door, w.File, w.cert, "/none"), "/none"},
		"Garbage": {"a: b", "apiVersion"},
	} {
		t.Run(name, func(t *testing.T) {
			file := w.write("bad.yaml", tc.text)
			err := w.startVia("--listen", "127.0.0.1:0", "--egress-config", file).Wait()
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want %q and the file", err, tc.want)
			}
		})
	}
}

// egressConfig sends cluster through a proxy over TLS.
func egressConfig(door, ca, cert, key string) string {
	return fmt.Sprintf(`apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      tcp:
        url: https://%s
        tlsConfig: {caBundle: %s, clientCert: %s, clientKey: %s}
`, door, ca, cert, key)
}

// write replaces a file at once.
func (w *world) write(name, text string) string {
	w.t.Helper()
	path := w.Path(name)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// socket is a path that is short enough for a Unix socket.
func (w *world) socket() string {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "proxy-client")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// lateEcho answers when its client has half-closed.
func lateEcho(t *testing.T) string {
	t.Helper()
	return listen(t, func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err == nil {
			_, _ = fmt.Fprintf(c, "you said %s", b)
		}
	})
}

// listen serves each connection until the end of the test.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
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
				serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wait.Wait() })
	return l.Addr().String()
}
