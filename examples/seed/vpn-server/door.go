package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const (
	// maxClients bounds the connections of the CONNECT proxy, and maxStrangers
	// those of them of which it is not known yet who they are: beyond, the oldest
	// goes.
	maxClients   = 10_000
	maxStrangers = 1024
	// handshakeTime is what a TLS handshake may take.
	handshakeTime = 10 * time.Second
	// recheckEvery is how often a client's certificate is looked at again, and
	// recheckGrace how long its connections go on once it does not hold any more.
	recheckEvery = 10 * time.Second
	recheckGrace = 30 * time.Second
)

// door is the CONNECT proxy for kube-apiserver: it lets clients of a cluster in by
// their certificates, and has a handler dial for them.
//
//	Accept ─► handshake ≤ 10 s ─► of the cluster? ─► handler, until both ends are done
//	           else closed         else 403          looked at again each 10 s
type door struct {
	listener net.Listener // of TLS, which verifies with the pool
	pool     *certs.Pool
	cluster  string
	handler  *connect.Handler
	log      *slog.Logger

	accepted  chan struct{} // closed when no more come in
	conns     sync.WaitGroup
	open      atomic.Int64
	strangers strangers
	limit     cli.LogLimit // of lines that they cause, and those who are refused
}

// strangers are connections whose handshake is under way.
type strangers struct {
	mu   sync.Mutex
	list []net.Conn // the oldest first
}

func (s *strangers) enter(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, c)
	if len(s.list) > maxStrangers {
		_ = relay.Reset(s.list[0])
		s.list = slices.Delete(s.list, 0, 1)
	}
}

func (s *strangers) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(other net.Conn) bool { return other == c })
}

func newDoor(l net.Listener, pool *certs.Pool, cluster string, handler *connect.Handler, log *slog.Logger) *door {
	return &door{listener: l, pool: pool, cluster: cluster, handler: handler, log: log, accepted: make(chan struct{})}
}

// run accepts until the listener is closed. What it started may go on then, until
// ctx ends: see shutdown.
func (d *door) run(ctx context.Context) error {
	defer close(d.accepted)
	var pause time.Duration
	for {
		c, err := d.listener.Accept()
		if err == nil {
			pause = 0
			if d.open.Add(1) > maxClients {
				d.open.Add(-1)
				_ = relay.Reset(c)
				continue
			}
			d.strangers.enter(c)
			d.conns.Go(func() {
				defer d.open.Add(-1)
				d.serve(ctx, c)
			})
			continue
		}
		if !passes(err) {
			return err
		}
		// As a rule descriptors have run out: connections will end.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		d.log.Error("accept failed", "addr", d.listener.Addr().String(), "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// passes reports whether Accept may succeed after err: few errors are of the
// listener.
func passes(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && errno != syscall.EBADF && errno != syscall.EINVAL && errno != syscall.ENOTSOCK
}

// serve owns c.
func (d *door) serve(ctx context.Context, c net.Conn) {
	relay.KeepAlive(c)
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	log := d.limit.Logger(d.log).With("remote", c.RemoteAddr().String())
	stop := context.AfterFunc(ctx, func() { _ = relay.Reset(c) })
	state, err := handshake(ctx, c)
	d.strangers.leave(c)
	if err != nil {
		stop()
		log.Info("TLS handshake failed", "error", err)
		_ = c.Close()
		return
	}
	if err := d.admits(state); err != nil {
		log.Warn("refused", "error", err)
		_ = connect.WriteError(c, d.handler.Name, &connect.Error{Reason: connect.ErrDenied, Err: err})
		stop()
		return
	}
	stop()
	var watch sync.WaitGroup
	watch.Go(func() { d.recheck(ctx, state, cut, log) })
	_ = d.handler.ServeConn(ctx, c) // logged by the Handler
	cut(nil)
	watch.Wait()
}

// handshake completes that of TLS.
func handshake(ctx context.Context, c net.Conn) (*tls.ConnectionState, error) {
	t, ok := c.(interface {
		HandshakeContext(context.Context) error
		ConnectionState() tls.ConnectionState
	})
	if !ok {
		return nil, errors.New("the door has no TLS")
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := t.ConnectionState()
	return &state, nil
}

// admits tells why a client may not come in, now.
func (d *door) admits(state *tls.ConnectionState) error {
	id, err := d.pool.Identify(state.VerifiedChains)
	if err == nil && !id.Allows(d.cluster) {
		err = fmt.Errorf("the certificate is of cluster %q, and this server of cluster %q", id.Cluster, d.cluster)
	}
	return err
}

// recheck looks at a client's certificate from time to time, and cuts the client
// off some time after it does not hold any more.
func (d *door) recheck(ctx context.Context, state *tls.ConnectionState, cut context.CancelCauseFunc, log *slog.Logger) {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			err := d.admits(state)
			switch {
			case err == nil:
				since = time.Time{}
			case since.IsZero():
				since = now
				log.Warn("credential no longer holds", "error", err, "grace", recheckGrace)
			case now.Sub(since) >= recheckGrace:
				log.Warn("ended: its credential no longer holds", "error", err)
				cut(err)
				return
			}
		}
	}
}

// shutdown lets nobody in any more, waits until all connections have ended, but
// no longer than ctx allows, and calls cut, which ends what is still open. It
// returns when nothing of the door is left. It is for a door that runs.
func (d *door) shutdown(ctx context.Context, cut func()) error {
	_ = d.listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-d.accepted
		d.conns.Wait()
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		if n := d.open.Load(); n > 0 {
			err = fmt.Errorf("%d connections of the CONNECT proxy: %w", n, context.Cause(ctx))
		}
	}
	cut()
	<-done
	return err
}
