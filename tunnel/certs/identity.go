package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Operator is the cluster name in the certificate of an operator, who may
// reach every cluster.
const Operator = "*"

var (
	// ErrExpired means that a certificate or token is no longer valid.
	ErrExpired = errors.New("certs: expired")
	// ErrNotYetValid means that a certificate is not valid yet: mind the clocks.
	ErrNotYetValid = errors.New("certs: not yet valid")
	// ErrUntrusted means that no chain ends in an authority of the pool.
	ErrUntrusted = errors.New("certs: not signed by an authority of the pool")
	// ErrNoCluster means that a certificate names no cluster, or not clearly.
	ErrNoCluster = errors.New("certs: certificate names no cluster")
	// ErrWrongCluster means that a certificate belongs to another cluster.
	ErrWrongCluster = errors.New("certs: certificate of another cluster")
)

// Identity is what a verified certificate says about its holder.
type Identity struct {
	// Cluster is the cluster that the holder belongs to. Empty for operators.
	Cluster string
	// Operator is true for a certificate that names "*" and whose authority
	// is not bound.
	Operator bool
	// Bound is true when the cluster follows from the authority.
	Bound bool
	// Subject is the subject and serial number, for logs.
	Subject string
	// NotAfter is when the first certificate of the chain expires.
	NotAfter time.Time
}

// Allows reports whether the holder may reach the cluster: its own, or any
// for an operator. No one may reach the cluster "".
func (id Identity) Allows(cluster string) bool {
	return cluster != "" && (id.Operator || id.Cluster == cluster)
}

// ValidCluster reports why name cannot name a cluster: it must have 1 to 253
// characters out of letters, digits, '.', '_' and '-' (ASCII), and begin and
// end with a letter or digit. Case counts.
func ValidCluster(name string) error {
	const rule = "1 to 253 of A-Z a-z 0-9 . _ -, beginning and ending with a letter or digit"
	if len(name) == 0 || len(name) > 253 || !alphanumeric(name[0]) || !alphanumeric(name[len(name)-1]) {
		return fmt.Errorf("certs: bad cluster name %.260q: want %s", name, rule)
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("certs: bad cluster name %q: want %s", name, rule)
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// ClusterOf returns the cluster that a certificate names, or [Operator]. The
// first of these that is present decides, also when it is malformed:
//
//  1. the URI SAN rhizome://cluster/NAME; two that differ are an error,
//  2. the DNS SAN, if there is exactly one,
//  3. the common name of the subject.
//
// It says nothing about trust: use [Pool.Identify] for peers. Errors answer
// [ErrNoCluster].
func ClusterOf(cert *x509.Certificate) (string, error) {
	name, err := clusterURI(cert)
	if err != nil || name != "" {
		return name, err
	}
	where := "common name"
	name = cert.Subject.CommonName
	if len(cert.DNSNames) == 1 {
		where, name = "DNS SAN", cert.DNSNames[0]
	}
	if name == Operator {
		return name, nil
	}
	if err := ValidCluster(name); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrNoCluster, where, err)
	}
	return name, nil
}

// clusterURI returns the name in the rhizome:// URI SAN, "" without one.
func clusterURI(cert *x509.Certificate) (string, error) {
	var found string
	for _, u := range cert.URIs {
		if !strings.EqualFold(u.Scheme, "rhizome") {
			continue
		}
		name, ok := clusterFromURI(u)
		if !ok {
			return "", fmt.Errorf("%w: URI SAN %.300q is not of the form rhizome://cluster/NAME", ErrNoCluster, u)
		}
		if found != "" && found != name {
			return "", fmt.Errorf("%w: URI SANs name both %q and %q", ErrNoCluster, found, name)
		}
		found = name
	}
	return found, nil
}

func clusterFromURI(u *url.URL) (string, bool) {
	// Names need no escaping, so anything that the parts do not spell out
	// again (escapes, query, fragment, user, port) is not one of ours.
	name, ok := strings.CutPrefix(u.Path, "/")
	if !ok || u.String() != "rhizome://cluster/"+name {
		return "", false
	}
	return name, name == Operator || ValidCluster(name) == nil
}

// Identify says whom verified chains (as in tls.ConnectionState.VerifiedChains)
// belong to, now. Chains are judged anew at each call, so that it can be asked
// again when the pool or the time has moved on: the last certificate of a
// chain must still be in the pool, itself or renewed with the same key and
// subject, and none of the chain may be out of its time.
//
// The authority nearest to the holder decides. If it is bound, the holder
// belongs to its cluster whatever the certificate says, but a URI SAN
// rhizome://cluster/NAME that names another one (or "*") is refused. If it is
// not bound, [ClusterOf] decides, and "*" is an operator. Chains that lead to
// different clusters are refused.
//
// Errors answer [ErrUntrusted], [ErrExpired], [ErrNotYetValid], [ErrNoCluster]
// or [ErrWrongCluster], or say why the files of the pool are bad.
func (p *Pool) Identify(chains [][]*x509.Certificate) (Identity, error) {
	a, err := p.f.get(p.source())
	if err != nil {
		return Identity{}, err
	}
	return a.identify(chains, time.Now())
}

func (a *anchors) identify(chains [][]*x509.Certificate, now time.Time) (Identity, error) {
	var id Identity
	var found bool
	var refused error // of the chains that were refused, the first reason
	for _, chain := range chains {
		one, err := a.identifyChain(chain, now)
		switch {
		case err != nil:
			if errors.Is(err, ErrWrongCluster) || errors.Is(err, ErrNoCluster) {
				return Identity{}, err // no other chain makes up for it
			}
			if refused == nil || errors.Is(refused, ErrUntrusted) {
				refused = err // out of time says more than untrusted
			}
		case found && (one.Cluster != id.Cluster || one.Operator != id.Operator):
			return Identity{}, fmt.Errorf("%w: %s: its authorities belong to %q and to %q", ErrWrongCluster, one.Subject, id.Cluster, one.Cluster)
		case !found || one.NotAfter.After(id.NotAfter):
			id, found = one, true
		}
	}
	if found {
		return id, nil
	}
	if refused == nil {
		refused = fmt.Errorf("%w: no certificate was verified", ErrUntrusted)
	}
	return Identity{}, refused
}

func (a *anchors) identifyChain(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, fmt.Errorf("%w: empty chain", ErrUntrusted)
	}
	leaf := chain[0]
	id := Identity{
		Subject:  fmt.Sprintf("%s (serial %x)", leaf.Subject, leaf.SerialNumber),
		NotAfter: leaf.NotAfter,
	}
	last := len(chain) - 1
	root := a.root(chain[last])
	if root == nil {
		return Identity{}, fmt.Errorf("%w: %s, by %s", ErrUntrusted, id.Subject, chain[last].Subject)
	}
	if root != chain[last] && last > 0 {
		chain = append(slices.Clone(chain[:last]), root)
	}
	for _, cert := range chain {
		if now.After(cert.NotAfter) {
			return Identity{}, fmt.Errorf("%w: %s at %s", ErrExpired, cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
		}
		if now.Before(cert.NotBefore) {
			return Identity{}, fmt.Errorf("%w: %s before %s", ErrNotYetValid, cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339))
		}
		if cert.NotAfter.Before(id.NotAfter) {
			id.NotAfter = cert.NotAfter
		}
	}
	bound := a.boundTo(chain)
	if bound == "" {
		name, err := ClusterOf(leaf)
		if err != nil {
			return Identity{}, fmt.Errorf("%s: %w", id.Subject, err)
		}
		if name == Operator {
			id.Operator = true
		} else {
			id.Cluster = name
		}
		return id, nil
	}
	explicit, err := clusterURI(leaf)
	if err != nil {
		return Identity{}, fmt.Errorf("%s: %w", id.Subject, err)
	}
	if explicit != "" && explicit != bound {
		return Identity{}, fmt.Errorf("%w: %s claims %q, but its authority is bound to %q", ErrWrongCluster, id.Subject, explicit, bound)
	}
	id.Cluster, id.Bound = bound, true
	return id, nil
}

// boundTo looks for the authority nearest to the leaf, so that a bound
// intermediate counts although its root is in the pool as well.
func (a *anchors) boundTo(chain []*x509.Certificate) string {
	for _, cert := range chain {
		if auth := a.authority(cert); auth != nil {
			return auth.cluster
		}
	}
	return ""
}
