package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const (
	// probeTarget is what the proxy is asked for to see whether it answers.
	// RFC 6761 reserves the name, so that nobody is dialled.
	probeTarget = "readyz.invalid:1"
	// probeInterval is how often the proxy is asked, unless dials have told in
	// the second half of it that it answers.
	probeInterval = 10 * time.Second
	// probeTimeout leaves the proxy its own 20 s.
	probeTimeout = 30 * time.Second
)

// reach dials on a way and so knows whether its proxy can be reached. Any answer
// will do, a refusal included: that is about the target.
type reach struct {
	way *way
	log *slog.Logger

	mu  sync.Mutex
	at  time.Time // of the newest outcome, zero before the first
	err error     // that the proxy did not answer
}

// dial dials for a client. The conn finds out when its peer is dead.
func (r *reach) dial(ctx context.Context, network, address string) (net.Conn, error) {
	route := r.way.route()
	c, err := route.dial(ctx, network, address)
	if err == nil {
		relay.KeepAlive(c)
	}
	if err == nil || ctx.Err() != context.Canceled { // who gave up says nothing about the proxy
		r.note(route, err)
	}
	return c, err
}

// note takes the outcome of a dial.
func (r *reach) note(route route, err error) {
	var answer *connect.Error
	if route.direct || errors.As(err, &answer) && answer.Answered() {
		err = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && (r.err == nil || r.at.IsZero()):
		r.log.Warn("the proxy cannot be reached", "error", err)
	case err == nil && (r.err != nil || r.at.IsZero()) && !route.direct:
		r.log.Info("the proxy can be reached")
	}
	r.at, r.err = time.Now(), err
}

// ready tells why the proxy is not known to answer.
func (r *reach) ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() {
		return errors.New("the proxy was not asked yet")
	}
	return r.err
}

// run asks the proxy whenever no dial has lately, until ctx ends.
func (r *reach) run(ctx context.Context) error {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		if r.stale() {
			r.probe(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (r *reach) stale() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err != nil || r.at.IsZero() || time.Since(r.at) > probeInterval/2
}

func (r *reach) probe(ctx context.Context) {
	if route := r.way.route(); route.direct {
		r.note(route, nil) // there is nobody to ask
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if c, err := r.dial(ctx, "tcp", probeTarget); err == nil {
		_ = c.Close()
	}
}
