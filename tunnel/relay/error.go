package relay

import (
	"errors"
	"os"
)

// Operations which may be found in [Error.Op].
const (
	OpRead       = "read"        // Reading from a leg failed, a reset by its peer included.
	OpWrite      = "write"       // Writing to a leg failed.
	OpCloseWrite = "close-write" // A leg could not be told that the other one had ended.
	OpIdle       = "idle"        // Options.IdleTimeout passed without progress; Leg is empty.
	OpContext    = "context"     // The context ended; Leg is empty.
	// A TCP peer is dead: Err is [ErrSilent]. Only on linux.
	OpAcknowledge = "acknowledge"
)

// Error is what [Relay] returns: the first thing that went wrong. Whatever
// happens afterwards, as the consequence of resetting both legs, is not
// reported.
type Error struct {
	// Op is what failed, one of the Op constants.
	Op string
	// Leg is the leg that it failed on, "a" or "b" in the order of Relay's
	// parameters. It is empty where both legs share the blame: OpIdle, OpContext.
	Leg string
	// Err is the cause: what the connection returned, [ErrIdle], [ErrSilent], or
	// the context's cause.
	Err error
}

// Error names the operation, the leg and the cause in one line.
func (e *Error) Error() string {
	s := "relay: " + e.Op
	if e.Leg != "" {
		s += " " + e.Leg
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause, so that errors.Is finds for instance
// syscall.ECONNRESET, net.ErrClosed or context.Canceled.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether the cause was a timeout: the idle timeout, a peer that
// acknowledges nothing, a deadline set on a leg, or a context that ran into its
// deadline.
func (e *Error) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// ErrIdle is the cause of an [Error] after [Options.IdleTimeout]. It is a
// timeout: errors.Is(ErrIdle, os.ErrDeadlineExceeded) is true.
var ErrIdle error = idleError{}

type idleError struct{}

func (idleError) Error() string        { return "no byte went either way for the whole idle timeout" }
func (idleError) Timeout() bool        { return true }
func (idleError) Is(target error) bool { return target == os.ErrDeadlineExceeded }
