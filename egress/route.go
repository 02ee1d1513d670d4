package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// route is the way of one selection. Exactly one of direct, err and
// proxy.Address is set.
type route struct {
	selection           Selection
	protocol, transport string // labels of events
	direct              bool
	err                 error // the configuration cannot be dialled
	proxy               connect.Dialer
	pair                *certs.KeyPair // nil: no client certificate
	pool                *certs.Pool    // nil: the host's roots
}

func (s *Selector) route(sel Selection, c *Connection) *route {
	r := &route{selection: sel}
	t := c.Transport
	switch c.protocol() {
	case Direct:
		r.direct = true
		return r
	case GRPC:
		r.protocol, r.transport = "grpc", "uds"
		r.err = &connect.Error{Reason: connect.ErrConfig, Err: errors.ErrUnsupported,
			Detail: "proxyProtocol GRPC is not supported; use HTTPConnect"}
		return r
	case HTTPConnect:
		r.protocol = "http_connect"
	default:
		r.err = configError("unknown proxyProtocol: write HTTPConnect or Direct")
		return r
	}
	r.proxy.Timeout = s.Timeout
	r.proxy.Forward = s.dialDirect // stageWatch looks over its shoulder
	switch {
	case t == nil || (t.TCP == nil) == (t.UDS == nil):
		r.err = configError("transport needs one of tcp and uds")
	case t.UDS != nil:
		r.transport = "uds"
		r.proxy.Network, r.proxy.Address = "unix", t.UDS.UDSName
		if t.UDS.UDSName == "" {
			r.err = configError("udsName is missing")
		}
	default:
		r.transport = "tcp"
		r.err = s.tcp(r, t.TCP)
	}
	return r
}

// tcp fills in a proxy behind a URL. It refuses what leaves open whether TLS
// is meant, or as whom.
func (s *Selector) tcp(r *route, t *TCP) error {
	u, err := url.Parse(t.URL)
	if err != nil {
		return configError("url is " + parseReason(err))
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return configError("url is not of the form https://host:port")
	}
	port := u.Port()
	if port == "" {
		port = defaultPort(u.Scheme)
	}
	r.proxy.Network, r.proxy.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	c := t.TLSConfig
	if u.Scheme == "http" {
		if c != nil {
			return configError("url is plain http:// and there is a tlsConfig: remove one")
		}
		return nil
	}
	if c == nil {
		c = new(TLSConfig)
	}
	if (c.ClientCert == "") != (c.ClientKey == "") {
		return configError("only one of clientCert and clientKey is set")
	}
	if c.ClientCert != "" {
		r.pair = &certs.KeyPair{CertFile: c.ClientCert, KeyFile: c.ClientKey, Interval: s.Interval, Logger: s.Logger}
	}
	if c.CABundle != "" {
		r.pool = &certs.Pool{CAs: []certs.CA{{File: c.CABundle}}, Interval: s.Interval, Logger: s.Logger}
	}
	name := c.TLSServerName
	if name == "" {
		name = u.Hostname()
	}
	r.proxy.TLS = certs.ClientTLS(r.pair, r.pool, name)
	return nil
}

func (r *route) dial(ctx context.Context, network, address string) (net.Conn, Stage, error) {
	if r.err != nil {
		return nil, StageConnect, r.err
	}
	// A new file that is bad was logged by certs, and the old one goes on. A
	// first one that is bad ends the dial here, because a proxy that gets no
	// certificate would answer with something less clear.
	if r.pair != nil {
		if err := r.pair.Refresh(); err != nil && r.pair.Ready() != nil {
			return nil, StageConnect, &connect.Error{Reason: connect.ErrConfig, Err: err}
		}
	}
	if r.pool != nil {
		if err := r.pool.Refresh(); err != nil && r.pool.Ready() != nil {
			return nil, StageConnect, &connect.Error{Reason: connect.ErrConfig, Err: err}
		}
	}
	p := r.proxy
	var w stageWatch
	w.attach(&p)
	conn, err := p.DialContext(ctx, network, address)
	return conn, w.stage(err), err
}

// stageWatch tells how far one dial got. It is used by one goroutine at a time.
type stageWatch struct {
	connected bool   // the connection to the proxy is there
	verified  bool   // and the proxy's certificate is good
	version   uint16 // of TLS, 0 without
}

func (w *stageWatch) attach(p *connect.Dialer) {
	dial := p.Forward
	p.Forward = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		w.connected = err == nil
		return conn, err
	}
	if p.TLS == nil {
		w.verified = true
		return
	}
	p.TLS = p.TLS.Clone()
	verify := p.TLS.VerifyConnection
	p.TLS.VerifyConnection = func(cs tls.ConnectionState) error {
		if verify != nil {
			if err := verify(cs); err != nil {
				return err
			}
		}
		w.verified, w.version = true, cs.Version
		return nil
	}
}

func (w *stageWatch) stage(err error) Stage {
	if err == nil || !w.connected || !w.verified {
		return StageConnect
	}
	// In TLS 1.2 the proxy judges our certificate after we judged its own and
	// before the handshake ends. In TLS 1.3 the handshake is over for us then,
	// here as in kube-apiserver.
	var remote *net.OpError
	if w.version != 0 && w.version < tls.VersionTLS13 && errors.As(err, &remote) && remote.Op == "remote error" {
		return StageConnect
	}
	return StageProxy
}
