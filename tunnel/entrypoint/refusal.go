package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Reason is why a connection was not served. Each is counted, see [Stats].
type Reason string

// The reasons.
const (
	ReasonEmpty        Reason = "empty"        // It ended before it said anything, as health checks do.
	ReasonSlow         Reason = "slow"         // Its first message was not complete in time.
	ReasonMalformed    Reason = "malformed"    // Its first message is broken, or not of a kind that the port serves.
	ReasonTooLarge     Reason = "too-large"    // Its first message is larger than allowed.
	ReasonProxyHeader  Reason = "proxy-header" // A PROXY header is missing, malformed, or from a peer that may not send one.
	ReasonFlood        Reason = "flood"        // Too many connections had not said what they want, and it was the oldest of its network.
	ReasonUnknown      Reason = "unknown"      // No route is for it.
	ReasonDenied       Reason = "denied"       // The route is not for this client.
	ReasonUnauthorized Reason = "unauthorized" // Router.Authorize did not allow it, or not in time.
	ReasonLimit        Reason = "limit"        // All connections are in use: of the Router, the route, or the client.
	ReasonBackend      Reason = "backend"      // The handler could not serve it; of Forward, no backend answered.
	ReasonDraining     Reason = "draining"     // The Router is shutting down.
	ReasonBroken       Reason = "broken"       // It broke by itself before it was served.
)

// refusal is a Reason with its cause and with what the client is told.
type refusal struct {
	reason Reason
	err    error          // for the log
	answer *connect.Error // over HTTP; nil: it gets none
	alert  byte           // over TLS, RFC 8446 §6; 0: none
}

func (r *refusal) Error() string { return string(r.reason) + ": " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// TLS alerts, RFC 8446 §6.2.
const (
	alertUnexpectedMessage = 10
	alertAccessDenied      = 49
	alertDecodeError       = 50
	alertInternalError     = 80
	alertUnrecognizedName  = 112
)

func refuse(reason Reason, why connect.Reason, alert byte, detail string, err error) *refusal {
	if err == nil {
		err = errors.New(detail)
	}
	return &refusal{reason, err, &connect.Error{Reason: why, Detail: detail, Err: err}, alert}
}

// What clients are told is the same text for each kind: routes, backends and
// limits are nobody's business in the internet.
func refuseUnknown(i *Info) *refusal {
	return refuse(ReasonUnknown, connect.ErrDenied, alertUnrecognizedName, "no route", fmt.Errorf("no route for %s %q", i.By, short(i.Key())))
}

func refuseDenied() *refusal {
	return refuse(ReasonDenied, connect.ErrDenied, alertAccessDenied, "not for this client", nil)
}

func refuseUnauthorized(err error) *refusal {
	return refuse(ReasonUnauthorized, connect.ErrDenied, alertAccessDenied, "not authorized", err)
}

func refuseLimit(what string) *refusal {
	r := refuse(ReasonLimit, connect.ErrUnavailable, alertInternalError, "too many connections", errors.New("too many connections of "+what))
	r.answer.RetryAfter = time.Second
	return r
}

func refuseDraining() *refusal {
	return refuse(ReasonDraining, connect.ErrUnavailable, alertInternalError, "shutting down", nil)
}

// refuseBackend is what a Handler's error before Accept becomes.
func refuseBackend(err error) *refusal {
	if errors.Is(err, errClientGone) {
		return &refusal{reason: ReasonBroken, err: err}
	}
	r := refuse(ReasonBackend, connect.ErrUnavailable, alertInternalError, "the backend does not answer", err)
	var chosen *connect.Error
	if errors.As(err, &chosen) {
		r.answer = chosen
	}
	return r
}

// errFlood is why a stranger was reset.
var errFlood = errors.New("reset to make room for a newer one")

// noBackend hides what dials have failed with from errors.As: where a backend is
// reached through another proxy, that is an answer which names the backend. It
// goes to the log and not to the client.
type noBackend struct{ error }

func (n noBackend) Is(target error) bool { return errors.Is(n.error, target) }

// refuseEnded is what becomes of a connection whose context has ended before it
// was served, or nil: it is reset.
func refuseEnded(ctx context.Context) *refusal {
	switch cause := context.Cause(ctx); cause {
	case nil:
		return nil
	case errRemoved:
		return &refusal{reason: ReasonUnknown, err: cause}
	case errRevoked:
		return &refusal{reason: ReasonDenied, err: cause}
	default:
		return &refusal{reason: ReasonDraining, err: cause}
	}
}

// tell answers the client as its protocol wants, and closes the connection. It
// takes at most some 11 s, of a client that does not read.
func (c *Incoming) tell(r *refusal, d *door) {
	defer c.conn.Close()
	switch {
	case c.speaks == speaksHTTP && d.redirects(r):
		c.redirect()
	case c.speaks == speaksHTTP && r.answer != nil:
		_ = connect.WriteError(c.conn, d.router.Name, r.answer)
	case c.speaks == speaksTLS && r.alert != 0:
		_ = c.conn.SetDeadline(time.Now().Add(answerTimeout))
		// A fatal alert in a record of TLS 1.0, which every client reads.
		if _, err := c.conn.Write([]byte{21, 3, 1, 0, 2, 2, r.alert}); err == nil {
			guard.Linger(c.conn)
		}
	default:
		_ = relay.Reset(c.conn)
	}
}

// answerTimeout bounds the writing of an answer to a client that does not read.
const answerTimeout = 10 * time.Second

// redirects reports whether the answer is a redirect: to a request that has no
// route, where the Door says so.
func (d *door) redirects(r *refusal) bool { return d.Unknown == Redirect && r.reason == ReasonUnknown }

// redirect sends the client to the same host by HTTPS, where a browser finds
// the API server, and who probes for open proxies has more work.
func (c *Incoming) redirect() {
	req := c.Info.Request
	u := url.URL{Scheme: "https", Host: redirectHost(req)}
	if req.Method != http.MethodConnect && strings.HasPrefix(req.Target, "/") {
		if p, err := url.ParseRequestURI(req.Target); err == nil {
			u.Path, u.RawPath, u.RawQuery = p.Path, p.RawPath, p.RawQuery
		}
	}
	res := connect.Response{Status: http.StatusMovedPermanently, Header: http.Header{
		"Location": {u.String()}, "Content-Length": {"0"}, "Connection": {"close"},
	}}
	_ = c.conn.SetDeadline(time.Now().Add(answerTimeout))
	if res.Write(c.conn) == nil {
		guard.Linger(c.conn)
	}
}

// redirectHost is the host that a request names, with port 443.
func redirectHost(r *connect.Request) string {
	name := r.Host
	if r.Method == http.MethodConnect {
		name = r.Target
	}
	if host, port, err := net.SplitHostPort(name); err == nil && strings.Trim(port, "0123456789") == "" {
		name = host
	}
	name = strings.Trim(name, "[]")
	if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a, 443).String()
	}
	if checkServerName(name) != nil || strings.HasPrefix(name, "*") {
		name = "localhost" // what was sent names no host that could be repeated
	}
	return name + ":443"
}
