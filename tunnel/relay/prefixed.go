package relay

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Prefixed is a connection that yields some bytes before those of the
// connection below. Whoever had to read ahead, to parse a request head or to
// sniff a protocol, gives the bytes back with it. Everything but reading goes
// straight to the connection below, half-close and reset included.
//
// It has no SyscallConn: whoever read from the descriptor would miss the
// prefix. [Relay] and io.Copy look below it once the prefix is gone, so that a
// socket can still be spliced.
type Prefixed struct {
	c net.Conn

	spent    atomic.Bool // the prefix is gone; never true to false
	mu       sync.Mutex  // guards the rest, of interest until spent
	prefix   []byte
	closed   bool
	deadline time.Time
}

// NewPrefixed returns a connection that reads prefix first and then c. It keeps
// prefix, which must not be changed afterwards, and takes over c: closing the
// one closes the other, and c must not be read from elsewhere.
func NewPrefixed(c net.Conn, prefix []byte) *Prefixed {
	p := &Prefixed{c: c, prefix: prefix}
	p.spent.Store(len(prefix) == 0)
	return p
}

// take moves what is unread of the prefix into b, or all of it out of p if all
// is set. ok is false if the prefix is gone; a closed connection and an expired
// deadline forbid reading the prefix as they forbid reading the socket.
func (p *Prefixed) take(b []byte, all bool) (n int, rest []byte, ok bool, err error) {
	if p.spent.Load() {
		return 0, nil, false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.prefix) == 0 {
		return 0, nil, false, nil
	}
	if p.closed {
		return 0, nil, true, p.opError(net.ErrClosed)
	}
	if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
		return 0, nil, true, p.opError(os.ErrDeadlineExceeded)
	}
	if all {
		rest, p.prefix = p.prefix, nil
	} else {
		n = copy(b, p.prefix)
		p.prefix = p.prefix[n:]
	}
	if len(p.prefix) == 0 {
		p.prefix = nil // let go of the memory
		p.spent.Store(true)
	}
	return n, rest, true, nil
}

func (p *Prefixed) opError(err error) error {
	a := p.c.LocalAddr()
	e := &net.OpError{Op: "read", Source: a, Addr: p.c.RemoteAddr(), Err: err}
	if a != nil {
		e.Net = a.Network()
	}
	return e
}

// Read reads what is left of the prefix, and once that is gone from the
// connection below. One Read never yields bytes of both, because that could
// block with the prefix in hand.
func (p *Prefixed) Read(b []byte) (int, error) {
	if n, _, ok, err := p.take(b, false); ok {
		return n, err
	}
	return p.c.Read(b)
}

// WriteTo writes the rest of the prefix and then everything from the connection
// below to w, until EOF or an error. It makes io.Copy splice where it can. If
// writing the prefix fails, what was not written of it is lost.
func (p *Prefixed) WriteTo(w io.Writer) (int64, error) {
	_, rest, ok, err := p.take(nil, true)
	if err != nil {
		return 0, err
	}
	var done int64
	if ok {
		n, err := w.Write(rest)
		if err != nil {
			return int64(n), err
		}
		done = int64(n)
	}
	n, err := io.Copy(w, p.c)
	return done + n, err
}

// Write writes to the connection below.
func (p *Prefixed) Write(b []byte) (int, error) { return p.c.Write(b) }

// ReadFrom writes everything from r to the connection below, until EOF or an
// error. It makes io.Copy splice where it can.
func (p *Prefixed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(p.c, r) }

// Close closes the connection below and drops the rest of the prefix.
func (p *Prefixed) Close() error {
	p.drop()
	return p.c.Close()
}

// CloseWrite half-closes the connection below; see the function [CloseWrite].
func (p *Prefixed) CloseWrite() error { return CloseWrite(p.c) }

// Reset resets the connection below; see the function [Reset].
func (p *Prefixed) Reset() error {
	p.drop()
	return Reset(p.c)
}

func (p *Prefixed) drop() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// NetConn returns the connection below. Reading from it misses the prefix.
func (p *Prefixed) NetConn() net.Conn { return p.c }

// Unwrap takes what is unread of the prefix out of p and returns it with the
// connection below, which is where to read from afterwards.
func (p *Prefixed) Unwrap() (unread []byte, c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unread, p.prefix = p.prefix, nil
	p.spent.Store(true)
	return unread, p.c
}

// LocalAddr returns that of the connection below.
func (p *Prefixed) LocalAddr() net.Addr { return p.c.LocalAddr() }

// RemoteAddr returns that of the connection below.
func (p *Prefixed) RemoteAddr() net.Addr { return p.c.RemoteAddr() }

// SetDeadline sets both deadlines. They hold for the prefix too: it cannot be
// read once the deadline has passed.
func (p *Prefixed) SetDeadline(t time.Time) error {
	p.setDeadline(t)
	return p.c.SetDeadline(t)
}

// SetReadDeadline sets the deadline for reading; see SetDeadline.
func (p *Prefixed) SetReadDeadline(t time.Time) error {
	p.setDeadline(t)
	return p.c.SetReadDeadline(t)
}

func (p *Prefixed) setDeadline(t time.Time) {
	if !p.spent.Load() {
		p.mu.Lock()
		p.deadline = t
		p.mu.Unlock()
	}
}

// SetWriteDeadline sets the deadline for writing.
func (p *Prefixed) SetWriteDeadline(t time.Time) error { return p.c.SetWriteDeadline(t) }

var (
	_ net.Conn      = (*Prefixed)(nil)
	_ CloseWriter   = (*Prefixed)(nil)
	_ Resetter      = (*Prefixed)(nil)
	_ Unwrapper     = (*Prefixed)(nil)
	_ io.WriterTo   = (*Prefixed)(nil)
	_ io.ReaderFrom = (*Prefixed)(nil)
)
