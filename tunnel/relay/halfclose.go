package relay

import (
	"errors"
	"net"
)

// CloseWriter is a connection that can half-close: CloseWrite tells the peer
// that nothing more will come, while reading goes on. *net.TCPConn,
// *net.UnixConn and *tls.Conn are CloseWriters, and so is every connection that
// this module returns.
type CloseWriter interface {
	CloseWrite() error
}

// Resetter is a connection that can be aborted. Reset ends both directions now,
// throws away what is buffered, and closes the connection; the peer sees a
// reset, where the transport can express one, and never an orderly end.
type Resetter interface {
	Reset() error
}

// ReadWaiter is a connection that can wait without a buffer. WaitRead blocks
// until the next Read would not block, because there is data, the end, an error
// or a deadline that has passed. It returns nil, or the error that Read would,
// io.EOF included, and takes no byte. [Relay] then holds no buffer for a leg that
// is idle.
type ReadWaiter interface {
	WaitRead() error
}

// ResetWaiter is a connection that can tell of its end after EOF. WaitReset
// blocks until the peer has reset the connection, it failed otherwise, or it was
// closed here, and returns that error, never nil; it may be called twice at a
// time. [Relay] calls it where it does not read: once the connection has yielded
// EOF while the other direction goes on, and while it is stuck in a write to the
// other leg. Without it a reset would go unseen until the next write or read.
// For sockets Relay needs no help.
type ResetWaiter interface {
	WaitReset() error
}

// Unwrapper is a connection that adds nothing to the one below but bytes which
// were read from it too early, as [Prefixed] does. [Relay] takes both apart:
// it writes unread, reads and writes c from then on, and so gets at the socket,
// which it can splice. It goes on using the outer connection to half-close, to
// reset and to close. After Unwrap the outer connection must not be read from.
type Unwrapper interface {
	Unwrap() (unread []byte, c net.Conn)
}

// netConner is what wrappers have in common since crypto/tls introduced it.
type netConner interface {
	NetConn() net.Conn
}

// handshaker is a *tls.Conn, without linking crypto/tls into programs that do
// not use it.
type handshaker interface {
	Handshake() error
}

// lingerer is a *net.TCPConn, or a struct that embeds one.
type lingerer interface {
	SetLinger(sec int) error
	Close() error
}

// CloseWrite half-closes c: the peer reads EOF behind the last byte written,
// while c can still be read. It looks through wrappers that have a NetConn
// method for the outermost [CloseWriter]. On a TLS connection it completes the
// handshake first, waits until the socket below has room, and sends
// close_notify; the socket stays open. The error is [errors.ErrUnsupported] if
// nothing there can half-close.
func CloseWrite(c net.Conn) error {
	for c != nil {
		if cw, ok := c.(CloseWriter); ok {
			// Before the handshake is done there is no key to seal a
			// close_notify with, and crypto/tls refuses.
			if h, ok := c.(handshaker); ok {
				if err := h.Handshake(); err != nil {
					return err
				}
				// crypto/tls gives close_notify five seconds and then gives
				// up for good, which would be a reset. A slow reader behind a
				// full send buffer must not pay with the end of the answer.
				waitWritable(c)
			}
			return cw.CloseWrite()
		}
		n, ok := c.(netConner)
		if !ok {
			break
		}
		c = n.NetConn()
	}
	return errors.ErrUnsupported
}

// Reset aborts c in both directions and closes it, so that the peer sees an
// error and never mistakes what it got for the whole. A [Resetter] resets
// itself, and a *net.TCPConn, or what embeds one, sends RST. Of a wrapper with a NetConn method, such
// as *tls.Conn, what is below is reset first, so that closing the wrapper cannot
// block; no close_notify is sent. Anything else is closed: of a *net.UnixConn
// the peer then sees ECONNRESET if it had sent bytes which nobody read, else EOF.
func Reset(c net.Conn) error {
	if c == nil {
		return nil
	}
	switch c := c.(type) {
	case Resetter:
		return c.Reset()
	case lingerer:
		// With a linger of zero the kernel drops the send buffer and sends RST.
		// An error means that the socket is gone already; Close says so too.
		_ = c.SetLinger(0)
		return c.Close()
	case netConner:
		err := Reset(c.NetConn())
		// The wrapper may keep books in its Close. There is nobody left to
		// talk to, so what it has to say about that is of no interest.
		_ = c.(net.Conn).Close()
		return err
	}
	return c.Close()
}
