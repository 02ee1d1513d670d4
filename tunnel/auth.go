package tunnel

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Peer is what a connection at a door has shown: the only things that an
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
	// Name stands for the peer in logs: a certificate's subject, a token's
	// name. It is never a secret.
	Name string
	// Check, if not nil, is asked every 10 s whether the credential still
	// holds. From its first error on the peer has 30 s, then what it opened
	// is reset. An agent is told at once, so that it can come back with a
	// new credential.
	Check func() error
}

// AuthFunc tells who a peer is, or why it is refused. The error should be a
// *connect.Error, whose status the peer is answered with: 401 for no or an
// unknown credential, 403 for one that does not admit it. Any other error
// becomes 401. It runs before anything else of the request is looked at.
type AuthFunc func(p *Peer) (Identity, error)

func unauthorized(format string, args ...any) error {
	return &connect.Error{Reason: connect.ErrDenied, Status: 401, Err: fmt.Errorf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &connect.Error{Reason: connect.ErrDenied, Status: 403, Err: fmt.Errorf(format, args...)}
}

// AgentAuth admits agents by client certificate, by bearer token, or by both,
// which must then agree. Either argument may be nil. A certificate of an
// operator ("*") admits no agent.
//
// The pool must be the one that the door's TLS verifies with: certificates
// were verified in the handshake, and the pool only says whose they are. A nil
// pool takes the name from the certificate alone, see [certs.ClusterOf].
func AgentAuth(pool *certs.Pool, tokens *certs.Tokens) AuthFunc {
	return func(p *Peer) (Identity, error) {
		byCert, certErr := certIdentity(pool, p)
		bearer, given := bearerOf(p.Request)
		if certErr != nil && !errors.Is(certErr, errNoCert) {
			return Identity{}, certErr
		}
		if certErr == nil && byCert.operator {
			return Identity{}, forbidden("an operator's certificate admits no agent")
		}
		if !given || tokens == nil {
			if certErr != nil {
				if given {
					return Identity{}, unauthorized("bearer tokens are not accepted here")
				}
				return Identity{}, certErr
			}
			if given {
				return Identity{}, unauthorized("a bearer token came with the certificate, and tokens are not accepted here")
			}
			return byCert.Identity, nil
		}
		byToken, err := tokenIdentity(tokens, p, bearer)
		if err != nil {
			return Identity{}, err
		}
		if certErr != nil {
			return byToken, nil
		}
		if byToken.Cluster != byCert.Cluster {
			return Identity{}, forbidden("the certificate is of cluster %q and the token of cluster %q", byCert.Cluster, byToken.Cluster)
		}
		// Either alone admits: it ends only when both no longer hold.
		check := func() error {
			if err := byCert.Check(); err == nil {
				return nil
			}
			return byToken.Check()
		}
		return Identity{Cluster: byCert.Cluster, Name: byCert.Name, Check: check}, nil
	}
}

// Selector picks the cluster that a client wants from what its connection
// shows. It only selects: the certificate must allow it too.
type Selector func(p *Peer) (cluster string, err error)

// SelectSNI selects by TLS server name (kube-apiserver's tlsServerName, from
// Kubernetes 1.36 on). With an empty suffix the whole name is the cluster,
// otherwise it must be CLUSTER.suffix. Server names are in lower case, and so
// must be the names of clusters that are selected by them.
func SelectSNI(suffix string) Selector {
	suffix = strings.ToLower(strings.Trim(suffix, "."))
	return func(p *Peer) (string, error) {
		if p.TLS == nil || p.TLS.ServerName == "" {
			return "", forbidden("the TLS handshake named no server, which selects the cluster here")
		}
		name := strings.ToLower(p.TLS.ServerName)
		if suffix == "" {
			return name, nil
		}
		cluster, ok := strings.CutSuffix(name, "."+suffix)
		if !ok {
			return "", forbidden("TLS server name %q is not of the form CLUSTER.%s", name, suffix)
		}
		return cluster, nil
	}
}

// SelectHeader selects by a header of the request, which must stand in it
// exactly once.
func SelectHeader(name string) Selector {
	return func(p *Peer) (string, error) {
		values := p.Request.Header.Values(name)
		if len(values) != 1 {
			return "", forbidden("the request has %d %s headers, and exactly one selects the cluster here", len(values), name)
		}
		return values[0], nil
	}
}

// ClientAuth admits clients by certificate to the cluster that it names, that
// its authority is bound to, or, for an operator, to any. With a selector the
// client says which cluster it wants, and is refused with 403 unless the
// certificate allows that one; without, it gets the certificate's cluster.
// Pool is as for [AgentAuth].
func ClientAuth(pool *certs.Pool, selected Selector) AuthFunc {
	return func(p *Peer) (Identity, error) {
		id, err := certIdentity(pool, p)
		if err != nil {
			return Identity{}, err
		}
		if selected == nil {
			if id.operator {
				return Identity{}, forbidden("an operator's certificate needs a cluster to be selected, by server name or header")
			}
			return id.Identity, nil
		}
		cluster, err := selected(p)
		if err != nil {
			return Identity{}, err
		}
		if !id.operator && cluster != id.Cluster {
			return Identity{}, forbidden("the certificate is of cluster %q and does not allow cluster %.60q", id.Cluster, cluster)
		}
		if err := certs.ValidCluster(cluster); err != nil {
			return Identity{}, forbidden("%v", err)
		}
		id.Cluster = cluster
		return id.Identity, nil
	}
}

// FixedCluster admits everyone who reaches the listener to one cluster: for a
// Unix socket whose file permissions are the authentication.
func FixedCluster(cluster string) AuthFunc {
	return func(p *Peer) (Identity, error) {
		return Identity{Cluster: cluster, Name: "local"}, nil
	}
}

var errNoCert = errors.New("no client certificate")

type certificateIdentity struct {
	Identity
	operator bool
}

// certIdentity is who the verified certificate of the connection belongs to.
func certIdentity(pool *certs.Pool, p *Peer) (certificateIdentity, error) {
	if p.TLS == nil || len(p.TLS.VerifiedChains) == 0 {
		return certificateIdentity{}, &connect.Error{Reason: connect.ErrDenied, Status: 401, Err: errNoCert}
	}
	if pool == nil {
		return namedByCert(p.TLS)
	}
	chains := p.TLS.VerifiedChains
	id, err := pool.Identify(chains)
	if err != nil {
		return certificateIdentity{}, forbidden("%w", err)
	}
	check := func() error {
		now, err := pool.Identify(chains)
		if err == nil && (now.Cluster != id.Cluster || now.Operator != id.Operator) {
			err = fmt.Errorf("%w: its authority is bound to %q now", certs.ErrWrongCluster, now.Cluster)
		}
		return err
	}
	return certificateIdentity{Identity{Cluster: id.Cluster, Name: id.Subject, Check: check}, id.Operator}, nil
}

// namedByCert is certIdentity without a pool: the certificate was verified by
// whoever made the listener, and its time still counts.
func namedByCert(state *tls.ConnectionState) (certificateIdentity, error) {
	leaf := state.VerifiedChains[0][0]
	cluster, err := certs.ClusterOf(leaf)
	if err != nil {
		return certificateIdentity{}, forbidden("%w", err)
	}
	check := func() error { return unexpired(state) }
	if err := check(); err != nil { // a resumed TLS session can outlive it
		return certificateIdentity{}, forbidden("%w", err)
	}
	return certificateIdentity{
		Identity: Identity{Cluster: cluster, Name: leaf.Subject.String(), Check: check},
		operator: cluster == certs.Operator,
	}, nil
}

// unexpired refuses a peer's certificate whose time is over: a connection, or a
// TLS session that was resumed, can outlive it.
func unexpired(state *tls.ConnectionState) error {
	chain := state.PeerCertificates
	if len(state.VerifiedChains) > 0 {
		chain = state.VerifiedChains[0]
	}
	if len(chain) > 0 && time.Now().After(chain[0].NotAfter) {
		return forbidden("%w", certs.ErrExpired)
	}
	return nil
}

// tokenIdentity is who a bearer token belongs to.
func tokenIdentity(tokens *certs.Tokens, p *Peer, bearer string) (Identity, error) {
	token, err := tokens.Lookup(bearer)
	if err != nil {
		return Identity{}, unauthorized("%w", err)
	}
	name := token.Name
	if name == "" {
		name = "token " + token.SHA256[:8]
	}
	check := func() error {
		now, err := tokens.Lookup(bearer)
		if err == nil && now.Cluster != token.Cluster {
			err = fmt.Errorf("%w: the token is of %q now", certs.ErrWrongCluster, now.Cluster)
		}
		return err
	}
	return Identity{Cluster: token.Cluster, Name: name, Check: check}, nil
}

// bearerOf is the bearer token of a request. Several Authorization headers
// are none that can match.
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
