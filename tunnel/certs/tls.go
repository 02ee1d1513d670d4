package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ticketLife is how long a session ticket key makes new tickets; it opens
// them for twice as long. crypto/tls rotates daily as well.
const ticketLife = 24 * time.Hour

// ServerTLS returns a server configuration that follows the files of pair and
// pool: TLS 1.2 or newer, ALPN "http/1.1" only, never h2.
//
// Clients are verified against the pool. With requireClientCert each client
// must show a certificate, else it may (to come with a bearer token instead),
// but one that it shows must be good. A nil pool asks for no certificates, or,
// with requireClientCert, admits nobody.
//
// A change of the pool takes effect at the next handshake, and a session
// ticket from before it is not accepted any more. What the handshake verified
// ages afterwards: ask [Pool.Identify] again when the pool has Changed.
//
// Session ticket keys belong to the configuration that handshakes really use,
// which is derived from the returned one: set NextProtos and so on by
// GetConfigForClient of your own, not by changing a clone.
func ServerTLS(pair *KeyPair, pool *Pool, requireClientCert bool) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven,
		// Not nil: that would be the host's roots.
		ClientCAs: x509.NewCertPool(),
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if pair == nil {
				return nil, errNoKeyPair
			}
			return pair.GetCertificate(h)
		},
	}
	if requireClientCert {
		base.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if pool == nil {
		if !requireClientCert {
			base.ClientAuth = tls.NoClientCert
		}
		return base
	}
	d := &derived{base: base, pool: pool}
	outer := base.Clone()
	outer.GetConfigForClient = d.get
	return outer
}

// derived makes one server configuration per version of the pool.
type derived struct {
	base *tls.Config
	pool *Pool

	mu     sync.Mutex
	from   *anchors
	born   time.Time
	key    [32]byte
	config *tls.Config
}

func (d *derived) get(*tls.ClientHelloInfo) (*tls.Config, error) {
	a, err := d.pool.f.get(d.pool.source())
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	same := d.config != nil && d.from == a
	if same && now.Sub(d.born) < ticketLife {
		return d.config, nil
	}
	// Without keys of its own a derived configuration would open the tickets
	// of the one that GetConfigForClient belongs to, whatever the pool was.
	var keys [][32]byte
	if same && now.Sub(d.born) < 2*ticketLife {
		keys = [][32]byte{{}, d.key}
	} else {
		keys = [][32]byte{{}}
	}
	rand.Read(keys[0][:]) // never fails: crypto/rand
	c := d.base.Clone()
	c.ClientCAs = a.roots
	c.SetSessionTicketKeys(keys)
	d.from, d.born, d.key, d.config = a, now, keys[0], c
	return c, nil
}

// ClientTLS returns a client configuration that follows the files of pair and
// pool: TLS 1.2 or newer, ALPN "http/1.1" only.
//
// The server's chain is verified against the newest pool and its certificate
// must be valid for serverName, a DNS name or an IP address. An empty
// serverName means the ServerName that is set on the configuration later, as
// tls.Dialer does from the address; that must be a DNS name then, because
// addresses are not sent to the server and cannot be checked. A nil pool means
// the host's roots; a nil pair means no client certificate.
//
// The configuration has InsecureSkipVerify set, because crypto/tls would
// verify against roots that cannot change; VerifyConnection makes up for it,
// on resumption too. Do not replace VerifyConnection. ConnectionState has no
// VerifiedChains when there is a pool.
func ClientTLS(pair *KeyPair, pool *Pool, serverName string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		ServerName: serverName,
	}
	if pair != nil {
		c.GetClientCertificate = pair.GetClientCertificate
	}
	if pool == nil {
		return c
	}
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		name := serverName
		if name == "" {
			name = cs.ServerName
		}
		if name == "" {
			return errors.New("certs: no server name to verify: set serverName")
		}
		_, err := pool.verify(cs, name, x509.ExtKeyUsageServerAuth)
		return err
	}
	return c
}

// AgentTLS returns a client configuration for dialling an agent that listens:
// as [ClientTLS], but the peer is verified by its cluster and not by a host
// name. Its chain must lead to the pool, for server or client use, and
// [Pool.Identify] must give the cluster. An operator's certificate is no
// agent's. A nil pool or an empty cluster admits nobody.
func AgentTLS(pair *KeyPair, pool *Pool, cluster string) *tls.Config {
	c := ClientTLS(pair, nil, "")
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if pool == nil {
			return errors.New("certs: no authorities to verify the agent with")
		}
		chains, err := pool.verify(cs, "", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
		if err != nil {
			return err
		}
		id, err := pool.Identify(chains)
		if err != nil {
			return err
		}
		if id.Operator || cluster == "" || id.Cluster != cluster {
			return fmt.Errorf("%w: %s is of %q, want %q", ErrWrongCluster, id.Subject, id.Cluster, cluster)
		}
		return nil
	}
	return c
}

// verify checks the peer's chain against the newest authorities. An empty
// name is not checked.
func (p *Pool) verify(cs tls.ConnectionState, name string, usages ...x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	a, err := p.f.get(p.source())
	if err != nil {
		return nil, err
	}
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("certs: the peer sent no certificate")
	}
	o := x509.VerifyOptions{
		Roots:         a.roots,
		Intermediates: x509.NewCertPool(),
		DNSName:       name,
		KeyUsages:     usages,
	}
	for _, cert := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(cert)
	}
	chains, err := cs.PeerCertificates[0].Verify(o)
	if err != nil {
		return nil, &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return chains, nil
}
