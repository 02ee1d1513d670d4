package packet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// Errors of [Switch.Serve].
var (
	// ErrReplaced ends a port when a newer one takes its place.
	ErrReplaced = errors.New("packet: replaced by a newer link")
	// ErrFull refuses a port when the switch has as many as it may.
	ErrFull = errors.New("packet: the switch has no port left")
	// ErrNotAllowed refuses a port whose rules leave it nothing, or that takes the
	// identity of another.
	ErrNotAllowed = errors.New("packet: not allowed")
)

// Switch connects ports: in mode [TAP] it is a learning layer-2 switch, in mode [TUN]
// a router. Its zero value is ready for use, as a router.
//
// What a peer may say is derived from its rules alone, and everything else is
// dropped, each kind with a counter of its own (see [Drop]):
//
//	own MAC? ─► type? ─► source? ─► speaks for itself? ─► learn ─┬► known, or made of an own address: to that port
//	                                                             └► else: to all, within FloodRate
//
// A router leaves out what has to do with Ethernet. The checks are:
//
//   - The source MAC is one that [MAC] makes of an own address, and no other live
//     port has it.
//   - The types are IPv4, IPv6 and ARP. VLAN tags and the rest are dropped, as
//     is everything that a bridge keeps for itself.
//   - The IP source is an own address, or in a network of the rules and not another
//     port's own address. IPv6 devices may use the link-local address that
//     comes of their MAC, and the unspecified one where RFC 4862 and RFC 3810 want it.
//   - ARP and neighbour discovery speak for own addresses only and name the MAC that
//     the frame comes from. Routers, redirects, DHCP servers and multicast queriers are
//     nobody's to play.
//   - Fragments and extension headers are looked through; what could be read in
//     two ways is dropped. The first fragment of a datagram shows what it is.
//   - A virtio-net header must fit its packet, since whoever completes a checksum
//     writes where it says. A frame that is to be segmented goes on as it is.
//   - What is numbered is numbered by the member itself.
//
// Own addresses are those that a member names and its rules allow.
//
// A frame to a MAC that was not heard of yet, and which [MAC] makes of an own
// address, goes to the port of that address: where two members send through different
// servers, each server hears one of them only. Other unknown ones go to all.
//
// A router sends a packet to the port with the longest prefix among own addresses
// and named networks. The newest port wins a tie, but none against the own addresses
// of a trusted port, which nobody can have. So members whose rules have networks in
// common have to trust each other: who names a part of one, or comes later, gets its
// packets. A packet never goes back to where it came from.
//
// No port waits for another: each has a [Queue] whose frames are dropped when it
// is full, and a share of it for each source. The exception is a trusted port that has
// only one other to send to, which is waited for (see [Queue.PutWait]), since that
// harms nobody and a device can hold what is not read.
//
// The exported fields must not be changed after the first use. All methods may be
// called by several goroutines at once.
type Switch struct {
	// Mode is what packets are.
	Mode Mode
	// MaxPorts is how many ports there may be that are not trusted; 0 means 256, negative no
	// bound.
	MaxPorts int
	// MaxMACs is how many Ethernet addresses are kept; 0 means 4096, negative a
	// million. Half of them are divided evenly among MaxPorts, at least one each,
	// the others are for who comes first.
	MaxMACs int
	// MaxMACsPerPort is how many of them one port may have that is not trusted; 0
	// means 64, negative no bound.
	MaxMACsPerPort int
	// Aging is how long an address is kept that nothing comes from; 0 means
	// 5 minutes, negative for ever.
	Aging time.Duration
	// FloodRate is how many frames a second each port may send to all (broadcast,
	// multicast, unknown unicast) that is not trusted, and also how many at once. A
	// frame that is to be segmented counts as its segments. 0 means 1000, negative
	// no bound.
	FloodRate float64
	// QueueLimit is how many bytes may wait for a port; 0 means [DefaultQueue].
	QueueLimit int
	// Isolate keeps peers apart: they reach trusted ports only.
	Isolate bool
	// Logger gets ports that come and go, and what they claim in vain, up to 20 lines
	// a second. Nil means silent.
	Logger *slog.Logger

	lines    guard.LogLimit // of what members can cause
	view     atomic.Pointer[switchView]
	draining atomic.Bool
	cut      atomic.Uint64 // REACH that did not tell all

	mu      sync.Mutex
	table   *macTable
	ports   []*switchPort        // attached, from oldest to newest
	serving map[*switchPort]bool // also those that are about to end
	past    switchTotals         // of those that have ended
}

// PortOptions is what a [Switch] knows of a port.
type PortOptions struct {
	// Name is for logs and statistics. Empty means Member.Name.
	Name string
	// Member is who is there, and what it says of itself. Its ID must not be 0
	// unless the port is trusted; a trusted port without one is no member that others
	// are told of. Its Name must be the credential's: a member is told apart by its
	// Name and ID together, and the same ID under another name is somebody else.
	Member Member
	// Addresses are the rules for own addresses. Several processes of one name may share
	// them: a port has those which its Member names, at most 16; others that it
	// names are not believed. Where Member names none and exactly one of the
	// rules is a single address, it has that.
	Addresses []netip.Prefix
	// Networks are the rules for networks behind the port: it may send from all of
	// them, and is sent to those which Member names, at most 256.
	Networks []netip.Prefix
	// Trusted is the server's own device. It is not checked, is believed all that
	// Member, Addresses and Networks say, and is never replaced.
	Trusted bool
}

// switchView is what changes with the ports. Readers take one and no lock.
type switchView struct {
	ports   []*switchPort              // from oldest to newest
	owners  map[netip.Addr]*switchPort // of own addresses
	tails   map[uint32]*switchPort     // of their last four bytes; nil if there are several
	routes  routeTable
	members []Member
	reach   func() []byte // REACH with the members, made once and when somebody wants it
}

func (s *Switch) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.lines.Logger(s.Logger)
}

// orMax is a number, its default, or the most that there can be.
func orMax(n, standard, most int) int {
	switch {
	case n == 0:
		return standard
	case n < 0 || n > most:
		return most
	}
	return n
}

const million = 1 << 20

func (s *Switch) maxPorts() int { return orMax(s.MaxPorts, 256, million) }

// Members returns who has a port, trusted ports without an ID left out, in the order
// of their IDs and names. The slices in it are not changed by anybody.
func (s *Switch) Members() []Member {
	if v := s.view.Load(); v != nil {
		return slices.Clone(v.members)
	}
	return nil
}

// Drain asks all ports to leave, those that come later too: it has SendDrain called
// on each that has it, and does not wait for that. The ports go on.
func (s *Switch) Drain() {
	s.draining.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		p.tellSoon()
	}
}

// attach gives a port its place, and ends those that have to make room for it.
func (s *Switch) attach(p *switchPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		ports := s.maxPorts()
		s.table = newMACTable(orMax(s.MaxMACs, 4096, million), orMax(s.MaxMACsPerPort, 64, million), min(ports, 1<<16), s.aging())
		s.serving = make(map[*switchPort]bool)
	}
	if err := s.believe(p); err != nil {
		return err
	}
	var leave []*switchPort
	others := 0 // that are not trusted and stay
	for _, q := range s.ports {
		switch {
		case p.member.ID != 0 && q.member.ID == p.member.ID && q.member.Name == p.member.Name:
			if p.trusted != q.trusted {
				return fmt.Errorf("%w: member %q has the ID %d already", ErrNotAllowed, q.member.Name, p.member.ID)
			}
			leave = append(leave, q)
		case !p.trusted && !q.trusted && slices.ContainsFunc(p.rules.own, func(a netip.Addr) bool { return slices.Contains(q.rules.own, a) }):
			leave = append(leave, q)
			q.unwelcome.Store(true)
		case !q.trusted:
			others++
		}
	}
	if !p.trusted && others >= s.maxPorts() {
		return ErrFull
	}
	for _, q := range leave {
		s.remove(q)
		q.cancel(ErrReplaced)
	}
	p.slot = s.freeSlot()
	s.ports = append(s.ports, p)
	s.serving[p] = true
	s.changed()
	return nil
}

func (s *Switch) aging() time.Duration {
	switch {
	case s.Aging == 0:
		return 5 * time.Minute
	case s.Aging < 0:
		return 0
	}
	return s.Aging
}

// believe works out what of a port's claims holds; s.mu is held.
func (s *Switch) believe(p *switchPort) error {
	m := p.options.Member
	if !printable(m.Name) {
		return fmt.Errorf("%w: a member's name is at most %d bytes that can be printed, and not %.60q", ErrNotAllowed, maxName, m.Name)
	}
	if m.MTU < minMTU || m.MTU > maxMTU {
		m.MTU = 0
	}
	if p.trusted {
		own := slices.Clone(m.Addresses)
		for _, a := range p.options.Addresses {
			own = append(own, a.Addr())
		}
		for i := range own {
			own[i] = own[i].Unmap()
		}
		slices.SortFunc(own, netip.Addr.Compare)
		own = slices.Compact(own)
		networks := slices.Clone(m.Networks)
		networks = append(networks, p.options.Networks...)
		p.rules = newRules(own, networks, m.ID)
		p.member = Member{ID: m.ID, Name: m.Name, Addresses: own, Networks: networks, MTU: m.MTU}
		return nil
	}
	if m.ID == 0 {
		return fmt.Errorf("%w: member %q has no ID", ErrNotAllowed, m.Name)
	}
	own, beyond := allowedAddresses(m.Addresses, p.options.Addresses)
	for _, q := range s.ports {
		if q.trusted {
			own = slices.DeleteFunc(own, func(a netip.Addr) bool { return slices.Contains(q.rules.own, a) })
		}
	}
	networks, more := allowedNetworks(m.Networks, p.options.Networks)
	if len(own) == 0 && (s.Mode == TAP || len(networks) == 0) {
		return fmt.Errorf("%w: the rules for member %q have none of the addresses that it names: %v", ErrNotAllowed, m.Name, m.Addresses)
	}
	if len(beyond) > 0 {
		s.logger().Warn("addresses beyond the rules are not believed", "port", p.name(), "addresses", beyond)
	}
	if more {
		s.logger().Warn("the networks that it names and those of its rules make too many", "port", p.name(), "believed", len(networks))
	}
	p.rules = newRules(own, p.options.Networks, m.ID)
	p.member = Member{ID: m.ID, Name: m.Name, Addresses: own, Networks: networks, MTU: m.MTU}
	return nil
}

// freeSlot returns the lowest number that no port has; s.mu is held.
func (s *Switch) freeSlot() int {
	for slot := 0; ; slot++ {
		if !slices.ContainsFunc(s.ports, func(p *switchPort) bool { return p.slot == slot }) {
			return slot
		}
	}
}

// detach takes a port out, if it is still in.
func (s *Switch) detach(p *switchPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remove(p) {
		s.changed()
	}
}

// remove takes a port out; s.mu is held.
func (s *Switch) remove(p *switchPort) bool {
	i := slices.Index(s.ports, p)
	if i < 0 {
		return false
	}
	s.ports = slices.Delete(s.ports, i, i+1)
	s.table.forget(p)
	return true
}

// changed makes a new view of the ports and tells all; s.mu is held.
func (s *Switch) changed() {
	v := &switchView{
		ports: slices.Clone(s.ports), owners: make(map[netip.Addr]*switchPort), tails: make(map[uint32]*switchPort),
	}
	for _, p := range v.ports {
		for _, a := range p.rules.own {
			v.owners[a] = p
		}
		for _, tail := range p.rules.tails {
			if _, several := v.tails[tail]; several {
				v.tails[tail] = nil
			} else {
				v.tails[tail] = p
			}
		}
		if p.member.ID != 0 {
			v.members = append(v.members, p.member)
		}
	}
	slices.SortFunc(v.members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name))
	})
	v.reach = sync.OnceValue(func() []byte {
		frame, cut := encodeReach(v.members)
		if cut {
			s.cut.Add(1)
			s.logger().Warn("members are told of in part: there is more than goes into a frame", "members", len(v.members))
		}
		return frame
	})
	if s.Mode == TUN {
		v.routes = newRouteTable(v.ports)
	}
	s.view.Store(v)
	for _, p := range v.ports {
		p.tellSoon()
	}
}

// Serve makes p a port until it ends: because p fails, which is the error, ctx ends,
// which is its cause, or a newer port takes its place (ErrReplaced): one of the same
// member, or one that has an own address of it. It fails at once with
// ErrFull or ErrNotAllowed.
//
// It takes p over and closes it before it returns. If p has a method
// Run(context.Context) error, it is run; if it has SendReach([]Member) error, it is told
// the members at once with each change, itself included; SendDrain() error is
// called after [Switch.Drain]; and Bye(code, reason string) error before it is
// closed for reasons that a peer should know, with ByeReplaced, ByeFull or ByeDenied. None
// of these holds up another port. A member that comes again with its own ID is not
// told: it knows.
func (s *Switch) Serve(ctx context.Context, p Port, o PortOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sp := newSwitchPort(s, p, o, cancel)
	log := s.logger().With("port", sp.name())
	if err := s.attach(sp); err != nil {
		log.Warn("port refused", "error", err)
		sp.refuse(err)
		return err
	}
	log.Info("port attached", "addresses", sp.member.Addresses, "networks", len(sp.member.Networks))
	err := sp.serve(ctx)
	log.Info("port ended", "error", err)
	return err
}
