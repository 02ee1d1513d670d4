package entrypoint

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Door says what comes in at one listener. The zero value takes TLS and tells
// it apart by server name.
type Door struct {
	// By is what connections are told apart by; 0 means BySNI. With several of
	// them or'ed together the first bytes decide: a TLS record, the signature of
	// a PROXY header, or a request line.
	By By
	// Proxy holds the load balancers in front, by the address of their sockets:
	// with proxyproto.Require each of their connections must begin with a PROXY
	// header, with Accept it may. That header names the client; whoever connects
	// through a balancer of Accept that adds none can name any. From all others such
	// a header is refused, or, with ByDestination, is only a key. Accept and
	// ByDestination exclude each other.
	Proxy []proxyproto.Rule
	// Headers holds the names of the routing header (ByHeader); empty means
	// Reversed-VPN and X-Gardener-Destination. A request has exactly one of them,
	// once: whoever sends several wants somebody else to read another one.
	Headers []string
	// Unknown is the answer to a request without a routing header, or with a
	// value that no route has, or that is no CONNECT.
	Unknown Unknown
}

// Unknown is how a Door answers requests that no route is for.
type Unknown int

const (
	// Deny answers 403.
	Deny Unknown = iota
	// Redirect answers 301 to the same host by https, port 443.
	Redirect
)

// The routing headers that Gardener's clients send.
const (
	HeaderReversedVPN         = "Reversed-VPN"
	HeaderGardenerDestination = "X-Gardener-Destination"
)

// check tells what is wrong with d.
func (d *Door) check() error {
	if d.By > BySNI|ByDestination|ByHeader {
		return fmt.Errorf("Door.By %d is unknown", d.By)
	}
	for _, rule := range d.Proxy {
		if rule.Policy == proxyproto.Accept && d.By&ByDestination != 0 {
			return fmt.Errorf("whether %v sends a PROXY header must be known at a door by destination: a client's own could be taken for it", rule.From)
		}
	}
	for i, name := range d.Headers {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return fmt.Errorf("%q is no header name", name)
		}
		if slices.ContainsFunc(d.Headers[:i], func(other string) bool { return strings.EqualFold(other, name) }) {
			return fmt.Errorf("header %s stands in Door.Headers twice", name)
		}
	}
	return nil
}

// door is a Door with its listener.
type door struct {
	Door
	router    *Router
	headers   []string // canonical
	strangers guard.Strangers
}

func newDoor(r *Router, d *Door) (*door, error) {
	own := &door{router: r, strangers: guard.Strangers{Limit: r.effective().sniffing()}}
	if d != nil {
		own.Door = *d
	}
	if err := own.check(); err != nil {
		return nil, fmt.Errorf("entrypoint: %w", err)
	}
	if own.By == 0 {
		own.By = BySNI
	}
	if len(own.Headers) == 0 {
		own.Headers = []string{HeaderReversedVPN, HeaderGardenerDestination}
	}
	for _, name := range own.Headers {
		own.headers = append(own.headers, textproto.CanonicalMIMEHeaderKey(name))
	}
	return own, nil
}

// sniff reads as much of c as it takes to know what it wants. The result is
// never nil; with an error, which is a *refusal, its Info is what is known.
func (d *door) sniff(c net.Conn, stranger *guard.Stranger, start time.Time) (*Incoming, error) {
	p := proxyproto.NewConn(c, &proxyproto.Options{
		Rules: d.Proxy, Default: proxyproto.Refuse, Inner: d.inner(), Timeout: d.router.headTimeout(),
	})
	in := &Incoming{conn: p, Info: &Info{Start: start, Peer: guard.SocketAddr(c)}}
	i := in.Info
	// The one that names the client first: a flood behind a load balancer is to be
	// known for one while it holds the other back.
	i.Proxy, i.Client, i.Local = p.Header(), addrPort(p.RemoteAddr()), p.LocalAddr()
	stranger.Move(p.RemoteAddr())
	if err := p.ReadHeader(); err != nil {
		return in, firstRefusal(err)
	}
	if inner := p.Inner(); inner != nil {
		i.By, i.Destination = ByDestination, addrPort(inner.Destination)
		return in, nil
	}
	return in, d.read(in, p)
}

// inner is the policy for the PROXY header that anybody may send.
func (d *door) inner() proxyproto.Policy {
	switch {
	case d.By == ByDestination:
		return proxyproto.Require
	case d.By&ByDestination != 0:
		return proxyproto.Accept
	}
	return proxyproto.Refuse
}

// read reads a ClientHello or a request head.
func (d *door) read(in *Incoming, c net.Conn) error {
	// What is left of the time for the whole of it.
	deadline := in.Info.Start.Add(d.router.headTimeout())
	if d.router.headTimeout() > 0 {
		_ = c.SetReadDeadline(deadline)
	}
	first := make([]byte, 2<<10) // room for a hello of today's clients
	n, err := c.Read(first)
	if n == 0 {
		return firstRefusal(err)
	}
	first = first[:n]
	switch isTLS := first[0] == recordHandshake; {
	case isTLS && d.By&BySNI != 0:
		in.speaks = speaksTLS
		err = d.readHello(in, c, first)
	case !isTLS && d.By&ByHeader != 0:
		in.speaks = speaksHTTP
		in.conn = relay.NewPrefixed(c, first)
		err = d.readRequest(in, deadline)
	case isTLS:
		in.speaks = speaksTLS
		err = refuse(ReasonMalformed, connect.ErrRequest, alertUnexpectedMessage, "TLS on a port that serves none", nil)
	case d.By&BySNI != 0 && first[0] >= 'A' && first[0] <= 'Z':
		in.speaks = speaksHTTP
		err = refuse(ReasonMalformed, connect.ErrRequest, 0, "plain HTTP on a port for TLS: use https://", nil)
	default:
		err = refuse(ReasonMalformed, connect.ErrRequest, 0, "not a protocol of this port", nil)
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	return err
}

const (
	// recordHandshake is the first byte of a TLS connection, RFC 8446 §5.1.
	recordHandshake = 22
	// handshakeClientHello is the first byte of its first message, §4.
	handshakeClientHello = 1
)

func (d *door) readHello(in *Incoming, c net.Conn, first []byte) error {
	hello, all, err := readHello(c, first, &d.router.helloBytes)
	in.conn = relay.NewPrefixed(c, all)
	if err != nil {
		return readRefusal(err)
	}
	in.Info.By, in.Info.ServerName, in.Info.ALPN = BySNI, hello.serverName, hello.alpn
	return nil
}

// maxHead bounds a request head. Strangers may have a thousand of them in memory,
// and what routes has some 200 bytes.
const maxHead = 16 << 10

func (d *door) readRequest(in *Incoming, deadline time.Time) error {
	limits := connect.HeadLimits{Timeout: -1, MaxBytes: maxHead}
	if d.router.headTimeout() > 0 {
		limits.Timeout = max(time.Until(deadline), time.Millisecond)
	}
	c := in.conn
	req, err := connect.ReadRequest(c, &limits)
	if err != nil {
		return headRefusal(err)
	}
	if len(req.Early) > 0 {
		in.conn = relay.NewPrefixed(c, req.Early)
	}
	i := in.Info
	i.By, i.Request = ByHeader, req
	if req.Method != http.MethodConnect {
		return refuse(ReasonUnknown, connect.ErrDenied, 0, "only CONNECT is served here", fmt.Errorf("method %s", req.Method))
	}
	if v := req.Header["Content-Length"]; len(req.Header["Transfer-Encoding"]) > 0 || len(v) > 0 && strings.Trim(v[0], "0") != "" {
		return refuse(ReasonMalformed, connect.ErrRequest, 0, "a CONNECT request has no body", nil)
	}
	return d.readRouting(i)
}

// readRouting finds the one routing header. Headers that route at other doors
// count as well, because somebody in front may have looked at them only.
func (d *door) readRouting(i *Info) error {
	found := 0
	for _, name := range []string{HeaderReversedVPN, HeaderGardenerDestination} {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if !slices.Contains(d.headers, name) {
			found += len(i.Request.Header[name])
		}
	}
	for n, name := range d.headers {
		values := i.Request.Header[name]
		found += len(values)
		if len(values) > 0 {
			i.HeaderName, i.HeaderValue = d.Headers[n], strings.Clone(values[0]) // not all of the head with it
		}
	}
	switch {
	case found > 1:
		return refuse(ReasonMalformed, connect.ErrRequest, 0, "several routing headers", nil)
	case i.HeaderName == "":
		return refuse(ReasonUnknown, connect.ErrDenied, 0, "no route", errors.New("no header "+strings.Join(d.Headers, " or ")))
	}
	return nil
}

func isProxyError(err error) bool {
	return errors.Is(err, proxyproto.ErrNoHeader) || errors.Is(err, proxyproto.ErrMalformed) || errors.Is(err, proxyproto.ErrRefused)
}

// firstRefusal is what an error of the first read means, behind PROXY headers or
// of them. Health checks of load balancers end with a reset there.
func firstRefusal(err error) *refusal {
	r := streamRefusal(err)
	if errors.Is(err, syscall.ECONNRESET) {
		r.reason = ReasonEmpty
	}
	return r
}

// readRefusal is what an error of reading a ClientHello means.
func readRefusal(err error) *refusal {
	if errors.Is(err, errHelloTooLarge) {
		return refuse(ReasonTooLarge, connect.ErrRequest, alertDecodeError, err.Error(), nil)
	}
	if errors.Is(err, errHellosTooLarge) {
		return refuse(ReasonFlood, connect.ErrUnavailable, alertInternalError, err.Error(), nil)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(ReasonMalformed, connect.ErrRequest, alertDecodeError, "the ClientHello is cut off", err)
	}
	if bad := (badHello{}); errors.As(err, &bad) {
		return refuse(ReasonMalformed, connect.ErrRequest, alertDecodeError, "no valid ClientHello", err)
	}
	return streamRefusal(err)
}

// headRefusal is what an error of connect.ReadRequest means.
func headRefusal(err error) *refusal {
	var e *connect.Error
	if !errors.As(err, &e) {
		return readRefusal(err)
	}
	reason := ReasonMalformed
	switch e.Status {
	case http.StatusRequestTimeout:
		reason = ReasonSlow
	case http.StatusRequestHeaderFieldsTooLarge:
		reason = ReasonTooLarge
	}
	return &refusal{reason: reason, err: err, answer: e}
}

// streamRefusal is what an error of the connection means.
func streamRefusal(err error) *refusal {
	reason := ReasonBroken
	switch {
	case errors.Is(err, io.EOF): // also where a PROXY header had to be
		reason = ReasonEmpty
	case isProxyError(err):
		reason = ReasonProxyHeader
	case errors.Is(err, os.ErrDeadlineExceeded):
		reason = ReasonSlow
	}
	return &refusal{reason: reason, err: err}
}
