package egress

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Selector turns a Config into dial functions.
//
// Set the fields, then use it; it needs no start and keeps no goroutine. The
// zero value has no configuration and dials everything directly. All methods
// may be called at the same time. The fields and the Config must not be
// changed, and the Selector not be copied, after the first use.
//
// It dials more than kube-apiserver accepts: a proxyProtocol in any case,
// plain http://, and https:// with no tlsConfig or without a client
// certificate. With a Logger it says at the first use what kube-apiserver
// would refuse.
type Selector struct {
	// Config says what goes where. Nil means that all is direct.
	Config *Config
	// Dial reaches proxies ("tcp" and "unix") and the targets of direct
	// traffic. Nil means a [net.Dialer] with a timeout of 30 s and keep-alive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds one dial through a proxy, from the connection to the
	// proxy until its answer. Zero means 30 s, negative means no bound but
	// the context's.
	Timeout time.Duration
	// Interval is how old certificate files may be, at a dial, before they
	// are read again. Zero means 10 s, negative means that they are read once.
	Interval time.Duration
	// Observe, if not nil, is told of each dial through a proxy. It is called
	// by the dialling goroutine and must return quickly. Direct dials are not
	// reported, as they are not in kube-apiserver's metrics.
	Observe func(Event)
	// Logger gets a line for each new certificate file and, once, for what
	// kube-apiserver would refuse. Nil means silent.
	Logger *slog.Logger

	once   sync.Once
	routes map[Selection]*route
}

// Stage is where a dial failed.
type Stage string

const (
	// StageConnect is the way to the proxy: its name, TCP or the socket, TLS.
	StageConnect Stage = "connect"
	// StageProxy is the request to the proxy: it refused, timed out, or the
	// target did.
	StageProxy Stage = "proxy"
)

// EventType is what an [Event] tells.
type EventType string

const (
	// DialStart comes before anything is done. kube-apiserver counts it in
	// apiserver_egress_dialer_dial_start_total.
	DialStart EventType = "start"
	// DialDone comes when the tunnel is open, with Duration. kube-apiserver
	// has it in apiserver_egress_dialer_dial_duration_seconds.
	DialDone EventType = "done"
	// DialFailed comes else, with Stage and Err. kube-apiserver counts it in
	// apiserver_egress_dialer_dial_failure_count.
	DialFailed EventType = "failed"
)

// Event is one step of a dial through a proxy. Protocol, Transport and Stage
// are the labels of kube-apiserver's metrics.
type Event struct {
	Type      EventType
	Selection Selection
	Protocol  string        // "http_connect" or "grpc"
	Transport string        // "tcp" or "uds"
	Proxy     string        // host:port or path of the proxy
	Target    string        // the address that is dialled
	Stage     Stage         // with DialFailed
	Duration  time.Duration // since the start, with DialDone and DialFailed
	Err       error         // with DialFailed
}

// DialError is why a dial through a proxy failed. [connect.Error] is found in
// it with errors.As, reasons such as [connect.ErrRefused] with errors.Is. A
// configuration that cannot be dialled answers [connect.ErrConfig], and GRPC
// errors.ErrUnsupported as well.
type DialError struct {
	Selection Selection
	Stage     Stage
	Err       error
}

// Error returns one line.
func (e *DialError) Error() string { return "egress: " + string(e.Selection) + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// Timeout reports whether something took too long.
func (e *DialError) Timeout() bool {
	t, ok := e.Err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// Temporary is there for net.Error only.
//
// Deprecated: it says the same as Timeout.
func (e *DialError) Temporary() bool { return e.Timeout() }

// Lookup returns the dial function of a selection, and false when the Config
// does not name it: kube-apiserver dials directly then.
//
// The context governs the dial up to and including the proxy's answer, and not
// the life of the conn. The network is "tcp" (or tcp4, tcp6, which the proxy
// does not learn); the address is host:port and resolved by the proxy. The
// caller owns the conn, which half-closes with CloseWrite. Errors are
// [*DialError], those of direct dials what Dial gives.
func (s *Selector) Lookup(sel Selection) (dial func(ctx context.Context, network, address string) (net.Conn, error), ok bool) {
	s.once.Do(s.setup)
	r, ok := s.routes[sel]
	switch {
	case !ok:
		return nil, false
	case r.direct:
		return s.dialDirect, true
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.dialProxy(ctx, r, network, address)
	}, true
}

// Dialer is as Lookup for a selection that the Config names, and else dials
// directly, as kube-apiserver does.
func (s *Selector) Dialer(sel Selection) func(ctx context.Context, network, address string) (net.Conn, error) {
	if dial, ok := s.Lookup(sel); ok {
		return dial
	}
	return s.dialDirect
}

// Run reads certificate files as they change until ctx ends, then returns nil.
// It is optional: without it they are read again at the first dial after
// Interval, which takes that much longer.
func (s *Selector) Run(ctx context.Context) error {
	s.once.Do(s.setup)
	var wg sync.WaitGroup
	for _, r := range s.routes {
		if r.pair != nil {
			wg.Go(func() { r.pair.Run(ctx) })
		}
		if r.pool != nil {
			wg.Go(func() { r.pool.Run(ctx) })
		}
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

// setup makes the routes. It reads certificate files only to log what
// kube-apiserver would say of them.
func (s *Selector) setup() {
	s.routes = make(map[Selection]*route)
	if s.Config == nil {
		return
	}
	if s.Logger != nil {
		for _, p := range s.Config.Validate().Errors {
			s.Logger.Warn("kube-apiserver would refuse this egress configuration", "problem", p.String())
		}
	}
	for i := range s.Config.EgressSelections {
		e := &s.Config.EgressSelections[i]
		sel, ok := e.Selection()
		if !ok {
			continue // nothing asks for it
		}
		r := s.route(sel, &e.Connection)
		if _, dup := s.routes[sel]; dup {
			r.direct, r.err = false, configError("the configuration has several selections of this name")
		}
		s.routes[sel] = r
	}
}

// dialDirect is the way of direct traffic and to the proxies.
func (s *Selector) dialDirect(ctx context.Context, network, address string) (net.Conn, error) {
	if s.Dial != nil {
		return s.Dial(ctx, network, address)
	}
	d := net.Dialer{Timeout: 30 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	return d.DialContext(ctx, network, address)
}

func (s *Selector) dialProxy(ctx context.Context, r *route, network, address string) (net.Conn, error) {
	ev := Event{Selection: r.selection, Protocol: r.protocol, Transport: r.transport, Proxy: r.proxy.Address, Target: address}
	emit := func(t EventType) {
		if s.Observe != nil {
			ev.Type = t
			s.Observe(ev)
		}
	}
	start := time.Now()
	emit(DialStart)
	conn, stage, err := r.dial(ctx, network, address)
	ev.Duration = time.Since(start)
	if err != nil {
		err = &DialError{Selection: r.selection, Stage: stage, Err: err}
		ev.Stage, ev.Err = stage, err
		emit(DialFailed)
		return nil, err
	}
	emit(DialDone)
	return conn, nil
}

func configError(detail string) error {
	return &connect.Error{Reason: connect.ErrConfig, Detail: strings.TrimPrefix(detail, "egress: ")}
}
