package pathcontrol

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// echoConn is a socket for echo requests to one address.
type echoConn interface {
	write(message []byte) error
	// read returns a message without IP header.
	read(b []byte) (int, error)
	// failures returns the ICMP errors that have come back. They show as
	// errors of write and read.
	failures() []failure
	// id is the identifier of requests, -1 if answers may have any.
	id() int
	setReadDeadline(t time.Time) error
	close() error
}

// failure is an ICMP error about a request.
type failure struct {
	quoted []byte // of the request, at least the ICMP header
	err    *UnreachableError
}

// echoer sends requests and gives the answers to those who wait for them. It has
// no goroutine: one of those who wait reads for all, until it has its answer.
type echoer struct {
	conn echoConn
	v6   bool
	size int

	reading chan struct{} // holds a token while somebody reads

	mu      sync.Mutex
	seq     uint16
	waiting map[uint16]*request
}

// request is one echo request that waits for its answer.
type request struct {
	payload []byte
	sent    time.Time
	rtt     time.Duration
	err     error
	done    chan struct{} // closed when rtt and err are set
}

// errStale marks an error after which a new socket is worth a try.
var errStale = errors.New("socket")

type closedError struct{}

func (closedError) Error() string        { return "pathcontrol: ICMP prober closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }

func newEchoer(c echoConn, v6 bool, size int) *echoer {
	e := &echoer{conn: c, v6: v6, size: size, reading: make(chan struct{}, 1), waiting: make(map[uint16]*request)}
	var b [2]byte
	rand.Read(b[:])
	e.seq = binary.BigEndian.Uint16(b[:])
	return e
}

// probe sends one request and waits for its answer.
func (e *echoer) probe(ctx context.Context) (time.Duration, error) {
	seq, r := e.begin()
	defer e.finish(seq)
	if err := e.send(seq, r); err != nil {
		return 0, err
	}
	for {
		select {
		case <-r.done:
			return r.rtt, r.err
		case <-ctx.Done():
			return 0, ctx.Err()
		case e.reading <- struct{}{}:
			err := e.readUntil(ctx, r)
			<-e.reading
			if err != nil {
				return 0, err
			}
		}
	}
}

// begin makes a request with a number that no other has.
func (e *echoer) begin() (uint16, *request) {
	r := &request{payload: make([]byte, e.size), done: make(chan struct{})}
	rand.Read(r.payload)
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.seq++; e.waiting[e.seq] != nil; e.seq++ {
	}
	e.waiting[e.seq] = r
	return e.seq, r
}

func (e *echoer) finish(seq uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.waiting, seq)
}

func (e *echoer) send(seq uint16, r *request) error {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: max(e.conn.id(), 0), Seq: int(seq), Data: r.payload}}
	if e.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	b, err := m.Marshal(nil) // the kernel adds the checksum of ICMPv6
	if err != nil {
		return err
	}
	e.mu.Lock()
	r.sent = time.Now()
	e.mu.Unlock()
	err = e.conn.write(b)
	if err != nil && e.fail() {
		err = e.conn.write(b) // that was about an earlier request
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed):
		return ErrICMPClosed
	}
	return &sendError{err}
}

// sendError is one of this host.
type sendError struct{ err error }

func (e *sendError) Error() string { return "cannot be sent: " + e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// Is leads errors.Is to errStale, but where it is the neighbour that is missing: a
// new socket finds it no sooner, and those who wait at this one would lose it.
func (e *sendError) Is(target error) bool {
	return target == errStale && !errors.Is(e.err, syscall.EHOSTUNREACH)
}

// readUntil reads for all until r is done.
func (e *echoer) readUntil(ctx context.Context, r *request) error {
	deadline, _ := ctx.Deadline()
	if err := e.conn.setReadDeadline(deadline); err != nil {
		return ErrICMPClosed
	}
	// It may strike when another one reads: that one looks at its own context.
	defer context.AfterFunc(ctx, func() { e.conn.setReadDeadline(time.Unix(1, 0)) })()
	b := make([]byte, e.size+512)
	for {
		select {
		case <-r.done:
			return nil
		default:
		}
		n, err := e.conn.read(b)
		switch {
		case err == nil:
			e.take(b[:n])
		case errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed):
			return ErrICMPClosed
		case ctx.Err() != nil:
			return ctx.Err()
		case isDeadline(err):
			e.conn.setReadDeadline(deadline)
			if !deadline.IsZero() && !time.Now().Before(deadline) {
				return context.DeadlineExceeded
			}
		case !e.fail() && !isTransient(err):
			return fmt.Errorf("cannot be read: %w", err)
		}
	}
}

// take gives an answer to the one that it is for, if any.
func (e *echoer) take(b []byte) {
	proto := 1
	if e.v6 {
		proto = 58
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || m.Code != 0 || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
		return
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || e.conn.id() >= 0 && echo.ID != e.conn.id() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.waiting[uint16(echo.Seq)]; r != nil && bytes.Equal(r.payload, echo.Data) {
		r.rtt = time.Since(r.sent)
		e.settle(uint16(echo.Seq), r)
	}
}

// settle ends the waiting for a request; e.mu is held.
func (e *echoer) settle(seq uint16, r *request) {
	delete(e.waiting, seq)
	close(r.done)
}

// fail ends the requests that ICMP errors are about, and tells whether there
// were any errors.
func (e *echoer) fail() bool {
	failures := e.conn.failures()
	for _, f := range failures {
		seq, ok := e.quoted(f.quoted)
		if !ok {
			continue
		}
		e.mu.Lock()
		if r := e.waiting[seq]; r != nil && bytes.HasPrefix(r.payload, f.quoted[8:min(len(f.quoted), 8+len(r.payload))]) {
			r.err = f.err
			e.settle(seq, r)
		}
		e.mu.Unlock()
	}
	return len(failures) > 0
}

// quoted returns the number of the request of ours that an error quotes.
func (e *echoer) quoted(b []byte) (seq uint16, ok bool) {
	request := byte(ipv4.ICMPTypeEcho)
	if e.v6 {
		request = byte(ipv6.ICMPTypeEchoRequest)
	}
	if len(b) < 8 || b[0] != request || b[1] != 0 {
		return 0, false
	}
	if id := binary.BigEndian.Uint16(b[4:]); e.conn.id() >= 0 && int(id) != e.conn.id() {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), true
}
