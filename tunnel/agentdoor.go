package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/upgrade"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// The upgrade that opens a session.
const (
	sessionPath   = "/v1/session"
	upgradeToken  = "rhizome/1"
	headerCluster = "Rhizome-Cluster" // the cluster that an agent thinks it is of
)

// sessionProtocol is what a connection is upgraded to.
func sessionProtocol() upgrade.Protocol {
	return upgrade.Protocol{Path: sessionPath, Token: upgradeToken, For: "agents; proxy clients use CONNECT or an absolute URL"}
}

// serveAgent upgrades an agent's connection to a session and serves it. The
// error is one that the agent has not been told yet.
func (d *door) serveAgent(ctx context.Context, c net.Conn, p *Peer, log *slog.Logger, admitted func()) error {
	s := d.server
	if d.rules.NoAgents {
		return &connect.Error{Reason: connect.ErrRequest, Status: http.StatusNotFound, Detail: "this port is not for agents"}
	}
	// Who comes before what it wants: a stranger learns nothing.
	id, err := authenticate(d.rules.Agents, p)
	if err != nil {
		return err
	}
	log = log.With("cluster", id.Cluster)
	if err := sessionProtocol().Check(p.Request); err != nil {
		return err
	}
	if claims := p.Request.Header.Values(headerCluster); len(claims) > 1 || len(claims) == 1 && claims[0] != id.Cluster {
		return forbidden("the agent claims cluster %.60q and its credential is of cluster %q", strings.Join(claims, ", "), id.Cluster)
	}
	if s.isDraining() {
		return &connect.Error{Reason: connect.ErrUnavailable, RetryAfter: retryAfter, Err: errDraining}
	}
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := sessionProtocol().Switch(c); err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Time{})
	_ = s.attach(ctx, withEarly(c, p.Request.Early), id, log, admitted)
	return nil
}

// withEarly gives back to a connection what was read of it beyond the head.
func withEarly(c net.Conn, early []byte) net.Conn {
	if len(early) == 0 {
		return c
	}
	return relay.NewPrefixed(c, early)
}

var errNoHello = errors.New("tunnel: no HELLO in time")

// attach makes an agent's session of a connection and serves it to its end,
// whoever opened the connection. It owns c.
func (s *Server) attach(ctx context.Context, c net.Conn, id Identity, log *slog.Logger, known func()) error {
	addr := c.RemoteAddr()
	limits := s.limits()
	a := &remoteAgent{identity: id, addr: addr}
	cl, done := s.registry.use(id.Cluster)
	defer done()
	a.cluster = cl
	log = cl.agentLog.Logger(log)
	timeout, cancel := withTimeout(ctx, s.headTimeout(), errNoHello)
	defer cancel()
	var err error
	a.session, err = newSession(timeout, c, sessionConfig{
		opener: true, hello: s.hello(), live: s.Liveness,
		maxStreams: limits.StreamsPerSession, log: log,
	})
	if err != nil {
		log.Warn("agent refused", "error", err)
		return err
	}
	a.mux.OnGrown(func() { s.boundHeld(a) })
	if err := a.helloServer(timeout); err != nil {
		a.close(err)
		var bye *byeError
		if errors.As(err, &bye) && bye.Code == byeKnown {
			log.Debug("agent has a session already", "reason", bye.Reason)
		} else {
			log.Warn("agent refused", "error", err)
		}
		return err
	}
	cancel()
	return s.serveSession(ctx, a, log.With("agent", a.remote.ID), known)
}

// serveSession registers an agent that has said HELLO and serves its session.
func (s *Server) serveSession(ctx context.Context, a *remoteAgent, log *slog.Logger, known func()) error {
	for _, text := range a.remote.Serves {
		if d, err := parseServed(text); err == nil {
			a.served = append(a.served, d)
		}
	}
	a.session.log = log
	a.onDrain = func(reason string) {
		log.Info("agent drains", "reason", reason)
		a.cluster.retire(a)
		a.endDrained(-1) // for how long is the agent's business
	}
	stop := context.AfterFunc(ctx, func() { _ = a.mux.Close(ErrServerClosed) })
	defer stop()
	old, reason, err := a.cluster.add(a, s.limits().Agents)
	if err != nil {
		log.Warn("agent refused", "error", err)
		a.bye(byeMessage{Code: byeQuota, Reason: err.Error(), RetryAfter: 10})
		return errors.Join(err, a.run())
	}
	defer a.cluster.remove(a)
	if s.isDraining() { // it came in while Shutdown told the others
		a.cluster.retire(a)
		a.drain(drainShutdown)
	}
	if old != nil {
		log.Info("agent's older session drains", "reason", reason, "remote", old.addr.String())
		old.drain(reason)
		s.endDrained(old)
	}
	known()
	leave := s.admitted.Enter(&admit.Admission{
		Check: a.identity.Check, Log: log,
		Warn: func() {
			a.cluster.retire(a)
			a.drain(drainCredential)
		},
		End: func() { a.bye(byeMessage{Code: byeDenied, Reason: "the credential no longer holds"}) },
	})
	defer leave()
	log.Info("agent connected", "name", a.identity.Name, "version", a.version, "software", a.remote.Software)
	s.sendPeers(a)
	err = a.run()
	if reason, _ := a.isDraining(); reason == drainReplaced {
		err = fmt.Errorf("%w: %w", errReplaced, err)
	}
	log.Info("agent disconnected", "error", err, "lasted", time.Since(a.started).Round(time.Millisecond))
	return err
}

var errReplaced = errors.New("tunnel: another process has taken this session's place")

// endDrained ends the session of an agent that no longer takes dials as soon
// as its last stream has ended, at the latest when the drain time is over.
func (s *Server) endDrained(a *remoteAgent) {
	a.endDrained(orDefault(s.DrainTimeout, 25*time.Second))
}

// tooMuchUnread is what the reset of a stream by boundHeld says.
const tooMuchUnread = "too much data of this session is unread, and most of it here"

var errHoards = errors.New("tunnel: peer sends on, although its streams were reset because too much is unread")

// boundHeld is called as received data grows. A session that holds twice what
// it should loses the streams that hold most. One that holds three times as
// much, and still too much when a peer that heeds the resets has had its time,
// is ended.
func (s *session) boundHeld(limit int64) {
	s.mux.Trim(2*limit, tooMuchUnread)
	if s.mux.Held() > 3*limit && s.hoards.CompareAndSwap(false, true) {
		time.AfterFunc(hoardGrace, func() {
			s.hoards.Store(false)
			if s.mux.Held() > 2*limit {
				_ = s.mux.Close(errHoards)
			}
		})
	}
}

// hoardGrace is how long resets have to bring a session below its bound.
// Meanwhile it holds no more than all its streams' windows.
const hoardGrace = 2 * time.Second

// boundHeld does the same for the cluster of an agent, at the session that
// holds most.
func (s *Server) boundHeld(a *remoteAgent) {
	limits := s.limits()
	a.session.boundHeld(limits.ReceiveMemory)
	load := a.cluster.load()
	if excess := load.held - 2*limits.ClusterReceiveMemory; load.most != nil && excess > 0 {
		most := load.most
		most.mux.Trim(max(most.mux.Held()-excess, 0), tooMuchUnread)
		if load.held > 3*limits.ClusterReceiveMemory && most.hoards.CompareAndSwap(false, true) {
			time.AfterFunc(hoardGrace, func() {
				most.hoards.Store(false)
				if a.cluster.load().held > 3*limits.ClusterReceiveMemory {
					_ = most.mux.Close(errHoards)
				}
			})
		}
	}
}

// isOver reports whether the session has ended.
func (a *remoteAgent) isOver() bool {
	select {
	case <-a.mux.Done():
		return true
	default:
		return false
	}
}
