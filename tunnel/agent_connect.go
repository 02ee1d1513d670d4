package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// serverURL is one of Agent.Servers.
type serverURL struct {
	text string
	tls  bool
	host string // name or address
	port string
}

func (u serverURL) hostport() string { return net.JoinHostPort(u.host, u.port) }

// parseServers reads Agent.Servers.
func (a *Agent) parseServers() ([]serverURL, error) {
	var servers []serverURL
	for _, text := range a.Servers {
		u, err := parseServer(text)
		if err != nil {
			return nil, fmt.Errorf("tunnel: server %q: %w", text, err)
		}
		if !u.tls && a.Token != nil {
			return nil, fmt.Errorf("tunnel: server %q: a bearer token is sent over https only", text)
		}
		servers = append(servers, u)
	}
	if len(servers) == 0 {
		return nil, errNoServers
	}
	return servers, nil
}

func parseServer(text string) (serverURL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return serverURL{}, err
	}
	s := serverURL{text: text, host: u.Hostname(), port: u.Port()}
	switch u.Scheme {
	case "https":
		s.tls = true
	case "http":
	default:
		return s, fmt.Errorf("scheme %q is neither https nor http", u.Scheme)
	}
	switch {
	case s.host == "":
		return s, errors.New("it has no host")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return s, errors.New("want https://host:port and nothing behind")
	case s.port == "" && s.tls:
		s.port = "443"
	case s.port == "":
		s.port = "80"
	}
	return s, nil
}

// resolve returns where to connect for a server: its addresses, or its name
// if the dial function resolves.
func (a *Agent) resolve(ctx context.Context, u serverURL) ([]string, error) {
	_, err := netip.ParseAddr(u.host)
	if err == nil || a.Dial != nil && a.Resolve == nil {
		return []string{u.hostport()}, nil
	}
	lookup := a.Resolve
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	addrs, err := lookup(ctx, u.host)
	if err != nil {
		return nil, err
	}
	var to []string
	for _, addr := range addrs {
		to = append(to, net.JoinHostPort(addr.Unmap().String(), u.port))
	}
	return to, nil
}

// connect opens a session with the server at an address. Known is asked
// whether the agent wants the server that answers.
func (a *Agent) connect(ctx context.Context, u serverURL, address string, known func(*helloMessage) error) (*agentSession, error) {
	dial := a.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	relay.KeepAlive(c)
	if u.tls {
		c = tls.Client(c, a.clientTLS(u))
	}
	s, err := a.upgrade(ctx, c, u, known)
	if err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

// clientTLS is the TLS configuration for a server.
func (a *Agent) clientTLS(u serverURL) *tls.Config {
	config := a.TLS.Clone() // nil stays nil
	if a.TLSFor != nil {
		config = a.TLSFor(u.host).Clone()
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if config.ServerName == "" {
		config.ServerName = u.host
	}
	config.NextProtos = []string{"http/1.1"}
	return config
}

// upgrade asks for a session on a fresh connection.
func (a *Agent) upgrade(ctx context.Context, c net.Conn, u serverURL, known func(*helloMessage) error) (*agentSession, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	early, err := a.requestSession(ctx, c, u)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return a.newSession(ctx, withEarly(c, early), known)
}

func (a *Agent) requestSession(ctx context.Context, c net.Conn, u serverURL) (early []byte, err error) {
	if t, ok := c.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
	}
	r := &connect.Request{Method: http.MethodGet, Target: sessionPath, Host: u.hostport(), Header: a.Header.Clone()}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if a.Token != nil {
		token, err := a.Token(ctx)
		if err != nil {
			return nil, fmt.Errorf("tunnel: bearer token: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return requestUpgrade(c, r, a.Cluster, &a.Head)
}

// requestUpgrade asks for a session with the request, to which it adds what
// makes an upgrade of it, and reads the answer.
func requestUpgrade(c net.Conn, r *connect.Request, cluster string, limits *connect.HeadLimits) (early []byte, err error) {
	if cluster != "" {
		r.Header.Set(headerCluster, cluster)
	}
	return sessionProtocol().Request(c, r, limits)
}
