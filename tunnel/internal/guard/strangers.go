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
	seq  uint64                      // of the newest
	from map[netip.Prefix]*list.List // of *Stranger, the oldest first
}

// Stranger is a connection that Strangers counts.
type Stranger struct {
	all     *Strangers
	conn    net.Conn
	evicted func()

	// Guarded by all.mu:
	network netip.Prefix
	seq     uint64        // the lower the older
	place   *list.Element // nil once it is not counted any more
}

// Enter counts a connection until Leave. It groups by the address of the socket,
// and does not block. evicted, if not nil, is called when the connection is about
// to be reset for another, and not after Leave has returned; it must not block.
func (s *Strangers) Enter(c net.Conn, evicted func()) *Stranger {
	me := &Stranger{all: s, conn: c, evicted: evicted}
	s.mu.Lock()
	s.put(me, Network(SocketAddr(c)))
	var oldest *Stranger
	if s.all > s.Limit {
		oldest = s.evict()
		if oldest.evicted != nil {
			oldest.evicted()
		}
	}
	s.mu.Unlock()
	if oldest != nil {
		_ = relay.Reset(oldest.conn)
	}
	return me
}

// Move groups the connection by another address: that of the client behind a load
// balancer, once it is known. Else a flood behind it would hit all that come
// through it.
func (m *Stranger) Move(a net.Addr) {
	m.all.mu.Lock()
	defer m.all.mu.Unlock()
	if to := Network(a); m.place != nil && to != m.network {
		m.all.take(m)
		m.all.put(m, to)
	}
}

// Leave counts the connection no more. A second call does nothing.
func (m *Stranger) Leave() {
	m.all.mu.Lock()
	defer m.all.mu.Unlock()
	if m.place != nil {
		m.all.take(m)
	}
}

// put counts a connection as the newest of a network; s.mu is held.
func (s *Strangers) put(m *Stranger, network netip.Prefix) {
	if s.from == nil {
		s.from = make(map[netip.Prefix]*list.List)
	}
	l := s.from[network]
	if l == nil {
		l = list.New()
		s.from[network] = l
	}
	s.seq++
	m.network, m.seq, m.place = network, s.seq, l.PushBack(m)
	s.all++
}

// take undoes put; s.mu is held.
func (s *Strangers) take(m *Stranger) {
	l := s.from[m.network]
	l.Remove(m.place)
	m.place = nil
	s.all--
	if l.Len() == 0 {
		delete(s.from, m.network)
	}
}

// few is how many strangers any network may have: an honest one has that many at
// times, when a flood comes from many networks with one each.
func (s *Strangers) few() int { return max(1, min(s.Limit/16, 8)) }

// evict takes out the oldest connection of the largest network, or of all if no
// network has more than a few; s.mu is held.
func (s *Strangers) evict() *Stranger {
	var most, oldest *list.List
	for _, l := range s.from {
		if most == nil || l.Len() > most.Len() {
			most = l
		}
		if oldest == nil || front(l).seq < front(oldest).seq {
			oldest = l
		}
	}
	if most.Len() <= s.few() {
		most = oldest
	}
	m := front(most)
	s.take(m)
	return m
}

func front(l *list.List) *Stranger { return l.Front().Value.(*Stranger) }

// SocketAddr is the peer's address of the socket below all wrappers of c, such
// as TLS and PROXY headers, which would have to be read first.
func SocketAddr(c net.Conn) net.Addr {
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok || w.NetConn() == nil {
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
