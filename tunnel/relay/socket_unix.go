//go:build unix

package relay

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// rawSocket returns the descriptor of c if it is a stream socket, else nil.
func rawSocket(c net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		// unixpacket keeps the bounds of messages and has other ideas of EOF.
		if a := c.LocalAddr(); a == nil || a.Network() != "unix" {
			return nil
		}
		raw, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return raw
}

// control returns the descriptor of whatever has one, to ask about it, not to
// read or write: c may be a wrapper that does something about those.
func control(c net.Conn) syscall.RawConn {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// socketReader reads from a socket and holds a buffer only while there is
// something in it.
type socketReader struct {
	d   *direction
	buf *[largeBuffer]byte
	n   int
	err error
}

// copySocket copies from a stream socket, and splices where that pays.
func (d *direction) copySocket() error {
	s := &socketReader{d: d}
	defer s.release()
	ready := s.ready // one closure for all the reads
	for {
		if d.spliceable() {
			again, err := d.splice()
			if !again {
				return ended(err)
			}
		}
		s.n, s.err = 0, nil
		if err := d.from.raw.Read(ready); err != nil {
			return d.readError(plainOp("read", err))
		}
		if s.err != nil {
			return d.readError(socketError("read", d.from.data, "read", s.err))
		}
		if s.n == 0 {
			return nil
		}
		if err := d.write(s.buf[:s.n]); err != nil {
			return err
		}
	}
}

// ready is called by the runtime whenever the socket may be readable, and first
// of all without asking. It must have seen EAGAIN before it waits, because the
// runtime polls for edges.
func (s *socketReader) ready(fd uintptr) bool {
	if s.buf == nil {
		s.buf = largePool.Get().(*[largeBuffer]byte)
	}
	for {
		n, err := unix.Read(int(fd), s.buf[:])
		switch err {
		case nil:
			s.n = n
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			s.release()
			s.d.trace(eventPark, 0)
			return false
		}
		s.err = err
		return true
	}
}

func (s *socketReader) release() {
	if s.buf != nil {
		largePool.Put(s.buf)
		s.buf = nil
	}
}

// failure returns why the leg is dead, or nil if it lives or that cannot be
// known. It may block until the leg is closed; then it returns an error too.
func (l *leg) failure() error {
	if w, ok := l.data.(ResetWaiter); ok {
		return w.WaitReset()
	}
	c := below(l.outer)
	raw := control(c)
	if raw == nil {
		return nil
	}
	var failure error
	if raw.Control(func(fd uintptr) { failure = pendingError(c, fd) }) != nil {
		return nil // closed here
	}
	return failure
}

// pendingError takes the error that has come in for a socket, nil if none has or
// it is no socket.
func pendingError(c net.Conn, fd uintptr) error {
	errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return nil
	case errno == int(unix.EPIPE):
		// What linux calls a reset that comes behind a FIN.
		return socketError("read", c, "read", unix.ECONNRESET)
	case errno != 0:
		return socketError("read", c, "read", unix.Errno(errno))
	}
	return nil
}

// waitWritable waits until the socket at the bottom of c takes bytes without
// blocking, if there is a socket.
func waitWritable(c net.Conn) {
	raw := rawSocket(below(c))
	if raw == nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for {
			n, err := unix.Poll(p, 0)
			if err == unix.EINTR {
				continue
			}
			return n > 0 || err != nil
		}
	})
}

// socketError is the error that package net would have returned.
func socketError(op string, c net.Conn, call string, err error) error {
	l := c.LocalAddr()
	e := &net.OpError{Op: op, Source: l, Addr: c.RemoteAddr(), Err: os.NewSyscallError(call, err)}
	if l != nil {
		e.Net = l.Network()
	}
	return e
}

// plainOp renames the operation of an error of syscall.RawConn, "raw-read",
// which tells how we do it and not what failed.
func plainOp(op string, err error) error {
	var o *net.OpError
	if errors.As(err, &o) {
		c := *o
		c.Op = op
		return &c
	}
	return err
}
