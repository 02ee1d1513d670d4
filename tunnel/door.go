package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/upgrade"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// door serves one listener: it accepts, has each connection show who it is
// within a bounded time, and hands it on as an agent or a client.
type door struct {
	server    *Server
	listener  net.Listener
	rules     Door
	closing   sync.Once
	strangers guard.Strangers
	refused   *slog.Logger // for what strangers cause
}

func newDoor(s *Server, l net.Listener, rules Door) *door {
	if rules.Agents == nil {
		rules.Agents = s.AgentAuth
	}
	if rules.Agents == nil {
		rules.Agents = AgentAuth(nil, nil)
	}
	if rules.Clients == nil {
		rules.Clients = s.ClientAuth
	}
	if rules.Clients == nil {
		rules.Clients = ClientAuth(nil, nil)
	}
	return &door{
		server: s, listener: l, rules: rules,
		strangers: guard.Strangers{Limit: s.limits().Handshakes},
		refused:   new(guard.LogLimit).Logger(s.logger()),
	}
}

func (d *door) close() { d.closing.Do(func() { d.listener.Close() }) }

// serve accepts until the listener fails, and returns when the connections
// have been handed on or are gone.
func (d *door) serve(ctx context.Context) error {
	defer d.close()
	stop := context.AfterFunc(ctx, d.close)
	defer stop()
	return guard.Accept(ctx, d.listener, d.server.logger(), func(c net.Conn) {
		if _, err := d.server.begin(); err != nil {
			c.Close() // the listener is closed already
			return
		}
		// In the order of their arrival, which tells the oldest.
		go d.handle(ctx, c, d.strangers.Enter(c, nil))
	})
}

// handle serves one connection from its first byte to its end.
func (d *door) handle(ctx context.Context, c net.Conn, stranger *guard.Stranger) {
	s := d.server
	defer s.work.Done()
	admitted := stranger.Leave
	defer admitted()
	stop := context.AfterFunc(ctx, func() { _ = relay.Reset(c) })
	relay.KeepAlive(c)
	stranger.Move(c.RemoteAddr()) // behind a load balancer it reads a PROXY header
	p, err := d.meet(ctx, c)
	stop()
	log := s.logger().With("remote", c.RemoteAddr().String())
	if err != nil {
		d.refuse(c, err)
		return
	}
	if upgrade.Is(p.Request) {
		err = d.serveAgent(ctx, c, p, log, admitted)
	} else {
		err = d.serveClient(ctx, c, p, log, admitted)
	}
	if err != nil {
		d.refuse(c, err)
	}
}

// meet does the TLS handshake and reads the request head.
func (d *door) meet(ctx context.Context, c net.Conn) (*Peer, error) {
	p := &Peer{RemoteAddr: c.RemoteAddr(), LocalAddr: c.LocalAddr()}
	state, err := handshake(ctx, c, d.server.headTimeout())
	if err != nil {
		return nil, err
	}
	p.TLS = state
	p.Request, err = connect.ReadRequest(c, &d.server.Head)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// headTimeout is the time for each step before a peer is known.
func (s *Server) headTimeout() time.Duration { return orDefault(s.Head.Timeout, 10*time.Second) }

// tlsConn is a *tls.Conn, also inside a wrapper that passes these on.
type tlsConn interface {
	HandshakeContext(context.Context) error
	ConnectionState() tls.ConnectionState
}

// handshake completes a TLS handshake; without TLS the state is nil.
func handshake(ctx context.Context, c net.Conn, timeout time.Duration) (*tls.ConnectionState, error) {
	t, ok := c.(tlsConn)
	if !ok {
		return nil, nil
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := t.ConnectionState()
	return &state, nil
}

// refuse answers a connection that was not served, and closes it.
func (d *door) refuse(c net.Conn, err error) {
	log := d.refused.With("remote", c.RemoteAddr().String())
	var e *connect.Error
	switch {
	case err == io.EOF: // a health check of a load balancer
		log.Debug("connection without a request")
		_ = c.Close()
		return
	case errors.As(err, &e):
		log.Warn("request refused", "status", statusOf(e), "error", err)
		_ = connect.WriteError(c, d.server.id(), err)
	default:
		log.Warn("connection refused", "error", err)
	}
	_ = c.Close()
}

func statusOf(e *connect.Error) int {
	if e.Status != 0 {
		return e.Status
	}
	return e.Reason.Status()
}

// serveClient serves a client's CONNECT or absolute-form requests. The error
// is one that the client has not been told yet.
func (d *door) serveClient(ctx context.Context, c net.Conn, p *Peer, log *slog.Logger, admitted func()) error {
	h, leave, err := d.admitClient(p, log, func() { _ = relay.Reset(c) })
	if err != nil {
		return err
	}
	defer leave()
	admitted()
	_ = h.ServeRequest(ctx, c, p.Request) // answered and logged by the Handler
	return nil
}

// admitClient authenticates a client and returns the proxy that is made for
// it: one whose only way leads to the agents of its cluster. End is called
// when its credential does not hold any more.
func (d *door) admitClient(p *Peer, log *slog.Logger, end func()) (_ *connect.Handler, leave func(), _ error) {
	s := d.server
	if d.rules.NoClients {
		return nil, nil, forbidden("this port is for agents")
	}
	id, err := authenticate(d.rules.Clients, p)
	if err != nil {
		return nil, nil, err
	}
	cl, done := s.registry.use(id.Cluster)
	if cl.clients.Add(1) > int64(s.limits().Clients) {
		cl.clients.Add(-1)
		done()
		return nil, nil, &connect.Error{Reason: connect.ErrLimit, RetryAfter: retryAfter, Detail: "the cluster has as many client connections as it may"}
	}
	log = cl.clientLog.Logger(log.With("cluster", id.Cluster, "identity", id.Name))
	out := s.admitted.Enter(&admit.Admission{Check: id.Check, Log: log, End: end})
	h := &connect.Handler{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			traceparent := ""
			if r := connect.RequestFrom(ctx); r != nil {
				traceparent = r.Header.Get(headerTraceparent)
			}
			return s.dial(ctx, id.Cluster, network, address, traceparent)
		},
		Allow:       d.sameCluster(p, id),
		Name:        s.id(),
		DialTimeout: s.DialTimeout,
		IdleTimeout: s.IdleTimeout,
		Limits:      s.Head,
		Drain:       s.drainStarted(),
		Logger:      log,
	}
	return h, func() { out(); cl.clients.Add(-1); done() }, nil
}

// sameCluster refuses a later request on a client's connection that selects
// another cluster than the first, or that its credential does not allow: a
// connection is of one cluster, and whoever pools connections for several has
// to keep them apart.
func (d *door) sameCluster(p *Peer, id Identity) func(context.Context, *connect.Request, string) error {
	return func(_ context.Context, r *connect.Request, _ string) error {
		if r == p.Request {
			return nil
		}
		later := *p
		later.Request = r
		now, err := authenticate(d.rules.Clients, &later)
		if err == nil && now.Cluster != id.Cluster {
			err = &connect.Error{Reason: connect.ErrDenied, Status: http.StatusMisdirectedRequest,
				Detail: "this connection is of another cluster than the request: open a new one"}
		}
		return err
	}
}

// authenticate runs an AuthFunc and holds it to its contract.
func authenticate(auth AuthFunc, p *Peer) (Identity, error) {
	id, err := auth(p)
	if err != nil {
		var e *connect.Error
		if !errors.As(err, &e) {
			err = unauthorized("%w", err)
		}
		return Identity{}, err
	}
	if id.Cluster == "" {
		return Identity{}, forbidden("the credential names no cluster")
	}
	if id.Check == nil {
		id.Check = func() error { return nil }
	}
	return id, nil
}
