package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Headers of the CONNECT request on a data stream.
const (
	headerTimeout     = "Rhizome-Timeout" // milliseconds that the dial may take
	headerNetwork     = "Rhizome-Network" // tcp4 or tcp6
	headerTraceparent = "Traceparent"     // W3C Trace Context, passed through
)

var (
	errNoAgent     = errors.New("no agent of the cluster is connected")
	errDraining    = errors.New("the server is shutting down")
	errMoved       = errors.New("the agent does not answer, another one is tried")
	errStreams     = errors.New("all agents of the cluster carry as many streams as they may")
	errUnreadBytes = errors.New("too much of what the cluster's agents sent is unread")
)

// retryAfter is what a client is told where no time can be known.
const retryAfter = 2 * time.Second

// dialRequest is one dial on its way through the agents of a cluster.
type dialRequest struct {
	server      *Server
	cluster     *cluster
	network     string
	target      string
	traceparent string
	release     func() // gives back what the dial holds: a conn's Close, or its failure
}

func (d *dialRequest) fail(agent string, e *connect.Error) error {
	own := *e // e may be shared
	if own.Target == "" {
		own.Target = d.target
	}
	return &DialError{Cluster: d.cluster.name, Agent: agent, Target: d.target, Err: &own}
}

func (d *dialRequest) refuse(reason connect.Reason, retry time.Duration, err error) error {
	return d.fail("", &connect.Error{Reason: reason, RetryAfter: retry, Err: err})
}

// Dialer returns a dial function for the targets of a cluster, for an
// http.Transport or whatever else takes one. The network must be "tcp", "tcp4"
// or "tcp6"; the address is a host:port that an agent of the cluster resolves
// and dials. The context governs the dial, not the conn's life after; without
// a deadline it gets [Server].DialTimeout.
//
// Who calls it is trusted: it asks no authentication. Errors are a *DialError.
// The conn has CloseWrite and Reset.
func (s *Server) Dialer(cluster string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.dial(ctx, cluster, network, address, "")
	}
}

func (s *Server) dial(ctx context.Context, name, network, address, traceparent string) (net.Conn, error) {
	c, done := s.registry.use(name)
	d := &dialRequest{server: s, cluster: c, network: network, target: address, traceparent: traceparent, release: done}
	nc, err := d.start(ctx)
	c.counters.dials.Add(1)
	if err != nil {
		c.counters.failed.Add(1)
		d.release()
		return nil, err
	}
	return nc, nil
}

// start checks what can be known before an agent is asked, reserves a place,
// and dials.
func (d *dialRequest) start(ctx context.Context) (net.Conn, error) {
	s, c := d.server, d.cluster
	switch d.network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, d.refuse(connect.ErrRequest, 0, net.UnknownNetworkError(d.network))
	}
	if _, _, err := connect.ParseTarget(d.target); err != nil {
		return nil, d.fail("", connect.Classify(err))
	}
	if s.isDraining() {
		return nil, d.refuse(connect.ErrUnavailable, retryAfter, errDraining)
	}
	limits := s.limits()
	if !c.dials.Take(limits.DialsPerSecond) {
		return nil, d.refuse(connect.ErrLimit, time.Second, errors.New("the cluster dials more often than it may"))
	}
	if c.streams.Add(1) > int64(limits.Streams) {
		c.streams.Add(-1)
		return nil, d.refuse(connect.ErrLimit, retryAfter, fmt.Errorf("the cluster has %d streams open, which is its limit", limits.Streams))
	}
	done := d.release
	d.release = func() { c.streams.Add(-1); done() }
	switch l := c.load(); {
	case l.held > limits.ClusterReceiveMemory:
		return nil, d.refuse(connect.ErrLimit, retryAfter, errUnreadBytes)
	case l.streams >= limits.Streams: // some are left and not finished yet
		return nil, d.refuse(connect.ErrLimit, retryAfter, errStreams)
	}
	if _, ok := ctx.Deadline(); !ok {
		if timeout := orDefault(s.DialTimeout, 20*time.Second); timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, timeout, connect.ErrTimeout)
			defer cancel()
		}
	}
	return d.run(ctx)
}

// run tries the agents until one answers, waiting for one to come back if
// that is to be expected.
func (d *dialRequest) run(ctx context.Context) (net.Conn, error) {
	s := d.server
	tried := make(map[*remoteAgent]bool)
	patience := time.NewTimer(max(orDefault(s.AgentWait, 5*time.Second), 0))
	defer patience.Stop()
	var last error
	for {
		agents, changed, reconnecting := d.cluster.choose(tried)
		if len(agents) > 0 {
			a, err := d.pick(agents)
			if err != nil {
				return nil, err
			}
			conn, again, err := d.attempt(ctx, a, len(agents) > 1)
			if err == nil {
				return conn, nil
			}
			if !again || ctx.Err() != nil {
				return nil, err
			}
			tried[a] = true
			last = err
			continue
		}
		if last == nil {
			last = d.refuse(connect.ErrUnavailable, retryAfter, errNoAgent)
		}
		if !worthWaiting(tried) || !reconnecting && time.Since(s.firstServe()) > startupGrace {
			return nil, last
		}
		select {
		case <-changed:
			// A suspect that was tried may have answered again.
			for a := range tried {
				if !a.live.isSuspect() && !a.isOver() {
					delete(tried, a)
				}
			}
		case <-patience.C:
			return nil, last
		case <-s.drainStarted():
			return nil, d.refuse(connect.ErrUnavailable, retryAfter, errDraining)
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				return nil, last // it says more than that the time is over
			}
			return nil, d.ctxError(ctx, "", nil)
		}
	}
}

// worthWaiting reports whether one of the agents that were tried was lost or
// is suspect, or none was there. If all are well and have refused, they would
// refuse again.
func worthWaiting(tried map[*remoteAgent]bool) bool {
	for a := range tried {
		if a.isOver() || a.live.isSuspect() {
			return true
		}
	}
	return len(tried) == 0
}

// startupGrace is how long after a server's start every cluster counts as
// reconnecting: a restarted server remembers nobody.
const startupGrace = 15 * time.Second

// ctxError is the error of a dial whose context ended.
func (d *dialRequest) ctxError(ctx context.Context, agent string, err error) error {
	own := *connect.Classify(context.Cause(ctx))
	e := &own
	if ctx.Err() == context.DeadlineExceeded {
		e = &connect.Error{Reason: connect.ErrTimeout, Err: context.DeadlineExceeded}
	}
	if err != nil && e.Detail == "" {
		e.Detail = "no answer in time, last: " + err.Error()
	}
	return d.fail(agent, e)
}

// pick asks the Picker among the agents that have room.
func (d *dialRequest) pick(agents []*remoteAgent) (*remoteAgent, error) {
	limits := d.server.limits()
	room := agents[:0:0]
	full, unread := false, false
	for _, a := range agents {
		switch {
		case a.streams() >= limits.StreamsPerSession:
			full = true
		case a.mux.Held() > limits.ReceiveMemory:
			unread = true
		default:
			room = append(room, a)
		}
	}
	switch {
	case len(room) == 1:
		return room[0], nil
	case len(room) == 0 && unread && !full:
		return nil, d.refuse(connect.ErrLimit, retryAfter, errUnreadBytes)
	case len(room) == 0:
		return nil, d.refuse(connect.ErrLimit, retryAfter, errStreams)
	}
	candidates := make([]Candidate, len(room))
	for i, a := range room {
		rtt, _, _ := a.live.roundTrip()
		candidates[i] = Candidate{
			ID: a.remote.ID, Labels: a.remote.Labels, Serves: a.remote.Serves, served: a.served,
			Streams: a.streams(), RTT: rtt, Since: a.started,
		}
	}
	pick := d.server.Picker
	if pick == nil {
		pick = ByDestination(LeastStreams)
	}
	i := pick(d.target, candidates)
	if i < 0 || i >= len(room) {
		return nil, d.refuse(connect.ErrInternal, 0, fmt.Errorf("the picker chose %d of %d agents", i, len(room)))
	}
	return room[i], nil
}

// unanswered is how long a dial waits before it has its agent PINGed.
const unanswered = time.Second

// lastStreamID is where a session is replaced, long before yamux runs out of
// its 32 bits.
const lastStreamID = 1 << 31

// attempt dials through one agent. Again says whether another agent may be
// tried, which is so while no byte of the client has been sent. With movable
// set, the attempt is given up when the agent becomes suspect.
func (d *dialRequest) attempt(parent context.Context, a *remoteAgent, movable bool) (_ net.Conn, again bool, _ error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	a.live.nudge()
	probe := time.AfterFunc(unanswered, a.live.nudge)
	defer probe.Stop()
	if movable {
		defer a.live.pending(func() { cancel(errMoved) })()
	}
	a.dialled.Add(1)
	st, err := a.mux.Open(ctx)
	if err != nil {
		return nil, d.again(parent, err), d.attemptError(parent, ctx, a, err)
	}
	if st.ID() > lastStreamID {
		a.cluster.retire(a)
		a.drain(drainExhausted)
		d.server.endDrained(a)
	}
	res, err := d.askWithin(ctx, st)
	if err != nil {
		if parent.Err() == context.DeadlineExceeded {
			a.mute.Store(time.Now().UnixNano())
		}
		_ = st.ResetWith("the dial was given up")
		return nil, d.again(parent, err), d.attemptError(parent, ctx, a, err)
	}
	if res.Status/100 != 2 {
		_ = st.Close()
		e := res.Refusal("agent "+a.remote.ID, d.target)
		// 503 and 429 are the agent's own word that it takes nothing now.
		again = e.Reason == connect.ErrUnavailable || e.Reason == connect.ErrLimit
		return nil, again, d.fail(a.remote.ID, e)
	}
	return newConn(st, res.Early, d.target, d.cluster, d.release), false, nil
}

// askWithin is ask that returns when ctx ends, even while the carrier is
// stalled: what is left behind then ends with the reset of the stream, at the
// latest with the session.
func (d *dialRequest) askWithin(ctx context.Context, st stream) (*connect.Response, error) {
	type answer struct {
		res *connect.Response
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		res, err := d.ask(ctx, st)
		answered <- answer{res, err}
	}()
	select {
	case a := <-answered:
		return a.res, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ask sends the CONNECT on the stream and reads the answer.
func (d *dialRequest) ask(ctx context.Context, st stream) (*connect.Response, error) {
	r := &connect.Request{Method: http.MethodConnect, Target: d.target, Header: make(http.Header)}
	if deadline, ok := ctx.Deadline(); ok {
		// The agent's own answer should come before our patience ends.
		left := time.Until(deadline)
		left -= min(left/10, 250*time.Millisecond)
		r.Header.Set(headerTimeout, strconv.FormatInt(max(left.Milliseconds(), 1), 10))
	}
	if d.network != "tcp" {
		r.Header.Set(headerNetwork, d.network)
	}
	if d.traceparent != "" {
		r.Header.Set(headerTraceparent, d.traceparent)
	}
	if err := r.Write(st); err != nil {
		return nil, err
	}
	return connect.ReadResponse(st, &connect.HeadLimits{Timeout: -1})
}

// again reports whether another agent may be asked after an error of the
// tunnel itself.
func (d *dialRequest) again(parent context.Context, err error) bool {
	return parent.Err() == nil && err != nil
}

func (d *dialRequest) attemptError(parent, ctx context.Context, a *remoteAgent, err error) error {
	if parent.Err() != nil {
		return d.ctxError(parent, a.remote.ID, nil)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return d.fail(a.remote.ID, &connect.Error{Reason: connect.ErrUnavailable, RetryAfter: retryAfter, Err: err})
}
