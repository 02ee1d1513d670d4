package proxyproto

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Conn is a connection that begins with PROXY headers, or must not. NewConn and
// Listener make one; it has no useful zero value.
//
// The headers are read by the first call that needs them, and in its goroutine:
// Read, WriteTo, ReadHeader and Inner need all of them, and RemoteAddr,
// LocalAddr and Header the one that names the client, if the policy lets this
// peer name one. Else these three never wait. Write never does.
//
// After a header error every Read returns that error, a *HeaderError. A
// deadline of the caller that passes while a header is awaited is none: the
// Read times out, no byte is lost, and a later one goes on. All methods may be
// called by several goroutines at once.
//
// It has no SyscallConn: whoever read from the descriptor would miss bytes, or
// see a header. [relay.Relay] and io.Copy look below it once it is out of the
// way, so that a socket can still be spliced.
type Conn struct {
	conn         net.Conn
	peer         net.Addr
	outer, inner slot

	plain  atomic.Bool  // reads go straight to conn; never true to false
	stage  atomic.Int32 // how far the headers are read
	failed atomic.Pointer[HeaderError]

	mu     sync.Mutex // held while reading, unless plain; guards what follows
	unread []byte     // data read too early; the look has seen all of it
	look   look       // for a header that is refused

	dmu     sync.Mutex    // guards what follows; never held while blocked
	user    time.Time     // the read deadline that the caller has set
	changes int           // how often
	header  time.Time     // the one for a header that is awaited now
	left    time.Duration // of Options.Timeout; of no interest unless bounded
	bounded bool
	closed  bool
}

// slot is one of the two headers. h is written before the stage that follows
// and only read after it.
type slot struct {
	policy Policy
	h      *Header
}

// What comes next on the wire.
//
//	NewConn ──► stageOuter ──► stageInner ──► stageData
//	                │ error        │ error        │ refused header
//	                └──────────────┴──────────────┴──► failed
//
// A stage whose policy is Refuse passes without a read.
const (
	stageOuter int32 = iota
	stageInner
	stageData
)

// NewConn returns c with its headers read as o wants it; nil is the zero
// Options. It takes over c, from which nothing may have been read and nothing
// may be read elsewhere, and reads nothing yet. Which rule holds depends on the
// address at the end of the wire, whatever wrappers with a NetConn method claim.
func NewConn(c net.Conn, o *Options) *Conn {
	if o == nil {
		o = new(Options)
	}
	p := &Conn{conn: c, peer: peerOf(c)}
	p.outer.policy = o.policy(p.peer)
	p.inner.policy = o.Inner
	p.left = o.timeout()
	p.bounded = p.left > 0
	p.look.on = !p.outer.policy.reads()
	if p.look.on {
		p.stage.Store(stageInner)
		if !p.inner.policy.reads() {
			p.stage.Store(stageData)
		}
	}
	return p
}

// ReadHeader reads the headers that the policy asks for and returns nil when
// the connection may be used. It need not be called: everything else does. It
// does not wait for a header which the policy refuses; a Read comes upon that.
func (c *Conn) ReadHeader() error {
	if err := c.advance(stageData); err != nil {
		return err
	}
	if e := c.failed.Load(); e != nil {
		return e
	}
	return nil
}

// Header returns the header that names the client, or nil if there is none:
// the peer is not trusted with it, sent none, or failed to. With
// [Header.Local] it names nobody.
func (c *Conn) Header() *Header {
	_ = c.advance(stageInner)
	if c.stage.Load() < stageInner {
		return nil
	}
	return c.outer.h
}

// Inner returns the header behind the one that names the client, or nil if
// there is none, Options.Inner refuses it, or reading failed. It may come from
// anyone: its destination is a key to look up and never an address to dial, and
// its source is nobody. Its TLVs are dropped, so that nobody believes them and
// they take no memory.
func (c *Conn) Inner() *Header {
	_ = c.advance(stageData)
	if c.stage.Load() < stageData {
		return nil
	}
	return c.inner.h
}

// claimed returns the header that stands for the addresses, or nil if those of
// the connection do.
func (c *Conn) claimed() *Header {
	if h := c.Header(); h != nil && !h.Local {
		return h
	}
	return nil
}

// RemoteAddr returns the client's address: the source in a trusted peer's
// header, else that of the peer, after an error too. Access control therefore
// calls ReadHeader first and looks at the error. NetConn has the peer's.
func (c *Conn) RemoteAddr() net.Addr {
	if h := c.claimed(); h != nil {
		return h.Source
	}
	return c.conn.RemoteAddr()
}

// LocalAddr returns the address that the client connected to: the destination
// in a trusted peer's header, else the connection's own.
func (c *Conn) LocalAddr() net.Addr {
	if h := c.claimed(); h != nil {
		return h.Destination
	}
	return c.conn.LocalAddr()
}

// NetConn returns the connection below, which has the real addresses. Reading
// from it misses bytes.
func (c *Conn) NetConn() net.Conn { return c.conn }

// Read reads what is behind the headers.
func (c *Conn) Read(b []byte) (int, error) {
	if !c.plain.Load() {
		if n, done, err := c.readEarly(b); done {
			return n, err
		}
	}
	return c.conn.Read(b)
}

// readEarly reads while there is something between Read and the connection.
// If it is not done, there is nothing any more.
func (c *Conn) readEarly(b []byte) (n int, done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return 0, true, err
	}
	if c.plain.Load() {
		return 0, false, nil
	}
	if len(c.unread) == 0 {
		if err := c.readLooking(b); err != nil {
			return 0, true, err
		}
	}
	if err := c.mayRead(); err != nil {
		return 0, true, err
	}
	n = copy(b, c.unread)
	c.unread = c.unread[n:]
	c.settle()
	return n, true, nil
}

// mayRead says what forbids reading unread, as it would forbid reading the
// connection.
func (c *Conn) mayRead() error {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	var err error
	switch {
	case c.closed:
		err = net.ErrClosed
	case !c.user.IsZero() && !time.Now().Before(c.user):
		err = os.ErrDeadlineExceeded
	default:
		return nil
	}
	a := c.conn.LocalAddr()
	e := &net.OpError{Op: "read", Source: a, Addr: c.conn.RemoteAddr(), Err: err}
	if a != nil {
		e.Net = a.Network()
	}
	return e
}

// WriteTo writes everything behind the headers to w, until EOF or an error. It
// makes io.Copy splice where it can. If writing fails, bytes that were read
// too early may be lost.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	var done int64
	var b []byte
	for !c.plain.Load() {
		if b == nil {
			b = make([]byte, readSize)
		}
		n, early, err := c.readEarly(b)
		if n > 0 {
			m, err := w.Write(b[:n])
			done += int64(m)
			if err != nil {
				return done, err
			}
		}
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return done, err
		}
		if !early {
			break
		}
	}
	n, err := io.Copy(w, c.conn)
	return done + n, err
}

// Write writes to the connection below. It does not wait for the headers.
func (c *Conn) Write(b []byte) (int, error) { return c.conn.Write(b) }

// ReadFrom writes everything from r to the connection below, until EOF or an
// error. It makes io.Copy splice where it can.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.conn, r) }

// Close closes the connection below, which ends waiting for a header too.
func (c *Conn) Close() error {
	c.drop()
	return c.conn.Close()
}

// CloseWrite half-closes the connection below; see [relay.CloseWrite].
func (c *Conn) CloseWrite() error { return relay.CloseWrite(c.conn) }

// Reset resets the connection below; see [relay.Reset].
func (c *Conn) Reset() error {
	c.drop()
	return relay.Reset(c.conn)
}

func (c *Conn) drop() {
	c.dmu.Lock()
	c.closed = true
	c.dmu.Unlock()
}

// Unwrap takes what was read too early out of c and returns it with the
// connection below, which is where to read from afterwards: it is how
// [relay.Relay] gets at a socket to splice. It does not wait. Where a header is
// still awaited, in another goroutine maybe, or one that is refused might still
// come because nothing was read, it returns c's own reading side, which cannot be
// spliced; so call ReadHeader, or Read, before.
func (c *Conn) Unwrap() (unread []byte, below net.Conn) {
	if c.plain.Load() {
		return nil, c.conn
	}
	if !c.mu.TryLock() {
		return nil, undecided{c} // somebody reads
	}
	defer c.mu.Unlock()
	if c.stage.Load() < stageData || c.look.on || c.failed.Load() != nil {
		return nil, undecided{c}
	}
	unread, c.unread = c.unread, nil
	c.settle()
	return unread, c.conn
}

// undecided is a Conn without Unwrap and the copying methods.
type undecided struct{ net.Conn }

func (u undecided) CloseWrite() error { return relay.CloseWrite(u.Conn) }
func (u undecided) Reset() error      { return relay.Reset(u.Conn) }
func (u undecided) NetConn() net.Conn { return u.Conn }

// SetDeadline sets both deadlines. That for reading holds while a header is
// awaited, beside Options.Timeout, and for what was read too early.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.conn.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline for reading; see SetDeadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	c.user = t
	c.changes++
	return c.conn.SetReadDeadline(earlier(c.user, c.header))
}

// SetWriteDeadline sets the deadline for writing.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

var (
	_ net.Conn          = (*Conn)(nil)
	_ relay.CloseWriter = (*Conn)(nil)
	_ relay.Resetter    = (*Conn)(nil)
	_ relay.Unwrapper   = (*Conn)(nil)
	_ io.WriterTo       = (*Conn)(nil)
	_ io.ReaderFrom     = (*Conn)(nil)
)
