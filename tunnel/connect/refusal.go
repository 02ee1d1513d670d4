package connect

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what is believed of a Retry-After.
const maxRetryAfter = 24 * time.Hour

// Refusal is the error that a response other than 2xx stands for, as a
// [Dialer] returns it: with the reason of its Proxy-Status, or one guessed
// from the status. Proxy and target become the fields of that name.
func (r *Response) Refusal(proxy, target string) *Error {
	e := &Error{Status: r.Status, Proxy: proxy, Target: target, Header: r.Header,
		RetryAfter: parseRetryAfter(r.Header.Get("Retry-After"), time.Now())}
	reason, details, ok := parseProxyStatus(r.Header["Proxy-Status"])
	if !ok || r.Status == http.StatusProxyAuthRequired {
		reason = reasonOf(r.Status)
	}
	e.Reason, e.Detail = reason, details
	if e.Detail == "" && r.Phrase != http.StatusText(r.Status) {
		// Without a Proxy-Status the phrase is all that the proxy says; ours
		// begins with the reason, which Error shows already.
		e.Detail = strings.TrimPrefix(r.Phrase, reason.Error())
		e.Detail = strings.TrimPrefix(e.Detail, ": ")
	}
	return e
}

// parseRetryAfter reads both forms of RFC 9110 §10.2.3; 0 means none.
func parseRetryAfter(v string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}
