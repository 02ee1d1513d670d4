package guard

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Strangers are the connections of a port that have not shown yet who they are
// or what they want. When there are too many, the oldest one of the network that
// has most of them is reset: an honest peer needs some milliseconds to show it,
// so that a flood shuts nobody out, which it would if the newest were refused,
// and hits itself first.
type Strangers struct {
	// Limit is how many there may be; set it before the first Enter.
	Limit int

	mu   sync.Mutex
	all  int
	from map[netip.Prefix]*list.List // of stranger, the oldest first
}

type stranger struct {
	conn    net.Conn
	evicted func()
}

// Enter counts a connection until the returned function is called. It groups
// by the address of the socket, whatever a header may claim, and does not block.
// evicted, if not nil, is called before the connection is reset for another.
func (s *Strangers) Enter(c net.Conn, evicted func()) (known func()) {
	from := Network(SocketAddr(c))
	s.mu.Lock()
	if s.from == nil {
		s.from = make(map[netip.Prefix]*list.List)
	}
	l := s.from[from]
	if l == nil {
		l = list.New()
		s.from[from] = l
	}
	me := l.PushBack(stranger{c, evicted})
	s.all++
	var oldest stranger
	if s.all > s.Limit {
		oldest = s.evict()
	}
	s.mu.Unlock()
	if oldest.conn != nil {
		if oldest.evicted != nil {
			oldest.evicted()
		}
		_ = relay.Reset(oldest.conn)
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
func (s *Strangers) evict() stranger {
	var most *list.List
	for _, l := range s.from {
		if most == nil || l.Len() > most.Len() {
			most = l
		}
	}
	s.all--
	return most.Remove(most.Front()).(stranger)
}

// SocketAddr is the peer's address of the socket below all wrappers of c, such
// as TLS and PROXY headers, which would have to be read first.
func SocketAddr(c net.Conn) net.Addr {
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c.RemoteAddr()
		}
		c = w.NetConn()
	}
}

// Network is the /24 or /64 that a TCP address is in; others are in none, the
// zero Prefix.
func Network(a net.Addr) netip.Prefix {
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
