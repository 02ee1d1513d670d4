package intercept

import (
	"io"
	"net"
	"time"
)

// maxEarly bounds what is kept of a client that speaks before the entrypoint has
// been reached, as a TLS client does at once.
const maxEarly = 16 << 10

// A watcher reads from a client while the dial for it is under way, to learn
// that it went away, and keeps what it reads.
//
//	            ┌── bytes ──► kept; with 16 KiB it stops reading: back-pressure
//	reading ────┼── EOF ────► bytes kept: a half-close, the relay sees it again
//	            │             none:       gone()
//	            ├── error ──► gone()
//	            └── stop() ─► a read deadline in the past ends the Read
type watcher struct {
	c     net.Conn
	gone  func()
	done  chan struct{}
	stops chan struct{}
	early []byte // belongs to run until done is closed
}

// watch starts to watch c, and calls gone at most once.
func watch(c net.Conn, gone func()) *watcher {
	w := &watcher{c: c, gone: gone, done: make(chan struct{}), stops: make(chan struct{})}
	go w.run()
	return w
}

func (w *watcher) run() {
	defer close(w.done)
	buf := make([]byte, 2<<10) // a ClientHello
	for len(w.early) < maxEarly {
		n, err := w.c.Read(buf[:min(len(buf), maxEarly-len(w.early))])
		w.early = append(w.early, buf[:n]...)
		if err == nil {
			continue
		}
		select {
		case <-w.stops:
			return // an error of c itself comes again
		default:
		}
		if err != io.EOF || len(w.early) == 0 {
			w.gone()
		}
		return
	}
}

// stop ends the watching and returns what was read.
func (w *watcher) stop() []byte {
	close(w.stops)
	_ = w.c.SetReadDeadline(time.Unix(1, 0))
	<-w.done
	_ = w.c.SetReadDeadline(time.Time{})
	return w.early
}
