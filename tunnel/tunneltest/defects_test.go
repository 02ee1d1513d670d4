package tunneltest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// good is a connection without defects; each kind below spoils one method.
type good struct{ *Conn }

type (
	noCloseWrite     struct{ net.Conn }
	closeWriteCloses struct{ good }
	closeWriteIdle   struct{ good }
	closeWriteFails  struct{ good }
	closeWriteDrops  struct {
		good
		held bytes.Buffer
	}
	closeWriteResets struct{ good }
	closeWriteOnce   struct {
		good
		n atomic.Int32
	}
	closeWritePanics struct {
		good
		n atomic.Int32
	}
	closeWriteForgotten struct {
		good
		n atomic.Int32
	}
	closeWriteEndsReads struct {
		good
		ended atomic.Bool
	}
	closeWriteFirst struct {
		good
		held bytes.Buffer
	}
	closeWriteBlindToDeadline struct {
		good
		half atomic.Bool
	}
	guillotine struct {
		good
		half atomic.Bool
		n    atomic.Int32
	}
	eofOnce struct {
		good
		n atomic.Int32
	}
	closeQuiet struct{ good }
	closeTwice struct {
		good
		n atomic.Int32
	}
	closeStrings struct{ good }
	closeAsEOF   struct{ good }
	readsClosed  struct{ good }
	timeoutText  struct{ good }
	timeoutPlain struct{ good }
	timeoutEats  struct {
		good
		late atomic.Bool
	}
	countsTooMuch struct{ good }
	flips         struct {
		good
		n atomic.Int64
	}
	bottomless struct{ good }
	nowhere    struct{ good }
	unnamed    struct{ good }
	deafToPeer struct{ good }
)

func (c closeWriteCloses) CloseWrite() error { return c.Close() }
func (c closeWriteIdle) CloseWrite() error   { return nil }
func (c closeWriteFails) CloseWrite() error  { return errors.ErrUnsupported }
func (c closeWriteResets) CloseWrite() error { return c.Reset() }

// Each write waits in user space for the next one; CloseWrite throws the last away.
func (c *closeWriteDrops) Write(b []byte) (int, error) {
	if _, err := c.Conn.Write(c.held.Next(c.held.Len())); err != nil {
		return 0, err
	}
	return c.held.Write(b)
}

func (c *closeWriteOnce) CloseWrite() error {
	if c.n.Add(1) > 1 {
		return errors.New("already half-closed")
	}
	return c.Conn.CloseWrite()
}

func (c *closeWritePanics) CloseWrite() error {
	if c.n.Add(1) > 1 {
		panic("close of closed channel")
	}
	return c.Conn.CloseWrite()
}

// Write after CloseWrite says that all is well.
func (c *closeWriteForgotten) CloseWrite() error { c.n.Add(1); return c.Conn.CloseWrite() }
func (c *closeWriteForgotten) Write(b []byte) (int, error) {
	if c.n.Load() > 0 {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *closeWriteEndsReads) CloseWrite() error { c.ended.Store(true); return c.Conn.CloseWrite() }
func (c *closeWriteEndsReads) Read(b []byte) (int, error) {
	if c.ended.Load() {
		return 0, io.EOF
	}
	return c.Conn.Read(b)
}

// The end overtakes the bytes: the last ones come out at Close.
func (c *closeWriteFirst) Write(b []byte) (int, error) { return c.held.Write(b) }
func (c *closeWriteFirst) Close() error {
	c.Conn.Write(c.held.Bytes())
	return c.Conn.Close()
}

func (c *closeWriteBlindToDeadline) CloseWrite() error {
	c.half.Store(true)
	return c.Conn.CloseWrite()
}
func (c *closeWriteBlindToDeadline) SetReadDeadline(t time.Time) error {
	if c.half.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// A half-closed stream ends after four bytes, politely.
func (c *guillotine) CloseWrite() error { c.half.Store(true); return c.Conn.CloseWrite() }
func (c *guillotine) Read(b []byte) (int, error) {
	if !c.half.Load() {
		return c.Conn.Read(b)
	}
	left := 4 - int(c.n.Load())
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(left, len(b))])
	c.n.Add(int32(n))
	return n, err
}

func (c *eofOnce) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF && c.n.Add(1) > 1 {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (c closeQuiet) Close() error { return nil }

func (c *closeTwice) Close() error {
	if c.n.Add(1) > 1 {
		panic("close of closed channel")
	}
	return c.Conn.Close()
}

func notErrClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return errors.New("stream closed")
	}
	return err
}
func (c closeStrings) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, notErrClosed(err)
}
func (c closeStrings) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, notErrClosed(err)
}
func (c closeStrings) CloseWrite() error { return notErrClosed(c.Conn.CloseWrite()) }

func (c closeAsEOF) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// Read goes on after Close with what was buffered.
func (c readsClosed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		return 1, nil
	}
	return n, err
}

type ownTimeout struct{}

func (ownTimeout) Error() string   { return "i/o deadline reached" }
func (ownTimeout) Timeout() bool   { return true }
func (ownTimeout) Temporary() bool { return true }

func (c timeoutText) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if isTimeout(err) {
		err = ownTimeout{}
	}
	return n, err
}

type deadlineOnly struct{ error }

func (e deadlineOnly) Is(target error) bool { return errors.Is(e.error, target) }

func (c timeoutPlain) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if isTimeout(err) {
		err = deadlineOnly{err}
	}
	return n, err
}

// A read past its deadline takes the next byte with it.
func (c *timeoutEats) Read(b []byte) (int, error) {
	if c.late.CompareAndSwap(true, false) {
		c.Conn.Read(make([]byte, 1))
	}
	n, err := c.Conn.Read(b)
	if isTimeout(err) {
		c.late.Store(true)
	}
	return n, err
}

func (c countsTooMuch) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if isTimeout(err) {
		n = len(b)
	}
	return n, err
}

// One bit of the second megabyte is wrong.
func (c *flips) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if at := c.n.Add(int64(n)); at > 1<<20 && at-int64(n) <= 1<<20 {
		b[0] ^= 1
	}
	return n, err
}

// No back-pressure: the buffer grows with every write.
func (c *bottomless) Write(b []byte) (int, error) {
	c.p.set(func(p *pair) { p.dir[c.i].limit += len(b); p.dir[c.i].chunks = nil })
	return c.Conn.Write(b)
}

func (c nowhere) RemoteAddr() net.Addr { return nil }
func (c unnamed) LocalAddr() net.Addr  { return &net.UnixAddr{} }

// The peer's Close is not noticed by a writer.
func (c deafToPeer) Close() error {
	c.Conn.CloseWrite()
	return nil
}
