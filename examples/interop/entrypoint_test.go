package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestEntrypoint puts the entrypoint between each counterpart and servers:
//
//	counterpart ─► (load balancer) ─► entrypoint ─► (counterpart or) TLS server
func TestEntrypoint(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "./examples/seed/entrypoint")
	program := filepath.Join(dir, "entrypoint")
	t.Run("Curl", func(t *testing.T) { testEntrypointCurl(t, program) })
	t.Run("IPv6", func(t *testing.T) { testEntrypointIPv6(t, program) })
	t.Run("TLS", func(t *testing.T) { testEntrypointTLS(t, program) })
	t.Run("HAProxy", func(t *testing.T) { testEntrypointHAProxy(t, program) })
	t.Run("OpenVPN", func(t *testing.T) { testEntrypointOpenVPN(t, program) })
}

// entry is an entrypoint that runs.
type entry struct {
	config string                            // path
	get    func(page string) ([]byte, error) // an admin page
	log    *syncBuffer
}

// startEntry starts an entrypoint with a configuration and returns when it is
// ready. Like start it asks for a clean end, but it returns the log.
func startEntry(t *testing.T, program, config string) *entry {
	t.Helper()
	admin := freePorts(t, 1)[0]
	e := newEntry(t, admin, config, program)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	e.get = func(page string) ([]byte, error) {
		resp, err := client.Get("http://" + admin + page)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
	waitReady(t, "http://"+admin+"/readyz")
	return e
}

// newEntry is startEntry without a look at the admin pages, and with a command
// line that may begin with something else that runs the program.
func newEntry(t *testing.T, admin, config string, command ...string) *entry {
	t.Helper()
	e := &entry{config: filepath.Join(t.TempDir(), "entrypoint.yaml")}
	e.replace(t, config)
	var wait func() error
	e.log, wait = launch(t, command[0], append(command[1:],
		"--config", e.config, "--config-interval", "50ms", "--admin-listen", admin)...)
	t.Cleanup(func() {
		if err := wait(); err != nil {
			t.Errorf("entrypoint after SIGTERM: %v", err)
		}
		if t.Failed() {
			t.Logf("entrypoint with\n%s\n%s", must(os.ReadFile(e.config)), e.log)
		}
	})
	return e
}

// replace puts another configuration in the place of the present one, by
// renaming, as editors and Secret mounts do.
func (e *entry) replace(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(e.config+".new", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(e.config+".new", e.config); err != nil {
		t.Fatal(err)
	}
}

// stats is what the entrypoint says of itself, and of each route by its name.
func (e *entry) stats(t *testing.T) (all entrypoint.Stats, routes map[string]entrypoint.RouteStats) {
	t.Helper()
	page, err := e.get("/routes")
	if err == nil {
		err = json.Unmarshal(page, &all)
	}
	if err != nil {
		t.Fatalf("/routes: %v\n%s", err, page)
	}
	routes = make(map[string]entrypoint.RouteStats)
	for _, r := range all.Routes {
		routes[r.Name] = r
	}
	return all, routes
}

// waitRoute waits until the entrypoint has a route, or has it no more.
func (e *entry) waitRoute(t *testing.T, name string, want bool) {
	t.Helper()
	waitFor(t, fmt.Sprintf("route %s: %v", name, want), func() (bool, string) {
		_, routes := e.stats(t)
		r, ok := routes[name]
		return (ok && !r.Removed) == want, fmt.Sprint(routes)
	})
}

// waitFor polls until a state is reached. The text tells the state that was
// seen last, for the message if it is not.
func waitFor(t *testing.T, what string, reached func() (bool, string)) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var ok bool
		if ok, last = reached(); ok {
			return
		}
	}
	t.Fatalf("%s: not after 60 s, but\n%s", what, last)
}

// launch starts a program and returns what it writes while it runs, and a
// function that ends it by SIGTERM and returns the error of its end. Without a
// call of that it is ended with the test.
func launch(t *testing.T, path string, args ...string) (out *syncBuffer, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 40 * time.Second // a drain takes 25 s at most
	out = new(syncBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		// Wait answers the context's error only where the program itself has none.
		if err := cmd.Wait(); err != nil && err != context.Canceled {
			return err
		}
		return nil
	}
	t.Cleanup(func() { _ = end() }) // after what the caller registers later
	return out, end
}

// counterpart starts a program that is not ours, whose exit code after SIGTERM
// means nothing, and returns what it writes.
func counterpart(t *testing.T, path string, args ...string) *syncBuffer {
	t.Helper()
	out, end := launch(t, path, args...)
	t.Cleanup(func() {
		_ = end()
		if t.Failed() {
			t.Logf("%s %s\n%s", filepath.Base(path), strings.Join(args, " "), out)
		}
	})
	return out
}

// backend is a TLS server behind the entrypoint. Its answer says who it is and
// what it knows of the client: "NAME: v2 SOURCE > DESTINATION" of the PROXY
// header that it got, or "NAME: no header".
type backend struct {
	name, addr, caFile string
	pool               *x509.CertPool
}

// newBackend starts a server with a CA of its own, so that a certificate that is
// valid tells which backend has answered. With a policy of proxyproto.Require it
// wants a PROXY header from everyone, with proxyproto.Refuse from nobody.
func newBackend(t *testing.T, policy proxyproto.Policy, name string, dns ...string) *backend {
	t.Helper()
	ca := must(tunneltest.NewCA("CA of " + name))
	cert := must(ca.Issue(tunneltest.CertOptions{CommonName: name, DNS: dns, IPs: []string{"127.0.0.1"}, Server: true}))
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: %s\n", name, headerOf(r))
	})
	mux.HandleFunc("/tlvs", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, tlvsOf(r))
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, bigSize))
	})
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // health checks end in handshakes
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
	}
	s.Listener = &proxyproto.Listener{Listener: s.Listener, Options: proxyproto.Options{Default: policy}}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert.TLS}, NextProtos: []string{"http/1.1"}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return &backend{name: name, addr: s.Listener.Addr().String(), caFile: must(ca.WriteFile(t.TempDir(), "ca")), pool: ca.Pool()}
}

// connKey finds the connection in the context of a request.
type connKey struct{}

func headerOf(r *http.Request) string {
	h := r.Context().Value(connKey{}).(*proxyproto.Conn).Header()
	switch {
	case h == nil:
		return "no header"
	case h.Local:
		return fmt.Sprintf("v%d local", h.Version)
	}
	return fmt.Sprintf("v%d %v > %v", h.Version, h.Source, h.Destination)
}

// tlvsOf are the extensions of the header, as text.
func tlvsOf(r *http.Request) string {
	h := r.Context().Value(connKey{}).(*proxyproto.Conn).Header()
	if h == nil {
		return "no header"
	}
	text := fmt.Sprintf("authority %s, ALPN %s, id %s", h.Authority(), h.ALPN(), h.UniqueID())
	if s, err := h.SSL(); err != nil || s == nil {
		text += fmt.Sprintf(", TLS: %v, %v", s, err)
	} else {
		text += fmt.Sprintf(", %s by %s, checked %v", s.Version(), s.CommonName(), s.Verified())
	}
	return text
}

// answer gets a page with curl and returns what came, with curl's own address as
// CLIENT and the address that it has connected to as DOOR. An error is an answer
// too: "exit code 56".
func answer(t *testing.T, curl string, args ...string) string {
	t.Helper()
	args = append([]string{"-q", "-sS", "--noproxy", "", "--max-time", "20",
		"-w", "\n%{local_ip} %{local_port} %{remote_ip} %{remote_port}"}, args...)
	out, errs, code := run(t, nil, curl, args...)
	if code != 0 {
		why, _, _ := strings.Cut(errs, "\n")
		t.Log(why)
		return fmt.Sprintf("exit code %d", code)
	}
	i := strings.LastIndex(out, "\n")
	ends := strings.Fields(out[i+1:])
	if len(ends) != 4 {
		t.Fatalf("curl wrote %q", out)
	}
	return strings.NewReplacer(
		net.JoinHostPort(ends[0], ends[1]), "CLIENT",
		net.JoinHostPort(ends[2], ends[3]), "DOOR").Replace(strings.TrimSpace(out[:i]))
}

// resolve are the arguments that make curl look for a name at another address.
func resolve(name, addr string) []string {
	host, port, _ := net.SplitHostPort(addr)
	return []string{"--resolve", net.JoinHostPort(name, port) + ":" + host}
}

// curlTo are the arguments that make curl ask the server of a name at a door of the
// entrypoint, and trust that backend alone.
func curlTo(b *backend, name, door string, more ...string) []string {
	_, port, _ := net.SplitHostPort(door)
	args := append(resolve(name, door), "--cacert", b.caFile, "https://"+name+":"+port+"/")
	return append(args, more...)
}

// needDaemon is need for a program that Debian keeps out of the PATH of all but
// root.
func needDaemon(t *testing.T, program, remedy string) string {
	t.Helper()
	if path, err := exec.LookPath("/usr/sbin/" + program); err == nil {
		return path
	}
	return need(t, program, remedy)
}

// needLoopbacks asks for the other clients of the tests, beside 127.0.0.1.
func needLoopbacks(t *testing.T) {
	t.Helper()
	for _, client := range []string{"127.0.0.7", "127.0.0.8", "127.0.0.9"} {
		l, err := net.Listen("tcp", client+":0")
		if err != nil {
			missing(t, "this system has no "+client+": ifconfig lo0 alias "+client)
		}
		l.Close()
	}
}

// fill puts values in the place of $NAMES in a configuration: name, value, …
func fill(config string, namesAndValues ...string) string {
	return strings.NewReplacer(namesAndValues...).Replace(config)
}
