package guard

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// MaxEarly bounds what a Watcher keeps.
const MaxEarly = 16 << 10

// A Watcher reads from a client while its dial is under way: to keep what it
// sends early, and to learn that it went away, which is the only way in which
// it can cancel.
//
//	            ┌── bytes ──► kept; with 16 KiB it stops reading: back-pressure
//	reading ────┼── EOF ────► early bytes kept: a half-close, the relay sees it again
//	            │             none:             gone()
//	            ├── error ──► gone()
//	            └── Stop() ─► a read deadline in the past ends the Read
type Watcher struct {
	c        net.Conn
	gone     func()
	stopping atomic.Bool
	done     chan struct{} // nil: nothing is watched
	early    []byte        // belongs to the goroutine until done is closed
}

// Watch starts to watch c, which has sent early already, and calls gone at
// most once. Where c has no read deadlines nothing is watched, because then
// there is no way to stop.
func Watch(c net.Conn, early []byte, gone func()) *Watcher {
	w := &Watcher{c: c, gone: gone, early: early[:len(early):len(early)]}
	if c.SetReadDeadline(time.Time{}) == nil && len(early) < MaxEarly {
		w.done = make(chan struct{})
		go w.run()
	}
	return w
}

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 512)
	for len(w.early) < MaxEarly {
		n, err := w.c.Read(buf[:min(len(buf), MaxEarly-len(w.early))])
		w.early = append(w.early, buf[:n]...)
		switch {
		case err == nil:
			if n == len(buf) && len(buf) < 4<<10 {
				buf = make([]byte, 4<<10)
			}
		case err == io.EOF && len(w.early) > 0:
			return
		case timedOut(err) && w.stopping.Load():
			return
		default:
			w.gone()
			return
		}
	}
}

// Stop ends the watching and returns all early bytes. After it c can be read as if
// nothing had been; where it cannot, that is the error.
func (w *Watcher) Stop() (early []byte, err error) {
	if w.done == nil {
		return w.early, nil
	}
	select {
	case <-w.done:
	default:
		w.stopping.Store(true)
		_ = w.c.SetReadDeadline(time.Unix(1, 0))
		<-w.done
	}
	return w.early, w.c.SetReadDeadline(time.Time{})
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
