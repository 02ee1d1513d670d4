package connect

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const defaultDialTimeout = 20 * time.Second

// A Handler is the proxy side: it makes an HTTP proxy of any dial function.
// It serves CONNECT and, for the clients that use CONNECT for https targets
// only, absolute-form requests for http:// targets. The zero value is an open
// proxy that dials directly.
//
// A Handler has no state and starts nothing by itself. Each Serve method
// blocks until its conns are done, owns all goroutines for them, and returns
// when all are gone. To end its conns, end its context: they are reset. Make
// one Handler per conn where Dial or Allow depend on whose conn it is; that
// costs nothing.
type Handler struct {
	// Dial reaches a target; nil means a [net.Dialer]. It gets the network
	// "tcp" and a host:port. It must return when its context ends, which it
	// does after DialTimeout, and when the client goes away. Its error
	// chooses the answer, see [Classify]. The request that it dials for is
	// found with [RequestFrom]. An absolute-form request may find a conn that
	// an earlier one of the same client conn left open, without a dial.
	Dial DialFunc
	// Allow, if not nil, is asked for each CONNECT and each absolute-form
	// request, also where no dial follows, with its own head and the host:port
	// that is wanted. It should not take long, for the client is not watched
	// meanwhile. An error refuses the request: an *Error as it says, every
	// other with 403 and http_request_denied. RequestFrom finds the request
	// in ctx, too.
	Allow func(ctx context.Context, r *Request, target string) error
	// Name is how the proxy calls itself in Proxy-Status and Via; empty means
	// "rhizome".
	Name string
	// DialTimeout bounds Dial. 0 means 20 s; negative means no bound.
	DialTimeout time.Duration
	// IdleTimeout resets a tunnel on which nothing went either way for so
	// long, also behind an upgrade. 0 and negative mean never. It also bounds
	// the pause between two absolute-form requests on one conn, which is
	// 2 min otherwise, but not a request under way.
	IdleTimeout time.Duration
	// Limits bounds each request head.
	Limits HeadLimits
	// Drain, if not nil, ends conns of absolute-form requests once it is
	// closed: idle ones at once, the others behind the request under way.
	// Tunnels go on.
	Drain <-chan struct{}
	// Observe, if not nil, is called at the begin of each CONNECT and each
	// absolute-form request whose head is acceptable, before Allow. The
	// function that it returns, if not nil, is called once at the end with
	// the outcome: nil after both directions ended with EOF, else why not.
	Observe func(*Tunnel) (done func(err error))
	// Logger gets one line per request at its end, with target, outcome,
	// bytes and duration: at level Info if it failed, else at Debug. Nil is
	// silent.
	Logger *slog.Logger
}

type requestKey struct{}

// RequestFrom returns the request that is being served, in the context that a
// [Handler] gives to Allow and Dial, and nil in any other. It is for reading
// only, and its Early is not to be touched.
func RequestFrom(ctx context.Context) *Request {
	r, _ := ctx.Value(requestKey{}).(*Request)
	return r
}

// A Tunnel is one request that a [Handler] serves, for who counts and lists
// them. Its fields do not change.
type Tunnel struct {
	// Request is the head. Its Early is not to be touched.
	Request *Request
	// Target is the host:port that is wanted.
	Target string
	// Client is the remote address of the client's conn.
	Client net.Addr
	// Start is when the head had been read.
	Start time.Time

	relayed          relay.Counter
	bodyUp, bodyDown atomic.Int64
}

// Bytes returns how many bytes went from the client to the target and back so
// far. It can be called at any time from any goroutine and is final when done
// is called. For an absolute-form request these are the bytes of the bodies and
// of what follows an upgrade.
func (t *Tunnel) Bytes() (up, down int64) {
	up, down = t.relayed.Bytes()
	return up + t.bodyUp.Load(), down + t.bodyDown.Load()
}

// errClientGone ends a dial whose client went away.
var errClientGone = &Error{Reason: ErrTerminated, Detail: "the client went away before the answer"}

// Serve accepts conns from l and serves each with ServeConn until l fails or
// ctx ends. It owns l and returns when all conns are done, with nil if ctx
// ended and the error of Accept otherwise. It does not wait for tunnels
// politely: whoever wants to drain closes l, waits, and then ends ctx.
func (h *Handler) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err := guard.Accept(ctx, l, h.logger(), func(c net.Conn) {
		conns.Go(func() { h.ServeConn(ctx, c) })
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeConn reads a request head from c and serves it, and those that follow
// if it was an absolute-form request. It owns c, has closed it when it
// returns, and resets it if ctx ends. A TLS handshake that is still to be done
// has the time of a head for itself. A head that is not acceptable is answered
// with the status that fits.
//
// The result is nil if all went well, an *Error for a request that was
// refused, and otherwise what broke the conn or the tunnel.
func (h *Handler) ServeConn(ctx context.Context, c net.Conn) error {
	defer c.Close()
	stop := resetWith(ctx, c)
	defer stop()
	if t, ok := c.(interface{ HandshakeContext(context.Context) error }); ok {
		if err := h.handshake(ctx, t.HandshakeContext); err != nil {
			h.logHead(ctx, c, err)
			if plainConn(err) != nil {
				WriteError(c, h.Name, headError(err, &h.Limits))
			}
			return err
		}
	}
	r, err := ReadRequest(c, &h.Limits)
	if err == io.EOF {
		return nil // a health check, or a conn that was opened to spare
	}
	if err != nil {
		h.logHead(ctx, c, err)
		var e *Error
		if errors.As(err, &e) {
			WriteError(c, h.Name, e)
		}
		return err
	}
	stop()
	return h.ServeRequest(ctx, c, r)
}

// handshake bounds the TLS handshake of a conn like a head.
func (h *Handler) handshake(ctx context.Context, shake func(context.Context) error) error {
	if d := h.Limits.timeout(); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	return shake(ctx)
}

// resetWith resets c when ctx ends. The returned function ends that and waits
// until nothing of it runs; it may be called again.
func resetWith(ctx context.Context, c net.Conn) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		relay.Reset(c)
	})
	return sync.OnceFunc(func() {
		if !cancel() {
			<-done
		}
	})
}

// ServeRequest serves the request r that [ReadRequest] has read from c, and
// those that follow if it is an absolute-form request. It owns c, has closed
// it when it returns, and resets it if ctx ends. The result is as that of
// ServeConn.
func (h *Handler) ServeRequest(ctx context.Context, c net.Conn, r *Request) error {
	defer c.Close()
	if r.Method == http.MethodConnect {
		return h.serveConnect(ctx, c, r)
	}
	if _, err := r.Address(); err != nil {
		stop := resetWith(ctx, c)
		defer stop()
		h.logHead(ctx, c, err)
		WriteError(c, h.Name, err)
		return err
	}
	return h.serveHTTP(ctx, c, r)
}

// ServeHTTP serves CONNECT and absolute-form requests within an [http.Server],
// for those who have one anyway. It returns when the tunnel has ended.
//
// It has limits that ServeConn does not have. net/http's [http.ServeMux]
// answers CONNECT with 404: the Handler must be the server's handler itself,
// or be called before the mux. Only HTTP/1.x can be served: a TLS server must
// not offer h2. Refusals of absolute-form requests carry no reason phrase of
// ours. A tunnel is a hijacked conn, which [http.Server.Shutdown] and Close
// forget: end it with the context of [http.Server.BaseContext].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 {
		h.answer(w, &Error{Reason: ErrRequest, Status: http.StatusHTTPVersionNotSupported,
			Detail: "this proxy speaks HTTP/1.1 only; offer only http/1.1 in ALPN"})
		return
	}
	if r.Method != http.MethodConnect {
		t := h.newTransport()
		defer t.close()
		t.DisableKeepAlives = true
		h.serveForward(w, r, t)
		return
	}
	h.hijack(w, r, r.Context())
}

// hijack takes a CONNECT out of net/http and serves it.
func (h *Handler) hijack(w http.ResponseWriter, r *http.Request, ctx context.Context) error {
	req := fromHTTP(r)
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		e := &Error{Reason: ErrInternal, Detail: "the server cannot give its conn away: " + err.Error(), Err: err}
		h.answer(w, e)
		return e
	}
	defer c.Close()
	c.SetDeadline(time.Time{})
	req.Early = unread(buffered.Reader)
	return h.serveConnect(ctx, c, req)
}

// unread returns a copy of what net/http had read ahead, or nil.
func unread(r *bufio.Reader) []byte {
	b, _ := r.Peek(r.Buffered())
	return append([]byte(nil), b...)
}

// fromHTTP is the head of a request that net/http has read.
func fromHTTP(r *http.Request) *Request {
	header := r.Header.Clone()
	for _, coding := range r.TransferEncoding {
		header.Add("Transfer-Encoding", coding)
	}
	return &Request{Method: r.Method, Target: r.RequestURI, Proto: r.Proto, Host: r.Host, Header: header}
}

// serveConnect serves one CONNECT on c and closes it.
func (h *Handler) serveConnect(ctx context.Context, c net.Conn, r *Request) error {
	target, err := r.Address()
	if err == nil && r.hasBody() {
		err = &Error{Reason: ErrRequest, Detail: "CONNECT with a body"}
	}
	stop := resetWith(ctx, c)
	defer stop()
	if err != nil {
		h.logHead(ctx, c, err)
		WriteError(c, h.Name, err)
		return err
	}
	t := &Tunnel{Request: r, Target: target, Client: c.RemoteAddr(), Start: time.Now()}
	end := h.begin(ctx, t)
	conn, early, err := h.open(context.WithValue(ctx, requestKey{}, r), c, t)
	if err != nil {
		if errors.Is(err, errClientGone) || ctx.Err() != nil {
			relay.Reset(c)
		} else {
			WriteError(c, h.Name, err)
		}
		return end(err)
	}
	stop() // Relay watches ctx itself
	if len(early) > 0 {
		c = relay.NewPrefixed(c, early)
	}
	o := &relay.Options{IdleTimeout: h.IdleTimeout, Counter: &t.relayed}
	return end(relay.Relay(ctx, c, conn, o))
}

// begin tells the observer about t and returns what tells of its end.
func (h *Handler) begin(ctx context.Context, t *Tunnel) (end func(error) error) {
	var done func(error)
	if h.Observe != nil {
		done = h.Observe(t)
	}
	return func(err error) error {
		h.log(ctx, t, err)
		if done != nil {
			done(err)
		}
		return err
	}
}

// open asks Allow, dials, and answers 200.
func (h *Handler) open(ctx context.Context, c net.Conn, t *Tunnel) (target net.Conn, early []byte, err error) {
	if err := h.allow(ctx, t.Request, t.Target); err != nil {
		return nil, nil, err
	}
	dialCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := guard.Watch(c, t.Request.Early, func() { cancel(errClientGone) })
	target, err = h.dial(dialCtx, t.Target)
	early, unwatched := w.Stop()
	if errors.Is(context.Cause(dialCtx), errClientGone) {
		err = errClientGone
	}
	if err == nil {
		err = unwatched
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		c.SetWriteDeadline(time.Now().Add(answerTimeout))
		err = (&Response{Status: http.StatusOK, Phrase: "Connection established"}).Write(c)
		c.SetWriteDeadline(time.Time{})
		if err != nil {
			err = &Error{Reason: ErrTerminated, Detail: errClientGone.Detail, Err: errors.Join(errClientGone, err)}
		}
	}
	if err != nil {
		if target != nil {
			relay.Reset(target)
		}
		return nil, nil, err
	}
	return target, early, nil
}

func (h *Handler) allow(ctx context.Context, r *Request, target string) error {
	if h.Allow == nil {
		return nil
	}
	err := h.Allow(ctx, r, target)
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	e = &Error{Reason: ErrDenied, Target: target, Err: err}
	var reason Reason
	if errors.As(err, &reason) {
		e.Reason = reason
	}
	return e
}

// dial calls Dial with its bound.
func (h *Handler) dial(ctx context.Context, target string) (net.Conn, error) {
	limit := h.DialTimeout
	if limit == 0 {
		limit = defaultDialTimeout
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, dialTimeout(limit))
		defer cancel()
	}
	dial := h.Dial
	if dial == nil {
		dial = directDial
	}
	c, err := dial(ctx, "tcp", target)
	if err == nil && ctx.Err() != nil {
		relay.Reset(c) // the answer came too late
		c, err = nil, context.Cause(ctx)
	}
	if err != nil {
		var chosen *Error
		if t, ok := context.Cause(ctx).(dialTimeout); ok && !errors.As(err, &chosen) {
			return nil, &Error{Reason: ErrTimeout, Target: target, Detail: t.Error(), Err: err}
		}
		return nil, Classify(err)
	}
	return c, nil
}

// dialTimeout is the cause of a dial's context that ended by DialTimeout.
type dialTimeout time.Duration

func (t dialTimeout) Error() string { return "no connection within " + time.Duration(t).String() }
func (t dialTimeout) Timeout() bool { return true }

// log writes the one line of a request.
func (h *Handler) log(ctx context.Context, t *Tunnel, err error) {
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelInfo
	}
	log := h.logger()
	if !log.Enabled(ctx, level) {
		return
	}
	outcome := "closed"
	if err != nil {
		outcome = logged(err)
	}
	up, down := t.Bytes()
	attrs := []slog.Attr{slog.String("method", t.Request.Method), slog.String("target", t.Target),
		slog.String("outcome", outcome), slog.Int64("up", up), slog.Int64("down", down),
		slog.Duration("duration", time.Since(t.Start))}
	if t.Client != nil {
		attrs = append(attrs, slog.String("client", t.Client.String()))
	}
	log.LogAttrs(ctx, level, "connect", attrs...)
}

func (h *Handler) logger() *slog.Logger {
	if h.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Logger
}

// logHead tells of a peer whose request did not get as far as a target. It is
// a line for debugging, because anybody can cause as many as he likes.
func (h *Handler) logHead(ctx context.Context, c net.Conn, err error) {
	attrs := []slog.Attr{slog.String("outcome", logged(err))}
	if a := c.RemoteAddr(); a != nil {
		attrs = append(attrs, slog.String("client", a.String()))
	}
	h.logger().LogAttrs(ctx, slog.LevelDebug, "connect: bad request", attrs...)
}

// maxLogged bounds what one error may add to a log, because a peer has a say in
// its text.
const maxLogged = 512

// logged is the text of an error for a log.
func logged(err error) string {
	s := err.Error()
	if len(s) <= maxLogged {
		return s
	}
	const more = "…"
	return strings.ToValidUTF8(s[:maxLogged-len(more)], "") + more
}
