package packet

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// door serves one listener: it accepts, has each connection show who it is
// within a bounded time, and makes links of those that may.
type door struct {
	server    *Server
	listener  net.Listener
	tls       *tls.Config
	closing   sync.Once
	strangers guard.Strangers
	refused   *slog.Logger // for what strangers cause
}

func newDoor(s *Server, l net.Listener) *door {
	return &door{
		server: s, listener: l, tls: serverTLS(s.TLS),
		strangers: guard.Strangers{Limit: orDefault(s.MaxStrangers, 1024)},
		refused:   new(guard.LogLimit).Logger(s.logger()),
	}
}

// serverTLS is TLS with what suits packets, also where the configuration is made
// for each handshake.
func serverTLS(config *tls.Config) *tls.Config {
	if config == nil {
		return nil
	}
	config = suited(config)
	get := config.GetConfigForClient
	if get == nil {
		return config
	}
	var (
		mu       sync.Mutex
		from, to *tls.Config // the last one: a clone of each would have ticket keys of its own
	)
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		inner, err := get(h)
		if inner == nil || err != nil {
			return inner, err
		}
		mu.Lock()
		defer mu.Unlock()
		if inner != from {
			from, to = inner, suited(inner)
		}
		return to, nil
	}
	return config
}

// suited is a clone for packets: whole records from the start, HTTP/1.1 only.
func suited(config *tls.Config) *tls.Config {
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	config.DynamicRecordSizingDisabled = true
	return config
}

func (d *door) close() { d.closing.Do(func() { d.listener.Close() }) }

// serve accepts until the listener fails.
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
func (d *door) handle(ctx context.Context, raw net.Conn, stranger *guard.Stranger) {
	s := d.server
	defer s.work.Done()
	defer stranger.Leave()
	stop := context.AfterFunc(ctx, func() { _ = relay.Reset(raw) })
	defer stop()
	relay.KeepAlive(raw)
	shortQueue(raw)
	stranger.Move(raw.RemoteAddr()) // behind a load balancer it reads a PROXY header
	c, o := raw, s.Conn.withDefaults()
	if d.tls != nil {
		c = tls.Server(newSocket(raw, o.WriteTimeout), d.tls)
	}
	p, err := d.meet(ctx, c)
	if err != nil {
		d.refuse(c, err)
		return
	}
	k := &serverLink{since: time.Now()}
	k.identity, err = s.judge(p)
	if err == nil {
		err = s.enter(k)
	}
	if err != nil {
		d.refuse(c, err)
		return
	}
	defer s.leave(k)
	d.serveLink(ctx, c, p, k, &o, stranger)
}

// meet does the TLS handshake and reads the request head.
func (d *door) meet(ctx context.Context, c net.Conn) (*Peer, error) {
	p := &Peer{RemoteAddr: c.RemoteAddr(), LocalAddr: c.LocalAddr()}
	if t, ok := c.(interface {
		HandshakeContext(context.Context) error
		ConnectionState() tls.ConnectionState
	}); ok {
		if timeout := d.server.headTimeout(); timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		state := t.ConnectionState()
		p.TLS = &state
	}
	var err error
	p.Request, err = connect.ReadRequest(c, &d.server.Head)
	return p, err
}

// headTimeout is the time for each step before a peer is known.
func (s *Server) headTimeout() time.Duration { return orDefault(s.Head.Timeout, 10*time.Second) }

// judge tells who a peer is and whether it asks for a link. Who comes before what it
// wants: a stranger learns nothing.
func (s *Server) judge(p *Peer) (Identity, error) {
	auth := s.Auth
	if auth == nil {
		auth = Auth("", nil, nil)
	}
	id, err := auth(p)
	if err != nil {
		var e *connect.Error
		if !errors.As(err, &e) {
			err = unauthorized("%w", err)
		}
		return id, err
	}
	if id.Check == nil {
		id.Check = func() error { return nil }
	}
	return id, protocol().Check(p.Request)
}

// refuse answers a connection that was not served, and closes it.
func (d *door) refuse(c net.Conn, err error) {
	log := d.refused.With("remote", c.RemoteAddr().String())
	var e *connect.Error
	switch {
	case err == io.EOF: // a health check of a load balancer
		log.Debug("connection without a request")
		closeBelow(c)
		return
	case errors.As(err, &e):
		log.Warn("request refused", "error", err)
		_ = connect.WriteError(c, "", err)
	default:
		log.Warn("connection refused", "error", err)
	}
	closeBelow(c)
}

// serveLink upgrades a connection to a link and serves it to its end.
func (d *door) serveLink(ctx context.Context, c net.Conn, p *Peer, k *serverLink, o *ConnOptions, stranger *guard.Stranger) {
	s := d.server
	log := s.lines.Logger(s.logger()).With("remote", p.RemoteAddr.String(), "cluster", k.identity.Cluster, "name", k.identity.Name)
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := protocol().Switch(c); err != nil {
		closeBelow(c)
		return
	}
	_ = c.SetWriteDeadline(time.Time{})
	var serve ServeFunc
	o.NoReach = true
	o.HelloTimeout = s.headTimeout()
	o.Admit = func(remote Hello) (err error) {
		serve, err = s.Admit(ctx, k.identity, remote)
		return err
	}
	l, err := Handshake(ctx, withEarly(c, p.Request.Early), s.hello(), o)
	if err != nil {
		log.Warn("link refused", "error", err)
		return
	}
	defer l.Close()
	stranger.Leave()
	s.opened(k, l)
	defer s.admitted.Enter(&admit.Admission{
		Check: k.identity.Check, Log: log,
		Warn: func() { _ = l.SendDrain() },
		End:  func() { s.deny(l) },
	})()
	log.Info("link up", "id", l.Remote().ID, "mtu", l.MTU(), "software", l.Remote().Software)
	err = serve(ctx, l)
	var said *ByeError
	if errors.As(err, &said) && !said.Remote {
		l.leave(said)
	}
	if cause := l.failure(); cause != nil {
		err = cause // it says more than what was made of it
	}
	log.Info("link down", "error", err, "lasted", time.Since(k.since).Round(time.Millisecond))
}

// deny ends the link of a credential that no longer holds.
func (s *Server) deny(l *Conn) {
	if _, err := s.begin(); err != nil {
		return // it ends anyway
	}
	go func() {
		defer s.work.Done()
		_ = l.Bye(ByeDenied, "the credential no longer holds")
	}()
}
