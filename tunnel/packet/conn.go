package packet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// ConnOptions changes how a link works. The zero value, and a nil pointer, mean
// the defaults.
type ConnOptions struct {
	// Ping is the time between two PINGs, by default 0.5 s. Negative means none.
	Ping time.Duration
	// Dead is the silence after which the link is ended, by default 2.5 s.
	// Negative means never.
	Dead time.Duration
	// WriteTimeout ends the link when a write makes no progress for so long, or up
	// to a fifth longer, by default 10 s. Negative means never.
	WriteTimeout time.Duration
	// HelloTimeout bounds Handshake, by default 10 s. Negative leaves it to its
	// context.
	HelloTimeout time.Duration
	// Admit is asked with the peer's HELLO before the own one is sent, so that
	// the peer's Handshake ends only when it is admitted: a server has one, and a
	// client has not. An error ends the handshake; a *[ByeError] chooses the
	// words that the peer gets, any other becomes ByeDenied.
	Admit func(remote Hello) error
	// NoReach says that this side does not want REACH, and skips it.
	NoReach bool
	// Logger gets one line per event. Nil means silent.
	Logger *slog.Logger
}

func (o *ConnOptions) withDefaults() ConnOptions {
	var d ConnOptions
	if o != nil {
		d = *o
	}
	d.Ping = orDefault(d.Ping, 500*time.Millisecond)
	d.Dead = orDefault(d.Dead, 2500*time.Millisecond)
	d.WriteTimeout = orDefault(d.WriteTimeout, 10*time.Second)
	d.HelloTimeout = orDefault(d.HelloTimeout, 10*time.Second)
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return d
}

// orDefault resolves the rule of all settings: zero means the default, negative
// disables and stays negative.
func orDefault[T ~int | ~int64 | ~float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Errors that end a link.
var (
	// ErrDead means that nothing at all was received for ConnOptions.Dead. It
	// is a timeout and an os.ErrDeadlineExceeded.
	ErrDead error = timeoutError("packet: the peer is silent")
	// ErrStalled means that a write made no progress for
	// ConnOptions.WriteTimeout: the peer does not read, or nothing gets through.
	// It is a timeout and an os.ErrDeadlineExceeded.
	ErrStalled error = timeoutError("packet: the peer takes nothing")

	errClosed error = closedError("packet: link closed")
)

type timeoutError string

func (e timeoutError) Error() string        { return string(e) }
func (e timeoutError) Timeout() bool        { return true }
func (e timeoutError) Temporary() bool      { return true }
func (e timeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }

type closedError string

func (e closedError) Error() string        { return string(e) }
func (e closedError) Is(target error) bool { return target == net.ErrClosed }

// Conn is one side of a link: a [Port] whose packets go over a reliable
// connection, by TCP or TLS, to the Conn at its other end. [Handshake] makes
// one; it has no useful zero value.
//
// It needs two goroutines: one in [Conn.Run], which sends PINGs and notices
// silence, and one that calls ReadBatch without long pauses, which also takes
// what the peer says of the link itself. [Pump] has both, as have a [Switch] and a
// bond.
//
//	Handshake ──► open ──Run, ReadBatch──► ended: by BYE, ErrDead, ErrStalled, ErrProtocol,
//	                                             loss of the connection, Close, Run's context
//
// # Who is dead
//
// A link is dead when this side has waited for 2.5 s in a read and not one byte came. A peer
// that is well sends a PING every 0.5 s whatever else it does. Time in which
// this side does not read, because its device or its switch is busy, does not
// count, so that a slow side never takes the other for dead; and a peer that does
// not read for a while stays alive by what it sends. A write that makes no progress for 10 s
// ends the link.
type Conn struct {
	conn   net.Conn
	below  *socket // below TLS, if it is ours
	local  Hello
	remote Hello
	o      ConnOptions
	born   time.Time

	in      inbox        // of the reader
	waiting atomic.Int64 // since when the reader waits, ns after born + 1; 0: it does not

	writing writeLock // held while writing to conn
	whole   bool      // the peer takes every packet as it is
	parts   Batch     // of packets that had to be cut
	control []byte    // control frames that are being written

	out   outbox
	wake  chan struct{} // something is in out
	pings pinger
	pongs guard.Rate // what PINGs may cost

	mu       sync.Mutex
	leaving  *ByeError // BYE is being said
	cause    error
	over     chan struct{}
	onReach  func([]Member)
	onDrain  func()
	reach    []Member
	draining bool

	counts connCounts
}

var _ Port = (*Conn)(nil)

// Handshake exchanges HELLOs over c and returns the link. It owns c if it
// succeeds, and has closed it otherwise. ctx governs the handshake and not the
// life of the link. Both sides may call it without Admit, and one of them with it.
//
// The error is a *[ByeError] if the peer refused, or if this side did: for a
// version or mode that does not fit, or because of Admit.
func Handshake(ctx context.Context, c net.Conn, local Hello, o *ConnOptions) (*Conn, error) {
	l := &Conn{
		conn: c, below: socketBelow(c), local: local.withDefaults(), o: o.withDefaults(), born: time.Now(),
		in: inbox{most: largeInbox}, writing: make(writeLock, 1), wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
	if err := l.local.check(); err != nil {
		c.Close()
		return nil, err
	}
	if l.o.HelloTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, l.o.HelloTimeout, errNoHello)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
	defer stop()
	err := l.hello()
	if err == nil && !stop() {
		err = l.failure()
	}
	if err != nil {
		var e *ByeError
		if errors.As(err, &e) && !e.Remote {
			l.leave(e)
		}
		l.fail(err)
		return nil, l.failure()
	}
	return l, nil
}

var errNoHello error = timeoutError("packet: no HELLO in time")

// hello says and hears HELLO.
func (c *Conn) hello() error {
	say := func() error {
		var features []string
		if !c.o.NoReach {
			features = append(features, featureReach)
		}
		b, err := appendControl(nil, typeHello, c.local.message(features))
		if err == nil {
			err = c.writeAll(b)
		}
		return err
	}
	if c.o.Admit == nil {
		if err := say(); err != nil {
			return err
		}
	}
	kind, body, err := c.first()
	switch {
	case err != nil:
		return err
	case kind == typeBye:
		return decodeBye(body)
	case kind != typeHello:
		return malformed("type %d where HELLO should be", kind)
	}
	remote, features, err := decodeHello(body)
	if err != nil {
		var e *ByeError
		if !errors.As(err, &e) {
			e = bye(ByeProtocol, err.Error())
		}
		return e
	}
	if remote.Mode != c.local.Mode {
		return bye(ByeMismatch, fmt.Sprintf("this side carries %s and the peer %s", c.local.Mode, remote.Mode))
	}
	c.remote = remote
	c.out.reachWanted = features[featureReach]
	c.whole = remote.Offload&OffloadAll == OffloadAll
	if c.o.Admit == nil {
		return nil
	}
	if err := c.o.Admit(remote); err != nil {
		var e *ByeError
		if !errors.As(err, &e) {
			e = bye(ByeDenied, err.Error())
		}
		return e
	}
	return say()
}

// first reads the first frame.
func (c *Conn) first() (kind byte, body []byte, err error) {
	need := frameHead
	for {
		if rest := c.in.unread(); len(rest) >= need {
			kind, n := rest[0], int(binary.BigEndian.Uint32(rest)&0xffffff)
			if kind < firstControl || n > maxControl {
				return 0, nil, malformed("type %d, length %d where HELLO should be", kind, n)
			}
			if need = frameHead + n; len(rest) >= need {
				c.in.start += need
				return kind, rest[frameHead:need], nil
			}
		}
		if err := c.in.fill(c.conn, need); err != nil {
			return 0, nil, lost(err)
		}
	}
}

// lost is the error of a link whose connection ended below it.
func lost(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("packet: link lost: %w", err)
}

// Local is what this side said of itself.
func (c *Conn) Local() Hello { return c.local }

// Remote is what the peer said of itself. It is a claim.
func (c *Conn) Remote() Hello { return c.remote }

// MTU is the lower of the two MTUs that the sides told each other: no longer
// IP packet, Ethernet header aside, should go over the link.
func (c *Conn) MTU() int { return min(c.local.MTU, c.remote.MTU) }

// LocalAddr and RemoteAddr are of the connection below.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr is the peer's address, see LocalAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// Done is closed when the link has ended.
func (c *Conn) Done() <-chan struct{} { return c.over }

// Close ends the link at once, without a word: see [Conn.Bye].
func (c *Conn) Close() error {
	c.fail(errClosed)
	return nil
}

// fail ends the link; the first cause is the one that is told, but words go before it.
func (c *Conn) fail(cause error) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	if c.leaving != nil {
		cause = c.leaving
	}
	c.cause = cause
	close(c.over)
	c.mu.Unlock()
	if cause == ErrDead || cause == ErrStalled {
		// A FIN would queue behind what the peer never acknowledged, and where only one
		// direction is cut, the peer would have to find out by itself.
		_ = relay.Reset(c.conn)
	}
	closeBelow(c.conn)
}

// failure is why the link has ended, or nil.
func (c *Conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// failWith ends the link and returns why it ended, which may be something else
// that came first.
func (c *Conn) failWith(err error) error {
	c.fail(err)
	return c.failure()
}

// closeBelow closes the connection at the bottom first, so that nothing above
// it can wait to say goodbye.
func closeBelow(c net.Conn) {
	all := []net.Conn{c}
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok || w.NetConn() == nil {
			break
		}
		c = w.NetConn()
		all = append(all, c)
	}
	for i := len(all) - 1; i >= 0; i-- {
		_ = all[i].Close()
	}
}
