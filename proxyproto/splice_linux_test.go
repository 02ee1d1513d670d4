package proxyproto

import (
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// inherited is how many pipes the process was started with.
var inherited, _ = countPipes()

// pipes counts the pipes that were opened since. A direction that is spliced
// holds one while bytes are in it.
func pipes(t *testing.T) int {
	t.Helper()
	n, err := countPipes()
	if err != nil {
		t.Skipf("cannot see descriptors: %v; mount /proc", err)
	}
	return n - inherited
}

func countPipes() (n int, err error) {
	entries, err := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n, err
}

// eventually waits for a state of the kernel, which tells nobody.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// TestRelaySplices looks from outside: a relay whose reader pauses holds its
// bytes in a pipe if it splices, and in a buffer if it copies. The last row is
// there to show that the test can see the difference.
func TestRelaySplices(t *testing.T) {
	const size = 64 << 20
	for _, tc := range []struct {
		name    string
		o       *Options
		head    []byte
		prepare func(c *Conn) error
		splices bool
	}{
		{"header", &Options{Default: Require, Inner: Require}, wire(t, outerHeader, innerHeader), (*Conn).ReadHeader, true},
		{"only the inner one", &Options{Inner: Require}, wire(t, innerHeader), (*Conn).ReadHeader, true},
		{"no header", &Options{Default: Accept}, nil, (*Conn).ReadHeader, true},
		{"refuse", nil, nil, func(c *Conn) error { _, err := c.Read(make([]byte, 1)); return err }, true},
		{"pending", &Options{Default: Require}, wire(t, outerHeader), func(*Conn) error { return nil }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The relay keeps pipes in a pool, which the collector empties.
			eventually(t, "no pipe", func() bool { runtime.GC(); return pipes(t) == 0 })

			peer, b := tcpPair(t)
			target, leg := tcpPair(t)
			limit(peer, target)
			c := NewConn(b, tc.o)
			sent := make(chan error, 1)
			go func() {
				_, err := peer.Write(append(tc.head, make([]byte, size)...))
				if err == nil {
					err = relay.CloseWrite(peer)
				}
				sent <- err
			}()
			if err := tc.prepare(c); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- relay.Relay(t.Context(), c, leg, nil) }()
			if _, err := io.CopyN(io.Discard, target, 8<<20); err != nil {
				t.Fatal(err)
			}
			if tc.splices {
				eventually(t, "a pipe", func() bool { return pipes(t) > 0 })
			} else if n := pipes(t); n > 0 {
				t.Errorf("%d pipes without splicing", n)
			}
			n, err := io.Copy(io.Discard, target)
			if err != nil {
				t.Error(err)
			}
			if total := n + 8<<20; total != size && (tc.name != "refuse" || total != size-1) {
				t.Errorf("%d bytes arrived", total)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			mustCloseWrite(t, target)
			mustEOF(t, peer)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
