package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/backoff"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// DialAgent keeps a session with an agent that listens, the old direction: the
// seed dials out, and everything after the connection is as if the agent had.
// Dial opens a connection to the agent, through TLS that has verified that
// the agent is of the cluster: see certs.AgentTLS. DialAgent trusts it. Check,
// if not nil, is asked every 10 s with the state of that TLS whether it would
// still do, as Identity.Check; a nil one looks at the certificate's expiry.
//
// It reconnects with back-off until ctx ends, and then returns its cause, or
// ErrServerClosed after Shutdown and Close. A cluster that cannot exist is an
// error at once.
func (s *Server) DialAgent(ctx context.Context, cluster string, dial func(ctx context.Context) (net.Conn, error), check func(tls.ConnectionState) error) error {
	if err := certs.ValidCluster(cluster); err != nil {
		return err
	}
	serving, err := s.begin()
	if err != nil {
		return err
	}
	defer s.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(serving, func() { cancel(ErrServerClosed) })()

	policy := backoff.Policy(s.Backoff).WithDefaults()
	log := s.logger().With("cluster", cluster, "direction", "outbound")
	var down backoff.Outage
	last := ""
	for {
		start := time.Now()
		err := s.dialAgent(ctx, cluster, dial, check)
		if s.isDraining() {
			return ErrServerClosed
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		down.Ended(policy, time.Since(start))
		if text := err.Error(); text != last {
			log.Warn("no session with the agent", "error", err)
			last = text
		}
		wait := down.Failed(policy, time.Now())
		if errors.Is(err, errReplaced) { // two servers with one id: do not fight
			wait = replacedWait/2 + rand.N(replacedWait)
		}
		select {
		case <-time.After(wait):
		case <-s.drainStarted():
			return ErrServerClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// dialAgent makes one session and serves it to its end.
func (s *Server) dialAgent(ctx context.Context, cluster string, dial func(ctx context.Context) (net.Conn, error), check func(tls.ConnectionState) error) error {
	c, early, err := s.requestAgent(ctx, cluster, dial)
	if err != nil {
		return err
	}
	log := s.logger().With("remote", c.RemoteAddr().String(), "cluster", cluster)
	id := Identity{Cluster: cluster, Name: "dialled", Check: func() error { return nil }}
	if t, ok := c.(tlsConn); ok {
		state := t.ConnectionState()
		id.Check = func() error {
			if check != nil {
				return check(state)
			}
			return unexpired(&state)
		}
	}
	return s.attach(ctx, withEarly(c, early), id, log, func() {})
}

// requestAgent connects to an agent and asks it for a session.
func (s *Server) requestAgent(ctx context.Context, cluster string, dial func(ctx context.Context) (net.Conn, error)) (_ net.Conn, early []byte, err error) {
	timeout, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errSlow)
	defer cancel()
	c, err := dial(timeout)
	if err != nil {
		return nil, nil, err
	}
	relay.KeepAlive(c)
	stop := context.AfterFunc(timeout, func() { c.Close() })
	r := &connect.Request{Method: http.MethodGet, Target: sessionPath, Host: "agent", Header: make(http.Header)}
	early, err = requestUpgrade(c, r, cluster, &s.Head)
	if !stop() && err == nil {
		err = context.Cause(timeout)
	}
	if err != nil {
		c.Close()
		return nil, nil, errors.Join(err, context.Cause(timeout))
	}
	return c, early, nil
}
