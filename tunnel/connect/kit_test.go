package connect

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// listen opens a listener that the end of the test closes.
func listen(t testing.TB, listen func(network, address string) (net.Listener, error), network, address string) net.Listener {
	t.Helper()
	l, err := listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// listenTCP opens a real listener.
func listenTCP(t testing.TB) net.Listener { return listen(t, net.Listen, "tcp", "127.0.0.1:0") }

// listenUnix opens a real Unix listener.
func listenUnix(t testing.TB) net.Listener {
	dir, err := os.MkdirTemp("", "connect")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return listen(t, net.Listen, "unix", filepath.Join(dir, "s"))
}

// accept serves the conns of l with f until the end of the test, which waits
// for all of them.
func accept(t testing.TB, l net.Listener, f func(net.Conn)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); f(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

// serve runs h on l until the end of the test or until stop is called.
func serve(t testing.TB, h *Handler, l net.Listener) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return stop
}

// echo sends everything back, and the end behind it.
func echo(c net.Conn) {
	io.Copy(c, c)
	relay.CloseWrite(c)
	io.Copy(io.Discard, c)
}

// roundTrip says something, half-closes, and wants to hear it.
func roundTrip(c net.Conn, say string) error {
	defer c.Close()
	if _, err := io.WriteString(c, say); err != nil {
		return err
	}
	if err := relay.CloseWrite(c); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err != nil || string(b) != say {
		return fmt.Errorf("heard %.40q, %w", b, err)
	}
	return nil
}

// ca and cert are made once: keys cost time.
var ca = sync.OnceValue(func() *tunneltest.CA {
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		panic(err)
	}
	return ca
})

var cert = sync.OnceValue(func() tls.Certificate {
	c, err := ca().Issue(tunneltest.CertOptions{CommonName: "proxy", DNS: []string{"proxy", "target"}, IPs: []string{"127.0.0.1"}})
	if err != nil {
		panic(err)
	}
	return c.TLS
})

func serverTLS() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert()}} }
func clientTLS() *tls.Config { return &tls.Config{RootCAs: ca().Pool()} }

// canned is a proxy that records the head of each request, answers with answer
// and then echoes.
type canned struct {
	answer string
	mu     sync.Mutex
	heads  []string
}

func (p *canned) serve(c net.Conn) {
	r, err := ReadRequest(c, nil)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.heads = append(p.heads, string(r.head))
	p.mu.Unlock()
	io.WriteString(c, p.answer)
	io.Copy(c, io.MultiReader(bytes.NewReader(r.Early), c))
	relay.CloseWrite(c)
}

func (p *canned) last(t testing.TB) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.heads) == 0 {
		t.Fatal("the proxy got no request")
	}
	return p.heads[len(p.heads)-1]
}

// lines is a slog destination.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.b.String(), "\n"), "\n")
}
