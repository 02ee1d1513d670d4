package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

const cluster = "shoot--dev--a"

// world is a cluster: a CA, the ports of its server, a target, and the binaries.
type world struct {
	*clitest.CA
	t                      *testing.T
	bin                    string
	cluster                string
	clients, agents, admin string
	agentAdmin             string
	target, echo           string // echo only where there is an entrypoint
	serverArgs, agentArgs  []string
	client                 *connect.Dialer
}

// build compiles the programs, unless the tests shall be short.
func build(t *testing.T) (bin string) {
	if testing.Short() {
		t.Skip("starts processes: run without -short")
	}
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGTERM: run on linux or darwin")
	}
	const examples = "github.com/rhizome-tunnel/rhizome/examples/"
	return clitest.Build(t, examples+"seed/proxy-server", examples+"seed/entrypoint",
		examples+"shoot/proxy-agent", examples+"shoot/apiserver-proxy")
}

// newWorld is the only cluster, with a target that takes its time.
func newWorld(t *testing.T, bin string) *world {
	return newCluster(t, bin, clitest.NewCA(t), cluster, slowTarget(t))
}

func newCluster(t *testing.T, bin string, ca *clitest.CA, cluster, target string) *world {
	w := &world{CA: ca, t: t, bin: bin, cluster: cluster, target: target}
	for _, addr := range []*string{&w.clients, &w.agents, &w.admin, &w.agentAdmin} {
		*addr = freePort(t)
	}
	cert, key := w.Files("server-of-"+cluster, tunneltest.CertOptions{CommonName: "proxy-server", DNS: []string{w.host()}, IPs: []string{"127.0.0.1"}})
	w.serverArgs = []string{
		"--tls-cert", cert, "--tls-key", key, "--listen", w.clients, "--client-ca", w.File,
		"--agent-ca", w.File, "--admin-listen", w.admin, "--server-id", "server-of-" + cluster,
	}
	cert, key = w.Files("agent-of-"+cluster, tunneltest.CertOptions{CommonName: "proxy-agent", Cluster: cluster})
	w.agentArgs = []string{
		"--ca", w.File, "--cert", cert, "--key", key,
		"--allow", w.target, "--agent-id", "agent-1", "--admin-listen", w.agentAdmin,
	}
	w.client = w.clientAt(w.clients)
	return w
}

// host is what the server's certificate is for beside its address.
func (w *world) host() string { return "proxy-server." + w.cluster + ".svc.cluster.local" }

// clientAt is a client of the cluster at a server, its own or another one.
func (w *world) clientAt(server string) *connect.Dialer {
	return &connect.Dialer{Address: server, Timeout: -1, TLS: &tls.Config{
		RootCAs: w.Pool(), ServerName: "127.0.0.1",
		Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{CommonName: "kube-apiserver", Cluster: w.cluster, Client: true}).TLS},
	}}
}

// startServer and startAgent return when the program listens.
func (w *world) startServer(more ...string) *clitest.Process {
	w.t.Helper()
	return w.start("proxy-server", append(more, w.serverArgs...))
}

func (w *world) startAgent(more ...string) *clitest.Process {
	w.t.Helper()
	return w.start("proxy-agent", append(more, w.agentArgs...))
}

func (w *world) start(program string, args []string) *clitest.Process {
	w.t.Helper()
	p := clitest.StartProcess(w.t, filepath.Join(w.bin, program), args...)
	p.Addr("admin") // the last one that it opens
	return p
}

// waitAgent waits until the server has the agent.
func (w *world) waitAgent() {
	w.t.Helper()
	w.waitReady("http://"+w.admin+"/readyz?cluster="+w.cluster, http.StatusOK)
}

// waitReady waits until an admin page answers with a status.
func (w *world) waitReady(page string, want int) {
	w.t.Helper()
	c := clitest.Client(w.t, &http.Transport{DisableKeepAlives: true})
	clitest.Eventually(w.t, func() error {
		status, body, err := clitest.TryGet(w.t.Context(), c, page)
		if err == nil && status != want {
			err = fmt.Errorf("%s: %d %s", page, status, body)
		}
		return err
	})
}

// goroutines asks a program by its admin pages how many it has.
func (w *world) goroutines(admin string) int {
	w.t.Helper()
	c := clitest.Client(w.t, &http.Transport{DisableKeepAlives: true})
	status, body := clitest.Get(w.t, c, "http://"+admin+"/debug/pprof/goroutine?debug=1")
	var n int
	if _, err := fmt.Sscanf(body, "goroutine profile: total %d", &n); err != nil || status != http.StatusOK {
		w.t.Fatalf("goroutines of %s: %d, %v", admin, status, err)
	}
	return n
}

// given is what freePort has returned.
var given sync.Map

// freePort is a port on loopback that is free now, another one each time. It is
// below those that the kernel gives to clients, so that none takes it while its
// server is down.
func freePort(t *testing.T) string {
	for range 1000 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.N(20_000))))
		if err != nil {
			continue
		}
		defer l.Close()
		addr := l.Addr().String()
		if _, taken := given.LoadOrStore(addr, true); !taken {
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// slowBody is what the target answers, one half at once and the other later.
const slowBody = "the first half, the second half"

// slowTarget starts an HTTP server whose answers take one to two seconds, so
// that many requests are under way at any time. They do not keep it from
// closing.
func slowTarget(t *testing.T) string {
	over := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(slowBody)))
		_, _ = io.WriteString(w, slowBody[:15])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(time.Second + rand.N(time.Second)):
			_, _ = io.WriteString(w, slowBody[15:])
		case <-over:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() { close(over); s.Close() })
	return s.Listener.Addr().String()
}
