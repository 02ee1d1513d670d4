package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// world is a CA and two API servers, each with a name of its own.
type world struct {
	*clitest.CA
	t        *testing.T
	backends map[string]string // addresses by name
}

const (
	nameA = "api.a.example.com"
	nameB = "api.b.example.com"
)

func newWorld(t *testing.T) *world {
	w := &world{t: t, CA: clitest.NewCA(t), backends: make(map[string]string)}
	for _, name := range []string{nameA, nameB} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{DNS: []string{name}, Server: true}).TLS},
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "I am "+name) })}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Close(); <-done })
		w.backends[name] = l.Addr().String()
	}
	return w
}

// config writes a configuration with a listener of each kind, and routes.
func (w *world) config(routes string) (file string) {
	w.t.Helper()
	file = w.Path("entrypoint.yaml")
	text := `
listeners:
- address: 127.0.0.1:0
- address: localhost:0
  by: [destination]
- address: "[::ffff:127.0.0.1]:0"
  by: [header]
routes:
` + routes
	// As a ConfigMap is replaced: never half a file.
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
	return file
}

func (w *world) route(name, server string) string {
	return fmt.Sprintf("- {name: %s, sni: [%s], destinations: [\"240.0.0.1:443\"], headerValues: [to-%s], backends: [%q]}\n",
		name, server, name, w.backends[server])
}

// ask asks the API server of that name over a connection.
func (w *world) ask(dial func(ctx context.Context) (net.Conn, error), name string) error {
	c := clitest.Client(w.t, &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig:   &tls.Config{RootCAs: w.Pool()},
		DisableKeepAlives: true,
	})
	status, body, err := clitest.TryGet(w.t.Context(), c, "https://"+name+"/")
	if err == nil && (status != http.StatusOK || body != "I am "+name) {
		err = fmt.Errorf("%d %q", status, body)
	}
	return err
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) }
}

func TestRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := clitest.Start(t, run, "--config", w.config(w.route("a", nameA)), "--config-interval", "10ms", "--admin-listen", "127.0.0.1:0")
	viaHeader := &connect.Dialer{Address: p.Addr("header"), Header: http.Header{"X-Gardener-Destination": {"to-a"}}}
	viaProxy := &proxyproto.Dialer{Header: func(context.Context, net.Conn) (*proxyproto.Header, error) {
		return &proxyproto.Header{
			Source:      &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1000},
			Destination: &net.TCPAddr{IP: net.IPv4(240, 0, 0, 1), Port: 443},
		}, nil
	}}
	sni := dialer(p.Addr("sni"))
	for way, dial := range map[string]func(context.Context) (net.Conn, error){
		"sni":         sni,
		"destination": func(ctx context.Context) (net.Conn, error) { return viaProxy.DialContext(ctx, "tcp", p.Addr("destination")) },
		"header":      func(ctx context.Context) (net.Conn, error) { return viaHeader.DialContext(ctx, "tcp", "ignored:443") },
	} {
		if err := w.ask(dial, nameA); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
	if err := w.ask(sni, nameB); err == nil {
		t.Error("a name without a route is served")
	}

	// A bad file is refused and told, and the routes before it stay.
	w.config(w.route("a", nameA) + w.route("b", nameA))
	if line := p.Find("file refused, what was in use stays in use"); !strings.Contains(fmt.Sprint(line["error"]), `server name api.a.example.com is route "a"'s already`) {
		t.Errorf("%v", line)
	}
	if err := w.ask(sni, nameA); err != nil {
		t.Errorf("after a bad file: %v", err)
	}
	// A good one is used.
	w.config(w.route("b", nameB))
	clitest.Eventually(t, func() error { return w.ask(sni, nameB) })
	if err := w.ask(sni, nameA); err == nil {
		t.Error("a removed route is served")
	}

	admin := clitest.Client(t, &http.Transport{})
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/routes": `"name": "b"`} {
		if status, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// Listeners and limits are taken at the start, and the log says so.
func TestRestartNeeded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := clitest.Start(t, run, "--config", w.config(w.route("a", nameA)), "--config-interval", "10ms")
	p.Addr("header")
	w.config(w.route("a", nameA) + "headTimeout: 1s\n")
	p.Find("listeners, limits or timeouts have changed, which takes a restart")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	check := func(file string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"--config", file, "--check"}, &out, &out)
		return out.String(), err
	}
	got, err := check("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/check.txt")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
	file := w.config(`
- {name: a, default: true, deny: [10.0.0.0/8], sendProxy: v1, backends: ["a:1"]}
- {name: b, headerValues: [x], backends: ["a:1"]}
`)
	got, err = check(file)
	if err != nil || !strings.Contains(got, "any other TLS  ─► a  a:1 not for 10.0.0.0/8 with PROXY v1\n") {
		t.Errorf("%v\n%s", err, got)
	}
	if err := os.WriteFile(file, []byte("listeners: [{address: \":1\"}]\nroutes: [{name: b, headerValues: [x], backends: [\"a:1\"]}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = check(file); err != nil || got != ":1 by sni\nwarning: no listener leads to route \"b\"\n" {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err = check(w.config("- {name: a}")); err == nil || !strings.Contains(err.Error(), "no backends") {
		t.Errorf("a bad file: %v", err)
	}
}

func TestBadFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "--config is missing"},
		{[]string{"--config", "x", "--config-interval", "0"}, "more than 0"},
		{[]string{"--config", "x", "--admin-listen", "x"}, "--admin-listen"},
	} {
		var usage *cli.UsageError
		if err := run(t.Context(), tc.args, &bytes.Buffer{}, &bytes.Buffer{}); !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v", tc.args, err)
		}
	}
	if err := run(t.Context(), []string{"--config", "none.yaml"}, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, &out, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "--check") {
		t.Errorf("-h: %v", err)
	}
	w := newWorld(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := run(t.Context(), []string{"--config", w.config(w.route("a", nameA)), "--admin-listen", taken.Addr().String()}, &out, &out); err == nil || !strings.Contains(err.Error(), "--admin-listen") {
		t.Errorf("a port in use: %v", err)
	}
}

// What the README and the help show works as pasted.
func TestShownConfigurations(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "```yaml\nlisteners:")
	shown, _, _ = strings.Cut("listeners:"+shown, "```")
	_, inHelp, _ := strings.Cut(help, "A configuration, whole:\n")
	inHelp, _, _ = strings.Cut(inHelp, "\nThe file is followed.")
	for name, text := range map[string]string{"README": shown, "-h": strings.ReplaceAll(inHelp, "\n  ", "\n")} {
		if c, err := entrypoint.ParseConfig([]byte(text)); err != nil || len(c.Listeners) != 3 || len(c.Routes) == 0 {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}
