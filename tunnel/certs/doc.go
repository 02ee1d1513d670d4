// Package certs follows certificates, authorities and tokens that change in
// their files while connections go on, and says which cluster a certificate
// belongs to.
//
// A server that asks its clients for certificates:
//
//	pair := &certs.KeyPair{CertFile: "tls.crt", KeyFile: "tls.key", Logger: log}
//	pool := &certs.Pool{CAs: []certs.CA{{File: "ca.crt"}}, Logger: log}
//	if err := errors.Join(pair.Load(), pool.Load()); err != nil {
//		return err // at the start bad files are worth an end
//	}
//	go pair.Run(ctx)
//	go pool.Run(ctx)
//	listener := tls.NewListener(tcp, certs.ServerTLS(pair, pool, true))
//
// and for a connection, once its handshake is done:
//
//	id, err := pool.Identify(conn.ConnectionState().VerifiedChains)
//	if err != nil || !id.Allows("shoot--dev--a") {
//		return errForbidden
//	}
//
// The other side is [ClientTLS], or [AgentTLS] where the peer is known by its
// cluster and not by a host name.
//
// # Following files
//
// [KeyPair], [Pool] and [Tokens] read their files each Interval (10 s) and
// compare contents. Times and inotify say little about the files of a Secret
// mount, which are symbolic links whose target is swapped. New content that is
// bad, such as a certificate whose key is still the old one, changes nothing:
// the old content stays in use, the finding is logged once, and the next look
// may find the other half. A file of more than [MaxFileSize] is bad, too.
//
// Whoever calls Run owns its goroutine. A program without Run calls Refresh
// where it needs the newest content; one without Load gets the files read at
// the first use. Changed tells when to look again at what an older version
// admitted: a connection knows only what was true at its handshake.
//
// # Whose certificate
//
// A certificate names its cluster by the URI SAN rhizome://cluster/NAME, else
// by its only DNS SAN, else by its common name. The name "*" is an operator,
// who may reach every cluster. A [CA] may be bound to one cluster: what it
// signs belongs to that cluster whatever it says, unless a URI SAN says
// otherwise, which is refused. So a CA that is handed to a tenant cannot make
// anyone else. [Pool.Identify] has the rules in full.
//
// # Errors
//
// [ErrExpired], [ErrNotYetValid], [ErrUntrusted], [ErrNoCluster],
// [ErrWrongCluster] and [ErrUnknownToken] are found with errors.Is. No error
// and no log line holds a key or a token.
//
// # What it does not do
//
// It makes no certificates, asks no OCSP responder, reads no CRL (remove the
// authority or let certificates be short-lived) and closes no connection.
package certs
