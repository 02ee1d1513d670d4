package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"regexp"
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
		"sni": sni,
		"destination": func(ctx context.Context) (net.Conn, error) {
			return viaProxy.DialContext(ctx, "tcp", p.Addr("destination"))
		},
		"header": func(ctx context.Context) (net.Conn, error) { return viaHeader.DialContext(ctx, "tcp", "ignored:443") },
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
	admin := clitest.Client(t, &http.Transport{})
	page := getRoutes(t, admin, p)
	if c := page.Config; !strings.Contains(c.Refused, "is route \"a\"'s already") || c.Since.Before(c.Used) || c.Used.IsZero() || c.Restart {
		t.Errorf("%+v", c)
	}
	// So is one that has lost its routes.
	if err := os.WriteFile(w.config(""), []byte("listeners: [{address: \"127.0.0.1:0\"}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clitest.Eventually(t, func() error {
		if c := getRoutes(t, admin, p).Config; !strings.Contains(c.Refused, "write routes: []") {
			return errors.New(c.Refused)
		}
		return nil
	})
	// A good one is used.
	w.config(w.route("b", nameB))
	clitest.Eventually(t, func() error { return w.ask(sni, nameB) })
	if err := w.ask(sni, nameA); err == nil {
		t.Error("a removed route is served")
	}

	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/routes": `"name": "b"`} {
		if status, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if err := p.Stop(); err != nil {
		t.Errorf("drain: %v", err)
	}
}

func getRoutes(t *testing.T, c *http.Client, p *clitest.Program) (page routesPage) {
	t.Helper()
	_, body := clitest.Get(t, c, "http://"+p.Addr("admin")+"/routes")
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	return page
}

// /routes shows what leads where, whether it can be reached, and how often it was.
func TestRoutesPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := gone.Addr().String()
	gone.Close()
	routes := fmt.Sprintf(`
- {name: a, sni: [%s], destinations: ["240.0.0.1:443", "fd00::/64"], headerValues: [x], backends: [%q, %q],
  allow: [127.0.0.1, "::/0"], deny: [192.0.2.0/24], maxConnections: 7}
- {name: rest, default: true, backends: ["unix:@none"]}
`, nameA, dead, w.backends[nameA])
	p := clitest.Start(t, run, "--config", w.config(routes), "--config-interval", "10ms", "--admin-listen", "127.0.0.1:0")
	// A connection stays, while its route goes.
	open, err := dialer(p.Addr("sni"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := tls.Client(open, &tls.Config{RootCAs: w.Pool(), ServerName: nameA}).HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := clitest.Client(t, &http.Transport{})
	var page routesPage
	clitest.Eventually(t, func() error { // a backend is passed over for a second at first, and longer each time
		for range 2 { // one of them meets the dead backend first, if it is not passed over
			if err := w.ask(dialer(p.Addr("sni")), nameA); err != nil {
				return err
			}
		}
		page = getRoutes(t, admin, p)
		if b := page.Routes[0].Backends; len(b) != 2 || b[0].Backend != dead || b[0].SickUntil.IsZero() || b[1].Backend != w.backends[nameA] || !b[1].SickUntil.IsZero() {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	got := page.Routes[0]
	if len(page.Routes) != 2 || got.Total < 3 || got.Up == 0 || page.Conns < 1 || page.Config.Refused != "" || !page.Config.Since.IsZero() {
		t.Fatalf("%+v", page)
	}
	got.RouteStats, got.Backends = entrypoint.RouteStats{}, nil
	want := routePage{
		SNI: []string{nameA}, Destinations: []string{"240.0.0.1:443", "fd00::/64"}, HeaderValues: []string{"x"},
		Allow:          []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::/0")},
		Deny:           []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		MaxConnections: 7,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if !page.Routes[1].Default {
		t.Errorf("%+v", page.Routes[1])
	}
	w.config("- {name: rest, default: true, backends: [\"unix:@other\"]}\n")
	p.Find("routes replaced")
	if !strings.Contains(p.String(), `"routes":1,"added":0,"removed":1,"changed":1`) {
		t.Error("no line with what has changed")
	}
	if a := getRoutes(t, admin, p).Routes[0]; a.Name != "a" || !a.Removed || a.Conns != 1 || a.SNI != nil || a.Backends != nil {
		t.Errorf("%+v", a)
	}
}

// Listeners and limits are taken at the start, and the log says so until the file
// means again what the program started with.
func TestRestartNeeded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const warning = "listeners, limits or timeouts are not those of the start: that takes a restart"
	p := clitest.Start(t, run, "--config", w.config(w.route("a", nameA)), "--config-interval", "10ms", "--admin-listen", "127.0.0.1:0")
	p.Addr("header")
	admin := clitest.Client(t, &http.Transport{})
	routes := 1
	replace := func(front string, wantWarnings int) {
		t.Helper()
		// One more route each time, so that the line of this change can be found.
		text := w.route("a", nameA)
		for i := range routes {
			text += fmt.Sprintf("- {name: x%d, sni: [x%d.example.com], backends: [\"10.0.0.1:1\"]}\n", i, i)
		}
		w.config(text + front)
		routes++
		clitest.Eventually(t, func() error { // this line is the last one of a change
			if n := strings.Count(p.String(), "file loaded"); n != routes-1 {
				return fmt.Errorf("%d files loaded", n)
			}
			return nil
		})
		want := fmt.Sprintf(`"routes":%d,"added":1,"removed":0,"changed":0`, routes)
		if !strings.Contains(p.String(), want) {
			t.Errorf("no line with %s", want)
		}
		if page := getRoutes(t, admin, p); len(page.Routes) != routes || page.Config.Restart != (front == "headTimeout: 1s\n") {
			t.Errorf("%+v", page)
		}
		if n := strings.Count(p.String(), warning); n != wantWarnings {
			t.Errorf("%q: %d warnings, want %d", front, n, wantWarnings)
		}
	}
	replace("", 0)
	replace("headTimeout: 10s\nlimits: {connections: 20000}\n", 0) // what it was
	replace("headTimeout: 1s\n", 1)
	replace("headTimeout: 1s\n", 2)
	replace("", 2) // reverted
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
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

// --check tells all that is wrong, and where.
func TestCheckBadValues(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := w.config("- {name: a, sni: [a.example.com], dialTimeout: 5, backends: [\"a:1\"]}\ndrainTimeout: 25\nremovedTimeout: never\n")
	err := run(t.Context(), []string{"--config", file, "--check"}, io.Discard, io.Discard)
	want := "--config: " + file + `: entrypoint: drainTimeout: want a duration, a number with a unit as in 10s, got 25
entrypoint: removedTimeout: want a duration, as 250ms, 10s or 1h30m, of at most 292 years, got "never"
entrypoint: route "a": dialTimeout: want a duration, a number with a unit as in 10s, got 5`
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant\n%s", err, want)
	}
	// A mistake in the command line is one of the command line.
	for _, args := range [][]string{{"--check=perhaps", "--config", file}, {"--check", file}} {
		var usage *cli.UsageError
		if err := run(t.Context(), args, io.Discard, io.Discard); !errors.As(err, &usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// example.yaml shows every field there is, as the help promises.
func TestExampleComplete(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(help, "example.yaml") {
		t.Error("the help does not name example.yaml")
	}
	for _, v := range []any{entrypoint.Config{}, entrypoint.ListenerConfig{}, entrypoint.RouteConfig{}, entrypoint.LimitsConfig{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			name := f.Tag.Get("json")
			if f.IsExported() && !regexp.MustCompile(`(?m)^[- ]*`+name+`:.*#|^[- ]*#.*\n([- ]*#.*\n)*[- ]*`+name+`:`).Match(text) {
				t.Errorf("no %s with a comment", name)
			}
		}
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
	_, inHelp, _ := strings.Cut(help, "beside the program's source:\n")
	inHelp, _, _ = strings.Cut(inHelp, "\nThe file is followed;")
	for name, text := range map[string]string{"README": shown, "-h": strings.ReplaceAll(inHelp, "\n  ", "\n")} {
		if c, err := entrypoint.ParseConfig([]byte(text)); err != nil || len(c.Listeners) != 3 || len(c.Routes) == 0 {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}
