package packet

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Peer is what a connection at a [Server] has shown: the only things that an
// [AuthFunc] may judge by.
type Peer struct {
	// RemoteAddr and LocalAddr are of the connection.
	RemoteAddr, LocalAddr net.Addr
	// TLS is the state after the handshake, nil on a plain connection.
	TLS *tls.ConnectionState
	// Request is the head of its request.
	Request *connect.Request
}

// Identity is who a peer is, by a credential that was verified.
type Identity struct {
	// Cluster is the one cluster that the peer belongs to.
	Cluster string
	// Name tells the peers of a cluster apart: the common name of a certificate,
	// the name of a token. What a peer may do goes by it.
	Name string
	// Check, if not nil, is asked every 10 s whether the credential still holds.
	// From its first error on the link has 30 s.
	Check func() error
}

// AuthFunc tells who a peer is, or why it is refused. The error should be a
// *connect.Error, whose status the peer is answered with: 401 for no or an
// unknown credential, 403 for one that does not admit it. Any other error
// becomes 401. It runs before anything else of the request is looked at.
type AuthFunc func(p *Peer) (Identity, error)

func unauthorized(format string, args ...any) error {
	return &connect.Error{Reason: connect.ErrDenied, Status: http.StatusUnauthorized, Err: fmt.Errorf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &connect.Error{Reason: connect.ErrDenied, Status: http.StatusForbidden, Err: fmt.Errorf(format, args...)}
}

// Auth admits peers of one cluster by client certificate, by bearer token, or by
// both, which must then agree on cluster and name. Pool and tokens may be nil. An
// empty cluster admits those of any, and what serves the links must keep them
// apart.
//
// The pool must be the one that TLS verifies with: certificates were verified in
// the handshake, and the pool only says whose they are. A nil pool takes the
// cluster from the certificate alone, see [certs.ClusterOf]. A certificate of an
// operator ("*") is refused.
func Auth(cluster string, pool *certs.Pool, tokens *certs.Tokens) AuthFunc {
	return func(p *Peer) (Identity, error) {
		id, err := authenticate(pool, tokens, p)
		if err == nil && cluster != "" && id.Cluster != cluster {
			err = forbidden("the credential is of cluster %q, and this server serves %q", id.Cluster, cluster)
		}
		if err == nil && id.Name == "" {
			err = forbidden("the credential has no name")
		}
		return id, err
	}
}

var errNoCredential = errors.New("neither a client certificate nor a bearer token came")

func authenticate(pool *certs.Pool, tokens *certs.Tokens, p *Peer) (Identity, error) {
	bearer, given := bearerOf(p.Request)
	certified := p.TLS != nil && len(p.TLS.VerifiedChains) > 0
	switch {
	case !certified && !given:
		return Identity{}, unauthorized("%w", errNoCredential)
	case given && tokens == nil:
		return Identity{}, unauthorized("bearer tokens are not accepted here")
	case !given:
		return byCertificate(pool, p.TLS)
	case !certified:
		return byToken(tokens, bearer)
	}
	cert, err := byCertificate(pool, p.TLS)
	if err != nil {
		return Identity{}, err
	}
	token, err := byToken(tokens, bearer)
	if err != nil {
		return Identity{}, err
	}
	if cert.Cluster != token.Cluster || cert.Name != token.Name {
		return Identity{}, forbidden("the certificate is of %q in cluster %q, and the token of %q in cluster %q", cert.Name, cert.Cluster, token.Name, token.Cluster)
	}
	check := cert.Check
	cert.Check = func() error { // either alone admits
		if err := check(); err == nil {
			return nil
		}
		return token.Check()
	}
	return cert, nil
}

// byCertificate is who a verified certificate belongs to.
func byCertificate(pool *certs.Pool, state *tls.ConnectionState) (Identity, error) {
	chains := state.VerifiedChains
	leaf := chains[0][0]
	clusterOf := func() (string, error) {
		if pool == nil {
			if time.Now().After(leaf.NotAfter) { // a resumed TLS session can outlive it
				return "", certs.ErrExpired
			}
			return certs.ClusterOf(leaf)
		}
		id, err := pool.Identify(chains)
		if id.Operator {
			return certs.Operator, err
		}
		return id.Cluster, err
	}
	cluster, err := clusterOf()
	if err == nil && cluster == certs.Operator {
		err = errors.New("an operator's certificate opens no link")
	}
	if err != nil {
		return Identity{}, forbidden("%w", err)
	}
	return Identity{Cluster: cluster, Name: leaf.Subject.CommonName, Check: func() error {
		now, err := clusterOf()
		if err == nil && now != cluster {
			err = fmt.Errorf("%w: its authority is bound to %q now", certs.ErrWrongCluster, now)
		}
		return err
	}}, nil
}

// byToken is who a bearer token belongs to.
func byToken(tokens *certs.Tokens, bearer string) (Identity, error) {
	token, err := tokens.Lookup(bearer)
	if err != nil {
		return Identity{}, unauthorized("%w", err)
	}
	return Identity{Cluster: token.Cluster, Name: token.Name, Check: func() error {
		now, err := tokens.Lookup(bearer)
		if err == nil && (now.Cluster != token.Cluster || now.Name != token.Name) {
			err = fmt.Errorf("%w: the token is of %q now", certs.ErrWrongCluster, now.Cluster)
		}
		return err
	}}, nil
}

// bearerOf is the bearer token of a request. Several Authorization headers are
// none that can match.
func bearerOf(r *connect.Request) (token string, given bool) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", true
	}
	return strings.TrimSpace(token), true
}
