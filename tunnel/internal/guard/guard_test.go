package guard

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
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
	enter := func(from string) (net.Conn, *Stranger) {
		c, far := tunneltest.Pipe()
		t.Cleanup(func() { c.Close(); far.Close() })
		return c, s.Enter(addrConn{c, from}, func() { evicted = append(evicted, from) })
	}
	honest, known := enter("10.1.1.1:1000")
	first, _ := enter("10.9.9.1:1")
	second, secondKnown := enter("10.9.9.2:1")
	enter("10.9.9.3:1") // one too many
	if gone(honest) || !gone(first) || gone(second) {
		t.Errorf("gone: honest %v, flood %v %v", gone(honest), gone(first), gone(second))
	}
	if !slices.Equal(evicted, []string{"10.9.9.1:1"}) {
		t.Errorf("told of %v", evicted)
	}
	known.Leave()
	known.Leave()
	secondKnown.Leave()
	if s.all != 1 || len(s.from) != 1 {
		t.Errorf("%d strangers of %d networks are left", s.all, len(s.from))
	}
}

// Behind a load balancer the client's address counts, once it is known.
func TestStrangerMoves(t *testing.T) {
	s := Strangers{Limit: 4}
	var evicted []string
	enter := func(client string) *Stranger {
		c, far := tunneltest.Pipe()
		t.Cleanup(func() { c.Close(); far.Close() })
		m := s.Enter(addrConn{c, "10.0.0.1:1"}, func() { evicted = append(evicted, client) })
		a, _ := net.ResolveTCPAddr("tcp", client)
		m.Move(a)
		return m
	}
	honest := enter("192.0.2.1:1")
	for i := range 5 {
		enter(fmt.Sprintf("203.0.113.%d:1", i+1))
	}
	if !slices.Equal(evicted, []string{"203.0.113.1:1", "203.0.113.2:1"}) {
		t.Errorf("evicted %v", evicted)
	}
	honest.Leave()
	honest.Move(&net.TCPAddr{}) // it is not counted any more
	if s.all != 3 || len(s.from) != 1 {
		t.Errorf("%d strangers of %d networks are left", s.all, len(s.from))
	}
}

// A flood from many networks does not make the one with two of them the first to
// go: the oldest goes.
func TestFloodFromEverywhere(t *testing.T) {
	s := Strangers{Limit: 64}
	var evicted []string
	enter := func(from string) {
		c, far := tunneltest.Pipe()
		t.Cleanup(func() { c.Close(); far.Close() })
		s.Enter(addrConn{c, from}, func() { evicted = append(evicted, from) })
	}
	for i := range 63 {
		enter(fmt.Sprintf("10.1.%d.1:1", i))
	}
	for range 2 {
		enter("192.0.2.1:1")
	}
	if !slices.Equal(evicted, []string{"10.1.0.1:1"}) {
		t.Errorf("evicted %v", evicted)
	}
}

// failing is a listener with errors.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

func (f *failing) Addr() net.Addr { return &net.TCPAddr{} }

// Only what says that the listener is of no use ends Accept.
func TestAcceptSurvives(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		odd := errors.New("odd")
		for _, last := range []error{net.ErrClosed, syscall.EBADF, syscall.EINVAL, odd} {
			l := &failing{errs: []error{
				&net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)},
				syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EHOSTUNREACH, os.ErrDeadlineExceeded,
				&net.OpError{Op: "accept", Err: last},
			}}
			start := time.Now()
			err := Accept(t.Context(), l, slog.New(slog.DiscardHandler), func(net.Conn) {})
			if !errors.Is(err, last) || len(l.errs) > 0 {
				t.Errorf("%v, and %d errors are left", err, len(l.errs))
			}
			// 5, 10, 20, 40, 80, 160 ms
			if d := time.Since(start); d != 315*time.Millisecond {
				t.Errorf("it waited %v", d)
			}
		}
	})
}
