package guard

import (
	"bytes"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// Peers cannot fill the disk: the lines that they cause are limited, and the
// next one says how many are missing.
func TestLimitLog(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var b bytes.Buffer
		log := new(LogLimit).Logger(slog.New(slog.NewTextHandler(&b, nil))).With("cluster", "a")
		for range 100 {
			log.Info("flood")
		}
		if n := strings.Count(b.String(), "flood"); n != LinesPerSecond {
			t.Errorf("%d lines at once, want %d", n, LinesPerSecond)
		}
		time.Sleep(time.Second)
		log.Info("after")
		if !strings.HasSuffix(b.String(), "msg=after cluster=a skipped=80\n") {
			t.Errorf("no word of what was skipped\n%s", &b)
		}
	})
}

// addrConn is a conn from an address.
type addrConn struct {
	net.Conn
	from string
}

func (c addrConn) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.from)
	return a
}

// A flood hits itself: the oldest stranger of the network that has most goes.
func TestFloodHitsItself(t *testing.T) {
	s := Strangers{Limit: 3}
	var evicted []string
	gone := func(c net.Conn) bool {
		_, err := c.Write(nil)
		return err != nil
	}
	enter := func(from string) (net.Conn, func()) {
		c, far := tunneltest.Pipe()
		t.Cleanup(func() { c.Close(); far.Close() })
		return c, s.Enter(addrConn{c, from}, func() { evicted = append(evicted, from) })
	}
	honest, known := enter("10.1.1.1:1000")
	first, _ := enter("10.9.9.1:1")
	second, secondKnown := enter("10.9.9.2:1")
	third, _ := enter("10.9.9.3:1") // one too many
	if gone(honest) || !gone(first) || gone(second) || gone(third) {
		t.Errorf("gone: honest %v, flood %v %v %v", gone(honest), gone(first), gone(second), gone(third))
	}
	if !slices.Equal(evicted, []string{"10.9.9.1:1"}) {
		t.Errorf("told of %v", evicted)
	}
	known()
	secondKnown()
	if s.all != 1 || len(s.from) != 1 {
		t.Errorf("%d strangers of %d networks are left", s.all, len(s.from))
	}
}
