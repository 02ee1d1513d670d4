package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Agent dials out to servers and dials targets for them. It keeps one session
// with each distinct server that it finds behind its URLs, and reconnects for
// as long as Run runs.
//
//	Run ──► resolving ─► connecting ─► session ──Shutdown──► draining ──► closed
//	             ▲            ▲           │ lost
//	             └── every 10 s           └──► back-off ─► connecting
//
// The fields must not be changed after the first use.
type Agent struct {
	// Servers are the URLs of the servers, https://host:port or, without
	// encryption and without Token, http://host:port. A name is resolved to
	// all its addresses every 10 s, and the agent connects to each.
	Servers []string
	// ID names the agent within its cluster; agents with the same ID replace
	// each other. Empty means the host name.
	ID string
	// Cluster, if set, is checked by the server against the agent's
	// credential. It never decides anything: a mistake shows at once instead
	// of as an agent of the wrong cluster.
	Cluster string
	// TLS is how servers are verified and what certificate is shown; nil
	// means the host's roots and none. An empty ServerName is that of the
	// URL. ALPN is always http/1.1.
	TLS *tls.Config
	// TLSFor, if set, is used instead of TLS and gives the configuration for
	// the host of a URL, for such as certs.ClientTLS that must know it.
	TLSFor func(host string) *tls.Config
	// Token, if set, gives the bearer token for each connection. It is sent
	// over TLS only.
	Token func(ctx context.Context) (string, error)
	// Header is sent along with the request for a session.
	Header http.Header
	// Dial reaches a server or whatever stands before it, such as an HTTP
	// proxy: see connect.Dialer. Nil means a net.Dialer. If it is set and
	// Resolve is not, names are left to it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolve looks up the addresses of a server's name. Nil means
	// net.DefaultResolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// ConnectTimeout bounds each try to connect, from the first packet to
	// HELLO, by default 20 s. Negative means no bound.
	ConnectTimeout time.Duration

	// Allow tells what may be dialled. Nil means Rules{}.Allow: everything
	// but what reaches the agent's own host or cloud metadata.
	Allow AllowFunc
	// ResolveTarget looks up a target's name, DialTarget dials an address
	// that was allowed. Nil means net.DefaultResolver and a net.Dialer.
	ResolveTarget func(ctx context.Context, host string) ([]netip.Addr, error)
	DialTarget    func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout bounds the dial of a target, by default 20 s; the server
	// may ask for less. Negative means no bound but the server's.
	DialTimeout time.Duration
	// IdleTimeout ends streams on which no byte went either way. Zero and
	// negative mean never.
	IdleTimeout time.Duration
	// MaxStreams is how many streams a session takes, by default 2048, which
	// is more than a server sends by default.
	MaxStreams int
	// Labels and Serves are told to the servers, for their Picker. Serves
	// are networks and names; none means everything.
	Labels map[string]string
	Serves []string

	// AuthServer tells whether a server that connects to Serve may. Its error
	// should be a *connect.Error, which is answered. Nil asks for a verified
	// client certificate, whoever holds it: the listener's ClientCAs must then
	// have signed for servers only.
	AuthServer func(p *Peer) error
	// Head bounds request and response heads, by default 10 s and 64 KiB.
	Head connect.HeadLimits
	// Liveness says when a server is suspected and given up, Backoff how
	// long to wait between tries.
	Liveness Liveness
	Backoff  Backoff
	// DrainTimeout bounds Shutdown if its context does not, by default 25 s.
	// Negative means no bound.
	DrainTimeout time.Duration
	// Logger gets one line per event. Nil means silent.
	Logger *slog.Logger

	mu       sync.Mutex
	nonce    string
	ctx      context.Context
	cancel   context.CancelCauseFunc
	draining bool
	drains   chan struct{}
	sessions map[*agentSession]struct{}
	work     sync.WaitGroup
}

// init makes what the zero value lacks. a.mu is held.
func (a *Agent) init() {
	if a.ctx != nil {
		return
	}
	a.ctx, a.cancel = context.WithCancelCause(context.Background())
	a.drains = make(chan struct{})
	a.sessions = make(map[*agentSession]struct{})
	a.nonce = newNonce()
}

// withTimeout is context.WithTimeoutCause; negative means no bound.
func withTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if d < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, cause)
}

// begin counts one more Run or Serve; ctx ends with the given one and with
// Close, and the returned function ends the work.
func (a *Agent) begin(ctx context.Context) (context.Context, func(), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	if a.draining || a.ctx.Err() != nil {
		return nil, nil, ErrAgentClosed
	}
	a.work.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(a.ctx, func() { cancel(ErrAgentClosed) })
	return ctx, func() { stop(); cancel(nil); a.work.Done() }, nil
}

func (a *Agent) drainStarted() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	return a.drains
}

func (a *Agent) isDraining() bool {
	select {
	case <-a.drainStarted():
		return true
	default:
		return false
	}
}

func (a *Agent) logger() *slog.Logger {
	if a.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.Logger
}

// hello is what the agent says of itself.
func (a *Agent) hello() helloMessage {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	return helloMessage{
		MinVersion: minVersion, MaxVersion: maxVersion, Features: features(),
		ID: idOrHost(a.ID), Nonce: a.nonce, Software: software,
		Labels: a.Labels, Serves: a.Serves,
	}
}

// check refuses a configuration that no server would take.
func (a *Agent) check() error {
	h := a.hello()
	return h.check()
}

// enter registers a session until leave is called. It begins to drain at once
// if the agent does.
func (a *Agent) enter(s *agentSession) (leave func()) {
	a.mu.Lock()
	a.sessions[s] = struct{}{}
	draining := a.draining
	a.mu.Unlock()
	if draining {
		s.drain(drainShutdown)
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.sessions, s)
	}
}

func (a *Agent) list() []*agentSession {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*agentSession, 0, len(a.sessions))
	for s := range a.sessions {
		all = append(all, s)
	}
	return all
}

// Shutdown tells the servers to send no more dials, waits until the streams
// have ended, but no longer than ctx and DrainTimeout allow, and ends the
// sessions. It returns when Run and Serve have nothing left: nil, or the
// context's error if streams were reset.
func (a *Agent) Shutdown(ctx context.Context) error {
	if d := orDefault(a.DrainTimeout, 25*time.Second); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	a.startDrain()
	for _, s := range a.list() {
		s.drain(drainShutdown)
		s.endDrained(-1)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		a.work.Wait()
	}()
	var err error
	select {
	case <-stopped:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	a.cancel(ErrAgentClosed)
	<-stopped
	return err
}

// startDrain lets nothing new in.
func (a *Agent) startDrain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	if !a.draining {
		a.draining = true
		close(a.drains)
	}
}

// Close resets every stream, ends every session and returns when everything
// that the agent started is gone.
func (a *Agent) Close() error {
	a.startDrain()
	a.cancel(ErrAgentClosed)
	a.work.Wait()
	return nil
}

// Run connects to the servers and serves their dials until ctx ends, which
// resets the streams, or until Shutdown or Close. It returns ErrAgentClosed
// then, the context's cause otherwise, or at once what is wrong with the
// configuration.
func (a *Agent) Run(ctx context.Context) error {
	servers, err := a.parseServers()
	if err == nil {
		err = a.check()
	}
	if err != nil {
		return err
	}
	ctx, done, err := a.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	l := newLinks(a, servers)
	l.run(ctx)
	if a.isDraining() {
		return ErrAgentClosed
	}
	return context.Cause(ctx)
}

var errNoServers = errors.New("tunnel: agent without servers")
