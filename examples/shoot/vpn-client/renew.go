package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

const (
	// renewStep is how often is looked whether a link has an old certificate.
	renewStep = time.Second
	// renewSettled is how long the others must have been up before it is ended.
	renewSettled = 5 * time.Second
)

// renew has links that were made with another certificate than there is now come
// again, one after the other. Otherwise the servers end all of them, as they do when a
// certificate has run out for some time, at about the same moment. A new certificate
// that servers refuse costs one link only, until the old one runs out.
//
// It is for several links, and returns when ctx ends.
func (p *program) renew(ctx context.Context) error {
	ticker := time.NewTicker(renewStep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			p.renewOne(p.pair.Certificate())
		}
	}
}

// renewOne ends the first link that is to be renewed, if the others can do without.
func (p *program) renewOne(now *tls.Certificate) {
	for _, l := range p.links {
		c := l.outdated(now)
		if c == nil {
			continue
		}
		for _, other := range p.links {
			if s := other.status(); other != l && (s.State != stateUp || time.Since(s.Since) < renewSettled) {
				return
			}
		}
		p.log.Info("link is made anew, with the new certificate", "link", l.name, "server", l.server)
		_ = c.Bye(packet.ByeShutdown, "the client comes again with another certificate")
		return
	}
}

// shown notes the certificate that the server is shown.
func (l *link) shown(cert *tls.Certificate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cert = cert
}

// outdated is the link if it is up and was made with another certificate, else nil.
func (l *link) outdated(now *tls.Certificate) *packet.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil || l.cert == nil || now == nil || bytes.Equal(l.cert.Certificate[0], now.Certificate[0]) {
		return nil
	}
	return l.conn
}
