package entrypoint

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// serveConn is called by the accept loop and does not block.
func (r *Router) serveConn(d *door, c net.Conn) {
	ctx, end := context.WithCancelCause(context.Background())
	own := &conn{end: end}
	if !r.begin(own) {
		_ = c.Close() // the listener is closed already
		return
	}
	flood := new(atomic.Bool)
	// In the order of their arrival, which tells the oldest.
	stranger := d.strangers.Enter(c, func() { flood.Store(true) })
	go r.carry(ctx, d, own, c, flood, stranger)
}

// carry serves a connection from its first byte to its end.
func (r *Router) carry(ctx context.Context, d *door, c *conn, raw net.Conn, flood *atomic.Bool, stranger *guard.Stranger) {
	defer c.end(nil)
	defer r.leave(c)
	defer stranger.Leave() // also while a refusal is told: that is bounded, too
	relay.KeepAlive(raw)
	abort := context.AfterFunc(ctx, func() { _ = relay.Reset(raw) })
	var err error
	c.in, err = d.sniff(raw, stranger, time.Now())
	var handler Handler
	if err == nil {
		handler, err = r.enter(c)
	}
	give := func() {}
	if err == nil {
		give, err = r.seat(c.in.Info)
	}
	defer func() { give() }()
	if err == nil {
		err = r.authorize(ctx, c.in.Info)
	}
	if err == nil {
		stranger.Leave() // and now it cannot be evicted any more
	}
	switch ended := refuseEnded(ctx); {
	case flood.Load():
		err = &refusal{reason: ReasonFlood, err: errFlood} // whatever it had got to
	case err != nil && ended != nil:
		err = ended
	}
	if err != nil {
		give()
		r.refuse(d, c, err)
		abort()
		return
	}
	if !abort() {
		return // it has been reset
	}
	i := *c.in.Info // Authorize may have kept the other
	i.Request = nil
	c.in.Info = &i
	err = handler.ServeConn(ctx, c.in)
	if !c.in.accepted {
		if err == nil {
			err = errors.New("entrypoint: the handler returned without Accept")
		}
		refused := refuseEnded(ctx)
		if refused == nil {
			refused = refuseBackend(err)
		}
		give()
		defer context.AfterFunc(ctx, func() { _ = relay.Reset(raw) })() // the handler has left it
		r.refuse(d, c, refused)
		return
	}
	r.log(ctx, c, err)
}

// seat takes one of the Router's connections.
func (r *Router) seat(i *Info) (give func(), err error) {
	l := r.effective()
	give, full := r.seats.Take(l.conns(), l.perClient(), i.Client.Addr())
	if full != "" {
		return give, refuseLimit(full)
	}
	return give, nil
}

// authorize asks the hook, and takes no answer for a no.
func (r *Router) authorize(ctx context.Context, i *Info) error {
	if r.Authorize == nil {
		return nil
	}
	d := r.AuthorizeTimeout
	if d == 0 {
		d = 250 * time.Millisecond
	}
	if d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, errors.New("no answer within "+d.String()))
		defer cancel()
	}
	r.hold()
	verdict := make(chan error, 1)
	go func() {
		defer r.done()
		verdict <- r.Authorize(ctx, i)
	}()
	var err error
	select {
	case err = <-verdict:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return refuseUnauthorized(err)
	}
	return nil
}

// hold counts what Shutdown and Close wait for.
func (r *Router) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work++
}

// refuse counts, logs and tells.
func (r *Router) refuse(d *door, c *conn, err error) {
	refused := &refusal{reason: ReasonBroken, err: err}
	errors.As(err, &refused)
	r.refused.add(refused.reason)
	if c.track != nil {
		c.track.refused.add(refused.reason)
	}
	if refused.reason != ReasonEmpty {
		r.limitLog.Logger(r.logger()).LogAttrs(context.Background(), slog.LevelInfo, "refused",
			append(c.in.Info.attrs(), slog.String("reason", string(refused.reason)), slog.String("error", logged(refused.err)))...)
	}
	r.turnAway(c)
	c.in.tell(refused, d)
}

// log writes the line of a connection that was served.
func (r *Router) log(ctx context.Context, c *conn, err error) {
	log, level, outcome := r.logger(), slog.LevelDebug, "closed"
	cause := context.Cause(ctx)
	switch {
	case err == nil:
	case cause == nil && isReset(err):
		outcome = logged(err)
		c.track.reset(err)
	default:
		if cause != nil {
			err = cause
		}
		log, level, outcome = r.limitLog.Logger(log), slog.LevelInfo, logged(err)
		c.track.broken.Add(1)
	}
	if !log.Enabled(ctx, level) {
		return
	}
	up, down := c.in.counter.Bytes()
	log.LogAttrs(ctx, level, "served", append(c.in.Info.attrs(), slog.String("outcome", outcome),
		slog.Int64("up", up), slog.Int64("down", down), slog.Duration("duration", time.Since(c.in.Info.Start)))...)
}

// isReset reports whether a peer has ended a connection by itself, in a hurry. TLS
// ends so when one side closes before it has read the other's close_notify.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
}

// attrs is what a log line says of a connection.
func (i *Info) attrs() []slog.Attr {
	var attrs []slog.Attr
	if i.Peer != nil {
		attrs = append(attrs, slog.String("peer", i.Peer.String()))
	}
	if i.Proxy != nil && !i.Proxy.Local {
		attrs = append(attrs, slog.String("client", i.Proxy.Source.String()))
	}
	if i.By != 0 {
		attrs = append(attrs, slog.String(i.By.String(), short(i.Key())))
	}
	if i.Route != "" {
		attrs = append(attrs, slog.String("route", i.Route))
	}
	return attrs
}

// maxLogged bounds what a client has a say in.
const maxLogged = 256

func logged(err error) string { return short(err.Error()) }

func short(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}
