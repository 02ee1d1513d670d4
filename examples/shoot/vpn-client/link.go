package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// link is the way to one server.
type link struct {
	name   string
	server string // host:port
	client *packet.Client

	mu    sync.Mutex
	conn  *packet.Conn     // nil while there is none
	since time.Time        // of the state
	err   error            // why the last one ended, or there is none
	ends  uint64           // how many have ended
	cert  *tls.Certificate // that the server was shown last
}

// States of a link.
const (
	stateUp       = "up"
	stateDraining = "draining" // its server is about to end it
	stateDown     = "down"
)

// linkName is the name of a link by its order, and of its TAP where the kernel
// bonds them.
func linkName(o *options, i int) string {
	if o.kernel {
		return fmt.Sprintf("tap%d", i)
	}
	return fmt.Sprintf("link%d", i)
}

func newLink(p *program, i int, s server, hello packet.Hello) *link {
	l := &link{name: linkName(p.options, i), server: s.url.Host, since: time.Now()}
	host := p.serverName
	if host == "" {
		host = s.url.Hostname()
	}
	config := certs.ClientTLS(p.pair, p.pool, host)
	show := config.GetClientCertificate
	config.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := show(r)
		l.shown(cert)
		return cert, err
	}
	l.client = &packet.Client{
		Dial: func(ctx context.Context) (net.Conn, error) {
			if s.proxy != nil {
				return s.proxy.DialContext(ctx, "tcp", s.url.Host)
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.url.Host)
		},
		TLS:     config,
		Host:    s.url.Host,
		Hello:   hello,
		Serve:   func(ctx context.Context, c *packet.Conn) error { return p.backend.serve(ctx, l.name, c) },
		OnState: l.change,
		Logger:  p.log.With("link", l.name, "server", l.server),
	}
	return l
}

// hello is what this client says of itself to all servers.
func (p *program) hello() (packet.Hello, error) {
	h := packet.Hello{ID: rand.Uint64() | 1, Mode: p.mode, MTU: p.mtu, Networks: p.networks} // 0 would be another one at each
	h.Name, _ = os.Hostname()
	for _, a := range p.addresses {
		h.Addresses = append(h.Addresses, a.Addr())
	}
	if h.MTU == 0 && len(p.networks) > 0 {
		mtu, err := egressMTU(p.networks)
		if err != nil {
			return h, err
		}
		h.MTU = min(max(mtu, minMTU), maxMTU)
		p.log.Info("MTU of what leads to the networks", "mtu", h.MTU)
	}
	return h, nil
}

// change is told by the client what happens.
func (l *link) change(c *packet.Conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.conn
	if l.conn = c; err != nil {
		l.conn, l.err = nil, err
	}
	if (before == nil) != (l.conn == nil) {
		l.since = time.Now()
		if l.conn == nil {
			l.ends++
		}
	}
}

// linkStatus is a link on the page /status.
type linkStatus struct {
	Name   string    `json:"name"`
	Server string    `json:"server"`
	State  string    `json:"state"` // up, draining or down
	Since  time.Time `json:"since"`
	// RTT is the moving average of round trips, Loss the share of the last ones
	// that came late.
	RTT  float64 `json:"rttMilliseconds"`
	Loss float64 `json:"loss"`
	MTU  int     `json:"mtu,omitempty"`
	// Members are those that the server reaches.
	Members []packet.Member `json:"members"`
	// Lost is how many links have ended, Error why the last one did, or why there
	// is none.
	Lost  uint64            `json:"lost"`
	Error string            `json:"lastError,omitempty"`
	Stats *packet.ConnStats `json:"stats,omitempty"` // times in nanoseconds
}

func (l *link) status() linkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := linkStatus{Name: l.name, Server: l.server, State: stateDown, Since: l.since, Lost: l.ends, Members: []packet.Member{}}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	if l.conn == nil {
		return s
	}
	s.State = stateUp
	if l.conn.Draining() {
		s.State = stateDraining
	}
	stats := l.conn.Stats()
	s.Stats, s.Loss, s.MTU = &stats, stats.Loss, l.conn.MTU()
	s.RTT = float64(stats.Smoothed) / float64(time.Millisecond)
	s.Members = append(s.Members, l.conn.Reach()...)
	return s
}
