package packet

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// ErrServerClosed is returned by Serve after Shutdown or Close. It is a
// net.ErrClosed.
var ErrServerClosed error = closedError("packet: server closed")

// Server takes in the links of clients. It finds out who they are, and leaves what
// their packets may do to Admit, with a [Switch] as a rule:
//
//	srv := &packet.Server{TLS: config, Hello: packet.Hello{Mode: packet.TAP},
//		Admit: func(ctx context.Context, id packet.Identity, remote packet.Hello) (packet.ServeFunc, error) {
//			rule, ok := rules[id.Name]
//			if !ok { return nil, errors.New("no rule for this peer") }
//			return func(ctx context.Context, c *packet.Conn) error { return sw.Serve(ctx, c, rule) }, nil
//		}}
//	err := srv.Serve(listener)
//
// Admit must be set. The fields must not be changed after the first use.
type Server struct {
	// TLS is done over what the listener gives; nil means that the listener has
	// done it, or that there is none. Leave it to the Server where possible: it
	// writes and reads several records of TLS at a time then. ALPN is always
	// http/1.1.
	TLS *tls.Config
	// Auth tells who comes. Nil means Auth("", nil, nil): by certificate.
	Auth AuthFunc
	// Hello is what the server says of itself. A zero ID is drawn once.
	Hello Hello
	// Admit judges what a peer says in HELLO, and gives what serves its link. An
	// error refuses it with BYE: a *[ByeError] chooses the words, any other
	// becomes ByeDenied. It must not block.
	Admit func(ctx context.Context, id Identity, remote Hello) (ServeFunc, error)
	// Conn says when a link is dead and the like. Nil means the defaults. Its Admit
	// and NoReach are not used.
	Conn *ConnOptions
	// MaxLinks is how many links there may be, by default 256, and
	// MaxLinksPerName how many of one identity, by default 8: more get 429. So does an
	// identity that has more than four times as many as are free, so that a few never
	// lock the others out.
	MaxLinks, MaxLinksPerName int
	// MaxStrangers is how many connections may be unauthenticated at a time, by default
	// 1024: more cost the oldest of the network that has most of them its own.
	MaxStrangers int
	// Head bounds request heads, by default 10 s and 64 KiB. The TLS handshake
	// and HELLO have the same time each.
	Head connect.HeadLimits
	// DrainTimeout is how long Shutdown leaves clients after DRAIN, so that they
	// can go over to other servers, by default 1 s. Negative means that only its
	// context bounds it.
	DrainTimeout time.Duration
	// Logger gets one line per event, of what clients cause up to 20 lines a
	// second. Nil means silent.
	Logger *slog.Logger

	lines    guard.LogLimit // of what clients can cause
	admitted admit.Set

	mu       sync.Mutex
	id       uint64
	ctx      context.Context // of all that is being served
	cancel   context.CancelCauseFunc
	draining bool
	doors    map[*door]struct{}
	links    map[*serverLink]struct{}
	names    map[string]int // of links
	empty    chan struct{}  // closed when the last link has ended; nil: nobody waits
	work     sync.WaitGroup
}

// ServeFunc uses a link until it ends, and runs it: see [Conn]. A *[ByeError] that
// it returns is told to the peer.
type ServeFunc func(ctx context.Context, c *Conn) error

// serverLink is one link of a Server.
type serverLink struct {
	identity Identity
	since    time.Time
	conn     *Conn // nil until HELLO
}

// LinkStatus is one link of a [Server].
type LinkStatus struct {
	// Identity is who is at the other end, Remote what it says of itself.
	Identity Identity
	Remote   Hello
	// Addr is where it comes from, Since when it came.
	Addr  net.Addr
	Since time.Time
	Stats ConnStats
}

// init makes what the zero value lacks. s.mu is held.
func (s *Server) init() {
	if s.ctx != nil {
		return
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.doors = make(map[*door]struct{})
	s.links = make(map[*serverLink]struct{})
	s.names = make(map[string]int)
	s.id = s.Hello.withDefaults().ID
}

// begin counts one more piece of work, unless the server is closing.
func (s *Server) begin() (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if s.draining || s.ctx.Err() != nil {
		return nil, ErrServerClosed
	}
	s.work.Add(1)
	return s.ctx, nil
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func (s *Server) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

// hello is what the server says of itself.
func (s *Server) hello() Hello {
	h := s.Hello
	s.mu.Lock()
	defer s.mu.Unlock()
	h.ID = s.id
	return h
}

// Serve accepts connections from l until Shutdown or Close, or until l fails. It
// owns l and always returns an error, ErrServerClosed after Shutdown and Close.
// It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	if s.Admit == nil {
		l.Close()
		return errors.New("packet: server without Admit")
	}
	if h := s.Hello.withDefaults(); h.check() != nil {
		l.Close()
		return h.check()
	}
	ctx, err := s.begin()
	if err != nil {
		l.Close()
		return err
	}
	defer s.work.Done()
	d := newDoor(s, l)
	s.mu.Lock()
	s.doors[d] = struct{}{}
	closed := s.draining
	s.mu.Unlock()
	if closed {
		d.close()
	}
	defer func() {
		s.mu.Lock()
		delete(s.doors, d)
		s.mu.Unlock()
	}()
	err = d.serve(ctx)
	if s.isDraining() {
		return ErrServerClosed
	}
	return err
}

// enter takes a seat for a link; an error is one that the peer can be answered with.
func (s *Server) enter(k *serverLink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := k.identity.Cluster + "/" + k.identity.Name
	free := orDefault(s.MaxLinks, 256) - len(s.links)
	full := ""
	switch {
	case s.draining:
		return &connect.Error{Reason: connect.ErrUnavailable, RetryAfter: time.Second, Detail: "the server is shutting down"}
	case free <= 0:
		full = "the server has as many links as it may"
	case s.names[name] >= orDefault(s.MaxLinksPerName, 8):
		full = "this identity has as many links as it may"
	case s.names[name] > 4*free:
		full = "this identity has its share of the links that the server may have"
	}
	if full != "" {
		return &connect.Error{Reason: connect.ErrLimit, RetryAfter: 5 * time.Second, Detail: full}
	}
	s.links[k] = struct{}{}
	s.names[name]++
	return nil
}

func (s *Server) leave(k *serverLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, k)
	name := k.identity.Cluster + "/" + k.identity.Name
	if s.names[name]--; s.names[name] <= 0 {
		delete(s.names, name)
	}
	if len(s.links) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// opened makes a link one that has said HELLO.
func (s *Server) opened(k *serverLink, c *Conn) {
	s.mu.Lock()
	k.conn = c
	draining := s.draining
	s.mu.Unlock()
	if draining { // it came while Shutdown told the others
		_ = c.SendDrain()
	}
}

// conns are the links that have said HELLO.
func (s *Server) conns() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Conn
	for k := range s.links {
		if k.conn != nil {
			all = append(all, k.conn)
		}
	}
	return all
}

// Links tells of the links that there are, in no order.
func (s *Server) Links() []LinkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []LinkStatus
	for k := range s.links {
		if k.conn != nil {
			all = append(all, LinkStatus{
				Identity: k.identity, Remote: k.conn.Remote(), Addr: k.conn.RemoteAddr(), Since: k.since, Stats: k.conn.Stats(),
			})
		}
	}
	return all
}

// Shutdown closes the doors, tells the clients to use other servers, leaves them
// DrainTimeout for it, but not longer than ctx, and ends the links that are left with
// ByeShutdown. It returns when everything that the server started is gone. Serve
// returns ErrServerClosed at once. The error is always nil.
func (s *Server) Shutdown(ctx context.Context) error {
	if d := orDefault(s.DrainTimeout, time.Second); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	s.closeDoors()
	for _, c := range s.conns() {
		_ = c.SendDrain()
	}
	select {
	case <-s.drained():
	case <-ctx.Done():
	}
	var byes sync.WaitGroup
	for _, c := range s.conns() {
		byes.Go(func() { _ = c.Bye(ByeShutdown, "the server is shutting down") })
	}
	byes.Wait()
	s.cancel(ErrServerClosed)
	s.work.Wait()
	return nil
}

// closeDoors lets nothing new in.
func (s *Server) closeDoors() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	s.draining = true
	for d := range s.doors {
		d.close()
	}
}

// drained is closed when there is no link any more.
func (s *Server) drained() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	if len(s.links) == 0 {
		close(s.empty)
		s.empty = nil
	}
	return empty
}

// Close ends every link at once and returns when everything that the server
// started is gone.
func (s *Server) Close() error {
	s.closeDoors()
	s.cancel(ErrServerClosed)
	s.work.Wait()
	return nil
}
