package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// CA names a PEM file with the certificates of one or more authorities.
type CA struct {
	// Cluster binds the authorities to one cluster: whatever they sign
	// belongs to it. Empty means not bound: their certificates name their
	// cluster themselves.
	Cluster string
	// File is the PEM file. Blocks that are not certificates are skipped.
	File string
}

// Pool is a set of authorities that follows its files.
//
// All of it is taken or none: when one file is bad the whole old set stays.
// Load, Run, Refresh and Changed work as those of [KeyPair]. All methods may
// be called at the same time. A Pool must not be copied or changed after its
// first use.
type Pool struct {
	// CAs are the files. None at all is an error at the first use.
	CAs []CA
	// Interval is how often Run and Refresh read the files. Zero means
	// DefaultInterval, negative means that they are read once only.
	Interval time.Duration
	// Logger gets a line for each new content, good or bad. Nil means silent.
	Logger *slog.Logger

	f follower[anchors]
}

// anchors is one immutable version of a Pool.
type anchors struct {
	roots *x509.CertPool
	keys  map[[sha256.Size]byte]*authority // by public key
}

// authority is a key that signs. It may have several certificates: renewed
// ones, cross-signed ones.
type authority struct {
	cluster string // that it is bound to
	certs   []*x509.Certificate
}

func (a *anchors) authority(cert *x509.Certificate) *authority {
	return a.keys[sha256.Sum256(cert.RawSubjectPublicKeyInfo)]
}

// root returns what stands for the end of a chain in this version: the same
// certificate, else the one that lasts longest of those that renew it, with
// the same key and subject, else nil.
func (a *anchors) root(old *x509.Certificate) (found *x509.Certificate) {
	auth := a.authority(old)
	if auth == nil {
		return nil
	}
	for _, cert := range auth.certs {
		switch {
		case cert.Equal(old):
			return cert
		case !bytes.Equal(cert.RawSubject, old.RawSubject):
		case found == nil || cert.NotAfter.After(found.NotAfter):
			found = cert
		}
	}
	return found
}

func (p *Pool) source() source[anchors] {
	files := make([]string, len(p.CAs))
	for i, ca := range p.CAs {
		files[i] = ca.File
	}
	return source[anchors]{
		files:    files,
		interval: p.Interval,
		logger:   p.Logger,
		parse:    func(c [][]byte) (*anchors, error) { return parseAnchors(p.CAs, c) },
		describe: func(a *anchors) []any { return []any{"authorities", len(a.keys)} },
	}
}

// parseAnchors builds one version. Two entries with different clusters must
// not share an authority: whom its certificates belong to would be a guess.
// Keys are compared, not certificates, because a CA certificate that was
// renewed with the old key signs for the same authority.
func parseAnchors(cas []CA, contents [][]byte) (*anchors, error) {
	a := &anchors{
		roots: x509.NewCertPool(),
		keys:  make(map[[sha256.Size]byte]*authority),
	}
	for i, ca := range cas {
		if ca.Cluster != "" {
			if err := ValidCluster(ca.Cluster); err != nil {
				return nil, fmt.Errorf("%w, which %s is bound to", err, ca.File)
			}
		}
		list, err := parseCerts(contents[i])
		if err != nil {
			return nil, fmt.Errorf("certs: %s: %w", ca.File, err)
		}
		for _, cert := range list {
			auth := a.authority(cert)
			if auth == nil {
				auth = &authority{cluster: ca.Cluster}
				a.keys[sha256.Sum256(cert.RawSubjectPublicKeyInfo)] = auth
			}
			if auth.cluster != ca.Cluster {
				return nil, fmt.Errorf("certs: %s: authority %q is bound to %s here and to %s in another entry",
					ca.File, cert.Subject, boundTo(ca.Cluster), boundTo(auth.cluster))
			}
			auth.certs = append(auth.certs, cert)
			a.roots.AddCert(cert)
		}
	}
	return a, nil
}

func boundTo(cluster string) string {
	if cluster == "" {
		return "no cluster"
	}
	return fmt.Sprintf("cluster %q", cluster)
}

// parseCerts is stricter than x509.CertPool.AppendCertsFromPEM, which skips
// what it cannot read: a file cut short must not shrink the set in silence.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for n := 1; ; n++ {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", n, err)
		}
		list = append(list, cert)
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, errors.New("the last PEM block is damaged or cut short")
	}
	if len(list) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return list, nil
}

// Load reads all files now. See [KeyPair.Load].
func (p *Pool) Load() error { return p.f.load(p.source(), false) }

// Run reads the files, now and each Interval, until ctx ends, then returns nil.
func (p *Pool) Run(ctx context.Context) error { return p.f.run(ctx, p.source()) }

// Refresh reads the files unless the last look is younger than Interval. See
// [KeyPair.Refresh].
func (p *Pool) Refresh() error { return p.f.refresh(p.source()) }

// Ready returns nil when there is something to use. See [KeyPair.Ready].
func (p *Pool) Ready() error {
	_, err := p.f.get(p.source())
	return err
}

// Changed returns a channel that is closed when the set changes next.
func (p *Pool) Changed() <-chan struct{} { return p.f.next() }

// Roots returns the union of all authorities. When the files have never been
// good it is empty, which admits nobody; it is never nil, which would mean
// the host's roots. The caller must not modify it.
func (p *Pool) Roots() *x509.CertPool {
	a, err := p.f.get(p.source())
	if err != nil {
		return x509.NewCertPool()
	}
	return a.roots
}
