package connect

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const defaultHandshakeTimeout = 30 * time.Second

// DialFunc is the shape of every dial function here and of
// [net.Dialer.DialContext]. The context governs the call and not the life of
// the conn.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// A Dialer reaches targets through an HTTP proxy with CONNECT, RFC 9110
// §9.3.6. Only Address must be set. It is safe for concurrent use if its
// fields are not changed meanwhile, and it may be copied.
type Dialer struct {
	// Network and Address say where the proxy is. Network is "tcp" or "unix";
	// empty means "tcp".
	Network, Address string
	// TLS turns TLS to the proxy on; nil means plain. It is cloned, an empty
	// ServerName becomes the host of Address, and ALPN offers http/1.1 alone,
	// because CONNECT is written in HTTP/1.1 whatever was negotiated.
	TLS *tls.Config
	// Header is sent along with each CONNECT. A Host field replaces the host
	// of the target there.
	Header http.Header
	// GetHeader, if not nil, gives more fields for one dial. They replace
	// those of the same name. An error of it ends the dial.
	GetHeader func(ctx context.Context, target string) (http.Header, error)
	// User gives Basic credentials for Proxy-Authorization; nil means none.
	User *url.Userinfo
	// Bearer, if not nil, gives the token for Proxy-Authorization. It is asked
	// for each dial. User and Bearer exclude each other; a
	// Proxy-Authorization in Header or from GetHeader goes before both.
	Bearer func(ctx context.Context) (string, error)
	// Forward reaches the proxy; nil means a [net.Dialer] with a keep-alive of
	// 30 s, 10 s, 3 times. The DialContext of another Dialer chains proxies.
	Forward DialFunc
	// Timeout bounds the dial from the call to the answer of the proxy. 0
	// means 30 s; negative means that only the context bounds it.
	Timeout time.Duration
	// Limits bounds the head of the answer. Other than elsewhere a Timeout of
	// 0 is no bound of its own: Timeout above governs, for the answer comes
	// only after the proxy's own dial.
	Limits HeadLimits
}

// DialContext asks the proxy for a tunnel to address, a host:port that
// [ParseTarget] accepts; the proxy resolves its name. The network is "tcp",
// "tcp4" or "tcp6", of which the proxy never learns.
//
// The context governs everything up to and including the proxy's answer, and
// not the life of the conn. If it ends first, the half-made conn is closed.
// Nothing runs on after the return.
//
// The conn is the one to the proxy, a *tls.Conn or what Forward returned, so that
// it half-closes as that does and can be spliced; only if the target spoke in
// the same bytes as the answer it is a [relay.Prefixed]. Any 2xx answer opens
// the tunnel. The error is an *Error; if the context has ended, it is found in
// there too.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, d.failed(err, address)
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return fail(&Error{Reason: ErrRequest, Err: net.UnknownNetworkError(network)})
	}
	if _, _, err := ParseTarget(address); err != nil {
		return fail(err)
	}
	limit := d.Timeout
	if limit == 0 {
		limit = defaultHandshakeTimeout
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, handshakeTimeout(limit))
		defer cancel()
	}
	head, err := d.request(ctx, address)
	if err != nil {
		return fail(ctxError(ctx, err))
	}
	raw, err := d.forward()(ctx, d.network(), d.Address)
	if err != nil {
		return fail(ctxError(ctx, err))
	}
	// From here on the end of the context closes the conn, which ends every
	// read and write that is under way.
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		relay.Reset(raw)
	})
	conn, err := d.handshake(ctx, raw, address, head)
	if !stop() {
		<-closed
		return fail(ctxError(ctx, net.ErrClosed))
	}
	if err != nil {
		raw.Close()
		return fail(err)
	}
	return conn, nil
}

// Dial is DialContext without a context: [Dialer.Timeout] alone bounds it.
// With it Dialer is a Dialer of [golang.org/x/net/proxy].
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// request renders the head of one CONNECT.
func (d *Dialer) request(ctx context.Context, target string) ([]byte, error) {
	r := &Request{Method: http.MethodConnect, Target: target, Header: http.Header{}}
	for name, values := range d.Header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	if d.GetHeader != nil {
		h, err := d.GetHeader(ctx, target)
		if err != nil {
			return nil, hookError("GetHeader", err)
		}
		for name, values := range h {
			r.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if d.User != nil && d.Bearer != nil {
		return nil, &Error{Reason: ErrConfig, Detail: "both User and Bearer credentials"}
	}
	const auth = "Proxy-Authorization"
	if _, set := r.Header[auth]; !set {
		switch {
		case d.User != nil:
			password, _ := d.User.Password()
			pair := d.User.Username() + ":" + password
			r.Header.Set(auth, "Basic "+base64.StdEncoding.EncodeToString([]byte(pair)))
		case d.Bearer != nil:
			token, err := d.Bearer(ctx)
			if err != nil {
				return nil, hookError("Bearer", err)
			}
			r.Header.Set(auth, "Bearer "+strings.TrimSpace(token))
		}
	}
	r.Host = r.Header.Get("Host")
	delete(r.Header, "Host")
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// hookError is a failure of our own side before anything was sent.
func hookError(hook string, err error) error {
	return &Error{Reason: ErrConfig, Detail: hook + ": " + err.Error(), Err: err}
}

// handshake does what comes between the conn to the proxy and the tunnel.
// Whoever calls it watches the context and closes raw.
func (d *Dialer) handshake(ctx context.Context, raw net.Conn, target string, head []byte) (net.Conn, error) {
	conn := raw
	if d.TLS != nil {
		t := tls.Client(raw, d.tlsConfig())
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, tlsError(err)
		}
		conn = t
	}
	if _, err := conn.Write(head); err != nil {
		return nil, err
	}
	limits := d.Limits
	if limits.Timeout == 0 {
		limits.Timeout = -1
	}
	r, err := ReadResponse(conn, &limits)
	if err != nil {
		return nil, err
	}
	if r.Status < 200 || r.Status > 299 {
		return nil, r.Refusal(d.proxy(), target)
	}
	if r.Early != nil {
		return relay.NewPrefixed(conn, r.Early), nil
	}
	return conn, nil
}

func (d *Dialer) tlsConfig() *tls.Config {
	c := d.TLS.Clone()
	c.NextProtos = []string{"http/1.1"}
	if c.ServerName == "" && d.network() != "unix" {
		host, _, err := net.SplitHostPort(d.Address)
		if err != nil {
			host = d.Address
		}
		c.ServerName = host
	}
	return c
}

// tlsError names the reason of a failed handshake. What crypto/tls says of a
// peer without TLS tells nobody what to do.
func tlsError(err error) error {
	var record tls.RecordHeaderError
	if errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/" {
		return &Error{Reason: ErrTLS, Detail: "the proxy speaks plain HTTP: use http://", Err: err}
	}
	e := Classify(err)
	if e.Reason == ErrInternal {
		e.Reason = ErrTLS
	}
	return e
}

func (d *Dialer) network() string {
	if d.Network == "" {
		return "tcp"
	}
	return d.Network
}

func (d *Dialer) forward() DialFunc {
	if d.Forward != nil {
		return d.Forward
	}
	return directDial
}

// directDial is what dials where no dial function is given.
func directDial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	relay.KeepAlive(c)
	return c, nil
}

// proxy names the proxy as a URL without credentials.
func (d *Dialer) proxy() string {
	scheme := "http"
	if d.TLS != nil {
		scheme = "https"
	}
	if d.network() == "unix" {
		return scheme + "+unix://" + d.Address
	}
	return scheme + "://" + d.Address
}

// failed makes err an *Error of this dialer. What another Dialer says, which
// chains us to the proxy, stays in Err and is told in words.
func (d *Dialer) failed(err error, target string) *Error {
	e := Classify(err)
	if e.Proxy == "" {
		if error(e) == err {
			err = e.Err
		}
		return &Error{Reason: e.Reason, Detail: e.Detail, RetryAfter: e.RetryAfter, Proxy: d.proxy(), Target: target, Err: err}
	}
	if e.Proxy == d.proxy() && e.Target == target {
		return e
	}
	return &Error{Reason: e.Reason, Detail: strings.TrimPrefix(e.Error(), "connect: "), RetryAfter: e.RetryAfter,
		Proxy: d.proxy(), Target: target, Err: err}
}

// ctxError explains the err of a dial whose context has ended: with why it
// has, for the err tells only what that broke.
func ctxError(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	cause := context.Cause(ctx)
	if t, ok := cause.(handshakeTimeout); ok {
		return &Error{Reason: ErrTimeout, Detail: t.Error(), Err: os.ErrDeadlineExceeded}
	}
	e := &Error{Reason: ErrTerminated, Err: cause}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Reason = ErrTimeout
	}
	if !errors.Is(cause, ctx.Err()) {
		e.Err = fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return e
}

// handshakeTimeout is the cause of a context that ended by a Timeout field.
type handshakeTimeout time.Duration

func (t handshakeTimeout) Error() string { return "no answer within " + time.Duration(t).String() }
