package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestError(t *testing.T) {
	for _, c := range []struct {
		err     *Error
		text    string
		timeout bool
	}{
		{&Error{Op: OpRead, Leg: "a", Err: io.ErrUnexpectedEOF}, "relay: read a: unexpected EOF", false},
		{&Error{Op: OpWrite, Leg: "b", Err: os.ErrDeadlineExceeded}, "relay: write b: i/o timeout", true},
		{&Error{Op: OpIdle, Err: ErrIdle}, "relay: idle: " + ErrIdle.Error(), true},
	} {
		if c.err.Error() != c.text || c.err.Timeout() != c.timeout || c.err.Unwrap() != c.err.Err {
			t.Errorf("%q, Timeout %v; want %q, %v", c.err, c.err.Timeout(), c.text, c.timeout)
		}
	}
	if errors.Is(ErrIdle, net.ErrClosed) {
		t.Error("ErrIdle is net.ErrClosed")
	}
}

// nowhere is a wrapper of nothing.
type nowhere struct{ net.Conn }

func (nowhere) NetConn() net.Conn { return nil }

func TestCloseWriteUnsupported(t *testing.T) {
	p, q := net.Pipe()
	defer q.Close()
	for _, c := range []net.Conn{p, plain{p}, nowhere{p}, NewPrefixed(p, nil)} {
		if err := CloseWrite(c); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CloseWrite(%T) = %v, want errors.ErrUnsupported", c, err)
		}
	}
	if err := Reset(nowhere{p}); err != nil {
		t.Error(err)
	}
	if _, err := p.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("not closed: %v", err)
	}
	if c := below(nowhere{p}); c != (nowhere{p}) {
		t.Errorf("below = %T", c)
	}
}

// TestCloseWriteHandshake fails before there is a key for close_notify.
func TestCloseWriteHandshake(t *testing.T) {
	c, s := tlsPair(t)
	_ = s.SetDeadline(time.Now().Add(-time.Second))
	if err := CloseWrite(s); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("CloseWrite = %v, want a timeout", err)
	}
	_ = Reset(s)
	_ = Reset(c)
}
