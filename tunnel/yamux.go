package tunnel

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// yamuxMux is a yamux session without its traps:
//
//   - A stream that is not accepted would end the session after 75 s, and a
//     half-closed one is cut after 5 min: both timers are off. Our own
//     liveness (see liveness.go) finds dead peers, our own RESET frees
//     writers whose reader went away.
//   - Keep-alive and write time-outs are off for the same reason: one
//     authority decides when a session is dead.
//   - OpenStream blocks without a context when the carrier is stalled: it runs
//     in a goroutine of its own, one at a time, which also tells the stream's
//     id before its first frame can come.
type yamuxMux struct {
	y     *yamux.Session
	watch *frameWatch
	// later runs a function that may block on the carrier, in order, on a
	// goroutine that the session owns.
	later func(func())
	// sendReset tells the peer, through the control stream.
	sendReset func(resetMessage)

	opens chan struct{} // holds one for each open that the peer has not accepted
	gate  chan struct{} // held while a stream is opened
	next  uint32        // id of the next stream to be opened; guarded by gate

	mu    sync.Mutex
	cause error
}

// yamuxBacklog is how many streams may wait to be accepted. The agent accepts
// at once, so that only a frozen one has any.
const yamuxBacklog = 1024

// yamuxConfig is what newYamux needs.
type yamuxConfig struct {
	opener     bool               // this side opens streams, the other accepts
	maxStreams int                // at a time, plus the backlog
	later      func(func())       // see yamuxMux
	sendReset  func(resetMessage) // see yamuxMux
}

// newYamux makes a session of c.
func newYamux(c net.Conn, o yamuxConfig) (*yamuxMux, error) {
	m := &yamuxMux{
		watch:     newFrameWatch(c, !o.opener, o.maxStreams+yamuxBacklog),
		later:     o.later,
		sendReset: o.sendReset,
		opens:     make(chan struct{}, opensInFlight),
		gate:      make(chan struct{}, 1),
		next:      1,
	}
	m.watch.onAck = func() {
		if o.opener {
			<-m.opens
		}
	}
	config := &yamux.Config{
		AcceptBacklog: yamuxBacklog,
		// Not zero, since yamux checks it, but unused.
		KeepAliveInterval:      time.Hour,
		ConnectionWriteTimeout: 100 * 365 * 24 * time.Hour,
		MaxStreamWindowSize:    streamWindow,
		Logger:                 log.New(io.Discard, "", 0),
	}
	role := yamux.Server
	if o.opener {
		role = yamux.Client
	}
	y, err := role(m.watch, config)
	if err != nil {
		return nil, err
	}
	m.y = y
	return m, nil
}

// opensInFlight is how many opened streams may wait for the peer to accept
// them; the next open waits, for no longer than its context allows.
const opensInFlight = 128

// streamWindow is how many bytes of a stream may wait unread; yamux's least.
const streamWindow = 256 << 10

func (m *yamuxMux) Open(ctx context.Context) (stream, error) {
	for _, place := range []chan struct{}{m.opens, m.gate} {
		select {
		case place <- struct{}{}:
			continue
		case <-ctx.Done():
		case <-m.y.CloseChan():
		}
		if place == m.gate {
			<-m.opens
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, m.lost()
	}
	result := make(chan opened, 1)
	var settled atomic.Bool // by the stream that came, or by the end of ctx
	go func() {
		defer func() { <-m.gate }()
		s, err := m.openNext()
		if settled.CompareAndSwap(false, true) {
			result <- opened{s, err}
		} else if err == nil {
			_ = s.Reset()
		}
	}()
	select {
	case r := <-result:
		return r.stream()
	case <-ctx.Done():
		if settled.CompareAndSwap(false, true) {
			return nil, context.Cause(ctx)
		}
		r := <-result
		return r.stream()
	}
}

// opened is what came of opening a stream.
type opened struct {
	s   *yamuxStream
	err error
}

func (o opened) stream() (stream, error) {
	if o.err != nil {
		return nil, o.err
	}
	return o.s, nil
}

// openNext opens a stream; its caller holds the gate.
func (m *yamuxMux) openNext() (*yamuxStream, error) {
	if err := m.watch.expect(m.next); err != nil {
		<-m.opens
		return nil, err
	}
	y, err := m.y.OpenStream()
	if err != nil {
		m.watch.forget(m.next)
		return nil, m.openError(err)
	}
	m.next += 2
	return m.attach(y), nil
}

func (m *yamuxMux) openError(err error) error {
	if errors.Is(err, yamux.ErrStreamsExhausted) || errors.Is(err, yamux.ErrRemoteGoAway) {
		return err
	}
	return m.lost()
}

func (m *yamuxMux) Accept() (stream, error) {
	y, err := m.y.AcceptStream()
	if err != nil {
		return nil, m.lost()
	}
	return m.attach(y), nil
}

func (m *yamuxMux) attach(y *yamux.Stream) *yamuxStream {
	s := &yamuxStream{m: m, y: y, ended: make(chan struct{}), stop: make(chan struct{})}
	in, reset := m.watch.attach(y.StreamID(), s)
	s.in = in
	if reset != nil {
		s.peerReset(*reset)
	}
	return s
}

func (m *yamuxMux) Close(cause error) error {
	m.mu.Lock()
	if m.cause == nil {
		m.cause = cause
	}
	m.mu.Unlock()
	// The carrier first, so that yamux's receiver finds the end by itself:
	// between its Close and that, every reader of a stream would spin.
	_ = m.watch.Close()
	<-m.y.CloseChan()
	return m.y.Close()
}

func (m *yamuxMux) Done() <-chan struct{} { return m.y.CloseChan() }

// Err is why the session ended: the cause given to Close, a violation of the
// protocol, or what the carrier said.
func (m *yamuxMux) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.watch.violation.Load(); v != nil {
		return *v
	}
	if m.cause != nil {
		return m.cause
	}
	select {
	case <-m.y.CloseChan():
		// AcceptStream is the one method that tells yamux's own reason.
		if _, err := m.y.AcceptStream(); err != nil && !errors.Is(err, yamux.ErrSessionShutdown) && err != io.EOF {
			return err
		}
		return io.EOF
	default:
		return nil
	}
}

// lost is the error of streams whose session has ended.
func (m *yamuxMux) lost() error {
	reason := "the connection ended"
	if err := m.Err(); err != nil && err != io.EOF {
		reason = err.Error()
	}
	return &streamReset{by: "session", reason: reason, cause: ErrSessionLost}
}

func (m *yamuxMux) Streams() int      { return m.y.NumStreams() }
func (m *yamuxMux) Unread() int64     { return m.watch.unread.Load() }
func (m *yamuxMux) Carrier() net.Conn { return m.watch.carrier }

func (m *yamuxMux) LastReceived() time.Time { return time.Unix(0, m.watch.received.Load()) }

func (m *yamuxMux) OnGrown(f func()) { m.watch.grown.Store(&f) }

func (m *yamuxMux) Held() int64 { return m.watch.held.Load() }

func (m *yamuxMux) Sweep(now time.Time) bool { return m.watch.sweep(now) }

func (m *yamuxMux) Trim(limit int64, reason string) {
	if m.Held() <= limit {
		return
	}
	for _, s := range m.watch.excess(limit) {
		_ = s.ResetWith(reason)
	}
}

// Reset carries out a RESET of the peer.
func (m *yamuxMux) Reset(id uint32, msg resetMessage) {
	s := m.watch.find(id, &msg)
	switch {
	case msg.Code == resetAck:
		if s != nil {
			s.peerAck()
		}
		return
	case s != nil:
		s.peerReset(msg)
	}
	if msg.Code == resetAbort {
		m.later(func() { m.sendReset(resetMessage{Stream: id, Code: resetAck}) })
	}
}
