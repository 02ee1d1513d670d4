package tunnel

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hostileServer answers agents with raw frames. Each connection has a nonce of
// its own; then is called when the agent has said HELLO.
func hostileServer(w *world, address string, id func(n int64) string, then func(n int64, c net.Conn)) (accepted *atomic.Int64) {
	l := w.listen(address)
	accepted = new(atomic.Int64)
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				n := accepted.Add(1)
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: rhizome/1\r\n\r\n")
				_, _ = c.Write(rframe(1, 1, 1, 0, nil))
				m := ctrlMsg(1, fmt.Appendf(nil, `{"minVersion":1,"maxVersion":1,"features":["reset","peers","drain"],"id":%q,"nonce":"nonce-%08d"}`, id(n), n))
				_, _ = c.Write(rframe(0, 0, 1, uint32(len(m)), m))
				wait.Go(func() { time.Sleep(30 * time.Millisecond); then(n, c) })
				_, _ = io.Copy(io.Discard, r)
			})
		}
	})
	w.Cleanup(func() {
		l.Close()
		for _, c := range w.net.Conns() {
			c.Cut()
		}
		wait.Wait()
	})
	return accepted
}

func sendCtrl(c net.Conn, t byte, body string) {
	m := ctrlMsg(t, []byte(body))
	_, _ = c.Write(rframe(0, 0, 1, uint32(len(m)), m))
}

func reproAgent(w *world, address string) *Agent {
	return w.agent("a", "victim", func(a *Agent) { a.Servers = []string{"https://" + address} })
}

// Tries for PEERS that succeed are not slowed down: a server that names peers
// and is a new process each time gets sessions without end, in a tight loop.
func TestAttackPeersLoop(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		n := hostileServer(w, "server:9555", func(n int64) string { return "evil" }, func(n int64, c net.Conn) {
			sendCtrl(c, 6, `{"servers":["nobody"]}`)
		})
		before := runtime.NumGoroutine()
		a := reproAgent(w, "server:9555")
		time.Sleep(3 * time.Second)
		if got := n.Load(); got > 20 {
			t.Errorf("%d connections in 3 s, %d sessions, %d more goroutines", got, len(a.list()), runtime.NumGoroutine()-before)
		}
	})
}

// A server that drains each session at once is reconnected to twice a second
// for ever, and if it keeps a stream open in each the sessions pile up: nothing
// bounds how long a session drains on the agent's side, nor how many do.
func TestAttackDrainLoop(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		n := hostileServer(w, "server:9556", func(n int64) string { return "evil" }, func(n int64, c net.Conn) {
			sendCtrl(c, 6, `{}`)
			head := "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: x\r\n\r\n"
			_, _ = c.Write(rframe(1, 1, 3, 0, nil))
			_, _ = c.Write(rframe(0, 0, 3, uint32(len(head)), []byte(head)))
			sendCtrl(c, 4, `{"reason":"shutdown"}`)
		})
		a := reproAgent(w, "server:9556")
		time.Sleep(15 * time.Second)
		if got := len(a.list()); got > 8 {
			t.Errorf("%d sessions after %d DRAINs in 15 s", got, n.Load())
		}
	})
}

// The same without streams: is there any back-off?
func TestAttackDrainLoopBackoff(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		n := hostileServer(w, "server:9557", func(n int64) string { return "evil" }, func(n int64, c net.Conn) {
			sendCtrl(c, 6, `{}`)
			sendCtrl(c, 4, `{"reason":"shutdown"}`)
		})
		reproAgent(w, "server:9557")
		time.Sleep(10 * time.Second)
		first := n.Load()
		time.Sleep(10 * time.Second)
		if second := n.Load() - first; second > 8 {
			t.Errorf("%d connections in the first 10 s and %d in the next: no back-off", first, second)
		}
	})
}
