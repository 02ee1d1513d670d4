package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// FromURL returns a *[Dialer] for the proxy at u, which reaches it through
// forward; nil and [proxy.Direct] mean directly. It has the shape that
// [proxy.RegisterDialerType] wants; this package registers nothing itself.
//
//	http://[user:password@]host[:port]    plain, port 80 unless given
//	https://[user:password@]host[:port]   TLS with the host's roots, port 443 unless given
//	http+unix:///run/proxy.sock           plain over a Unix socket
//	http+unix://%2Frun%2Fproxy.sock       the same; [url.Parse] refuses this form, a URL made by hand may have it
//
// The user information becomes Basic credentials. A forward without a
// DialContext method cannot be cancelled: if the context ends, its Dial runs
// on in a goroutine that closes the late conn.
func FromURL(u *url.URL, forward proxy.Dialer) (proxy.Dialer, error) {
	d := &Dialer{User: u.User, Forward: forwardDial(forward)}
	port := ""
	switch u.Scheme {
	case "http":
		port = "80"
	case "https":
		port = "443"
		d.TLS = &tls.Config{}
	case "http+unix":
		path, err := url.PathUnescape(u.Host)
		if err != nil {
			return nil, errors.New("connect: proxy URL: bad escape in the path of the socket")
		}
		d.Network, d.Address = "unix", path+u.Path
		if d.Address == "" {
			return nil, errors.New("connect: proxy URL: http+unix without the path of a socket")
		}
		return d, nil
	default:
		return nil, errors.New("connect: proxy URL: scheme " + quote(u.Scheme) + " is not http, https or http+unix")
	}
	if u.Hostname() == "" {
		return nil, errors.New("connect: proxy URL: no host")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	d.Address = net.JoinHostPort(u.Hostname(), port)
	return d, nil
}

// forwardDial makes a dial function of what x/net/proxy knows as a dialer.
func forwardDial(forward proxy.Dialer) DialFunc {
	if forward == nil || forward == proxy.Direct {
		return nil
	}
	if f, ok := forward.(proxy.ContextDialer); ok {
		return f.DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		type result struct {
			conn net.Conn
			err  error
		}
		results := make(chan result)
		go func() {
			conn, err := forward.Dial(network, address)
			select {
			case results <- result{conn, err}:
			case <-ctx.Done():
				if conn != nil {
					conn.Close()
				}
			}
		}()
		select {
		case r := <-results:
			return r.conn, r.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dialerFunc is a DialFunc as x/net/proxy wants it.
type dialerFunc DialFunc

func (f dialerFunc) Dial(network, address string) (net.Conn, error) {
	return f(context.Background(), network, address)
}

func (f dialerFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// FromEnvironment returns a dial function that goes through the proxy which
// the environment names, or, where it names none, through forward; nil means
// directly. The environment is read once, in this call.
//
// A dial has no URL scheme and gets a tunnel, as an https:// request does.
// Hence HTTPS_PROXY (or https_proxy) governs, with the exceptions of NO_PROXY
// (or no_proxy). HTTP_PROXY, which is for http:// requests that a proxy reads,
// is ignored, and loopback targets are always dialled directly: the rules are
// those of [httpproxy]. The value is a URL that [FromURL] takes or a socks5 or
// socks5h one; without a scheme it means http. The proxy itself is reached
// through forward.
func FromEnvironment(forward DialFunc) DialFunc {
	return FromConfig(httpproxy.FromEnvironment(), forward)
}

// FromConfig is [FromEnvironment] for a configuration from elsewhere: its
// HTTPSProxy and NoProxy count.
func FromConfig(c *httpproxy.Config, forward DialFunc) DialFunc {
	if forward == nil {
		forward = directDial
	}
	find := c.ProxyFunc()
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		switch network {
		case "tcp", "tcp4", "tcp6":
		default:
			return forward(ctx, network, address)
		}
		u, err := find(&url.URL{Scheme: "https", Host: address})
		if err != nil {
			return nil, &Error{Reason: ErrConfig, Target: address, Err: err}
		}
		if u == nil {
			return forward(ctx, network, address)
		}
		var d proxy.Dialer
		switch u.Scheme {
		case "socks5", "socks5h":
			d, err = proxy.FromURL(u, dialerFunc(forward))
		default:
			d, err = FromURL(u, dialerFunc(forward))
		}
		if err != nil {
			return nil, &Error{Reason: ErrConfig, Target: address, Err: err}
		}
		return d.(proxy.ContextDialer).DialContext(ctx, network, address)
	}
}
