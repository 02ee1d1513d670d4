package entrypoint

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// The names of two clusters' API servers, and what leads to them.
const (
	nameA   = "api.a.example.com"
	nameB   = "api.b.example.com"
	destA   = "240.0.10.1:443"
	destB   = "[fd00::b]:443"
	headerA = "outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"
	headerB = "outbound|443||kube-apiserver.shoot-b.svc.cluster.local"
)

// The doors of a world.
const (
	doorSNI    = "lb:443"
	doorDest   = "lb:8443"
	doorHeader = "lb:8132"
	doorAll    = "lb:9999"
	// balancer is the address of a load balancer that names its clients.
	balancer = "10.99.0.1"
)

// world is a router with a door of each kind in an in-memory network, in front
// of the backends of two clusters, each of which says its name and then echoes,
// over TLS. Everything ends with the test.
type world struct {
	testing.TB
	net    *tunneltest.Network
	ca     *tunneltest.CA
	router *Router
	log    *logBuffer
	wait   sync.WaitGroup
}

func newWorld(t testing.TB, configure func(*Router)) *world {
	t.Helper()
	ca, err := tunneltest.NewCA("world")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, net: new(tunneltest.Network), ca: ca, log: new(logBuffer)}
	w.router = &Router{Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if configure != nil {
		configure(w.router)
	}
	t.Cleanup(w.wait.Wait)
	t.Cleanup(func() { w.router.Close() })
	w.backend("backend-a:443", nameA)
	w.backend("backend-b:443", nameB)
	w.set(w.routes()...)
	w.net.SetHost("balancer", balancer)
	rules := []proxyproto.Rule{{From: prefix(balancer + "/32"), Policy: proxyproto.Require}}
	w.serve(doorSNI, &Door{Proxy: rules})
	w.serve(doorDest, &Door{By: ByDestination, Proxy: rules})
	w.serve(doorHeader, &Door{By: ByHeader, Proxy: rules})
	w.serve(doorAll, &Door{By: BySNI | ByDestination | ByHeader, Proxy: rules})
	return w
}

// routes are those of both clusters.
func (w *world) routes() []*Route {
	return []*Route{
		{
			Name: "a", SNI: []string{nameA, "*.ingress.a.example.com"}, Destinations: []Destination{dest(destA)},
			HeaderValues: []string{headerA}, Handler: w.forward("backend-a:443"),
		},
		{
			Name: "b", SNI: []string{nameB}, Destinations: []Destination{dest(destB)},
			HeaderValues: []string{headerB}, Handler: w.forward("backend-b:443"),
		},
	}
}

func (w *world) forward(backends ...string) *Forward {
	return &Forward{Backends: backends, Dial: w.net.Host("lb").Dial}
}

func (w *world) set(routes ...*Route) {
	w.Helper()
	if err := w.router.SetRoutes(routes); err != nil {
		w.Fatal(err)
	}
}

func (w *world) serve(address string, d *Door) {
	w.Helper()
	l := w.listen(address)
	w.wait.Go(func() {
		if err := w.router.Serve(l, d); !errors.Is(err, net.ErrClosed) {
			w.Errorf("Serve: %v", err)
		}
	})
}

func (w *world) listen(address string) net.Listener {
	w.Helper()
	host, _, _ := net.SplitHostPort(address)
	l, err := w.net.Host(host).Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	return l
}

// backend answers with TLS: a line with its name, and then an echo, until EOF,
// behind which it says "bye".
func (w *world) backend(address, name string) {
	w.Helper()
	cert, err := w.ca.Issue(tunneltest.CertOptions{DNS: []string{name}, Server: true})
	if err != nil {
		w.Fatal(err)
	}
	l := tls.NewListener(w.listen(address), &tls.Config{Certificates: []tls.Certificate{cert.TLS}})
	w.handle(l, func(c net.Conn) {
		fmt.Fprintln(c, name)
		if _, err := io.Copy(c, c); err == nil {
			fmt.Fprintln(c, "bye")
			c.(*tls.Conn).CloseWrite()
			io.Copy(io.Discard, c)
		}
	})
}

// handle serves a listener until the test ends, and closes what is served.
func (w *world) handle(l net.Listener, serve func(net.Conn)) {
	w.Cleanup(func() { l.Close() })
	w.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wait.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
}

// dial connects to a door from a host.
func (w *world) dial(host, door string) net.Conn {
	w.Helper()
	c, err := w.net.Host(host).Dial(w.Context(), "tcp", door)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c
}

// tls does a handshake over c.
func (w *world) tls(c net.Conn, name string) (*tls.Conn, error) {
	t := tls.Client(c, &tls.Config{RootCAs: w.ca.Pool(), ServerName: name})
	return t, t.HandshakeContext(w.Context())
}

// greeted does a handshake over c and reads the greeting, which must be that of
// the backend of that name.
func (w *world) greeted(c net.Conn, name string) *tls.Conn {
	w.Helper()
	t, err := w.tls(c, name)
	if err != nil {
		w.Fatalf("%s: %v\n%s", name, err, w.log)
	}
	if got := line(t); got != name {
		w.Fatalf("greeted by %q, want %q\n%s", got, name, w.log)
	}
	return t
}

// connect asks for a tunnel and returns the status.
func (w *world) connect(c net.Conn, head string) (status int, header http.Header) {
	w.Helper()
	if _, err := io.WriteString(c, strings.ReplaceAll(head, "\n", "\r\n")); err != nil {
		w.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(oneByte{c}), &http.Request{Method: http.MethodConnect})
	if err != nil {
		w.Fatalf("%q: %v\n%s", head, err, w.log)
	}
	return res.StatusCode, res.Header
}

// connectHead is a CONNECT request with the given header lines.
func connectHead(lines ...string) string {
	return "CONNECT ignored.example.com:443 HTTP/1.1\nHost: ignored.example.com:443\n" + strings.Join(append(lines, "\n"), "\n")
}

// claim sends a PROXY header.
func (w *world) claim(c net.Conn, h *proxyproto.Header) {
	w.Helper()
	if err := proxyproto.WriteHeader(c, h); err != nil {
		w.Fatal(err)
	}
}

// proxyHeader is one of version 2 from source to destination.
func proxyHeader(source, destination string) *proxyproto.Header {
	return &proxyproto.Header{Source: tcpAddr(source), Destination: tcpAddr(destination)}
}

func tcpAddr(s string) *net.TCPAddr {
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		panic(err)
	}
	return a
}

func dest(s string) Destination {
	d, err := ParseDestination(s)
	if err != nil {
		panic(err)
	}
	return d
}

// until waits for a state that is reached in a while.
func (w *world) until(what string, reached func() bool) {
	w.Helper()
	for range 3000 {
		if reached() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.Fatalf("never: %s\n%+v\n%s", what, w.router.Stats(), w.log)
}

// refused waits until a reason has been counted.
func (w *world) refused(reason Reason, n uint64) {
	w.Helper()
	w.until(fmt.Sprintf("%d refused as %s", n, reason), func() bool { return w.router.Stats().Refused[reason] == n })
}

// line reads a line byte by byte, so that nothing behind it is taken.
func line(r io.Reader) string {
	s, _ := bufio.NewReader(oneByte{r}).ReadString('\n')
	return strings.TrimSuffix(s, "\n")
}

// oneByte reads byte by byte.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

// ended reports how a connection ended for a client that waits for bytes.
func ended(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
