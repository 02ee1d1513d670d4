package main

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// maxEarly bounds what is kept of a client that speaks before its target is
// there, in bytes.
const maxEarly = 16 << 10

// early reads from a client while its dial is under way, to keep what it says
// and to learn that it is gone.
//
//	bytes ──► kept; at 16 KiB it stops reading: back-pressure
//	EOF ────► a half-close, which the relay finds again
//	error ──► gone()
//	stop() ─► a read deadline in the past ends the Read
//
// EOF does not say whether the client half-closed, which is a good way to ask
// for a banner, or closed. So only a reset ends the dial; the dial of a client
// that closed goes on for as long as it may.
type early struct {
	c    net.Conn
	gone func(error)
	done chan struct{}
	data []byte // belongs to the goroutine until done is closed
}

// readEarly starts to read, and must be followed by stop. It calls gone at most
// once.
func readEarly(c net.Conn, gone func(error)) *early {
	e := &early{c: c, gone: gone, done: make(chan struct{})}
	go e.read()
	return e
}

func (e *early) read() {
	defer close(e.done)
	buf := make([]byte, 4<<10)
	for len(e.data) < maxEarly {
		n, err := e.c.Read(buf[:min(len(buf), maxEarly-len(e.data))])
		e.data = append(e.data, buf[:n]...)
		switch {
		case err == nil:
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			e.gone(err)
			return
		}
	}
}

// stop ends the reading and returns what was read. After it the conn can be
// read as if nothing had been.
func (e *early) stop() []byte {
	_ = e.c.SetReadDeadline(time.Unix(1, 0)) // fails only on a conn whose Read does
	<-e.done
	_ = e.c.SetReadDeadline(time.Time{})
	return e.data
}
