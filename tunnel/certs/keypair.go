package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// KeyPair is a certificate and its private key that follow their files.
//
// Set CertFile and KeyFile, then call Load to learn early whether they are
// good, and give Run a goroutine. Both are optional: without Load the first
// use loads, and without Run the content stays what it was (see Refresh).
// All methods may be called at the same time. A KeyPair must not be copied
// or changed after its first use.
type KeyPair struct {
	// CertFile is a PEM file with the certificate, then its intermediates.
	CertFile string
	// KeyFile is a PEM file with the private key of the first certificate.
	KeyFile string
	// Interval is how often Run and Refresh read the files. Zero means
	// DefaultInterval, negative means that they are read once only.
	Interval time.Duration
	// Logger gets a line for each new content, good or bad, and never a
	// secret. Nil means silent.
	Logger *slog.Logger

	f follower[tls.Certificate]
}

func (k *KeyPair) source() source[tls.Certificate] {
	return source[tls.Certificate]{
		files:    []string{k.CertFile, k.KeyFile},
		interval: k.Interval,
		logger:   k.Logger,
		parse: func(c [][]byte) (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(c[0], c[1])
			if err != nil {
				return nil, fmt.Errorf("certs: certificate %s with key %s: %w", k.CertFile, k.KeyFile, err)
			}
			return &pair, nil
		},
		describe: func(c *tls.Certificate) []any {
			return []any{"subject", c.Leaf.Subject.String(), "notAfter", c.Leaf.NotAfter}
		},
	}
}

// Load reads both files now. When they are bad (missing, too large, not PEM,
// a key of another certificate) it says why and the pair in use stays. The
// error is returned and not logged.
func (k *KeyPair) Load() error { return k.f.load(k.source(), false) }

// Run reads the files, now and each Interval, until ctx ends, then returns
// nil. Bad content is logged once, not each time.
func (k *KeyPair) Run(ctx context.Context) error { return k.f.run(ctx, k.source()) }

// Refresh reads the files unless the last look is younger than Interval, for
// callers that have no goroutine to give to Run. An error means that the
// newest content is bad; the older pair, if there is one, stays in use.
func (k *KeyPair) Refresh() error { return k.f.refresh(k.source()) }

// Ready returns nil when there is something to use, be it the newest content
// or an older one, and else why not. It reads the files if nothing did yet.
func (k *KeyPair) Ready() error {
	_, err := k.f.get(k.source())
	return err
}

// Changed returns a channel that is closed when the pair changes next. Ask
// for it before looking at the pair, or a change in between is missed.
func (k *KeyPair) Changed() <-chan struct{} { return k.f.next() }

// Certificate returns the pair in use, or nil when the files have never been
// good. The caller must not modify it.
func (k *KeyPair) Certificate() *tls.Certificate {
	c, err := k.f.get(k.source())
	if err != nil {
		return nil
	}
	return c
}

// GetCertificate fits [tls.Config.GetCertificate].
func (k *KeyPair) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return k.f.get(k.source())
}

// GetClientCertificate fits [tls.Config.GetClientCertificate]. As with
// [tls.Config.Certificates], no certificate is sent to a server whose list of
// acceptable authorities or signature schemes rules this one out.
func (k *KeyPair) GetClientCertificate(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c, err := k.f.get(k.source())
	if err != nil {
		return nil, err
	}
	if err := r.SupportsCertificate(c); err != nil {
		if k.Logger != nil {
			k.Logger.Warn("client certificate withheld: the server does not accept it", "files", []string{k.CertFile}, "err", err)
		}
		return new(tls.Certificate), nil
	}
	return c, nil
}

var errNoKeyPair = errors.New("certs: no key pair is configured")
