package guard

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// Accept hands each connection of l to handle, which must not block, until l
// fails or is closed, and returns why. A temporary failure, as a rule that
// descriptors have run out, is waited out and logged. Ending ctx ends the waits
// only: whoever wants to end Accept closes l.
func Accept(ctx context.Context, l net.Listener, log *slog.Logger, handle func(net.Conn)) error {
	var pause time.Duration
	for {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			handle(c)
			continue
		}
		var temporary interface{ Temporary() bool }
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !errors.As(err, &temporary) || !temporary.Temporary() {
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
