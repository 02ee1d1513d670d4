package proxyproto

import (
	"errors"
	"net"
	"os"
	"strings"
)

var (
	// ErrNoHeader says that the policy requires a header and none came: the
	// first bytes are something else, or there are none before EOF.
	ErrNoHeader = errors.New("no PROXY header")
	// ErrRefused says that a peer sent a header which the policy does not
	// take from it.
	ErrRefused = errors.New("PROXY header from an untrusted peer")
	// ErrMalformed says that the bytes begin as a header does and do not go
	// on so: truncated, too long, or against the grammar.
	ErrMalformed = errors.New("malformed PROXY header")
	// ErrInvalid says that a [Header] holds what the protocol cannot express.
	// Nothing was written.
	ErrInvalid = errors.New("header cannot be expressed")
)

// HeaderError is how reading a header fails. A Conn is of no use afterwards,
// and its owner closes it.
//
// Err is, for errors.Is, one of [ErrNoHeader], [ErrRefused] and
// [ErrMalformed]; or os.ErrDeadlineExceeded after Options.Timeout; or what the
// connection below answered, net.ErrClosed after Close for example. A truncated
// header is io.ErrUnexpectedEOF too, and a missing one io.EOF where the peer
// sent nothing at all, as a port scan and many a health check do.
type HeaderError struct {
	Inner bool     // The second header is meant, not the one that names the client.
	Peer  net.Addr // The real address of the peer, or nil if it is not known.
	Err   error    // What happened; never nil.
}

// Error says what happened and to whom.
func (e *HeaderError) Error() string {
	var b strings.Builder
	b.WriteString("proxyproto: ")
	if e.Inner {
		b.WriteString("inner header: ")
	}
	if e.Peer != nil && e.Peer.String() != "" { // a UNIX client has no name
		b.WriteString("from " + e.Peer.String() + ": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns Err.
func (e *HeaderError) Unwrap() error { return e.Err }

// Timeout reports whether the headers took too long. With it a HeaderError is a
// net.Error.
func (e *HeaderError) Timeout() bool { return errors.Is(e.Err, os.ErrDeadlineExceeded) }

// Temporary is part of net.Error and always false: the Conn stays as it is.
func (e *HeaderError) Temporary() bool { return false }

var _ net.Error = (*HeaderError)(nil)
