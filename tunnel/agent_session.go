package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// agentSession is a session on the agent's side: it accepts streams and dials
// their targets.
type agentSession struct {
	*session
	agent    *Agent
	log      *slog.Logger
	targets  admit.Set // open streams, by what Allow admitted them
	accepted chan struct{}
}

// newAgentSession makes a session of a connection and says HELLO. It owns c.
// Known is asked whether the agent wants this server.
func (a *Agent) newSession(ctx context.Context, c net.Conn, known func(*helloMessage) error) (*agentSession, error) {
	s := &agentSession{agent: a, accepted: make(chan struct{})}
	var err error
	s.session, err = newSession(ctx, c, sessionConfig{
		hello: a.hello(), live: a.Liveness,
		maxStreams: a.maxStreams(), log: a.logger(),
	})
	if err != nil {
		return nil, err
	}
	s.mux.OnGrown(func() { s.boundHeld(agentReceiveMemory) })
	if err := s.helloAgent(ctx, known); err != nil {
		s.close(err)
		return nil, err
	}
	s.log = a.logger().With("server", s.remote.ID)
	s.session.log = s.log
	var once sync.Once
	s.onPeers = func([]string) { once.Do(func() { close(s.accepted) }) }
	if !s.features[featurePeers] {
		s.onPeers(nil) // an older server: nothing will tell
	}
	return s, nil
}

// agentReceiveMemory is how many bytes may wait unread in a session; see
// Limits.ReceiveMemory.
const agentReceiveMemory = 64 << 20

func (a *Agent) maxStreams() int { return unbounded(orDefault(a.MaxStreams, 2048)) }

// serve accepts streams until the session ends, and returns why it did. All
// its streams are gone then.
func (s *agentSession) serve(ctx context.Context) error {
	leave := s.agent.enter(s)
	defer leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = s.mux.Close(context.Cause(ctx)) })
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { s.acceptStreams(ctx, &work) })
	err := s.run()
	cancel(err)
	return err
}

func (s *agentSession) acceptStreams(ctx context.Context, work *sync.WaitGroup) {
	for {
		st, err := s.mux.Accept()
		if err != nil {
			return
		}
		work.Go(func() { s.serveStream(ctx, st) })
	}
}

// serveStream reads the CONNECT of a stream, dials and relays.
func (s *agentSession) serveStream(ctx context.Context, st stream) {
	a := s.agent
	r, err := connect.ReadRequest(st, &a.Head)
	if err == nil && r.Method != http.MethodConnect {
		err = &connect.Error{Reason: connect.ErrRequest, Status: http.StatusMethodNotAllowed, Detail: "a stream begins with CONNECT"}
	}
	if err == nil && s.streams() > a.maxStreams() {
		err = &connect.Error{Reason: connect.ErrLimit, RetryAfter: retryAfter, Detail: "the session carries as many streams as the agent takes"}
	}
	if err != nil {
		s.log.Warn("stream refused", "error", err)
		_ = connect.WriteError(st, idOrHost(a.ID), err)
		return
	}
	log := s.log
	if trace := r.Header.Get(headerTraceparent); trace != "" {
		log = log.With("traceparent", trace)
	}
	d := &targetDial{agent: a, session: s, stream: st, log: log, network: r.Header.Get(headerNetwork)}
	defer func() {
		if d.leave != nil {
			d.leave()
		}
	}()
	h := &connect.Handler{
		Dial:        d.dial,
		Name:        idOrHost(a.ID),
		DialTimeout: dialTimeout(orDefault(a.DialTimeout, 20*time.Second), r.Header.Get(headerTimeout)),
		IdleTimeout: a.IdleTimeout,
		Logger:      log,
	}
	_ = h.ServeRequest(ctx, st, r) // answered and logged by the Handler
}

// dialTimeout is the shorter of the agent's own bound and the one that the
// server asks for; negative is none.
func dialTimeout(own time.Duration, asked string) time.Duration {
	ms, err := strconv.ParseInt(asked, 10, 64)
	if err != nil || ms <= 0 || ms > int64(24*time.Hour/time.Millisecond) {
		return own
	}
	if theirs := time.Duration(ms) * time.Millisecond; own < 0 || theirs < own {
		return theirs
	}
	return own
}

// Serve accepts connections of servers from l, the other way round than Run:
// for an agent that the seed can reach and that cannot or shall not dial out.
// The session is the same. It owns l, which should be a TLS listener that asks
// for client certificates, and returns ErrAgentClosed after Shutdown and
// Close, the context's cause when ctx ends, or the error of l.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if err := a.check(); err != nil {
		return err
	}
	ctx, done, err := a.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	drained := make(chan struct{})
	defer close(drained)
	work.Go(func() {
		select {
		case <-a.drainStarted():
			l.Close()
		case <-drained:
		}
	})
	d := &agentDoor{
		agent: a, strangers: guard.Strangers{Limit: maxServerConns},
		refused: new(guard.LogLimit).Logger(a.logger()),
	}
	err = guard.Accept(ctx, l, a.logger(), func(c net.Conn) {
		known := d.strangers.Enter(c, nil).Leave
		work.Go(func() { d.handle(ctx, c, known) })
	})
	switch {
	case a.isDraining():
		return ErrAgentClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// maxServerConns is how many unauthenticated connections Serve holds, and
// maxServerSessions how many sessions.
const (
	maxServerConns    = 64
	maxServerSessions = 64
)

// agentDoor is the door of an agent that listens.
type agentDoor struct {
	agent     *Agent
	strangers guard.Strangers
	refused   *slog.Logger // for what strangers cause
	admitted  admit.Set

	mu   sync.Mutex
	open map[string]*agentSession // by server id
}

func (d *agentDoor) handle(ctx context.Context, c net.Conn, known func()) {
	a := d.agent
	defer known()
	log := a.logger().With("remote", c.RemoteAddr().String())
	relay.KeepAlive(c)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout, stop := withTimeout(ctx, orDefault(a.ConnectTimeout, 20*time.Second), errSlow)
	defer stop()
	s, p, err := d.meet(timeout, c)
	if err != nil {
		d.refused.Warn("server refused", "remote", c.RemoteAddr().String(), "error", err)
		var e *connect.Error
		if errors.As(err, &e) {
			_ = connect.WriteError(c, idOrHost(a.ID), err)
		}
		_ = c.Close()
		return
	}
	known()
	stop()
	if err := d.register(s); err != nil {
		s.close(err)
		log.Warn("server refused", "server", s.remote.ID, "error", err)
		return
	}
	defer d.admitted.Enter(&admit.Admission{
		Check: func() error { return d.auth(p) },
		Log:   log.With("server", s.remote.ID),
		Warn:  func() { s.drain(drainCredential) },
		End: func() {
			s.bye(byeMessage{Code: byeDenied, Reason: "the server's credential no longer holds"})
		},
	})()
	log.Info("server connected", "server", s.remote.ID)
	err = s.serve(ctx)
	d.forget(s)
	log.Info("server disconnected", "server", s.remote.ID, "error", err)
}

var errSlow = errors.New("tunnel: no session in time")

// meet authenticates a server and makes a session of its connection.
func (d *agentDoor) meet(ctx context.Context, c net.Conn) (*agentSession, *Peer, error) {
	p, err := d.request(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if err := sessionProtocol().Switch(c); err != nil {
		return nil, nil, err
	}
	s, err := d.agent.newSession(ctx, withEarly(c, p.Request.Early), func(*helloMessage) error { return nil })
	return s, p, err
}

// request reads a server's request for a session and judges it.
func (d *agentDoor) request(ctx context.Context, c net.Conn) (*Peer, error) {
	a := d.agent
	p := &Peer{RemoteAddr: c.RemoteAddr(), LocalAddr: c.LocalAddr()}
	var err error
	timeout := orDefault(a.Head.Timeout, 10*time.Second)
	if p.TLS, err = handshake(ctx, c, timeout); err != nil {
		return nil, err
	}
	if p.Request, err = connect.ReadRequest(c, &a.Head); err != nil {
		return nil, err
	}
	if err := d.auth(p); err != nil {
		return nil, err
	}
	if err := sessionProtocol().Check(p.Request); err != nil {
		return nil, err
	}
	if claim := p.Request.Header.Get(headerCluster); a.Cluster != "" && claim != a.Cluster {
		return nil, forbidden("the server dials an agent of cluster %.60q, and this one is of %q", claim, a.Cluster)
	}
	if a.isDraining() {
		return nil, &connect.Error{Reason: connect.ErrUnavailable, RetryAfter: retryAfter, Detail: "the agent is shutting down"}
	}
	return p, nil
}

func (d *agentDoor) auth(p *Peer) error {
	if d.agent.AuthServer != nil {
		return d.agent.AuthServer(p)
	}
	return verifiedServer(p)
}

// verifiedServer asks for a verified client certificate that has not expired.
func verifiedServer(p *Peer) error {
	if p.TLS == nil || len(p.TLS.VerifiedChains) == 0 {
		return &connect.Error{Reason: connect.ErrDenied, Status: http.StatusUnauthorized, Err: errNoCert}
	}
	return unexpired(p.TLS)
}

// register makes a session the one of its server; an older one drains.
func (d *agentDoor) register(s *agentSession) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil {
		d.open = make(map[string]*agentSession)
	}
	old := d.open[s.remote.ID]
	if old == nil && len(d.open) >= maxServerSessions {
		return fmt.Errorf("tunnel: %d servers are connected already", len(d.open))
	}
	if old != nil {
		reason := drainRenewed
		if old.remote.Nonce != s.remote.Nonce {
			reason = drainReplaced // two servers with one id
		}
		old.drain(reason)
		old.endDrained(orDefault(d.agent.DrainTimeout, 25*time.Second))
	}
	d.open[s.remote.ID] = s
	return nil
}

func (d *agentDoor) forget(s *agentSession) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[s.remote.ID] == s {
		delete(d.open, s.remote.ID)
	}
}
