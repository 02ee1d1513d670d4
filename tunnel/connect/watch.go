package connect

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// maxEarly bounds what is kept of a client that speaks before the 200.
const maxEarly = 16 << 10

// A watcher reads from a client while its dial is under way: to keep what it
// sends early, and to learn that it went away, which is the only way in which
// an HTTP/1 client can cancel.
//
//	            ┌── bytes ──► kept; with 16 KiB it stops reading: back-pressure
//	reading ────┼── EOF ────► early bytes kept: a half-close, the relay sees it again
//	            │             none:             gone()
//	            ├── error ──► gone()
//	            └── stop() ─► a read deadline in the past ends the Read
type watcher struct {
	c        net.Conn
	gone     func()
	stopping atomic.Bool
	done     chan struct{} // nil: nothing is watched
	early    []byte        // belongs to the goroutine until done is closed
	err      error
}

// watch starts to watch c, which has sent early already, and calls gone at
// most once. Where c has no read deadlines nothing is watched, because then
// there is no way to stop.
func watch(c net.Conn, early []byte, gone func()) *watcher {
	w := &watcher{c: c, gone: gone, early: early[:len(early):len(early)]}
	if c.SetReadDeadline(time.Time{}) == nil && len(early) < maxEarly {
		w.done = make(chan struct{})
		go w.run()
	}
	return w
}

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 512)
	for len(w.early) < maxEarly {
		n, err := w.c.Read(buf[:min(len(buf), maxEarly-len(w.early))])
		w.early = append(w.early, buf[:n]...)
		switch {
		case err == nil:
			if n == len(buf) && len(buf) < 4<<10 {
				buf = make([]byte, 4<<10)
			}
		case err == io.EOF && len(w.early) > 0:
			return
		case isTimeout(err) && w.stopping.Load():
			return
		default:
			w.gone()
			return
		}
	}
}

// stop ends the watching and returns all early bytes. After it c can be read
// as if nothing had been.
func (w *watcher) stop() []byte {
	if w.done == nil {
		return w.early
	}
	select {
	case <-w.done:
	default:
		w.stopping.Store(true)
		w.c.SetReadDeadline(time.Unix(1, 0))
		<-w.done
	}
	w.err = w.c.SetReadDeadline(time.Time{})
	return w.early
}
