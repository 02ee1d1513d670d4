package guard

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"time"
)

// Accept hands each connection of l to handle, which must not block, until l
// fails or is closed, and returns why. What the kernel says of one connection, or
// of a lack of descriptors or memory, is no failure of l: it is waited out and
// logged. Ending ctx ends the waits only: whoever wants to end Accept closes l.
func Accept(ctx context.Context, l net.Listener, log *slog.Logger, handle func(net.Conn)) error {
	var pause time.Duration
	for {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			handle(c)
			continue
		}
		if ctx.Err() != nil || !passes(err) {
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		log.Error("accept failed", "listener", l.Addr().String(), "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// passes reports whether Accept may succeed after err. accept(2) has errors of the
// network that belong to one connection and "should be treated like EAGAIN", so
// that it is the other way round: few say that the listener is of no use.
func passes(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno != syscall.EBADF && errno != syscall.EINVAL && errno != syscall.ENOTSOCK
	}
	var temporary interface{ Temporary() bool }
	return errors.As(err, &temporary) && temporary.Temporary()
}
