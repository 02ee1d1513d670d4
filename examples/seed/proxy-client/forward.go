package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// forward hands each connection on to one target.
//
//	client           forward                        target
//	  │──── accepted ──►│                              │
//	  │── first bytes ─►│── dial ≤ dialTimeout ── … ──►│   the client is reset if it fails,
//	  │                 │                              │   the dial ends if the client resets
//	  │◄══════════════ relay, until both end ═════════►│
type forward struct {
	target      string
	dial        connect.DialFunc
	dialTimeout time.Duration
	idleTimeout time.Duration // 0 is never
	log         *slog.Logger
}

// errClientGone ends the dial for a client that has reset its connection.
var errClientGone = errors.New("the client went away before there was a connection")

// serve owns c and has closed it when it returns, with what went wrong. When ctx
// ends it resets c.
func (f *forward) serve(ctx context.Context, c net.Conn) error {
	start := time.Now()
	var counter relay.Counter
	target, first, err := f.open(ctx, c)
	if err != nil {
		_ = relay.Reset(c)
	} else {
		if len(first) > 0 {
			c = relay.NewPrefixed(c, first)
		}
		err = relay.Relay(ctx, c, target, &relay.Options{IdleTimeout: f.idleTimeout, Counter: &counter})
	}
	level, outcome := slog.LevelDebug, "closed"
	if err != nil {
		level, outcome = slog.LevelInfo, err.Error()
	}
	up, down := counter.Bytes()
	f.log.Log(ctx, level, "forward", "target", f.target, "outcome", outcome, "up", up, "down", down,
		"duration", time.Since(start), "client", c.RemoteAddr().String())
	return err
}

// open dials the target, and returns what the client said meanwhile.
func (f *forward) open(ctx context.Context, c net.Conn) (target net.Conn, first []byte, err error) {
	dialCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timed, stop := context.WithTimeout(dialCtx, f.dialTimeout)
	defer stop()
	e := readEarly(c, func(err error) { cancel(fmt.Errorf("%w: %w", errClientGone, err)) })
	target, err = f.dial(timed, "tcp", f.target)
	first = e.stop()
	switch cause := context.Cause(dialCtx); {
	case cause == nil:
		return target, first, err
	case err == nil:
		_ = relay.Reset(target)
	}
	return nil, nil, context.Cause(dialCtx)
}
