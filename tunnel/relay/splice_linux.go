package relay

import (
	"io"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is what a pipe is asked to hold, and the most that one round of
	// splicing moves. Larger ones measured no faster, the default of 64 KiB a
	// third slower; and an unprivileged user has 64 MiB for all pipes together.
	pipeSize = 256 << 10
	// minPipe is the least that a pipe must hold to be better than a buffer. An
	// unprivileged user who is over fs.pipe-user-pages-soft gets less.
	minPipe = 64 << 10
	// smallRounds rounds in a row of less than smallRound bytes end splicing:
	// two system calls and their pages cost more there than copying so little.
	smallRounds = 8
	smallRound  = 8 << 10
)

// pipe is where spliced pages rest between the two sockets.
type pipe struct {
	r, w    int
	data    int // bytes in it
	cleanup runtime.Cleanup
}

// pipePool keeps pipes for the next round. A pipe that the garbage collector
// takes out of it is closed by its cleanup.
var pipePool = sync.Pool{New: newPipe}

func newPipe() any {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil // out of descriptors, most likely: copy instead
	}
	// This may fail; what counts is what comes of it.
	_, _ = unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, pipeSize)
	if n, err := unix.FcntlInt(uintptr(fd[0]), unix.F_GETPIPE_SZ, 0); err != nil || n < minPipe {
		closePipe(fd)
		return nil
	}
	p := &pipe{r: fd[0], w: fd[1]}
	p.cleanup = runtime.AddCleanup(p, closePipe, fd)
	return p
}

func closePipe(fd [2]int) {
	_ = unix.Close(fd[0])
	_ = unix.Close(fd[1])
}

func getPipe() *pipe {
	p, _ := pipePool.Get().(*pipe)
	return p
}

// put gives the pipe back, or closes it if bytes are left in it, which belong
// to nobody but their relay.
func (p *pipe) put() {
	if p.data == 0 {
		pipePool.Put(p)
		return
	}
	p.cleanup.Stop()
	closePipe([2]int{p.r, p.w})
}

// spliceable reports whether it is time to splice.
func (d *direction) spliceable() bool {
	return d.copied >= spliceAfter && !d.noSplice && d.to.raw != nil
}

// splicer moves bytes from socket to pipe to socket. Package net has the same
// behind io.Copy; what is different here is that no pipe is held while there is
// nothing in it, and that bytes count as they go.
type splicer struct {
	d    *direction
	p    *pipe
	n    int
	err  error
	none bool // there is no pipe to be had
}

// splice moves bytes within the kernel until the direction ends, which is
// io.EOF or an *Error; or again is true: go on through user space.
func (d *direction) splice() (again bool, err error) {
	d.trace(eventSplice, d.copied)
	s := &splicer{d: d}
	defer s.release()
	fill, drain := s.fill, s.drain // one closure each for all the rounds
	for small := 0; small < smallRounds; {
		s.n, s.err = 0, nil
		if err := d.from.raw.Read(fill); err != nil {
			return false, d.readError(plainOp("read", err))
		}
		switch {
		case s.none || s.err == unix.EINVAL || s.err == unix.ENOSYS || s.err == unix.EOPNOTSUPP:
			// Nothing was moved by that call, so nothing is lost.
			d.noSplice = s.err != nil
			return d.backToCopy()
		case s.err != nil:
			return false, d.readError(socketError("read", d.from.data, "splice", s.err))
		case s.n == 0:
			return false, io.EOF
		}
		if s.n < smallRound {
			small++
		} else {
			small = 0
		}
		d.stall.enter()
		err := d.to.raw.Write(drain)
		d.stall.leave()
		if err != nil {
			return false, d.writeError(plainOp("write", err))
		}
		if s.err != nil {
			return false, d.writeError(socketError("write", d.to.data, "splice", s.err))
		}
	}
	return d.backToCopy()
}

func (d *direction) backToCopy() (again bool, err error) {
	d.copied = 0
	d.trace(eventCopy, 0)
	return true, nil
}

// fill moves what the socket has into an empty pipe. See socketReader.ready.
func (s *splicer) fill(fd uintptr) bool {
	if s.p == nil {
		if s.p = getPipe(); s.p == nil {
			s.none = true
			return true
		}
	}
	for {
		n, err := unix.Splice(int(fd), nil, s.p.w, nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch err {
		case nil:
			s.n = int(n)
			s.p.data = s.n
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			// The pipe is empty, so it is the socket that has nothing.
			s.release()
			s.d.trace(eventPark, 0)
			return false
		}
		s.err = err
		return true
	}
}

// drain moves what is in the pipe into the other socket.
func (s *splicer) drain(fd uintptr) bool {
	for s.p.data > 0 {
		n, err := unix.Splice(s.p.r, nil, int(fd), nil, s.p.data, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if n > 0 {
			s.p.data -= int(n)
			s.d.progress(int(n))
			continue
		}
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case nil:
			err = io.ErrUnexpectedEOF // cannot be: we hold the other end
		}
		s.err = err
		return true
	}
	return true
}

func (s *splicer) release() {
	if s.p != nil {
		s.p.put()
		s.p = nil
	}
}
