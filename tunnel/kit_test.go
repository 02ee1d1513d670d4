package tunnel

import (
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// stacksWith counts the goroutines that have a text in their stack.
func stacksWith(text string) int {
	buf := make([]byte, 8<<20)
	n := 0
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, text) {
			n++
		}
	}
	return n
}

// settle waits until no more goroutines run than before.
func settle(t testing.TB, before int) {
	t.Helper()
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i > 1000 {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines are left, %d were there before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// narrowConn is a carrier that stalls after so many bytes, once they are set,
// until there is room.
type narrowConn struct {
	net.Conn
	left atomic.Int64 // 0: no bound
	room chan struct{}
}

func (c *narrowConn) Write(p []byte) (int, error) {
	if left := c.left.Load(); left > 0 {
		n := min(len(p), int(left)-1)
		c.left.Add(int64(-n))
		if n < len(p) {
			n, err := c.Conn.Write(p[:n])
			if err != nil {
				return n, err
			}
			<-c.room
			return n, net.ErrClosed
		}
	}
	return c.Conn.Write(p)
}
