package interop

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// suffix is what follows the cluster in the server names by which it is
// selected: alpha.proxy.test.
const suffix = "proxy.test"

// world is a seed and two shoots on this machine:
//
//	counterpart ─ mTLS, SNI ─┐                ┌─ agent of alpha ─► kubelet of alpha
//	                         ├─► proxy-server ┤
//	counterpart ─ unix ──────┘                └─ agent of beta ──► kubelet of beta
//
// The server and both agents are the programs of this project. Each agent may
// dial the kubelet of its own cluster only, so that an answer tells which agent
// it came through.
type world struct {
	dir     string
	caFile  string // of everything that the programs show each other
	clients string // host:port of the client door
	socket  string // path of alpha's Unix socket
	alpha   *kubelet
	beta    *kubelet
	// refused is an address that alpha's agent may dial and nobody listens on.
	refused string
	// client are the certificate files of clients by the cluster they name.
	client map[string]certFiles
}

type certFiles struct{ cert, key string }

// server is the name that selects a cluster.
func server(cluster string) string { return cluster + "." + suffix }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), client: make(map[string]certFiles)}
	bin := w.dir
	build(t, bin, "./examples/seed/proxy-server", "./examples/shoot/proxy-agent")

	ca := must(tunneltest.NewCA("interop"))
	w.caFile = must(ca.WriteFile(w.dir, "ca"))
	issue := func(name string, o tunneltest.CertOptions) certFiles {
		t.Helper()
		cert, key, err := must(ca.Issue(o)).WriteFiles(w.dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return certFiles{cert, key}
	}
	own := issue("server", tunneltest.CertOptions{
		CommonName: "proxy-server", DNS: []string{"proxy-server", "*." + suffix}, IPs: []string{"127.0.0.1"}, Server: true,
	})
	for _, cluster := range []string{"alpha", "beta", "*"} {
		name := strings.ReplaceAll(cluster, "*", "operator")
		w.client[cluster] = issue("client-"+name, tunneltest.CertOptions{CommonName: "kube-apiserver", Cluster: cluster, Client: true})
	}

	w.alpha, w.beta = newKubelet(t, "alpha"), newKubelet(t, "beta")
	ports := freePorts(t, 4)
	w.clients, w.refused = ports[0], ports[3]
	agents, admin := ports[1], ports[2]
	// Not in dir: the path of a socket has 108 bytes at most.
	short, err := os.MkdirTemp("", "rhizome")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	w.socket = filepath.Join(short, "alpha.sock")

	start(t, filepath.Join(bin, "proxy-server"),
		"--listen", w.clients, "--listen", "unix:"+w.socket+"=alpha",
		"--agent-listen", agents, "--admin-listen", admin,
		"--tls-cert", own.cert, "--tls-key", own.key,
		"--client-ca", w.caFile, "--agent-ca", w.caFile,
		"--cluster-from", "sni:"+suffix)
	for cluster, allow := range map[string][]string{
		"alpha": {w.alpha.plain, w.alpha.secure, w.refused},
		"beta":  {w.beta.plain, w.beta.secure},
	} {
		id := issue("agent-"+cluster, tunneltest.CertOptions{CommonName: "agent", Cluster: cluster, Client: true})
		args := []string{"--server", "https://" + agents, "--agent-id", "agent-of-" + cluster,
			"--ca", w.caFile, "--cert", id.cert, "--key", id.key}
		for _, a := range allow {
			args = append(args, "--allow", a)
		}
		start(t, filepath.Join(bin, "proxy-agent"), args...)
	}
	for _, cluster := range []string{"alpha", "beta"} {
		waitReady(t, "http://"+admin+"/readyz?cluster="+cluster)
	}
	return w
}

// kubelet stands in for what is behind an agent: the same handler over HTTPS
// and plain HTTP.
type kubelet struct {
	plain, secure string // host:port
	ca            *tunneltest.CA
	caFile        string
}

const bigSize = 16 << 20

func newKubelet(t *testing.T, cluster string) *kubelet {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "kubelet of", cluster)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, bigSize))
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("/exec", serveExec)

	k := &kubelet{ca: must(tunneltest.NewCA("kubelet of " + cluster))}
	k.caFile = must(k.ca.WriteFile(t.TempDir(), "ca"))
	cert := must(k.ca.Issue(tunneltest.CertOptions{CommonName: "kubelet", IPs: []string{"127.0.0.1"}, Server: true}))

	plain := httptest.NewServer(mux)
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(mux)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert.TLS}}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	k.plain, k.secure = plain.Listener.Addr().String(), secure.Listener.Addr().String()
	return k
}

// serveExec answers as a kubelet does to kubectl exec: it takes over the
// connection, and repeats each byte until the client has finished writing.
func serveExec(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		http.Error(w, "want an upgrade", http.StatusBadRequest)
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	n, err := io.Copy(c, buffered)
	if err == nil {
		fmt.Fprintf(c, "%d bytes", n) // arrives only where half-close survives
	}
}

// build compiles programs of the tree around this module into dir.
func build(t *testing.T, dir string, packages ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", dir + string(filepath.Separator)}, packages...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// start runs a program until the end of the test, when SIGTERM has to end it
// without an error. Its log is shown if the test failed.
func start(t *testing.T, path string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 40 * time.Second // a drain takes 25 s at most
	log := new(syncBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		// Wait answers the context's error only where the program itself has none.
		if err := cmd.Wait(); err != nil && err != context.Canceled {
			t.Errorf("%s after SIGTERM: %v", filepath.Base(path), err)
		}
		if t.Failed() {
			t.Logf("%s %s\n%s", filepath.Base(path), strings.Join(args, " "), log)
		}
	})
}

// waitReady polls until a program's admin page answers 200.
func waitReady(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	var last string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get(url)
		if err != nil {
			last = err.Error()
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
		last = resp.Status + ": " + string(body)
	}
	t.Fatalf("%s is not ready after 20 s: %s", url, last)
}

// freePorts returns loopback addresses that nobody listens on. Somebody could
// take one before it is used; nobody does on a machine that tests.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // not before all are found, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// run runs a counterpart to its end and returns its output and exit code.
func run(t *testing.T, input io.Reader, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, &out, &errs)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// syncBuffer is a buffer that a program writes while a test reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
