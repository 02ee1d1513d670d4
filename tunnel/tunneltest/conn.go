package tunneltest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// defaultBuffer is how many bytes one direction of a [Conn] holds when nobody
// says otherwise: the window of a yamux stream and roughly what a Linux socket
// pair takes before a writer blocks.
const defaultBuffer = 256 << 10

// Conn is one end of an in-memory connection, as [Pipe], [Network.Dial] and a
// [Network] listener return it (all of them as a net.Conn: assert the type to
// reach the faults). It behaves like a TCP connection: writes are buffered up to
// a bound and then block, each direction can be finished on its own with
// CloseWrite, Reset aborts both, and every method may be called by several
// goroutines at once.
//
// Errors are *net.OpError. A method of a closed end answers net.ErrClosed, an
// expired deadline os.ErrDeadlineExceeded, an end whose peer was reset
// syscall.ECONNRESET, and a write that the peer can no longer read syscall.EPIPE.
//
// A Conn starts no goroutine and uses nothing but sync and time, so it works
// inside a [Bubble], as long as the bubble made it.
type Conn struct {
	p             *pair
	i             int // which end of the pair: writes p.dir[i], reads p.dir[1-i]
	local, remote net.Addr

	// Guarded by p.mu.
	closed, writeClosed bool
	readBy, writeBy     time.Time
}

// pair is what both ends share. One mutex and one condition for both directions
// keep the invariants easy to see; this is a fake, not a fast path.
type pair struct {
	mu   sync.Mutex
	cond sync.Cond
	ends [2]*Conn
	dir  [2]stream

	frozen    bool // by Conn.Freeze
	netFrozen bool // by Network.Freeze
	cut       bool // both ends were reset by the network

	onGone func() // called once, without mu, after both ends were closed
}

// stream is one direction. What happens at the writing end arrives at the
// reading end later by the delay, so each event carries its time of arrival; the
// zero time has arrived already.
type stream struct {
	chunks []chunk
	size   int
	limit  int
	delay  time.Duration // by Conn.SetDelay
	net    time.Duration // by Network.SetDelay
	last   time.Time     // arrival of the newest event: order is kept when the delay shrinks

	fin, rst     bool // the writer finished; the writer aborted
	finAt, rstAt time.Time
	gone         bool // the reader closed: news of it arrives at goneAt
	goneAt       time.Time
	told         bool // the writer has had the one write that TCP needs to find out
}

type chunk struct {
	data []byte
	at   time.Time
}

// arrival returns when something sent now gets to the other end.
func (s *stream) arrival() time.Time {
	at := time.Time{}
	if d := s.delay + s.net; d > 0 {
		at = time.Now().Add(d)
	}
	if at.Before(s.last) {
		at = s.last
	}
	s.last = at
	return at
}

func arrived(at time.Time) bool { return at.IsZero() || !time.Now().Before(at) }

// sooner returns the earlier of two times, where zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func newPair(a, b net.Addr, limit int) *pair {
	if limit <= 0 {
		limit = defaultBuffer
	}
	p := &pair{}
	p.cond.L = &p.mu
	p.ends[0] = &Conn{p: p, i: 0, local: a, remote: b}
	p.ends[1] = &Conn{p: p, i: 1, local: b, remote: a}
	p.dir[0].limit, p.dir[1].limit = limit, limit
	return p
}

// wait releases the lock until something changed, or until the given time if it
// is not zero.
func (p *pair) wait(until time.Time) {
	if !until.IsZero() {
		t := time.AfterFunc(time.Until(until), p.wake)
		defer t.Stop()
	}
	p.cond.Wait()
}

// wake takes the lock first, or it could fall between a waiter's look at the
// state and its wait.
func (p *pair) wake() {
	p.mu.Lock()
	p.cond.Broadcast()
	p.mu.Unlock()
}

// Read reads what has arrived. It answers io.EOF after the peer's CloseWrite or
// Close, and ECONNRESET after a reset, once everything that arrived before was
// read.
func (c *Conn) Read(b []byte) (int, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.waitRead(len(b) == 0); err != nil {
		return 0, err
	}
	s := &c.p.dir[1-c.i]
	n := 0
	for n < len(b) && len(s.chunks) > 0 && arrived(s.chunks[0].at) {
		m := copy(b[n:], s.chunks[0].data)
		n += m
		if s.chunks[0].data = s.chunks[0].data[m:]; len(s.chunks[0].data) == 0 {
			s.chunks[0].data = nil
			s.chunks = s.chunks[1:]
		}
	}
	s.size -= n
	c.p.cond.Broadcast()
	return n, nil
}

// WaitRead blocks until a Read would not: it returns nil when there are bytes,
// and the error that Read would return otherwise. A relay uses it to hold no
// buffer for a direction that is idle.
func (c *Conn) WaitRead() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.waitRead(false)
}

// waitRead returns nil when bytes can be read; with poll also when there are none
// but nothing is wrong with the connection.
func (c *Conn) waitRead(poll bool) error {
	p, s := c.p, &c.p.dir[1-c.i]
	for {
		if c.closed {
			return c.opError("read", net.ErrClosed)
		}
		if !c.readBy.IsZero() && arrived(c.readBy) {
			return c.opError("read", os.ErrDeadlineExceeded)
		}
		if poll {
			return nil
		}
		next := c.readBy
		if !p.stalled() {
			at := time.Time{}
			switch {
			case len(s.chunks) > 0:
				if at = s.chunks[0].at; arrived(at) {
					return nil
				}
			case s.rst:
				if at = s.rstAt; arrived(at) {
					return c.opError("read", os.NewSyscallError("read", syscall.ECONNRESET))
				}
			case s.fin:
				if at = s.finAt; arrived(at) {
					return io.EOF
				}
			}
			next = sooner(next, at)
		}
		p.wait(next)
	}
}

// stalled reports that nothing moves. A cut gets through to both ends even when
// the connection is frozen.
func (p *pair) stalled() bool { return (p.frozen || p.netFrozen) && !p.cut }

// Write buffers b and blocks while the buffer of this direction is full. After the
// peer's Close one more write succeeds and its bytes are lost, then writes fail with
// EPIPE. That is how TCP works: FIN does not say that nobody reads, only the answer to
// the next segment does. (Close of a tls.Conn relies on it: both ends may say goodbye
// at once.)
func (c *Conn) Write(b []byte) (int, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	n := 0
	for {
		next, err := c.writable()
		if err != nil {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		if s := &c.p.dir[c.i]; s.gone && !c.p.stalled() && arrived(s.goneAt) {
			s.told = true
			return len(b), nil
		}
		if m := c.p.dir[c.i].put(b[n:]); m > 0 {
			n += m
			c.p.cond.Broadcast()
			continue
		}
		c.p.wait(next)
	}
}

// writable returns why a write must fail now, else when that may change.
func (c *Conn) writable() (next time.Time, err error) {
	out, in := &c.p.dir[c.i], &c.p.dir[1-c.i]
	switch {
	case c.closed:
		return next, c.opError("write", net.ErrClosed)
	case !c.writeBy.IsZero() && arrived(c.writeBy):
		return next, c.opError("write", os.ErrDeadlineExceeded)
	case c.writeClosed:
		return next, c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
	}
	next = c.writeBy
	if c.p.stalled() {
		return next, nil
	}
	if in.rst {
		if arrived(in.rstAt) {
			return next, c.opError("write", os.NewSyscallError("write", syscall.ECONNRESET))
		}
		next = sooner(next, in.rstAt)
	}
	if out.gone {
		if out.told && arrived(out.goneAt) {
			return next, c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
		}
		next = sooner(next, out.goneAt)
	}
	return next, nil
}

// put buffers as much of b as there is room for. A small write is appended to the
// last chunk when both arrive at once, so that many of them cost no more memory
// than few.
func (s *stream) put(b []byte) int {
	n := min(len(b), s.limit-s.size)
	if n <= 0 {
		return 0
	}
	at := s.arrival()
	s.size += n
	if k := len(s.chunks); k > 0 && s.chunks[k-1].at.Equal(at) {
		s.chunks[k-1].data = append(s.chunks[k-1].data, b[:n]...)
		return n
	}
	s.chunks = append(s.chunks, chunk{append([]byte(nil), b[:n]...), at})
	return n
}

// CloseWrite finishes this direction: the peer reads what was written before and
// then io.EOF, and may go on writing. A second call does nothing and returns nil.
func (c *Conn) CloseWrite() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.writeClosed = true
	c.p.dir[c.i].finish()
	c.p.cond.Broadcast()
	return nil
}

func (s *stream) finish() {
	if !s.fin {
		s.fin, s.finAt = true, s.arrival()
	}
}

// Close ends both directions. The peer reads what was written before and then
// io.EOF; its writes fail, see Write. Bytes that were not read yet are dropped. A
// second call answers net.ErrClosed.
func (c *Conn) Close() error { return c.close(false) }

// Reset aborts both directions: the peer reads what has arrived and then
// ECONNRESET, never io.EOF. This end is closed as by Close.
func (c *Conn) Reset() error { return c.close(true) }

func (c *Conn) close(reset bool) error {
	p := c.p
	p.mu.Lock()
	if c.closed {
		p.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	out, in := &p.dir[c.i], &p.dir[1-c.i]
	if reset {
		out.rst, out.rstAt = true, out.arrival()
	} else {
		out.finish()
	}
	in.gone, in.goneAt = true, out.arrival()
	in.chunks, in.size = nil, 0
	gone := p.ends[1-c.i].closed
	p.cond.Broadcast()
	p.mu.Unlock()
	if gone && p.onGone != nil {
		p.onGone()
	}
	return nil
}

// LocalAddr returns the address of this end, a *net.TCPAddr (or *net.UnixAddr).
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the peer.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines; the zero time means none.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, true, true) }

// SetReadDeadline sets until when a Read may block, a pending one included.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, true, false) }

// SetWriteDeadline sets until when a Write may block, a pending one included. A
// write that timed out may have written a part, and the next one goes on behind
// it.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, false, true) }

func (c *Conn) setDeadline(t time.Time, read, write bool) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	if read {
		c.readBy = t
	}
	if write {
		c.writeBy = t
	}
	c.p.cond.Broadcast()
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// Freeze stops the delivery of everything in both directions, without an error:
// what a peer sees whose other side was stopped or whose packets are dropped.
// Bytes, EOF and resets wait until [Conn.Thaw]; writes succeed until the buffer is
// full. It does not nest.
func (c *Conn) Freeze() { c.p.set(func(p *pair) { p.frozen = true }) }

// Thaw ends what Freeze began; everything held back is delivered in order. A
// freeze of the [Network] stays.
func (c *Conn) Thaw() { c.p.set(func(p *pair) { p.frozen = false }) }

// Cut resets the connection from the middle: both ends get ECONNRESET behind what
// has arrived, also while frozen. Both ends still have to be closed.
func (c *Conn) Cut() { c.p.set((*pair).cutNow) }

// SetDelay makes bytes written to this end from now on arrive at the peer d later,
// in order. Zero and negative mean at once. It adds to a delay of the [Network].
func (c *Conn) SetDelay(d time.Duration) {
	c.p.set(func(p *pair) { p.dir[c.i].delay = max(d, 0) })
}

func (p *pair) cutNow() {
	p.cut = true
	for i := range p.dir {
		p.dir[i].rst, p.dir[i].rstAt = true, time.Time{}
		for len(p.dir[i].chunks) > 0 {
			last := len(p.dir[i].chunks) - 1
			if arrived(p.dir[i].chunks[last].at) {
				break
			}
			p.dir[i].chunks = p.dir[i].chunks[:last] // was still on its way
		}
	}
}

func (p *pair) set(f func(*pair)) {
	p.mu.Lock()
	f(p)
	p.cond.Broadcast()
	p.mu.Unlock()
}

// Pipe returns the two ends of an in-memory connection. Unlike the ends of
// net.Pipe they buffer (256 KiB in each direction), half-close, and have
// addresses that look real. Both are a *[Conn].
func Pipe() (a, b net.Conn) {
	// Addresses of RFC 5737 and the first ephemeral port of RFC 6335.
	p := newPair(
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 49152},
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 443}, 0)
	return p.ends[0], p.ends[1]
}
