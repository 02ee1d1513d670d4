package guard

import (
	"net/netip"
	"sync"
)

// Seats is how many connections there are, of whom. Its zero value has none.
type Seats struct {
	mu    sync.Mutex
	taken int
	by    map[netip.Addr]int
}

// Take gives a client one of so many seats, or says whose limit is in the way: a
// client has perClient at most, and never nine times as many as are free. So one
// gets nine tenths, the next nine tenths of what is left, and who has few is let in
// when others are not. An IPv6 host has a whole /64, and all without an address are one client.
func (s *Seats) Take(seats, perClient int, client netip.Addr) (give func(), full string) {
	who := client
	if client.Is6() {
		p, _ := client.Prefix(64)
		who = p.Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.by[who]
	switch {
	case own >= perClient:
		return func() {}, "the client"
	case s.taken >= seats:
		return func() {}, "all clients"
	case own > 0 && own >= 9*(seats-s.taken):
		return func() {}, "the client, above its fair share"
	}
	if s.by == nil {
		s.by = make(map[netip.Addr]int)
	}
	s.taken++
	s.by[who]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken--
		if s.by[who]--; s.by[who] == 0 {
			delete(s.by, who)
		}
	}), ""
}

// Count is how many seats are taken.
func (s *Seats) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}
