package tunnel

import (
	"context"
	"net"
	"time"
)

// muxer is all that a session needs of a multiplexer: streams over one
// connection, opened by the server's side and accepted by the agent's side.
// It is small on purpose, so that another multiplexer can take yamux's place.
type muxer interface {
	// Open opens a stream. It honours ctx also while the carrier is stalled.
	Open(ctx context.Context) (stream, error)
	// Accept waits for a stream that the other side opened.
	Accept() (stream, error)
	// Close ends the carrier and every stream and waits for the multiplexer's
	// goroutines. Streams then fail with cause, never with a clean EOF.
	Close(cause error) error
	// Done is closed when the carrier has ended, and Err then says why.
	Done() <-chan struct{}
	Err() error
	// Streams is the number of streams that hold memory here.
	Streams() int
	// Unread is the number of bytes received and not yet read, of all
	// streams, and Held what the buffers for them may take. Trim resets those
	// streams that hold most until the others hold no more than limit.
	Unread() int64
	Held() int64
	Trim(limit int64, reason string)
	// Sweep is to be called now and then: it lets go of idle buffers. It
	// reports whether the peer leaves streams unfinished that were closed or
	// reset here.
	Sweep(now time.Time) (unfinished bool)
	// OnGrown has f called, which must not block, each time that Held grew by
	// a certain step.
	OnGrown(f func())
	// LastReceived is when the last byte came from the carrier.
	LastReceived() time.Time
	// Reset ends a stream that the other side has reset: see control.go.
	Reset(id uint32, m resetMessage)
	// Carrier is the connection below.
	Carrier() net.Conn
}

// stream is one bidirectional byte channel of a session. It is a correct
// net.Conn: see tunneltest.TestConn.
type stream interface {
	net.Conn
	CloseWrite() error
	// Reset aborts both directions; the other side sees ErrReset.
	Reset() error
	// ResetWith is Reset with a reason for the other side's error.
	ResetWith(reason string) error
	ID() uint32
	// WaitRead and WaitReset are those of package relay.
	WaitRead() error
	WaitReset() error
}
