package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// patience ends a test that hangs; no verdict depends on it otherwise.
const patience = 30 * time.Second

// kind is a make of leg. pair returns the peer's end and the relay's end.
type kind struct {
	name   string
	pair   func(t testing.TB) (peer, leg net.Conn)
	resets bool // the peer can tell the relay's reset from an orderly end
	half   bool // the relay's end can half-close
}

func kinds() []kind {
	return []kind{
		{"tcp", tcpPair, true, true},
		{"unix", unixPair, false, true},
		{"tlsServer", func(t testing.TB) (net.Conn, net.Conn) { c, s := tlsPair(t); return c, s }, true, true},
		{"tlsClient", func(t testing.TB) (net.Conn, net.Conn) { c, s := tlsPair(t); return s, c }, true, true},
		{"memory", memoryPair, true, true},
		{"prefixed", prefixedPair, true, true},
		{"wrapped", wrappedPair, true, true},
		{"embedding", embeddingPair, true, true},
	}
}

// eachPair runs f for every combination of two makes.
func eachPair(t *testing.T, f func(t *testing.T, a, b kind)) {
	for _, a := range kinds() {
		for _, b := range kinds() {
			t.Run(a.name+"-"+b.name, func(t *testing.T) { f(t, a, b) })
		}
	}
}

func socketPair(t testing.TB, network, addr string) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

func tcpPair(t testing.TB) (net.Conn, net.Conn) { return socketPair(t, "tcp", "127.0.0.1:0") }

func unixPair(t testing.TB) (net.Conn, net.Conn) {
	return socketPair(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func memoryPair(t testing.TB) (net.Conn, net.Conn) {
	a, b := tunneltest.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

var testCA = func() *tunneltest.CA {
	ca, err := tunneltest.NewCA("relay test")
	if err != nil {
		panic(err)
	}
	return ca
}()

func tlsPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	a, b := tcpPair(t)
	return tlsOver(t, a, b)
}

// tlsOver does not shake hands: the relay's first read or write does.
func tlsOver(t testing.TB, a, b net.Conn) (client, server *tls.Conn) {
	t.Helper()
	issued, err := testCA.Issue(tunneltest.CertOptions{DNS: []string{"relay.test"}})
	if err != nil {
		t.Fatal(err)
	}
	client = tls.Client(a, &tls.Config{RootCAs: testCA.Pool(), ServerName: "relay.test"})
	server = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{issued.TLS}})
	return client, server
}

// prefixedPair gives the relay a socket whose first bytes were read too early.
// The prefix is empty, so that all kinds carry the same bytes; see
// TestRelayPrefixed for the others.
func prefixedPair(t testing.TB) (net.Conn, net.Conn) {
	peer, leg := tcpPair(t)
	return peer, NewPrefixed(leg, nil)
}

// wrapped is a stranger's wrapper, which keeps books in Close.
type wrapped struct {
	net.Conn
	closed *atomic.Int32
}

func (w wrapped) NetConn() net.Conn { return w.Conn }

func (w wrapped) Close() error {
	w.closed.Add(1)
	return w.Conn.Close()
}

// embedding is how a wrapper hides the type and keeps the methods.
type embedding struct{ *net.TCPConn }

func embeddingPair(t testing.TB) (net.Conn, net.Conn) {
	peer, leg := tcpPair(t)
	return peer, embedding{leg.(*net.TCPConn)}
}

func wrappedPair(t testing.TB) (net.Conn, net.Conn) {
	peer, leg := tcpPair(t)
	return peer, wrapped{leg, new(atomic.Int32)}
}

// running is a Relay under test.
type running struct {
	t    testing.TB
	done chan error
	Counter
}

// start runs Relay; hook may change what is not in Options.
func start(ctx context.Context, t testing.TB, a, b net.Conn, idle time.Duration, hook func(r *relay)) *running {
	run := &running{t: t, done: make(chan error, 1)}
	r := newRelay(a, b, &Options{IdleTimeout: idle, Counter: &run.Counter})
	if hook != nil {
		hook(r)
	}
	go func() { run.done <- r.run(ctx) }()
	return run
}

func (r *running) wait() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		r.t.Fatal("Relay does not return")
		return nil
	}
}

func (r *running) wantNil() {
	r.t.Helper()
	if err := r.wait(); err != nil {
		r.t.Fatalf("Relay = %v, want nil", err)
	}
}

// wantError checks what Relay returned; an empty op or leg is not looked at.
func (r *running) wantError(op, leg string, target error) *Error {
	r.t.Helper()
	err := r.wait()
	var e *Error
	if !errors.As(err, &e) {
		r.t.Fatalf("Relay = %v, want *Error", err)
	}
	if op != "" && e.Op != op || leg != "" && e.Leg != leg || target != nil && !errors.Is(err, target) {
		r.t.Errorf("Relay = %q (op %q, leg %q), want op %q, leg %q, %v", err, e.Op, e.Leg, op, leg, target)
	}
	return e
}

func (r *running) wantBytes(aToB, bToA int64) {
	r.t.Helper()
	if ab, ba := r.Bytes(); ab != aToB || ba != bToA {
		r.t.Errorf("Bytes = %d, %d; want %d, %d", ab, ba, aToB, bToA)
	}
}

// limit makes every later step of the peers fail rather than hang.
func limit(cs ...net.Conn) {
	for _, c := range cs {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
}

func mustWrite(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func mustRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

func mustEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want EOF", n, err)
	}
}

func mustCloseWrite(t testing.TB, c net.Conn) {
	t.Helper()
	if err := CloseWrite(c); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
}

// mustReset checks that the peer, with nothing left to read, sees a reset.
func mustReset(t testing.TB, c net.Conn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err == nil || err == io.EOF {
		t.Fatalf("read %d, %v; want a reset", n, err)
	}
	if !isReset(err) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// pattern is a stream of bytes that has no period a buffer could have.
type pattern struct{ off int64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = p.at(p.off + int64(i))
	}
	p.off += int64(len(b))
	return len(b), nil
}

func (*pattern) at(i int64) byte { return byte(i ^ i>>8 ^ i>>16 ^ i*31>>4) }

// checkPattern reads exactly n bytes of pattern from the offset.
func checkPattern(c io.Reader, off, n int64) error {
	p := pattern{off}
	b := make([]byte, 32<<10)
	want := make([]byte, len(b))
	for n > 0 {
		m, err := c.Read(b[:min(n, int64(len(b)))])
		_, _ = p.Read(want[:m])
		if string(b[:m]) != string(want[:m]) {
			return fmt.Errorf("wrong bytes before offset %d", p.off)
		}
		n -= int64(m)
		if err != nil {
			return fmt.Errorf("%d bytes missing: %w", n, err)
		}
	}
	return nil
}

// sendPattern writes n bytes of pattern from the offset.
func sendPattern(c io.Writer, off, n int64) error {
	_, err := io.CopyN(struct{ io.Writer }{c}, &pattern{off}, n)
	return err
}
