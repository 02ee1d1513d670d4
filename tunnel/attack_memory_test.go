package tunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hostile connects a raw agent of a cluster.
func (w *world) hostile(cluster, id, nonce string, set func(*rawAgent)) *rawAgent {
	w.Helper()
	c, err := w.net.Host("evil").Dial(context.Background(), "tcp", serverAddr)
	if err != nil {
		w.Fatal(err)
	}
	c = tls.Client(c, w.clientTLS(cluster))
	a, err := upgradeRaw(c, "")
	if err != nil {
		w.Fatal(err)
	}
	if set != nil {
		set(a)
	}
	go a.run(helloOf(id, nonce))
	w.Cleanup(func() { c.Close(); <-a.done })
	<-a.regd
	return a
}

// A peer that never acknowledges RESET keeps what it sent in our memory for
// ever: the hard bound (2 × ReceiveMemory) is not held.
func TestAttackUnackedResetsHoldMemory(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		const limit = 1 << 20
		w := newWorld(t, func(s *Server) { s.Limits.ReceiveMemory = limit; s.DialTimeout = 30 * time.Second })
		ok := []byte("HTTP/1.1 200 OK\r\n\r\n")
		a := w.hostile("a", "evil", "nonce-nonce", func(a *rawAgent) {
			a.noAck.Store(true)
			a.onStream = func(a *rawAgent, id uint32) { _ = a.data(id, ok) }
		})
		const n = 64
		for range n {
			c, err := w.server.Dialer("a")(context.Background(), "tcp", "10.0.0.7:1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		junk := make([]byte, 250<<10)
		for i := range n {
			_ = a.data(uint32(3+2*i), junk)
		}
		time.Sleep(2 * hoardGrace)
		got := w.server.Clusters()[0].Unread
		if got > 3*limit {
			t.Errorf("%d bytes are held with a hard bound of %d (%d RESETs were sent)", got, 2*limit, a.resets.Load())
		}
	})
}

// The cluster's quota of streams is given back when a dial is given up, but
// the multiplexer's stream lives on until the peer acknowledges: the same
// quota is used again and again.
func TestAttackGivenUpDialsPileUp(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(s *Server) { s.Limits.Streams = 4; s.Limits.DialsPerSecond = -1 })
		a := w.hostile("a", "evil", "nonce-nonce", func(a *rawAgent) { a.noAck.Store(true) })
		for range 300 {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
			_, _ = w.server.Dialer("a")(ctx, "tcp", "10.0.0.7:1")
			cancel()
		}
		time.Sleep(time.Second)
		open := w.server.Clusters()[0].Agents[0].Streams
		select {
		case <-a.done:
		default:
			if open > 8 {
				t.Errorf("%d streams of a cluster that may have 4, long after their dials were given up", open)
			}
		}
	})
}

// A stream that once had a full window keeps a buffer of that size until it
// ends, although nothing is unread: ReceiveMemory does not see it.
func TestAttackReadBuffersAreKept(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ok := []byte("HTTP/1.1 200 OK\r\n\r\n")
		a := w.hostile("a", "evil", "nonce-nonce", func(a *rawAgent) {
			a.onStream = func(a *rawAgent, id uint32) { _ = a.data(id, ok) }
		})
		heap := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		const n = 200
		var conns []net.Conn
		for range n {
			c, err := w.server.Dialer("a")(context.Background(), "tcp", "10.0.0.7:1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		before := heap()
		junk := make([]byte, 64<<10)
		for i, c := range conns {
			for range 3 {
				_ = a.data(uint32(3+2*i), junk)
			}
			if _, err := io.ReadFull(c, make([]byte, 3*len(junk))); err != nil {
				t.Fatal(err)
			}
		}
		grown := heap() - before
		if unread := w.server.Clusters()[0].Unread; unread != 0 || grown > 16<<20 {
			t.Errorf("%d idle streams with %d bytes unread hold %d MiB", n, unread, grown>>20)
		}
	})
}
