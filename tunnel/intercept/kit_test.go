package intercept

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a state that comes by itself.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// logBuffer is a log that may be read while it is written.
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

// world is a client's side, an Interceptor, and an entrypoint, over real TCP or
// within a tunneltest.Network.
type world struct {
	t     testing.TB
	net   *tunneltest.Network // nil: real TCP
	i     *Interceptor
	front net.Listener
	entry net.Listener
	serve chan error
}

// newWorld makes a world in which nothing is served yet.
func newWorld(t testing.TB, network *tunneltest.Network, i *Interceptor) *world {
	t.Helper()
	w := &world{t: t, net: network, i: i, serve: make(chan error, 1)}
	w.front, w.entry = w.listen(), w.listen()
	i.Entrypoint = w.entry.Addr().String()
	if network != nil {
		i.Dial = network.Dial
	}
	if i.Dialect == Connect && i.Header == nil {
		i.Header = http.Header{"X-Gardener-Destination": {"outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"}}
	}
	return w
}

func (w *world) listen() net.Listener {
	w.t.Helper()
	listen := net.Listen
	if w.net != nil {
		listen = w.net.Listen
	}
	l, err := listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	return l
}

// start serves, until the function that it returns or the end of the test.
func (w *world) start() (stop func()) {
	go func() { w.serve <- w.i.Serve(w.front) }()
	stop = sync.OnceFunc(func() {
		w.i.Close()
		w.entry.Close()
		if err := <-w.serve; err != ErrClosed {
			w.t.Errorf("Serve returned %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// dial is a client.
func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := w.tryDial()
	must(w.t, err)
	return c
}

func (w *world) tryDial() (net.Conn, error) {
	dial := (&net.Dialer{}).DialContext
	if w.net != nil {
		dial = w.net.Dial
	}
	c, err := dial(context.Background(), "tcp", w.front.Addr().String())
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// wantReset is a client that is reset, sooner or later: connecting may fail of it
// already.
func (w *world) wantReset() {
	w.t.Helper()
	switch c, err := w.tryDial(); {
	case err == nil:
		wantReset(w.t, c)
	case !errors.Is(err, syscall.ECONNRESET):
		w.t.Errorf("cannot connect: %v", err)
	}
}

// accept is the entrypoint, which hears the destination and answers.
func (w *world) accept() (c net.Conn, destination string) {
	w.t.Helper()
	c, err := w.entry.Accept()
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	if w.i.Dialect == Connect {
		r, err := connect.ReadRequest(c, nil)
		must(w.t, err)
		must(w.t, (&connect.Response{Status: 200}).Write(c))
		if r.Early != nil {
			c = relay.NewPrefixed(c, r.Early)
		}
		return c, r.Target
	}
	h, err := proxyproto.ReadHeader(c)
	must(w.t, err)
	return c, h.Destination.String()
}

// pair is a client's conn and the entrypoint's end of it. A byte has gone to the
// client, so that the Interceptor is done with its dial: before that a client who
// half-closes has gone.
func (w *world) pair() (client, server net.Conn) {
	w.t.Helper()
	client = w.dial()
	server, _ = w.accept()
	_, err := server.Write([]byte{0})
	must(w.t, err)
	_, err = io.ReadFull(client, make([]byte, 1))
	must(w.t, err)
	return client, server
}

// failed waits until so many clients have failed for a reason.
func (w *world) failed(reason string, n int64) {
	w.t.Helper()
	eventually(w.t, reason, func() bool { s := w.i.Stats(); return s.Failed[reason] == n && s.Open == 0 })
}

// wantReset fails unless the next thing that c reads is a reset.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes and %v, want a reset", n, err)
	}
}

// roundTrip has the client say something and half-close, and the server answer
// after that.
func roundTrip(t testing.TB, client, server net.Conn) {
	t.Helper()
	_, err := io.WriteString(client, "question")
	must(t, errors.Join(err, relay.CloseWrite(client)))
	b, err := io.ReadAll(server)
	if string(b) != "question" || err != nil {
		t.Fatalf("the server heard %q, %v", b, err)
	}
	_, err = io.WriteString(server, "answer")
	must(t, errors.Join(err, server.Close()))
	if b, err = io.ReadAll(client); string(b) != "answer" || err != nil {
		t.Fatalf("the client heard %q, %v", b, err)
	}
}

// inDialects runs f for each dialect.
func inDialects(t *testing.T, f func(t *testing.T, d Dialect)) {
	t.Run("ProxyV2", func(t *testing.T) { f(t, ProxyV2) })
	t.Run("Connect", func(t *testing.T) { f(t, Connect) })
}

// lines are those of a log that have a text.
func lines(log, text string) []string {
	return slices.DeleteFunc(strings.Split(log, "\n"), func(l string) bool { return !strings.Contains(l, text) })
}
