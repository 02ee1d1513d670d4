package tunnel

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Errors that end sessions and streams. Dials fail with a [DialError].
var (
	// ErrServerClosed is returned by Serve and DialAgent after Shutdown or
	// Close. It is a net.ErrClosed.
	ErrServerClosed error = closedError("tunnel: server closed")
	// ErrAgentClosed is returned by Run and Serve of an [Agent] after its
	// Shutdown or Close. It is a net.ErrClosed.
	ErrAgentClosed error = closedError("tunnel: agent closed")
	// ErrReset is the error of a stream that was aborted: by a reset of the
	// target or of the client, or because its session was lost. It is a
	// syscall.ECONNRESET.
	ErrReset error = resetError("tunnel: stream reset")
	// ErrSessionLost is the error of a stream whose session ended below it.
	// It is an ErrReset, and so never mistaken for the end of the data.
	ErrSessionLost error = resetError("tunnel: session lost")
	// ErrAgentDead is the cause of a session's end when the other side did
	// not answer for [Liveness].
	ErrAgentDead = errors.New("tunnel: peer does not answer")
)

// closedError and resetError bridge our errors to the standard library's.
type closedError string

func (e closedError) Error() string        { return string(e) }
func (e closedError) Is(target error) bool { return target == net.ErrClosed }

type resetError string

func (e resetError) Error() string { return string(e) }
func (e resetError) Is(target error) bool {
	return target == syscall.ECONNRESET || target == ErrReset
}

// streamReset is the error of a stream that was reset with a reason.
type streamReset struct {
	reason string
	by     string // "peer" or "session"
	cause  error
}

func (e *streamReset) Error() string {
	return "tunnel: stream reset by " + e.by + ": " + e.reason
}

func (e *streamReset) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrReset}
	}
	return []error{ErrReset, e.cause}
}

// DialError says why a dial through the tunnel failed and how far it came.
//
// Err is a [connect.Error] whose Reason is the RFC 9209 error type, so that
// errors.Is(err, connect.ErrRefused), errors.Is(err, connect.ErrUnavailable)
// and so on answer what happened; Timeout reports the two time-outs.
type DialError struct {
	// Cluster is the cluster that was dialled.
	Cluster string
	// Agent is the id of the agent that answered, empty if the dial did not
	// reach one.
	Agent string
	// Target is the address that was asked for.
	Target string
	// Err is the reason, never nil.
	Err *connect.Error
}

// Error tells cluster, agent, target and reason in one line.
func (e *DialError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tunnel: dial %s in cluster %s", e.Target, e.Cluster)
	if e.Agent != "" {
		fmt.Fprintf(&b, " through agent %s", e.Agent)
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// Timeout reports whether the dial took too long: in the tunnel, at the
// target, or in the agent's DNS.
func (e *DialError) Timeout() bool { return e.Err.Timeout() }

// Temporary is there for net.Error; it reports Timeout.
func (e *DialError) Temporary() bool { return e.Timeout() }

var _ net.Error = (*DialError)(nil)
