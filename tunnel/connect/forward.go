package connect

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const (
	// keepAliveIdle is how long a conn may wait for its next absolute-form
	// request, where Handler.IdleTimeout does not say.
	keepAliveIdle = 2 * time.Minute
	// targetIdle is how long a conn to a target waits for the next request.
	targetIdle = 90 * time.Second
)

// silent takes what net/http would write to the program's standard error.
var silent = log.New(io.Discard, "", 0)

// httpSession is one client conn that carries absolute-form requests, served
// by an http.Server of its own, so that keep-alive, pipelining, bodies of any
// size, 100-continue, trailers and upgrades are net/http's. A CONNECT may
// follow on the same conn.
type httpSession struct {
	h         *Handler
	ctx       context.Context
	conn      net.Conn
	transport *targets
	handlers  sync.WaitGroup
	err       error // of a CONNECT on the conn; belongs to the handlers
}

// serveHTTP serves c, from which r was read, and all requests that follow.
func (h *Handler) serveHTTP(ctx context.Context, c net.Conn, r *Request) error {
	stop := resetWith(ctx, c)
	defer stop()
	s := &httpSession{h: h, ctx: ctx, conn: c, transport: h.newTransport()}
	defer s.transport.close()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	idle := h.IdleTimeout
	if idle <= 0 {
		idle = keepAliveIdle
	}
	l := &oneConn{conn: r.Replay(c), ended: make(chan struct{})}
	srv := &http.Server{
		Handler:                      s,
		Protocols:                    &protocols,
		ReadHeaderTimeout:            max(h.Limits.timeout(), 0),
		IdleTimeout:                  idle,
		MaxHeaderBytes:               h.Limits.maxBytes(),
		ErrorLog:                     silent,
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				close(l.ended)
			}
		},
	}
	var drain sync.WaitGroup
	if h.Drain != nil {
		drain.Go(func() {
			select {
			case <-h.Drain:
				srv.SetKeepAlivesEnabled(false)
			case <-l.ended:
			}
		})
	}
	srv.Serve(l) // returns when the conn has ended
	s.handlers.Wait()
	drain.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.err
}

func (s *httpSession) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.handlers.Add(1)
	defer s.handlers.Done()
	defer func() {
		// http.ErrAbortHandler: the response broke off. net/http only closes
		// then, and a body without length or chunks would look whole.
		if p := recover(); p != nil {
			relay.Reset(s.conn)
			panic(p)
		}
	}()
	if r.Method == http.MethodConnect {
		s.err = s.h.hijack(w, r, s.ctx)
		return
	}
	s.h.serveForward(w, r, s.transport)
}

// oneConn is a listener that accepts one conn, and fails after its end.
type oneConn struct {
	conn  net.Conn
	taken bool
	ended chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// targets makes the conns to the targets of one client conn. They are pooled,
// because a scraper asks the same target again and again, but only for this
// client: what another may reach is not for him.
type targets struct {
	*http.Transport
	h      *Handler
	mu     sync.Mutex
	closed bool
	dials  sync.WaitGroup // Add only under mu and while not closed
}

func (h *Handler) newTransport() *targets {
	t := &targets{h: h}
	t.Transport = &http.Transport{
		DialContext:            t.dial,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConns:           4,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        targetIdle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: int64(h.Limits.maxBytes()),
	}
	return t
}

// close ends all conns. It is called when no request is under way any more.
func (t *targets) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.dials.Wait()
	t.CloseIdleConnections()
}

// dial is called by the Transport, with a context that lives on when the
// request is cancelled, because another request might want the conn. None of
// ours would: the request's own context, which the value is, governs.
func (t *targets) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	f := ctx.Value(forwardKey{}).(*forwarded)
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, net.ErrClosed
	}
	t.dials.Add(1)
	t.mu.Unlock()
	defer t.dials.Done()
	return t.h.dial(f.ctx, f.tunnel.Target)
}

// remoteAddr is the address of a client as net/http writes it.
type remoteAddr string

func (a remoteAddr) Network() string { return "tcp" }
func (a remoteAddr) String() string  { return string(a) }

type forwardKey struct{}

// forwarded is one absolute-form request under way.
type forwarded struct {
	h      *Handler
	w      http.ResponseWriter
	ctx    context.Context
	tunnel *Tunnel
	conn   net.Conn // to the target
	err    error    // outcome
}

// serveForward serves one request that is not CONNECT.
func (h *Handler) serveForward(w http.ResponseWriter, r *http.Request, t *targets) {
	req := fromHTTP(r)
	target, err := req.Address()
	if err != nil {
		h.answer(w, err)
		return
	}
	f := &forwarded{h: h, w: w, ctx: context.WithValue(r.Context(), requestKey{}, req),
		tunnel: &Tunnel{Request: req, Target: target, Client: remoteAddr(r.RemoteAddr), Start: time.Now()}}
	end := h.begin(r.Context(), f.tunnel)
	// Otherwise net/http throws away what is unread of the body as soon as the
	// target begins to answer, and the target gets a body cut short.
	http.NewResponseController(w).EnableFullDuplex()
	aborted := true
	defer func() {
		// ReverseProxy panics with http.ErrAbortHandler to reset a client whose
		// response broke in the middle.
		if aborted && f.err == nil {
			f.err = &Error{Reason: ErrTerminated, Target: target, Detail: "the response broke off"}
		}
		end(f.err)
	}()
	if err := h.allow(f.ctx, req, target); err != nil {
		f.err, aborted = err, false
		h.answer(w, err)
		return
	}
	ctx := httptrace.WithClientTrace(context.WithValue(f.ctx, forwardKey{}, f), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { f.conn = i.Conn },
	})
	out := r.WithContext(ctx)
	if out.Body != nil && out.Body != http.NoBody {
		out.Body = &countedBody{ReadCloser: out.Body, n: &f.tunnel.bodyUp}
	}
	p := &httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      t,
		FlushInterval:  -1,
		ErrorLog:       silent,
		ModifyResponse: f.modifyResponse,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if err == errUpgraded {
				return
			}
			f.err = forwardError(err, target)
			h.answer(w, f.err)
		},
	}
	p.ServeHTTP(w, out)
	aborted = false
}

// rewrite makes the request that goes to the target, RFC 9110 §7.6. Fields
// that ReverseProxy strips because they may be forged are the client's own
// business at a forward proxy.
func (f *forwarded) rewrite(p *httputil.ProxyRequest) {
	connection := strings.ToLower(strings.Join(p.In.Header["Connection"], ","))
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[name]; ok && !strings.Contains(connection, strings.ToLower(name)) {
			p.Out.Header[name] = v
		}
	}
	for name := range p.Out.Header {
		if strings.HasPrefix(name, "Proxy-") {
			delete(p.Out.Header, name)
		}
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	if p.In.Method == http.MethodOptions && p.In.URL.Path == "" {
		p.Out.URL.Path = "*" // RFC 9112 §3.2.4
	}
	p.Out.Host = p.In.URL.Host
	p.Out.Header["Via"] = append(slices.Clone(p.Out.Header["Via"]), f.h.via(p.In.ProtoMinor))
}

func (f *forwarded) modifyResponse(r *http.Response) error {
	r.Header["Via"] = append(r.Header["Via"], f.h.via(r.ProtoMinor))
	if r.StatusCode == http.StatusSwitchingProtocols {
		return f.upgrade(r)
	}
	r.Body = &countedBody{ReadCloser: r.Body, n: &f.tunnel.bodyDown}
	return nil
}

// errUpgraded tells ReverseProxy that there is nothing left to do.
var errUpgraded = errors.New("upgraded")

// upgrade passes 101 on and relays what follows. ReverseProxy could do it, but
// it ends a tunnel that broke like one that is complete.
func (f *forwarded) upgrade(r *http.Response) error {
	want, got := f.tunnel.Request.Header.Get("Upgrade"), r.Header.Get("Upgrade")
	body, ok := r.Body.(io.ReadWriteCloser)
	if !ok || f.conn == nil || !strings.EqualFold(want, got) {
		return &Error{Reason: ErrProtocol, Detail: "the target switched to " + quote(got) + " where " + quote(want) + " was asked for"}
	}
	c, buffered, err := http.NewResponseController(f.w).Hijack()
	if err != nil {
		return &Error{Reason: ErrInternal, Err: err}
	}
	_, phrase, _ := strings.Cut(r.Status, " ")
	head := &Response{Status: r.StatusCode, Phrase: oneLine(phrase, maxPhrase), Header: r.Header}
	c.SetDeadline(time.Now().Add(answerTimeout))
	if err := head.Write(c); err != nil {
		relay.Reset(c)
		relay.Reset(f.conn)
		f.err = &Error{Reason: ErrTerminated, Target: f.tunnel.Target, Err: err}
		return errUpgraded
	}
	c.SetDeadline(time.Time{})
	if early := unread(buffered.Reader); early != nil {
		c = relay.NewPrefixed(c, early)
	}
	f.err = relay.Relay(f.ctx, c, &upgraded{f.conn, body},
		&relay.Options{IdleTimeout: f.h.IdleTimeout, Counter: &f.tunnel.relayed})
	return errUpgraded
}

// upgraded is the conn to a target that switched protocols. It is read through
// the body of the answer, which may hold the first bytes.
type upgraded struct {
	net.Conn
	body io.Reader
}

func (u *upgraded) NetConn() net.Conn          { return u.Conn } // nobody else uses it any more
func (u *upgraded) Read(p []byte) (int, error) { return u.body.Read(p) }
func (u *upgraded) CloseWrite() error          { return relay.CloseWrite(u.Conn) }
func (u *upgraded) Reset() error               { return relay.Reset(u.Conn) }

// via is our entry in Via, whose pseudonym is a token, RFC 9110 §7.6.3.
func (h *Handler) via(minor int) string {
	name := h.Name
	if !isToken(name) {
		name = defaultName
	}
	if minor == 0 {
		return "1.0 " + name
	}
	return "1.1 " + name
}

// forwardError is Classify for what comes out of net/http, whose errors about
// a target that speaks no HTTP have no type.
func forwardError(err error, target string) *Error {
	e := Classify(err)
	if e.Reason == ErrInternal && e.Err == err {
		e.Reason = ErrProtocol
	}
	if e.Target == "" {
		e.Target = target
	}
	return e
}

// answer refuses a request within net/http, where the reason phrase cannot be
// chosen.
func (h *Handler) answer(w http.ResponseWriter, err error) {
	r := Classify(err).Response(h.Name)
	for name, values := range r.Header {
		w.Header()[name] = values
	}
	w.Header().Del("Connection") // net/http knows whether the conn can go on
	w.WriteHeader(r.Status)
	w.Write(r.Early)
}

// countedBody counts what is read of a body.
type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
