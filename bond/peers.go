package bond

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// peer is another member of the network, while a server reaches it.
type peer struct {
	member packet.Member
	number uint64          // peers are counted: of two with one address, the later counts
	ways   map[string]*way // by the name of the link
	lanes  []*lane         // that are used for it
	since  time.Time       // since when
}

// way is what is known of reaching a peer over a link.
type way struct {
	open  bool
	since time.Time // that it is open
	back  bool      // it was not open before
	flaps int
}

// gain and lose note that a link's server reaches the peer, or does not any more.
func (w *way) gain(now time.Time) { w.open, w.since = true, now }

func (w *way) lose(now time.Time) {
	if w.back && now.Sub(w.since) < calm {
		w.flaps++
	} else {
		w.flaps = 0
	}
	w.open, w.back = false, true
}

// trusted is when a way may be taken although the one in use is as good.
func (w *way) trusted(hold time.Duration) time.Time {
	return w.since.Add(longer(hold, w.flaps))
}

// peerKey is who a peer is: the number that he has drawn, which others can read
// and could use, and the name of his credential.
type peerKey struct {
	id   uint64
	name string
}

func keyOf(m packet.Member) peerKey { return peerKey{m.ID, m.Name} }

// name is what events call the peer: several may have one credential.
func (p *peer) name() string {
	name := p.member.Name
	if name == "" {
		name = fmt.Sprintf("%016x", p.member.ID)
	}
	if len(p.member.Addresses) > 0 {
		name += "/" + p.member.Addresses[0].String()
	}
	return name
}

// mine reports whether a member is this one, or was before it began again.
func (b *Bond) mine(m packet.Member) bool {
	return m.ID == b.hello.ID || slices.ContainsFunc(m.Addresses, func(a netip.Addr) bool { return slices.Contains(b.hello.Addresses, a) })
}

// update brings peers, their paths and the table to what the links say, and returns
// when to look again if nothing happens before; zero: never. b.mu is held.
func (b *Bond) update(now time.Time) (next time.Time) {
	lanes := slices.SortedFunc(maps.Values(b.lanes), func(x, y *lane) int { return cmp.Compare(x.name, y.name) })
	b.census(lanes, now)
	for _, p := range b.peers {
		next = soonest(next, b.choose(p, lanes, now))
	}
	for id, p := range b.peers {
		if len(p.lanes) == 0 {
			delete(b.peers, id)
		}
	}
	b.table.Store(b.newTable(lanes))
	return next
}

// census notes who is reached over which link.
func (b *Bond) census(lanes []*lane, now time.Time) {
	open := make(map[*way]bool)
	for _, l := range lanes {
		for _, m := range l.members {
			if b.mine(m) {
				continue
			}
			key := keyOf(m)
			p := b.peers[key]
			if p == nil {
				b.met++
				p = &peer{number: b.met, ways: make(map[string]*way)}
				b.peers[key] = p
			}
			p.member = m
			w := p.ways[l.name]
			if w == nil {
				w = new(way)
				p.ways[l.name] = w
			}
			if !w.open {
				w.gain(now)
			}
			open[w] = true
		}
	}
	for _, p := range b.peers {
		for _, w := range p.ways {
			if w.open && !open[w] {
				w.lose(now)
			}
		}
	}
}

// choose sets the path of a peer, and returns when a better one may be taken, if
// it waits for one.
func (b *Bond) choose(p *peer, lanes []*lane, now time.Time) (next time.Time) {
	var open []*lane
	for _, l := range lanes {
		if w := p.ways[l.name]; w != nil && w.open {
			open = append(open, l)
		}
	}
	if b.Policy == Redundant {
		b.use(p, open, "", now)
		return time.Time{}
	}
	open = notDraining(open)
	if len(open) == 0 {
		b.use(p, nil, "", now)
		return time.Time{}
	}
	var current *lane
	if len(p.lanes) > 0 && slices.Contains(open, p.lanes[0]) {
		current = p.lanes[0]
	}
	hold := duration(b.Hold, defaultHold)
	if current == nil {
		// Whoever has flapped is not the first choice, not even as the primary.
		trusted := slices.DeleteFunc(slices.Clone(open), func(l *lane) bool { return now.Before(p.ways[l.name].trusted(hold)) })
		if len(trusted) == 0 {
			trusted = open
		}
		b.use(p, []*lane{b.best(trusted)}, "", now)
		return time.Time{}
	}
	primary := named(open, b.Primary)
	if primary == nil || primary == current || primary.draining || b.Reselect == ReselectFailure {
		return time.Time{}
	}
	if at := p.ways[primary.name].trusted(hold); now.Before(at) {
		return at
	}
	if b.Reselect == ReselectBetter && !shorter(primary, current) {
		return now.Add(time.Second) // round trips change
	}
	b.use(p, []*lane{primary}, fmt.Sprintf("the primary reaches it since %v", now.Sub(p.ways[primary.name].since).Round(time.Millisecond)), now)
	return time.Time{}
}

// use makes lanes the path of a peer. Without a reason, what was has ended.
func (b *Bond) use(p *peer, lanes []*lane, why string, now time.Time) {
	if slices.Equal(p.lanes, lanes) {
		return
	}
	if why == "" {
		why = b.lost(p, lanes)
	}
	b.events.add(Event{Time: now, Kind: Switched, Peer: p.name(), From: names(p.lanes), To: names(lanes), Reason: why})
	p.lanes, p.since = lanes, now
}

// lost says why a path of a peer is no more.
func (b *Bond) lost(p *peer, now []*lane) string {
	for _, l := range p.lanes {
		switch w := p.ways[l.name]; {
		case slices.Contains(now, l):
		case b.lanes[l.name] != l:
			return fmt.Sprintf("link %s is down: %s", l.name, b.ends[l.name])
		case w == nil || !w.open:
			return fmt.Sprintf("the server of %s does not reach it any more", l.name)
		case l.draining:
			return fmt.Sprintf("the server of %s is draining", l.name)
		}
	}
	return "it is reached"
}

func names(lanes []*lane) string { return strings.Join(nameList(lanes), "+") }

func nameList(lanes []*lane) []string {
	list := []string{}
	for _, l := range lanes {
		list = append(list, l.name)
	}
	return list
}

func named(lanes []*lane, name string) *lane {
	for _, l := range lanes {
		if l.name == name {
			return l
		}
	}
	return nil
}

// notDraining leaves out links whose servers drain, unless there are no others.
func notDraining(lanes []*lane) []*lane {
	if rest := slices.DeleteFunc(slices.Clone(lanes), func(l *lane) bool { return l.draining }); len(rest) > 0 {
		return rest
	}
	return lanes
}

// best is the primary, else the link with the shortest round trip, of those which
// do not tell it the first in the order of names.
func (b *Bond) best(lanes []*lane) *lane {
	if l := named(lanes, b.Primary); l != nil {
		return l
	}
	best := lanes[0]
	for _, l := range lanes[1:] {
		if shorter(l, best) {
			best = l
		}
	}
	return best
}

// shorter reports whether the round trip of x is known to be the shorter one.
func shorter(x, y *lane) bool {
	a, b := x.rtt(), y.rtt()
	return a > 0 && (b == 0 || a < b)
}

// cover is the smallest set of links that was found to reach all peers, by taking the
// one that adds most until nobody is left, of equals the one that is in use for
// most. If nobody is reached it is the best link, which stays: a server may have more
// behind it than members.
func (b *Bond) cover(lanes []*lane) (set []*lane) {
	left := make(map[*peer]bool)
	for _, p := range b.peers {
		left[p] = true
	}
	for len(left) > 0 {
		var most *lane
		var best [3]int
		for _, l := range lanes {
			var votes [3]int
			for p := range left {
				if w := p.ways[l.name]; w != nil && w.open {
					votes[0]++
				}
			}
			for _, p := range b.peers {
				if slices.Contains(p.lanes, l) {
					votes[1]++
				}
			}
			if !l.draining {
				votes[2] = 1
			}
			if slices.Compare(votes[:], best[:]) > 0 {
				most, best = l, votes
			}
		}
		if most == nil || best[0] == 0 {
			break
		}
		set = append(set, most)
		for p := range left {
			if p.ways[most.name] != nil && p.ways[most.name].open {
				delete(left, p)
			}
		}
	}
	if len(set) == 0 && len(lanes) > 0 {
		open := notDraining(lanes)
		if b.spare == nil || named(open, b.Primary) != nil || !slices.Contains(open, b.spare) {
			b.spare = b.best(open)
		}
		set = append(set, b.spare)
	}
	return set
}

// table says for each packet over which links it goes. It is made anew with each change, and
// not changed: who sends looks at it without a lock.
type table struct {
	mode  packet.Mode
	macs  map[uint32]*route // TAP, by the last four bytes
	nets  map[netip.Prefix]*route
	bits4 []int // lengths that are in nets, the longest first
	bits6 []int
	all   *route   // for everybody, and for who is not known
	id    uint64   // our own
	own   []uint32 // the last four bytes of our MACs
	mtu   int      // to clamp to; 0: not known
}

// route is where packets go.
type route struct {
	lanes    []*lane
	numbered bool
	peer     uint64 // its number
}

// newTable makes the table of what is chosen. b.mu is held.
func (b *Bond) newTable(lanes []*lane) *table {
	t := &table{mode: b.Mode, id: b.hello.ID, mtu: lowestMTU(lanes), macs: make(map[uint32]*route), nets: make(map[netip.Prefix]*route)}
	for _, a := range b.hello.Addresses {
		t.own = append(t.own, lastFour(a))
	}
	for _, p := range slices.SortedFunc(maps.Values(b.peers), func(x, y *peer) int { return cmp.Compare(x.number, y.number) }) {
		r := &route{lanes: p.lanes, numbered: b.Policy == Redundant, peer: p.number}
		for _, a := range p.member.Addresses {
			a = a.Unmap().WithZone("")
			t.macs[lastFour(a)] = r
			t.add(netip.PrefixFrom(a, a.BitLen()), r)
		}
		for _, n := range p.member.Networks {
			t.add(n, r)
		}
	}
	longest := func(x, y int) int { return cmp.Compare(y, x) }
	slices.SortFunc(t.bits4, longest)
	slices.SortFunc(t.bits6, longest)
	if b.Policy == Redundant {
		t.all = &route{lanes: lanes, numbered: true}
	} else {
		set := b.cover(lanes)
		t.all = &route{lanes: set, numbered: len(set) > 1}
	}
	return t
}

// lastFour are the bytes of a MAC that stand for an address.
func lastFour(a netip.Addr) uint32 { return binary.BigEndian.Uint32(packet.MAC(a, 0)[2:]) }

// add adds a network.
func (t *table) add(n netip.Prefix, r *route) {
	if !n.IsValid() || n.Addr().Is4In6() {
		return
	}
	t.nets[n.Masked()] = r
	bits := &t.bits6
	if n.Addr().Is4() {
		bits = &t.bits4
	}
	if !slices.Contains(*bits, n.Bits()) {
		*bits = append(*bits, n.Bits())
	}
}

// lookup finds the longest prefix that holds an address, nil if there is none.
func (t *table) lookup(a netip.Addr) *route {
	bits := t.bits6
	if a.Is4() {
		bits = t.bits4
	}
	for _, n := range bits {
		p, _ := a.Prefix(n)
		if r := t.nets[p]; r != nil {
			return r
		}
	}
	return nil
}

const (
	etherLen = 14   // two MACs and a type
	macFirst = 0x02 // first byte of a packet.MAC
)

// route says where a packet goes, nil if it is none.
func (t *table) route(p []byte) *route {
	if t.mode == packet.TAP {
		if len(p) < etherLen {
			return nil
		}
		if p[0] == macFirst {
			if r := t.macs[binary.BigEndian.Uint32(p[2:])]; r != nil {
				return r
			}
		}
		return t.all
	}
	_, to, ok := addresses(p)
	if !ok {
		return nil
	}
	if r := t.lookup(to); r != nil && !to.IsMulticast() {
		return r
	}
	return t.all
}

// addresses are the source and the destination of an IP packet.
func addresses(p []byte) (from, to netip.Addr, ok bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), true
	}
	return netip.Addr{}, netip.Addr{}, false
}
