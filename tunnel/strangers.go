package tunnel

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// strangers are the connections of a door that have not shown yet who they
// are. When there are too many, the oldest one of the network that has most of
// them is reset: an honest peer needs some milliseconds to show it, so that a
// flood shuts nobody out, which it would if the newest were refused, and hits
// itself first.
type strangers struct {
	limit int

	mu   sync.Mutex
	all  int
	from map[netip.Prefix]*list.List // of net.Conn, the oldest first
}

// enter counts a connection until the returned function is called.
func (s *strangers) enter(c net.Conn) (known func()) {
	from := networkOf(c.RemoteAddr())
	s.mu.Lock()
	if s.from == nil {
		s.from = make(map[netip.Prefix]*list.List)
	}
	l := s.from[from]
	if l == nil {
		l = list.New()
		s.from[from] = l
	}
	me := l.PushBack(c)
	s.all++
	var oldest net.Conn
	if s.all > s.limit {
		oldest = s.evict()
	}
	s.mu.Unlock()
	if oldest != nil {
		_ = relay.Reset(oldest)
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		before := l.Len()
		l.Remove(me) // does nothing if it was evicted
		s.all -= before - l.Len()
		if l.Len() == 0 && s.from[from] == l {
			delete(s.from, from)
		}
	})
}

// evict takes out the oldest connection of the largest network; s.mu is held.
func (s *strangers) evict() net.Conn {
	var most *list.List
	for _, l := range s.from {
		if most == nil || l.Len() > most.Len() {
			most = l
		}
	}
	s.all--
	return most.Remove(most.Front()).(net.Conn)
}

// networkOf is the /24 or /64 that an address is in, or none.
func networkOf(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	p, _ := ip.Prefix(bits)
	return p
}
