package connect

import (
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Reason is a proxy error type of RFC 9209 §2.3 and is itself an error, so
// that errors.Is(err, connect.ErrRefused) tells why a dial failed whatever
// number of proxies stood between. Reasons that other proxies send and that
// have no constant here are kept as they came.
type Reason string

// The reasons of this package, each with the status code that a [Handler]
// answers with.
const (
	// ErrRequest: the request itself is wrong. 400, or 404, 408, 431, 505.
	ErrRequest Reason = "http_request_error"
	// ErrAuth: the proxy wants other credentials. 407. RFC 9209 has no type
	// for this, so that Proxy-Status says http_request_error.
	ErrAuth Reason = "proxy_authentication_required"
	// ErrDenied: policy forbids the request. 403.
	ErrDenied Reason = "http_request_denied"
	// ErrProhibited: policy forbids the address of the target. 403.
	ErrProhibited Reason = "destination_ip_prohibited"
	// ErrLimit: a quota is used up. 429, not the 503 that RFC 9209
	// recommends: the limit is the caller's, the proxy is well.
	ErrLimit Reason = "connection_limit_reached"
	// ErrInternal: the proxy failed. 500.
	ErrInternal Reason = "proxy_internal_error"
	// ErrConfig: the proxy is configured wrongly. 500.
	ErrConfig Reason = "proxy_configuration_error"
	// ErrRefused: the target refused the connection. 502. It answers
	// errors.Is(err, syscall.ECONNREFUSED) as well.
	ErrRefused Reason = "connection_refused"
	// ErrDNS: the name of the target does not resolve. 502.
	ErrDNS Reason = "dns_error"
	// ErrUnroutable: there is no route to the target. 502.
	ErrUnroutable Reason = "destination_ip_unroutable"
	// ErrTerminated: the connection broke before the answer. 502.
	ErrTerminated Reason = "connection_terminated"
	// ErrProtocol: the peer does not speak HTTP/1. 502.
	ErrProtocol Reason = "http_protocol_error"
	// ErrTLS: the TLS handshake failed. 502.
	ErrTLS Reason = "tls_protocol_error"
	// ErrUnavailable: nothing can reach the target now; later it may be
	// different, see Error.RetryAfter. 503.
	ErrUnavailable Reason = "destination_unavailable"
	// ErrTimeout: the target did not answer in time. 504. It answers
	// errors.Is(err, os.ErrDeadlineExceeded) as well.
	ErrTimeout Reason = "connection_timeout"
	// ErrDNSTimeout: the name server did not answer in time. 504. It answers
	// errors.Is(err, os.ErrDeadlineExceeded) as well.
	ErrDNSTimeout Reason = "dns_timeout"
)

// Status returns the HTTP status code that goes with the reason, 502 for a
// reason that has no constant here and 500 for the empty one.
func (r Reason) Status() int {
	switch r {
	case ErrRequest:
		return http.StatusBadRequest
	case ErrAuth:
		return http.StatusProxyAuthRequired
	case ErrDenied, ErrProhibited:
		return http.StatusForbidden
	case ErrLimit:
		return http.StatusTooManyRequests
	case ErrInternal, ErrConfig, "":
		return http.StatusInternalServerError
	case ErrUnavailable:
		return http.StatusServiceUnavailable
	case ErrTimeout, ErrDNSTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// Error returns the reason as it stands in Proxy-Status.
func (r Reason) Error() string {
	if r == "" {
		return string(ErrInternal)
	}
	return string(r)
}

// Timeout reports whether the reason is that something took too long.
func (r Reason) Timeout() bool { return r == ErrTimeout || r == ErrDNSTimeout }

// Is bridges to the errors that a direct dial gives for the same cause.
func (r Reason) Is(target error) bool {
	switch target {
	case os.ErrDeadlineExceeded:
		return r.Timeout()
	case syscall.ECONNREFUSED:
		return r == ErrRefused
	}
	return false
}

// reasonOf guesses the reason behind a status code that came without a
// Proxy-Status.
func reasonOf(status int) Reason {
	switch status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		return ErrAuth
	case http.StatusForbidden:
		return ErrDenied
	case http.StatusTooManyRequests:
		return ErrLimit
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return ErrUnavailable
	case http.StatusGatewayTimeout:
		return ErrTimeout
	}
	switch status / 100 {
	case 4:
		return ErrRequest
	case 5:
		return ErrInternal
	}
	return ErrProtocol
}

// An Error tells why there is no tunnel. The [Dialer] returns it, [Handler]
// answers with it, and a dial function or Allow hook of a Handler may return
// one to choose the answer.
//
// errors.Is finds Reason and whatever Err wraps; Error is a [net.Error].
type Error struct {
	// Reason is the kind of failure; empty means ErrInternal.
	Reason Reason
	// Status is the HTTP status code of the answer; 0 means Reason.Status().
	Status int
	// Detail says in words what Reason leaves open; empty means the text of
	// Err. It travels in the reason phrase and in Proxy-Status.
	Detail string
	// Proxy names the proxy that was asked, as a URL without credentials.
	// Only a Dialer sets it.
	Proxy string
	// Target is the host:port that was wanted; empty where none was read.
	Target string
	// RetryAfter is when a new try may succeed; 0 or less means not said. On
	// the wire it is in whole seconds, rounded up.
	RetryAfter time.Duration
	// Header is the header of the proxy's answer where Proxy is set, and nil
	// if the proxy gave none. Where Proxy is empty it is added to the answer
	// that Response makes.
	Header http.Header
	// Err is the cause, or nil.
	Err error
}

// Error returns one line such as
//
//	connect: proxy https://proxy:9443 refused 10.0.0.7:10250: 502 connection_refused: dial tcp: …
//
// for an answer of the proxy and
//
//	connect: 10.0.0.7:10250 through proxy https://proxy:9443: tls_protocol_error: …
//
// where the proxy gave no answer. It never contains credentials.
func (e *Error) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	b.WriteString("connect: ")
	switch {
	case e.Answered():
		b.WriteString("proxy " + e.Proxy + strings.TrimRight(" refused "+e.Target, " ") + ": " + strconv.Itoa(e.status()) + " ")
	case e.Proxy != "" && e.Target != "":
		b.WriteString(e.Target + " through proxy " + e.Proxy + ": ")
	case e.Proxy != "":
		b.WriteString("proxy " + e.Proxy + ": ")
	case e.Target != "":
		b.WriteString(e.Target + ": ")
	}
	b.WriteString(e.phrase())
	return b.String()
}

// phrase is the reason with its detail, the part that goes on the wire.
func (e *Error) phrase() string {
	if d := e.detail(); d != "" {
		return e.Reason.Error() + ": " + d
	}
	return e.Reason.Error()
}

// detail returns Detail or, without one, the text of the cause. A cause that
// is an *Error already shows its own phrase, without the "connect: …" before.
func (e *Error) detail() string {
	if e.Detail != "" || e.Err == nil {
		return e.Detail
	}
	var inner *Error
	if errors.As(e.Err, &inner) && inner != e && inner != nil {
		return inner.detail()
	}
	if s := e.Err.Error(); s != e.Reason.Error() {
		return s
	}
	return ""
}

func (e *Error) status() int {
	if e.Status == 0 {
		return e.Reason.Status()
	}
	return e.Status
}

// Answered reports whether the error is an answer of the proxy. It is false
// where the proxy could not be reached or did not complete an HTTP answer.
func (e *Error) Answered() bool { return e != nil && e.Proxy != "" && e.Header != nil }

// Unwrap returns Reason and, if there is one, Err.
func (e *Error) Unwrap() []error {
	if e == nil {
		return nil
	}
	r := e.Reason
	if r == "" {
		r = ErrInternal
	}
	if e.Err == nil {
		return []error{r}
	}
	return []error{r, e.Err}
}

// Timeout reports whether something took too long; see [net.Error].
func (e *Error) Timeout() bool {
	if e == nil {
		return false
	}
	if e.Reason.Timeout() {
		return true
	}
	var t interface{ Timeout() bool }
	return e.Err != nil && errors.As(e.Err, &t) && t.Timeout()
}

// Temporary reports whether the same dial may succeed later: after a timeout,
// and for ErrUnavailable and ErrLimit.
func (e *Error) Temporary() bool {
	return e.Timeout() || e != nil && (e.Reason == ErrUnavailable || e.Reason == ErrLimit)
}
