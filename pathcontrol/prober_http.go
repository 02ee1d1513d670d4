package pathcontrol

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"
)

// HTTP probes by a GET request on a connection of its own: one that is kept
// would hide that no new one can be opened. Redirects are answers and are not
// followed, and no proxy is used but by Dial. Only URL must be set. It may be
// used by several goroutines at a time.
//
// The body belongs to the answer: one that is cut short, or that does not
// arrive in time, is a miss, as where only small packets get through.
type HTTP struct {
	// URL is what is asked for, http://… or https://…. A name in it is looked
	// up for each probe, and not Through but as the routes say.
	URL string
	// Header is sent along, a Host in it instead of that of the URL.
	Header http.Header
	// Accept tells whether a status is an answer. Nil means 200 to 399.
	Accept func(status int) bool
	// TLS is how the server is verified; nil means the roots of this host. An
	// empty ServerName is that of the URL. ALPN is always http/1.1.
	TLS *tls.Config
	// Through says how packets leave this host. It is not used with Dial.
	Through Through
	// Dial opens the connection, below TLS; nil means a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxBody is how many bytes of the body are asked for, by default 64 KiB;
	// what is behind them is left unread. Negative means none.
	MaxBody int64
}

const (
	maxHead    = 64 << 10
	maxInterim = 8 // answers of status 1xx
)

// String returns the URL without user information and query.
func (p *HTTP) String() string {
	u, err := url.Parse(p.URL)
	if err != nil {
		return "http"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// Validate checks the fields.
func (p *HTTP) Validate() error {
	u, err := url.Parse(p.URL)
	switch {
	case err != nil:
		return fmt.Errorf("HTTP.URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("HTTP.URL: %q is not http://HOST or https://HOST", p.URL)
	case p.Dial != nil && p.Through != (Through{}):
		return errors.New("HTTP.Through has no effect with Dial")
	}
	return p.Through.supported()
}

// StatusError is an answer with a status that HTTP.Accept does not take. With 410
// (Gone) it is an [ErrGone].
type StatusError struct {
	Code int
}

// Error names the status.
func (e *StatusError) Error() string {
	if text := http.StatusText(e.Code); text != "" {
		return fmt.Sprintf("status %d %s", e.Code, text)
	}
	return fmt.Sprintf("status %d", e.Code)
}

// Is makes status 410 an ErrGone.
func (e *StatusError) Is(target error) bool {
	return target == ErrGone && e.Code == http.StatusGone
}

// Probe implements [Prober]. The time is from the dial to the head of the
// answer, several round trips.
func (p *HTTP) Probe(ctx context.Context) (time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return 0, err
	}
	if p.Header != nil {
		request.Header = p.Header.Clone()
		if host := p.Header.Get("Host"); host != "" {
			request.Host = host
		}
	}
	request.Close = true // says so
	start := time.Now()
	c, err := p.Through.dial(ctx, p.Dial, hostPort(request.URL))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	rtt, err := p.exchange(ctx, c, request, start)
	if err != nil && ctx.Err() != nil {
		// Closing the connection has ended it.
		return 0, silentError{}
	}
	return rtt, err
}

// silentError tells a server that accepts and says nothing from one that is
// not there.
type silentError struct{}

func (silentError) Error() string        { return "connected, but no answer in time" }
func (silentError) Timeout() bool        { return true }
func (silentError) Temporary() bool      { return true }
func (silentError) Is(target error) bool { return isDeadline(target) }

// hostPort is what to dial for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// exchange sends the request and reads the answer.
func (p *HTTP) exchange(ctx context.Context, c net.Conn, request *http.Request, start time.Time) (time.Duration, error) {
	if request.URL.Scheme == "https" {
		config := p.TLS.Clone()
		if config == nil {
			config = new(tls.Config)
		}
		if config.ServerName == "" {
			config.ServerName = request.URL.Hostname()
		}
		config.NextProtos = []string{"http/1.1"}
		t := tls.Client(c, config)
		if err := t.HandshakeContext(ctx); err != nil {
			return 0, err
		}
		c = t
	}
	if err := request.Write(c); err != nil {
		return 0, err
	}
	limit := &io.LimitedReader{R: c, N: maxHead}
	r := bufio.NewReader(limit)
	var response *http.Response
	for range maxInterim {
		var err error
		if response, err = http.ReadResponse(r, request); err != nil {
			if limit.N <= 0 {
				err = fmt.Errorf("the head of the answer is longer than %d bytes", maxHead)
			}
			return 0, err
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	rtt := time.Since(start)
	if !p.accepts(response.StatusCode) {
		return 0, &StatusError{response.StatusCode}
	}
	most := orDefault(p.MaxBody, 64<<10)
	limit.N = math.MaxInt64 // CopyN bounds what is read
	if _, err := io.CopyN(io.Discard, response.Body, most); err != nil && err != io.EOF {
		return 0, fmt.Errorf("the body of the answer: %w", err)
	}
	return rtt, nil
}

func (p *HTTP) accepts(status int) bool {
	if p.Accept != nil {
		return p.Accept(status)
	}
	return status >= 200 && status < 400
}
