package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// world is a small network: a server on the host "server", nodes that agents
// reach, and one CA that everyone trusts. Everything ends with the test.
type world struct {
	testing.TB
	net    *tunneltest.Network
	ca     *tunneltest.CA
	server *Server
	log    *logBuffer
}

// serverAddr is where the server listens, for both doors, with TLS.
const serverAddr = "server:9443"

func newWorld(t testing.TB, configure func(*Server)) *world {
	t.Helper()
	ca, err := tunneltest.NewCA("world")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, net: &tunneltest.Network{}, ca: ca, log: &logBuffer{}}
	w.startServer(configure)
	w.echo("10.0.0.7:10250")
	return w
}

func (w *world) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// startServer starts a server in the place of the last one.
func (w *world) startServer(configure func(*Server)) {
	w.Helper()
	w.server = &Server{ID: "server", Logger: w.logger()}
	if configure != nil {
		configure(w.server)
	}
	w.serve(w.server, serverAddr)
}

func (w *world) serve(s *Server, address string) {
	w.Helper()
	l := w.listen(address)
	var wait sync.WaitGroup
	wait.Go(func() { _ = s.Serve(l) })
	w.Cleanup(func() { s.Close(); wait.Wait() })
}

// listen listens with TLS that asks for client certificates.
func (w *world) listen(address string) net.Listener {
	w.Helper()
	host, _, _ := net.SplitHostPort(address)
	l, err := w.net.Host(host).Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	return tls.NewListener(l, w.serverTLS())
}

func (w *world) serverTLS() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{w.cert(tunneltest.CertOptions{DNS: []string{"server", "a.tunnel.example"}, Server: true})},
		ClientCAs:    w.ca.Pool(),
		ClientAuth:   tls.VerifyClientCertIfGiven,
		NextProtos:   []string{"http/1.1"},
	}
}

func (w *world) cert(o tunneltest.CertOptions) tls.Certificate {
	w.Helper()
	c, err := w.ca.Issue(o)
	if err != nil {
		w.Fatal(err)
	}
	return c.TLS
}

// clientTLS is the configuration of an agent or client of a cluster.
func (w *world) clientTLS(cluster string) *tls.Config {
	w.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{w.cert(tunneltest.CertOptions{Cluster: cluster, Client: true})},
		RootCAs:      w.ca.Pool(),
		ServerName:   "server",
	}
}

// agent starts an agent of a cluster.
func (w *world) agent(cluster, id string, configure func(*Agent)) *Agent {
	w.Helper()
	host := w.net.Host(id)
	a := &Agent{
		Servers:    []string{"https://" + serverAddr},
		ID:         id,
		TLS:        w.clientTLS(cluster),
		Dial:       host.Dial,
		DialTarget: host.Dial,
		ResolveTarget: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return w.net.LookupNetIP(ctx, "ip", name)
		},
		Logger: w.logger().With("side", "agent "+id),
	}
	if configure != nil {
		configure(a)
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = a.Run(context.Background()) })
	w.Cleanup(func() { a.Close(); wait.Wait() })
	return a
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
	w.Fatalf("never: %s\n%s", what, w.log)
}

// ready waits for a number of agents in a cluster of the present server.
func (w *world) ready(cluster string, agents int) {
	w.Helper()
	w.until("agents of "+cluster, func() bool { return w.agents(w.server, cluster) == agents })
}

func (w *world) agents(s *Server, cluster string) int {
	c := s.registry.get(cluster)
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.agents)
}

// echo serves a target that gives back what it gets, half-close included.
func (w *world) echo(address string) {
	w.target(address, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// target serves a target; serve need not close the conn.
func (w *world) target(address string, serve func(net.Conn)) {
	w.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		w.Fatal(err)
	}
	l, err := w.net.Host(host).Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { defer c.Close(); serve(c) })
		}
	})
	w.Cleanup(func() {
		l.Close()
		for _, c := range w.net.Conns() {
			c.Cut()
		}
		wait.Wait()
	})
}

// client is a proxy client with the certificate of a cluster.
func (w *world) client(cluster string) *connect.Dialer {
	w.Helper()
	return &connect.Dialer{Address: serverAddr, TLS: w.clientTLS(cluster), Forward: w.net.Host("apiserver").Dial}
}

// roundTrip sends a line through a conn and expects it back, and the end of
// the data after a half-close.
func roundTrip(c net.Conn) error {
	defer c.Close()
	if _, err := io.WriteString(c, "through the tunnel"); err != nil {
		return err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != "through the tunnel" {
		return &net.AddrError{Err: "wrong echo", Addr: string(got)}
	}
	return nil
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) has(parts ...string) bool {
	for line := range strings.Lines(l.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// lines is what was logged with a text in it.
func (l *logBuffer) lines(text string) (found []string) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func tlsClient(c net.Conn, config *tls.Config) net.Conn { return tls.Client(c, config) }
