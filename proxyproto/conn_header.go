package proxyproto

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// readSize is the room for a first read: a header, and with luck the first packet
// of the data, which is a ClientHello of 1.5 KiB as a rule.
const readSize = 2 << 10

// reads reports whether a header is read under the policy.
func (p Policy) reads() bool { return p == Require || p == Accept }

// advance reads headers until the stage is reached.
func (c *Conn) advance(to int32) error {
	if c.stage.Load() >= to {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.advanceLocked(to)
}

func (c *Conn) advanceLocked(to int32) error {
	for stage := c.stage.Load(); stage < to; stage++ {
		if e := c.failed.Load(); e != nil {
			return e
		}
		s := &c.outer
		if stage == stageInner {
			s = &c.inner
		}
		h, err := c.next(s.policy, stage == stageInner)
		if err != nil {
			return err
		}
		if h != nil && stage == stageInner {
			h.TLVs = nil // anyone may send them, and nobody believes them
		}
		s.h = h
		if stage+1 == stageData {
			if h != nil {
				c.look = look{} // behind a header that was awaited all is data
			}
			c.inspect(c.unread)
		}
		c.stage.Store(stage + 1)
	}
	return nil
}

// ready is for who wants data.
func (c *Conn) ready() error {
	if err := c.advanceLocked(stageData); err != nil {
		return err
	}
	if e := c.failed.Load(); e != nil {
		return e
	}
	c.settle()
	return nil
}

// settle notes when there is nothing left between Read and the connection.
func (c *Conn) settle() {
	if len(c.unread) == 0 && !c.look.on {
		c.unread = nil // let go of the memory
		c.plain.Store(true)
	}
}

// fail makes an error final.
func (c *Conn) fail(inner bool, err error) error {
	e := &HeaderError{Inner: inner, Peer: c.peer, Err: err}
	c.unread = nil
	c.failed.Store(e)
	return e
}

// next reads one header, or finds that there is none.
func (c *Conn) next(p Policy, inner bool) (*Header, error) {
	for p.reads() {
		n, more, err := frameLen(c.unread)
		if p == Accept && errors.Is(err, ErrNoHeader) {
			break
		}
		if err != nil {
			return nil, c.fail(inner, err)
		}
		if n > 0 {
			h, err := parse(c.unread[:n])
			if err == nil && h.datagrams() {
				err = fmt.Errorf("%w: datagrams on a stream", ErrMalformed)
			}
			if err != nil {
				return nil, c.fail(inner, err)
			}
			c.unread = c.unread[n:]
			return h, nil
		}
		err, final := c.fill(more)
		switch {
		case err == nil:
		case !final:
			return nil, err
		case p == Accept && errors.Is(err, io.EOF) && signature(c.unread) == matchSome:
			return nil, nil
		default:
			return nil, c.fail(inner, endError(c.unread, err))
		}
	}
	return nil, nil
}

// datagrams reports whether the addresses are not those of a stream.
func (h *Header) datagrams() bool {
	switch a := h.Source.(type) {
	case *net.UDPAddr:
		return true
	case *net.UnixAddr:
		return a.Net == "unixgram"
	}
	return false
}

// fill reads once into unread, which lacks that many bytes of a header. An
// error that is not final is a deadline of the caller.
func (c *Conn) fill(more int) (err error, final bool) {
	if len(c.unread) == 0 {
		more = max(more, readSize)
	}
	c.unread = grow(c.unread, more)
	changes, err := c.startWait()
	if err != nil {
		return err, true
	}
	start := time.Now()
	n, err := c.conn.Read(c.unread[len(c.unread):cap(c.unread)])
	c.unread = c.unread[:len(c.unread)+n]
	err, final = c.endWait(start, changes, err)
	if n > 0 {
		// The error comes again, and the bytes do not.
		return nil, false
	}
	return err, final
}

// startWait puts the deadline for headers beside the caller's.
func (c *Conn) startWait() (changes int, err error) {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	if c.bounded {
		c.header = time.Now().Add(c.left)
		err = c.conn.SetReadDeadline(earlier(c.user, c.header))
	}
	return c.changes, err
}

// endWait restores the caller's deadline and says whose it was that passed.
func (c *Conn) endWait(start time.Time, changes int, err error) (_ error, final bool) {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	header := c.header
	if c.bounded {
		c.header = time.Time{}
		c.left = max(0, c.left-time.Since(start))
		_ = c.conn.SetReadDeadline(c.user) // that of a closed connection fails, and so will Read
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err, true
	}
	switch {
	case passed(c.user):
		return err, false
	case passed(header):
		return fmt.Errorf("no whole PROXY header in time: %w", os.ErrDeadlineExceeded), true
	case changes != c.changes:
		return nil, false // it was the caller's, who has moved it since
	}
	return err, false
}

// passed reports whether a deadline is over. Timers of sockets may be early by
// what lies between two looks at the clock.
func passed(t time.Time) bool { return !t.IsZero() && time.Until(t) < time.Millisecond }

// earlier returns the deadline that comes first; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
