package relay

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// direction copies from one leg to the other.
type direction struct {
	r        *relay
	from, to *leg
	count    *atomic.Int64 // bytes that to has taken: the Counter's
	last     atomic.Int64  // when that happened, as time since r.idle.begin; only with an idle timeout

	stall stall

	// copied counts the bytes that went through user space since the start, or
	// since splicing did not pay.
	copied   int64
	noSplice bool // splice is impossible between these two
}

const (
	// spliceAfter is how much a direction copies through user space before it
	// splices: whoever moved that much is not an interactive stream.
	spliceAfter = 256 << 10

	// largeBuffer is used wherever a buffer is held only while there are bytes.
	// Twice the size would move some 10 % more, and half of it as much less; but
	// a direction whose target is stuck keeps one.
	largeBuffer = 128 << 10
	// mediumBuffer has room for a TLS record of 16 KiB and a little more, so
	// that a full record does not look like a buffer filled to the brim.
	mediumBuffer = 16<<10 + 512
	// smallBuffer is what a leg that cannot be waited for costs while idle.
	smallBuffer = 2 << 10
)

// Buffers are pooled as pointers to arrays: putting one back allocates nothing.
var (
	largePool  = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	mediumPool = sync.Pool{New: func() any { return new([mediumBuffer]byte) }}
	smallPool  = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
)

func (d *direction) init(r *relay, from, to *leg, count *atomic.Int64) {
	d.r, d.from, d.to, d.count = r, from, to, count
}

// copy moves bytes until EOF, which is nil, or an error, which is an *Error.
func (d *direction) copy() error {
	if len(d.from.prefix) > 0 {
		err := d.write(d.from.prefix)
		d.from.prefix = nil // let go of the memory
		if err != nil {
			return err
		}
	}
	if d.from.raw != nil {
		return d.copySocket()
	}
	if w, ok := d.from.data.(ReadWaiter); ok {
		return d.copyWaiting(w)
	}
	return d.copyBlind()
}

// copyWaiting copies from a connection that can wait without a buffer.
func (d *direction) copyWaiting(w ReadWaiter) error {
	for {
		d.trace(eventPark, 0)
		if err := w.WaitRead(); err == io.EOF {
			return nil
		} else if err != nil {
			return d.readError(err)
		}
		buf := largePool.Get().(*[largeBuffer]byte)
		n, err := d.from.data.Read(buf[:])
		err = d.forward(buf[:n], err)
		largePool.Put(buf)
		if err != nil {
			return ended(err)
		}
	}
}

// copyBlind copies from a connection that must be given a buffer to wait with,
// such as *tls.Conn. It waits with a small one, takes the next larger one when
// a read filled it, and goes back to the smallest that would have done for the
// last read. So a bulk stream gets large reads, and a stream that falls idle
// after a message shorter than smallBuffer holds no more than that.
func (d *direction) copyBlind() error {
	size := smallBuffer
	for {
		n, err := d.readBlind(size)
		if err != nil {
			return ended(err)
		}
		switch {
		case n == size && n < mediumBuffer:
			size = mediumBuffer
		case n >= mediumBuffer:
			size = largeBuffer
		case n < smallBuffer:
			size = smallBuffer
		default:
			size = mediumBuffer
		}
	}
}

// readBlind moves the result of one Read with a buffer of the given size.
func (d *direction) readBlind(size int) (int, error) {
	var buf []byte
	switch size {
	case smallBuffer:
		b := smallPool.Get().(*[smallBuffer]byte)
		defer smallPool.Put(b)
		buf = b[:]
	case mediumBuffer:
		b := mediumPool.Get().(*[mediumBuffer]byte)
		defer mediumPool.Put(b)
		buf = b[:]
	default:
		b := largePool.Get().(*[largeBuffer]byte)
		defer largePool.Put(b)
		buf = b[:]
	}
	n, err := d.from.data.Read(buf)
	return n, d.forward(buf[:n], err)
}

// forward writes what a Read returned, and judges the error it came with: bytes
// that come together with EOF or an error go out first, as io.Reader demands.
func (d *direction) forward(p []byte, readErr error) error {
	if len(p) > 0 {
		if err := d.write(p); err != nil {
			return err
		}
	}
	switch readErr {
	case nil:
		return nil
	case io.EOF:
		return io.EOF
	}
	return d.readError(readErr)
}

// write writes all of p.
func (d *direction) write(p []byte) error {
	d.stall.enter()
	n, err := d.to.data.Write(p)
	d.stall.leave()
	if n > 0 {
		d.progress(n)
		d.copied += int64(n)
	}
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return d.writeError(err)
	}
	return nil
}

// progress notes that the leg took n bytes.
func (d *direction) progress(n int) {
	d.count.Add(int64(n))
	// Reading the clock is some 50 ns, and a tenth of the cost of setting a
	// timer or a deadline for each read.
	if d.r.idle.timeout > 0 {
		d.last.Store(int64(time.Since(d.r.idle.begin)))
	}
}

func (d *direction) readError(err error) error {
	return &Error{Op: OpRead, Leg: d.from.name, Err: err}
}

func (d *direction) writeError(err error) error {
	return &Error{Op: OpWrite, Leg: d.to.name, Err: err}
}

func (d *direction) trace(what event, n int64) {
	if f := d.r.trace; f != nil {
		f(d.from.name, what, n)
	}
}

// ended turns the end of a loop into the result of copy.
func ended(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// below returns the connection at the bottom of a stack of wrappers.
func below(c net.Conn) net.Conn {
	for {
		n, ok := c.(netConner)
		if !ok {
			return c
		}
		inner := n.NetConn()
		if inner == nil {
			return c
		}
		c = inner
	}
}
