package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// yamuxStream makes a correct net.Conn of a yamux stream: time-outs are
// os.ErrDeadlineExceeded, use after Close is net.ErrClosed, a half-close is
// CloseWrite, and the end of the data is io.EOF only if the peer said so.
//
//	open ──CloseWrite──► half-closed ──Close──► closed
//	  └──Reset, peer's RESET, session lost──► reset ──Close──► closed
//
// Two rules keep the wire's order. A Close sends the FIN first, since what was
// written is whole, and then tells that nobody reads any more. A Reset sends
// RESET alone, and the FIN only when the peer has acknowledged it: a FIN that
// overtook it would turn an abort into a clean end of the data.
//
// One thing remains that yamux does not give: while the carrier itself is
// stalled, a Write does not heed its deadline, and ends with the session.
type yamuxStream struct {
	m  *yamuxMux
	y  *yamux.Stream
	in *inbox

	ended chan struct{} // closed when aborted or isClosed is set
	stop  chan struct{} // closed when unwanted is set

	// reading is held while yamux reads: two of its Reads at a time take two
	// locks in opposite orders. A deadline or Close wakes who holds it.
	reading sync.Mutex

	mu            sync.Mutex
	isClosed      bool  // locally, by Close or Reset
	finSent       bool  // or is about to be
	eof           bool  // CloseWrite was called
	aborted       error // both directions
	unwanted      error // the peer no longer reads
	swallowed     bool  // and one write after that
	resetting     bool  // RESET was sent, and its ack has not come
	readDeadline  time.Time
	writeDeadline time.Time
}

// maxFrame bounds what one stream puts on the wire in its turn, so that a bulk
// transfer does not hold up the others for a whole window.
const maxFrame = 64 << 10

// past is a deadline that wakes whoever waits in yamux.
var past = time.Unix(1, 0)

func (s *yamuxStream) ID() uint32 { return s.y.StreamID() }

func (s *yamuxStream) Read(p []byte) (int, error) {
	if err := s.readable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	n, err := s.y.Read(p)
	if n > 0 {
		s.m.watch.account(s.in, 0, int64(n))
		return n, nil // an error with it comes again
	}
	return 0, s.readError(err)
}

// WaitRead blocks until Read would not, and holds no buffer meanwhile: it is
// what relay.ReadWaiter asks for. yamux waits for data also when it is to
// read none.
func (s *yamuxStream) WaitRead() error {
	if err := s.readable(); err != nil {
		return err
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	_, err := s.y.Read(nil)
	if err == nil || err == io.EOF {
		return nil
	}
	return s.readError(err)
}

// WaitReset blocks until the peer has aborted the stream, the session is lost,
// or the stream was closed here: see relay.ResetWaiter. A peer that has said
// all and reads no more is gone too, but only after a while: as with TCP, where
// a Close looks like a half-close, the other side of a relay can then end in
// order by itself. While it still has something to say, that is to be
// delivered first.
func (s *yamuxStream) WaitReset() error {
	stop := s.stop
	var over <-chan time.Time
	for {
		select {
		case <-s.ended:
			return s.readable()
		case <-s.m.Done():
			return s.m.lost()
		case <-over:
			return s.gone()
		case <-stop:
			stop = nil
			if s.in.ended() {
				timer := time.NewTimer(unreadGrace)
				defer timer.Stop()
				over = timer.C
			}
		}
	}
}

// unreadGrace is how long whoever is at the other side of a relay may take to
// end after the peer has closed a stream.
const unreadGrace = 5 * time.Second

// readable is why a Read fails before it looks for data.
func (s *yamuxStream) readable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return net.ErrClosed
	case s.aborted != nil:
		return s.aborted
	case !s.readDeadline.IsZero() && !time.Now().Before(s.readDeadline):
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *yamuxStream) readError(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return net.ErrClosed
	case s.aborted != nil:
		return s.aborted
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case err == io.EOF && s.in.ended():
		return io.EOF
	case s.in.refused():
		return &streamReset{by: "peer", reason: "the peer takes no more streams"}
	}
	return s.m.lost()
}

func (s *yamuxStream) Write(p []byte) (int, error) {
	total := 0
	for {
		if last, err := s.writable(); err != nil {
			return total, err
		} else if last {
			return len(p), nil
		}
		n, err := s.y.Write(p[total:min(total+maxFrame, len(p))])
		total += n
		if err != nil {
			if total == 0 && s.swallow() {
				return len(p), nil
			}
			return total, s.writeError(err)
		}
		if total == len(p) {
			return total, nil
		}
	}
}

// writable is why a Write fails before it begins. Last is set for the one
// write that a peer which reads no more still swallows, as with TCP, where the
// reset comes only in answer to it: without it crypto/tls could not say goodbye
// to a peer that has just done so.
func (s *yamuxStream) writable() (last bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return false, net.ErrClosed
	case s.aborted != nil:
		return false, s.aborted
	case s.eof:
		return false, syscall.EPIPE
	case !s.writeDeadline.IsZero() && !time.Now().Before(s.writeDeadline):
		return false, os.ErrDeadlineExceeded
	case s.unwanted != nil && s.swallowed:
		return false, s.unwanted
	case s.unwanted != nil:
		s.swallowed = true
		return true, nil
	}
	return false, nil
}

// swallow reports whether a write that failed was the last one of writable,
// which had begun a moment before the peer's word came.
func (s *yamuxStream) swallow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed || s.aborted != nil || s.unwanted == nil || s.swallowed {
		return false
	}
	s.swallowed = true
	return true
}

// gone is why nobody is there to write to, for WaitReset.
func (s *yamuxStream) gone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return net.ErrClosed
	case s.aborted != nil:
		return s.aborted
	}
	return s.unwanted
}

func (s *yamuxStream) writeError(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return net.ErrClosed
	case s.aborted != nil:
		return s.aborted
	case s.unwanted != nil:
		return s.unwanted
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case s.in.refused():
		return &streamReset{by: "peer", reason: "the peer takes no more streams"}
	case s.eof:
		return syscall.EPIPE
	}
	return s.m.lost()
}

// CloseWrite ends the sending direction; the peer reads io.EOF after what was
// written. Doing it again does nothing.
func (s *yamuxStream) CloseWrite() error {
	s.mu.Lock()
	switch {
	case s.isClosed:
		s.mu.Unlock()
		return net.ErrClosed
	case s.aborted != nil:
		s.mu.Unlock()
		return s.aborted
	case s.finSent:
		s.eof = true
		s.mu.Unlock()
		return nil
	}
	s.eof, s.finSent = true, true
	s.mu.Unlock()
	return s.y.Close() // a half-close: see the type's comment
}

// Close ends both directions: the peer reads io.EOF after what was written,
// and its writes fail. It does not block on the carrier.
func (s *yamuxStream) Close() error {
	s.mu.Lock()
	if s.isClosed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.isClosed = true
	s.end()
	sendFIN := !s.finSent
	s.finSent = true
	aborted := s.aborted != nil
	s.mu.Unlock()
	s.in.leave(time.Now())
	s.wake()
	s.m.later(func() {
		if sendFIN {
			_ = s.y.Close()
		}
		if !aborted && !s.in.over() {
			s.m.sendReset(resetMessage{Stream: s.ID(), Code: resetUnread})
		}
		s.m.watch.closed(s.ID(), s.in)
	})
	return nil
}

// Reset aborts both directions: what the peer has not read is dropped, and
// its reads and writes fail with ErrReset. It does not block on the carrier.
func (s *yamuxStream) Reset() error { return s.ResetWith("aborted") }

func (s *yamuxStream) ResetWith(reason string) error {
	s.mu.Lock()
	if s.isClosed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.isClosed = true
	s.end()
	finSent, aborted := s.finSent, s.aborted != nil
	s.resetting = !aborted && !finSent
	s.mu.Unlock()
	s.in.leave(time.Now())
	s.wake()
	if aborted { // the peer did the same before
		s.m.later(s.finish)
		return nil
	}
	s.m.later(func() {
		s.m.sendReset(resetMessage{Stream: s.ID(), Code: resetAbort, Reason: reason})
		if finSent {
			s.finish()
		}
	})
	return nil
}

// end wakes WaitReset; s.mu is held.
func (s *yamuxStream) end() {
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// peerAck is told that the peer has carried out a Reset.
func (s *yamuxStream) peerAck() {
	s.mu.Lock()
	waiting := s.resetting
	s.resetting = false
	s.mu.Unlock()
	if waiting {
		s.finish()
	}
}

// finish sends the FIN that a Reset held back.
func (s *yamuxStream) finish() {
	s.mu.Lock()
	send := !s.finSent
	s.finSent = true
	s.mu.Unlock()
	s.m.later(func() {
		if send {
			_ = s.y.Close()
		}
		s.m.watch.closed(s.ID(), s.in)
	})
}

// peerReset carries out the peer's RESET. Nothing that is written from now on
// is of use to the peer, so that the FIN goes out at once and not only when
// this side's user closes: the peer's memory of the stream depends on it.
func (s *yamuxStream) peerReset(m resetMessage) {
	reason := m.Reason
	if reason == "" {
		reason = "aborted"
	}
	s.mu.Lock()
	switch m.Code {
	case resetUnread:
		if s.unwanted == nil {
			s.unwanted = &streamReset{by: "peer", reason: "it no longer reads"}
			close(s.stop)
		}
	default:
		if s.aborted == nil {
			s.aborted = &streamReset{by: "peer", reason: reason}
			s.end()
		}
	}
	sendFIN := !s.finSent
	s.finSent = true
	s.mu.Unlock()
	_ = s.y.SetWriteDeadline(past)
	if m.Code != resetUnread {
		_ = s.y.SetReadDeadline(past)
	}
	if sendFIN {
		s.m.later(func() { _ = s.y.Close() })
	}
}

func (s *yamuxStream) wake() { _ = s.y.SetDeadline(past) }

func (s *yamuxStream) LocalAddr() net.Addr  { return s.m.watch.carrier.LocalAddr() }
func (s *yamuxStream) RemoteAddr() net.Addr { return s.m.watch.carrier.RemoteAddr() }

func (s *yamuxStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *yamuxStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return net.ErrClosed
	}
	s.readDeadline = t
	if s.aborted != nil {
		return nil
	}
	return s.y.SetReadDeadline(t)
}

func (s *yamuxStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return net.ErrClosed
	}
	s.writeDeadline = t
	if s.aborted != nil || s.unwanted != nil {
		return nil
	}
	return s.y.SetWriteDeadline(t)
}
