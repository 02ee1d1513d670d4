package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
)

// Server takes in the agents of many clusters and gives dial functions and an
// HTTP proxy that reach through them. Its zero value is ready to use: it
// admits agents and clients by the verified certificates of its listeners' TLS
// and refuses everyone who shows none.
//
//	Serve ──► doors open ──Shutdown──► draining ──streams ended or ctx──► closed
//	               └────────────────────Close──────────────────────────────┘
//
// The fields must not be changed after the first use.
type Server struct {
	// ID names the server towards agents and in PEERS; servers behind one
	// load balancer need different ones. Empty means the host name.
	ID string
	// AgentAuth and ClientAuth tell who comes to a door that has no functions
	// of its own. Nil means AgentAuth(nil, nil) and ClientAuth(nil, nil): by
	// certificate.
	AgentAuth, ClientAuth AuthFunc
	// Picker chooses the agent for a dial. Nil means
	// ByDestination(LeastStreams).
	Picker Picker
	// Limits bounds what is taken. The zero value means the defaults.
	Limits Limits
	// Liveness says when agents are suspected and given up.
	Liveness Liveness
	// Backoff is the time between two tries of DialAgent.
	Backoff Backoff
	// Head bounds request heads, by default 10 s and 64 KiB. HELLO and the
	// TLS handshake have the same time each.
	Head connect.HeadLimits
	// DialTimeout bounds a dial through an agent if the context does not, by
	// default 20 s. Negative means no bound.
	DialTimeout time.Duration
	// AgentWait is how long a dial waits for an agent that is reconnecting,
	// by default 5 s. Negative means that it does not wait. A cluster counts
	// as reconnecting for one minute after its last agent went, and every
	// cluster for 15 s after the start of the server.
	AgentWait time.Duration
	// IdleTimeout ends streams of the client door on which no byte went
	// either way. Zero and negative mean never: kubectl logs -f is idle by
	// nature.
	IdleTimeout time.Duration
	// DrainTimeout bounds Shutdown if its context does not, by default 25 s.
	// Negative means no bound.
	DrainTimeout time.Duration
	// Logger gets one line per event. Nil means silent.
	Logger *slog.Logger

	registry registry
	admitted admit.Set

	mu       sync.Mutex
	nonce    string
	serving  time.Time // of the first Serve or DialAgent
	drains   chan struct{}
	draining bool
	ctx      context.Context // of all that is being served
	cancel   context.CancelCauseFunc
	doors    map[*door]struct{}
	mounted  *door // of ServeHTTP
	peers    []string
	work     sync.WaitGroup // conns, sessions and doors
}

// init makes what the zero value lacks. s.mu is held.
func (s *Server) init() {
	if s.ctx != nil {
		return
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.drains = make(chan struct{})
	s.doors = make(map[*door]struct{})
	s.nonce = newNonce()
}

func newNonce() string {
	b := make([]byte, 12)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// begin counts one more piece of work, unless the server is closing.
func (s *Server) begin() (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if s.draining || s.ctx.Err() != nil {
		return nil, ErrServerClosed
	}
	if s.serving.IsZero() {
		s.serving = time.Now()
	}
	s.work.Add(1)
	return s.ctx, nil
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func (s *Server) drainStarted() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	return s.drains
}

// firstServe is when the server began to serve; now if it does not yet.
func (s *Server) firstServe() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving.IsZero() {
		return time.Now()
	}
	return s.serving
}

func (s *Server) limits() Limits { return s.Limits.withDefaults() }

func (s *Server) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

func (s *Server) id() string { return idOrHost(s.ID) }

// idOrHost is the id that was given, else the host's name.
func idOrHost(id string) string {
	if id != "" {
		return id
	}
	if host, err := os.Hostname(); err == nil && validID(host) == nil {
		return host
	}
	return "unnamed"
}

// hello is what the server says of itself.
func (s *Server) hello() helloMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	return helloMessage{
		MinVersion: minVersion, MaxVersion: maxVersion, Features: features(),
		ID: s.id(), Nonce: s.nonce, Software: software,
	}
}

// software is what both sides call themselves in HELLO.
const software = "rhizome"

// SetPeers names the servers that every agent should have a session with; the
// agents redial until they do, also when one load balancer stands before all.
// The server itself need not be among them. It can be called at any time.
func (s *Server) SetPeers(ids []string) {
	s.mu.Lock()
	s.peers = slices.Clone(ids)
	s.mu.Unlock()
	for _, c := range s.registry.all() {
		for _, a := range c.list() {
			s.sendPeers(a)
		}
	}
}

func (s *Server) sendPeers(a *remoteAgent) {
	if !a.features[featurePeers] {
		return
	}
	s.mu.Lock()
	m := peersMessage{Servers: slices.Clone(s.peers)}
	s.mu.Unlock()
	a.send(typePeers, m)
}

// Shutdown closes the doors, tells the agents to connect elsewhere, refuses
// new dials, and waits until the streams have ended, but no longer than ctx
// and DrainTimeout allow: then it resets them. A tunnel that a client keeps
// open but idle is a stream like any other. It returns when everything that
// the server started is gone: nil, or the context's error if streams were
// reset. Serve returns ErrServerClosed at once.
func (s *Server) Shutdown(ctx context.Context) error {
	if d := orDefault(s.DrainTimeout, 25*time.Second); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	s.closeDoors()
	for _, c := range s.registry.all() {
		for _, a := range c.list() {
			c.retire(a)
			a.drain(drainShutdown)
		}
	}
	err := s.waitStreams(ctx)
	s.endSessions(err == nil)
	s.cancel(ErrServerClosed)
	s.work.Wait()
	return err
}

// closeDoors lets nothing new in.
func (s *Server) closeDoors() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if !s.draining {
		s.draining = true
		close(s.drains)
	}
	for d := range s.doors {
		d.close()
	}
}

// waitStreams returns when no dial and no stream is left.
func (s *Server) waitStreams(ctx context.Context) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		open := false
		for _, c := range s.registry.all() {
			open = open || c.streams.Load() > 0 || c.clients.Load() > 0
		}
		if !open {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// endSessions says goodbye where nothing is cut off.
func (s *Server) endSessions(clean bool) {
	if !clean {
		return
	}
	var wait sync.WaitGroup
	for _, c := range s.registry.all() {
		for _, a := range c.list() {
			a.bye(byeMessage{Code: byeDone, Reason: "the server has drained"})
			wait.Go(func() { <-a.finished })
		}
	}
	wait.Wait()
}

// Close resets every stream, ends every session and returns when everything
// that the server started is gone.
func (s *Server) Close() error {
	s.closeDoors()
	s.cancel(ErrServerClosed)
	s.work.Wait()
	return nil
}

// Serve accepts connections from l until Shutdown or Close, or until l fails,
// and serves both doors on it: agents, which upgrade to a session, and
// clients, which send CONNECT or absolute-form requests. It owns l and always
// returns an error, ErrServerClosed after Shutdown and Close.
func (s *Server) Serve(l net.Listener) error { return s.ServeDoor(l, Door{}) }

// Door is who may come in through a listener.
type Door struct {
	// Agents and Clients authenticate instead of the Server's functions.
	Agents, Clients AuthFunc
	// NoAgents and NoClients close the door for one of them: 404 and 403.
	NoAgents, NoClients bool
}

// ServeDoor is Serve for a listener with rules of its own, such as a port for
// agents only, or a Unix socket that belongs to one cluster.
func (s *Server) ServeDoor(l net.Listener, rules Door) error {
	ctx, err := s.begin()
	if err != nil {
		l.Close()
		return err
	}
	defer s.work.Done()
	d := newDoor(s, l, rules)
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
