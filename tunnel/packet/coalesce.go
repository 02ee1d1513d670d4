package packet

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// socket stands between TLS and its socket, because crypto/tls writes one record
// of 16 KiB at a time, and reads hardly more. It gathers the records of a batch
// into one write, reads in big pieces, and knows whether a whole record is there
// already, so that a batch can be filled without waiting: a fifth to a quarter less CPU
// time for a byte (BenchmarkLink, tls and tls-ungathered). It also watches over
// the progress of writes, since those of TLS cannot go on after a timeout.
//
//	Conn ──► tls.Conn ──► socket ──► TCP
type socket struct {
	net.Conn
	patience time.Duration // without progress of a write; not positive: no bound

	in     inbox
	record int // bytes of the record under way that TLS has not read yet

	mu   sync.Mutex // held while writing
	held *[]byte    // what was written since hold, nil when not holding
}

const (
	// maxHeld is the most that a socket holds back: what a [Queue] writes in one
	// piece, and the heads and checksums of its records. More would save few calls
	// and leave the far side without work for longer.
	maxHeld = 128<<10 + 4<<10
	// largeRecords is the most that it reads at a time: four records.
	largeRecords = 64 << 10
)

// recordHead is the length of a TLS record's head: type, version, length of the
// rest.
const recordHead = 5

// heldPool has the memory of sockets that write: idle ones need none.
var heldPool = sync.Pool{New: func() any { b := make([]byte, 0, maxHeld); return &b }}

func newSocket(c net.Conn, patience time.Duration) *socket {
	return &socket{Conn: c, patience: patience, in: inbox{most: largeRecords}}
}

// CloseWrite half-closes the connection below.
func (s *socket) CloseWrite() error { return relay.CloseWrite(s.Conn) }

// NetConn returns the connection below.
func (s *socket) NetConn() net.Conn { return s.Conn }

// socketBelow finds our socket below a TLS connection, or nil.
func socketBelow(c net.Conn) *socket {
	for {
		if s, ok := c.(*socket); ok {
			return s
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok || w.NetConn() == nil {
			return nil
		}
		c = w.NetConn()
	}
}

// Read gives TLS one record at a time, and never a byte beyond it.
func (s *socket) Read(p []byte) (int, error) {
	if s.record == 0 {
		for len(s.in.unread()) < recordHead {
			if err := s.in.fill(s.Conn, recordHead); err != nil {
				if n := copy(p, s.in.unread()); n > 0 && err == io.EOF {
					s.in.start += n // cut short: TLS will see it
					return n, nil
				}
				return 0, err
			}
		}
		s.record = recordLen(s.in.unread())
	}
	if len(s.in.unread()) == 0 {
		if err := s.in.fill(s.Conn, 1); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(len(p), s.record)], s.in.unread())
	s.in.start += n
	s.record -= n
	return n, nil
}

// recordLen is the length of the record that begins with head.
func recordLen(head []byte) int { return recordHead + int(binary.BigEndian.Uint16(head[3:])) }

// hasRecord reports whether TLS could read a whole record without waiting.
func (s *socket) hasRecord() bool {
	b := s.in.unread()
	return s.record == 0 && len(b) >= recordHead && len(b) >= recordLen(b)
}

// hold begins to gather what is written, until flush.
func (s *socket) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = heldPool.Get().(*[]byte)
	}
}

// flush writes what was gathered.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		return nil
	}
	held := s.held
	s.held = nil
	err := s.write(*held)
	*held = (*held)[:0]
	heldPool.Put(held)
	return err
}

// Write writes, or gathers. TLS itself calls it at times, from the reader's
// goroutine.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil && len(*s.held)+len(p) > maxHeld {
		if err := s.write(*s.held); err != nil {
			return 0, err
		}
		*s.held = (*s.held)[:0]
	}
	if s.held != nil && len(p) <= maxHeld {
		*s.held = append(*s.held, p...)
		return len(p), nil
	}
	if err := s.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *socket) write(p []byte) error { return writeAll(s.Conn, p, s.patience) }

// writeAll writes p, and gives up when nothing moves for so long. A socket does
// not tell when it took what it took: the time is cut into five, and ends with the
// fifth part in a row in which it took nothing, up to a fifth late.
func writeAll(c net.Conn, p []byte, patience time.Duration) error {
	if patience <= 0 {
		_, err := c.Write(p)
		return err
	}
	parts, step := 5, len(p)
	if _, ok := c.(interface{ NetConn() net.Conn }); ok {
		parts, step = 1, 16<<10 // a write of TLS that timed out cannot go on: a record each
	}
	for idle := 0; len(p) > 0; {
		if err := c.SetWriteDeadline(time.Now().Add(patience / time.Duration(parts))); err != nil {
			return err
		}
		n, err := c.Write(p[:min(step, len(p))])
		p = p[n:]
		switch idle++; {
		case n > 0:
			idle = 0
		case idle >= parts:
			return err
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return nil
}
