package tunnel

import (
	"container/list"
	"log/slog"
	"net"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// strangers are the connections of a door that have not shown yet who they
// are. When there are too many the oldest is reset: an honest peer needs some
// milliseconds to show it, so that a flood of slow connections shuts nobody
// out, which it would if the newest were refused.
type strangers struct {
	limit int

	mu  sync.Mutex
	all list.List // of net.Conn, the oldest first
}

// enter counts a connection until the returned function is called.
func (s *strangers) enter(c net.Conn) (known func()) {
	s.mu.Lock()
	me := s.all.PushBack(c)
	var oldest net.Conn
	if s.all.Len() > s.limit {
		oldest = s.all.Remove(s.all.Front()).(net.Conn)
	}
	s.mu.Unlock()
	if oldest != nil {
		_ = relay.Reset(oldest)
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all.Remove(me) // does nothing if it was reset
	})
}

// refusals logs refused strangers, but not so many that they fill the disk.
type refusals struct {
	rate rate

	mu      sync.Mutex
	skipped int
}

// refusalsPerSecond is how many refusals of a door are logged.
const refusalsPerSecond = 20

func (r *refusals) log(log *slog.Logger, msg string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.rate.take(refusalsPerSecond) {
		r.skipped++
		return
	}
	if r.skipped > 0 {
		args = append(args, "skipped", r.skipped)
		r.skipped = 0
	}
	log.Warn(msg, args...)
}
