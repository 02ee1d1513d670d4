package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// session is one connection between an agent and a server: a multiplexer, a
// control stream in it, and the state of the peer. Both sides use it; what
// differs is who opens streams. Its goroutines are the multiplexer's, the
// control reader (the goroutine that calls run) and the control writer.
type session struct {
	mux     muxer
	control stream
	log     *slog.Logger

	local, remote helloMessage
	version       int
	features      map[string]bool
	live          liveness
	sweeper       *time.Timer
	hoards        atomic.Bool // it holds too much, which boundHeld looks at again

	onDrain func(reason string) // DRAIN came
	onPeers func(servers []string)

	tasks    []func()      // for the control writer, in order; guarded by mu
	wake     chan struct{} // there are tasks
	writer   sync.WaitGroup
	started  time.Time
	finished chan struct{} // closed when run has returned

	mu       sync.Mutex
	draining string // reason of a DRAIN that was sent or received
}

// maxTasks bounds what waits for the control writer: each stream adds a few at
// most, PINGs one a second. A session where it fills up is stuck.
const maxTasks = 16 << 10

// sessionConfig is what newSession needs.
type sessionConfig struct {
	opener     bool // this side opens streams: the server
	hello      helloMessage
	live       Liveness
	maxStreams int
	log        *slog.Logger
}

// newSession starts a session on c, which it owns from now on, also when it
// fails. The caller goes on with helloServer or helloAgent, and then run.
func newSession(ctx context.Context, c net.Conn, config sessionConfig) (*session, error) {
	s := &session{
		log:      config.log,
		local:    config.hello,
		wake:     make(chan struct{}, 1),
		started:  time.Now(),
		finished: make(chan struct{}),
	}
	mux, err := newYamux(c, yamuxConfig{
		opener:     config.opener,
		maxStreams: config.maxStreams,
		later:      s.later,
		sendReset:  s.sendReset,
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	s.mux = mux
	s.live = liveness{
		config: config.live.withDefaults(),
		heard:  mux.LastReceived,
		ping:   func(m pingMessage) { s.send(typePing, m) },
		dead:   func() { _ = mux.Close(ErrAgentDead) },
		onChange: func(suspect bool) {
			if suspect {
				s.log.Warn("peer is suspected: it does not answer", "peer", s.remote.ID)
			} else {
				s.log.Info("peer answers again", "peer", s.remote.ID)
			}
		},
	}
	s.writer.Go(s.writeControl)
	stop := context.AfterFunc(ctx, func() { _ = mux.Close(context.Cause(ctx)) })
	defer stop()
	if config.opener {
		s.control, err = mux.Open(ctx)
	} else {
		s.control, err = mux.Accept()
	}
	if err != nil {
		s.close(err)
		return nil, err
	}
	return s, nil
}

// helloServer says and hears HELLO on the server's side.
func (s *session) helloServer(ctx context.Context) error {
	return s.hello(ctx, func() error {
		if err := s.write(typeHello, s.local); err != nil {
			return err
		}
		return s.readHello()
	})
}

// helloAgent says and hears HELLO on the agent's side. Known is asked before
// the agent registers whether it wants this server; its error ends the session.
func (s *session) helloAgent(ctx context.Context, known func(remote *helloMessage) error) error {
	return s.hello(ctx, func() error {
		if err := s.readHello(); err != nil {
			return err
		}
		if err := known(&s.remote); err != nil {
			_ = s.write(typeBye, byeMessage{Code: byeKnown, Reason: err.Error()})
			return err
		}
		return s.write(typeHello, s.local)
	})
}

func (s *session) hello(ctx context.Context, exchange func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = s.control.SetDeadline(past) })
	err := exchange()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		s.version, err = negotiate(&s.local, &s.remote)
		if err != nil {
			_ = s.write(typeBye, byeMessage{Code: byeVersion, Reason: err.Error()})
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		s.features = common(&s.local, &s.remote)
		s.live.start()
		s.sweeper = time.AfterFunc(sweepEvery, s.sweep)
	}
	return err
}

// sweep lets go of idle memory, again and again, and ends the session of a
// peer that holds on to streams which this side has left.
func (s *session) sweep() {
	unfinished := s.mux.Sweep(time.Now())
	switch {
	case unfinished && s.features[featureReset]:
		_ = s.mux.Close(errUnfinished)
	default:
		select {
		case <-s.mux.Done():
		default:
			s.sweeper.Reset(sweepEvery)
		}
	}
}

var errUnfinished = errors.New("tunnel: peer does not finish streams that were reset or closed")

func (s *session) readHello() error {
	t, body, err := readMessage(s.control)
	if err != nil {
		return fmt.Errorf("tunnel: no HELLO: %w", err)
	}
	switch t {
	case typeHello:
	case typeBye:
		return decodeBye(body)
	default:
		return fmt.Errorf("tunnel: control message %d instead of HELLO", t)
	}
	err = decodeMessage(t, body, &s.remote)
	if err == nil {
		err = s.remote.check()
	}
	if err != nil {
		_ = s.write(typeBye, byeMessage{Code: byeHello, Reason: err.Error()})
	}
	return err
}

// write sends a message from the calling goroutine. It is used before run.
func (s *session) write(t messageType, payload any) error {
	b, err := encodeMessage(t, payload)
	if err != nil {
		return err
	}
	_, err = s.control.Write(b)
	return err
}

// send queues a message; it does not block.
func (s *session) send(t messageType, payload any) {
	s.later(func() { _ = s.write(t, payload) })
}

func (s *session) sendReset(m resetMessage) {
	if s.features[featureReset] {
		_ = s.write(typeReset, m) // called by the control writer
	}
	if m.Code == resetAbort && !s.features[featureReset] {
		// An older peer cannot be told: its end of the data is all there is.
		s.mux.Reset(m.Stream, resetMessage{Stream: m.Stream, Code: resetAck})
	}
}

// later queues a task for the control writer, which may block on the carrier.
func (s *session) later(task func()) {
	s.mu.Lock()
	full := len(s.tasks) >= maxTasks
	if !full {
		s.tasks = append(s.tasks, task)
	}
	s.mu.Unlock()
	if full {
		go func() { _ = s.mux.Close(errStuck) }()
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

var errStuck = errors.New("tunnel: peer does not take control messages")

// writeControl is the control writer. A task of a session that has ended does
// not block.
func (s *session) writeControl() {
	for {
		select {
		case <-s.wake:
		case <-s.mux.Done():
			return
		}
		s.mu.Lock()
		tasks := s.tasks
		s.tasks = nil
		s.mu.Unlock()
		for _, task := range tasks {
			task()
		}
	}
}

// run reads the control stream until the session ends, and returns why. All
// the session's goroutines are gone then.
func (s *session) run() error {
	defer close(s.finished)
	err := s.readControl()
	var bye *byeError
	if cause := s.mux.Err(); cause != nil && !errors.As(err, &bye) {
		err = cause // it says more than the end of the control stream
	}
	s.close(err)
	return err
}

func (s *session) readControl() error {
	for {
		t, body, err := readMessage(s.control)
		if err != nil {
			return err
		}
		if err := s.handle(t, body); err != nil {
			return err
		}
	}
}

// handle carries out one control message of the peer.
func (s *session) handle(t messageType, body []byte) error {
	switch t {
	case typePing:
		var m pingMessage
		if err := decodeMessage(t, body, &m); err != nil {
			return err
		}
		s.send(typePong, m)
	case typePong:
		var m pingMessage
		if err := decodeMessage(t, body, &m); err != nil {
			return err
		}
		s.live.pong(m)
	case typeReset:
		var m resetMessage
		if err := decodeMessage(t, body, &m); err != nil {
			return err
		}
		m.Reason = clip(m.Reason)
		s.mux.Reset(m.Stream, m)
	case typeDrain:
		var m drainMessage
		if err := decodeMessage(t, body, &m); err != nil {
			return err
		}
		m.Reason = clip(m.Reason)
		if s.setDraining(m.Reason) && s.onDrain != nil {
			s.onDrain(m.Reason)
		}
	case typePeers:
		var m peersMessage
		if err := decodeMessage(t, body, &m); err != nil {
			return err
		}
		if s.onPeers != nil {
			s.onPeers(m.Servers)
		}
	case typeBye:
		return decodeBye(body)
	case typeHello:
		return errors.New("tunnel: a second HELLO")
	}
	return nil // unknown: a newer peer
}

// drain tells the peer, once, that this side wants no new streams here.
func (s *session) drain(reason string) {
	if s.setDraining(reason) && s.features[featureDrain] {
		s.send(typeDrain, drainMessage{Reason: reason})
	}
}

func (s *session) setDraining(reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != "" {
		return false
	}
	s.draining = reason
	return true
}

func (s *session) isDraining() (reason string, draining bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining, s.draining != ""
}

// streams is the number of streams beside the control stream.
func (s *session) streams() int { return max(s.mux.Streams()-1, 0) }

// close ends the session for the given reason and waits for its goroutines.
func (s *session) close(cause error) {
	s.live.stop()
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	_ = s.mux.Close(cause)
	s.writer.Wait()
}

// bye tells the peer why the session ends, gives it a moment to read that, and
// ends it. Run returns soon after.
func (s *session) bye(m byeMessage) {
	s.later(func() {
		_ = s.write(typeBye, m)
		_ = s.control.CloseWrite()
	})
	time.AfterFunc(byeGrace, func() { _ = s.mux.Close(&byeError{m}) })
}

// byeGrace is how long a peer has to take a BYE.
const byeGrace = 250 * time.Millisecond

// endDrained ends a draining session when its streams have ended, at the
// latest after the given time; negative means whenever they end. It returns at
// once and starts no goroutine that stays.
func (s *session) endDrained(limit time.Duration) {
	start := time.Now()
	var look func()
	look = func() {
		select {
		case <-s.mux.Done():
			return
		default:
		}
		switch {
		case s.streams() == 0:
			s.bye(byeMessage{Code: byeDone, Reason: "the session has drained"})
		case limit >= 0 && time.Since(start) >= limit:
			_ = s.mux.Close(errors.New("tunnel: the drain time is over"))
		default:
			time.AfterFunc(100*time.Millisecond, look)
		}
	}
	look()
}
