package bond

import (
	"fmt"
	"slices"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// ballot is the rule of an [Election], without goroutines and clocks: it is told
// what happens and when, and says which links may carry. All members of a network
// count the same votes, so that they come to the same end.
//
//	            behind for settle, or draining
//	elected ──────────────────────────────────► out
//	        ◄──────────────────────────────────
//	            level for hold, or nobody else is elected
//
// A link is behind if the best one of our links has more votes, and level otherwise.
// One that is down is behind, too, and stays elected for settle: for the others, who
// see only that its server reaches one member less, it does.
type ballot struct {
	primary      string
	hold, settle time.Duration
	links        map[string]*standing
	seen         map[peerKey]bool     // members, ever
	pardons      map[string]time.Time // the last one that a new member of this name brought
}

// maxSeen bounds what is remembered of members. Beyond it only those are kept that
// are reached now.
const maxSeen = 4096

// How long a link that comes and goes has to wait: hold, twice that each time
// that it is lost again within calm of its return, and no more than maxHold.
const (
	calm    = time.Minute
	maxHold = 30 * time.Second
)

// longer is hold after some flaps.
func longer(hold time.Duration, flaps int) time.Duration {
	for ; flaps > 0 && hold < maxHold; flaps-- {
		hold = min(2*hold, max(maxHold, hold))
	}
	return hold
}

// standing is how a link stands in the ballot.
type standing struct {
	name     string
	up       bool
	draining bool
	members  map[peerKey]bool // that its server reaches; nil: not told yet
	pairs    int              // of one of them with networks behind it and one without

	elected bool
	since   time.Time // since when it is behind, if elected, or level, if not; zero: it is not
	back    time.Time // when it was elected last; zero: always has been
	flaps   int
	pardon  time.Time // until when it is elected as soon as it is level
	why     string    // it is elected, or not
}

// votes is by what links are compared: pairs of members that have something to say
// to each other, since one behind which there are networks is there for those that
// have none; then members.
type votes struct{ pairs, members int }

func (s *standing) votes() votes {
	switch {
	case !s.up:
		return votes{-1, -1}
	case s.draining:
		return votes{}
	}
	return votes{s.pairs, len(s.members)}
}

func (v votes) less(than votes) bool {
	return v.pairs < than.pairs || v.pairs == than.pairs && v.members < than.members
}

// most are the votes of the best link.
func (b *ballot) most() votes {
	best := votes{-1, -1}
	for _, s := range b.links {
		if v := s.votes(); best.less(v) {
			best = v
		}
	}
	return best
}

func (b *ballot) link(name string) *standing {
	s := b.links[name]
	if s == nil {
		if b.links == nil {
			b.links = make(map[string]*standing)
		}
		s = &standing{name: name, elected: true}
		b.links[name] = s
	}
	return s
}

// rise is told that a link is there. The primary counts from the first moment,
// also if it has never been there: for the others, too, it is behind.
func (b *ballot) rise(name string, now time.Time) {
	if b.primary != "" {
		b.link(b.primary)
	}
	s := b.link(name)
	b.decide(now)
	s.up, s.draining, s.members, s.pairs = true, false, nil, 0
}

// fall is told that a link has ended. Its standing goes on, also where it was the
// last one: the others' does.
func (b *ballot) fall(name string, now time.Time) {
	b.decide(now)
	s := b.link(name)
	s.up, s.draining, s.members, s.pairs = false, false, nil, 0
}

// drain is told that a link's server wants to be left.
func (b *ballot) drain(name string, now time.Time) {
	b.decide(now)
	b.link(name).draining = true
}

// reach is told what a link's server reaches. A member that was never seen before
// is a process that has begun, and does not know what was before: it takes every
// link that is level. So the others take it at once, too, and forget how often it
// was lost; but for a name only once in calm, since who begins again and again would
// have all follow.
func (b *ballot) reach(name string, members []packet.Member, now time.Time) {
	b.decide(now)
	s := b.link(name)
	first := len(b.seen) == 0
	if b.seen == nil || len(b.seen) > maxSeen {
		b.forget(now)
	}
	s.members = make(map[peerKey]bool, len(members))
	arrived, ahead := false, 0
	for _, m := range members {
		key := keyOf(m)
		if !s.members[key] && len(m.Networks) > 0 {
			ahead++
		}
		s.members[key] = true
		if !b.seen[key] && !first && now.Sub(b.pardons[m.Name]) >= calm {
			arrived, b.pardons[m.Name] = true, now
		}
		b.seen[key] = true
	}
	s.pairs = ahead * (len(s.members) - ahead)
	if !arrived {
		return
	}
	for _, s := range b.links {
		s.flaps, s.back, s.pardon = 0, time.Time{}, now.Add(b.settle)
	}
}

// forget leaves in seen what is reached now, and the pardons that still count.
func (b *ballot) forget(now time.Time) {
	pardons := make(map[string]time.Time)
	for name, at := range b.pardons {
		if now.Sub(at) < calm {
			pardons[name] = at
		}
	}
	b.seen, b.pardons = make(map[peerKey]bool), pardons
	for _, s := range b.links {
		for key := range s.members {
			b.seen[key] = true
		}
	}
}

// decide brings the ballot to now. It returns the links that may carry, and when
// to decide again if nothing happens before; zero: never.
func (b *ballot) decide(now time.Time) (carry map[string]bool, next time.Time) {
	best := b.most()
	elected := 0
	for _, s := range b.links {
		behind := s.votes().less(best)
		if s.elected != behind {
			s.since = time.Time{}
		} else if s.since.IsZero() {
			s.since = now
		}
		switch {
		case s.elected && behind && (s.draining || now.Sub(s.since) >= b.settle):
			b.dismiss(s, best, now)
		case s.elected && behind:
			next = soonest(next, s.since.Add(b.settle))
		case !s.elected && !behind && !now.After(s.pardon):
			s.elect(now, "a new member takes it, too")
			s.back = time.Time{} // as it is for the new member
		case !s.elected && !behind:
			hold := longer(b.hold, s.flaps)
			if now.Sub(s.since) >= hold {
				s.elect(now, fmt.Sprintf("reaches as many members as any other since %v", hold))
			} else {
				next = soonest(next, s.since.Add(hold))
			}
		}
		if s.elected {
			elected++
		}
	}
	for _, s := range b.links {
		if elected == 0 && s.votes() == best {
			s.elect(now, "no other is left")
		}
	}
	return b.carriers(), next
}

// dismiss ends the time of a link that is behind.
func (b *ballot) dismiss(s *standing, best votes, now time.Time) {
	switch {
	case s.draining:
		s.why = "its server is draining"
	case s.up && s.pairs < best.pairs:
		s.why = fmt.Sprintf("its server joins %d pairs of members, another %d", s.pairs, best.pairs)
	case s.up:
		s.why = fmt.Sprintf("its server reaches %d members, another %d", len(s.members), best.members)
	default:
		s.why = "it is down"
	}
	switch {
	case s.draining: // which is no fault
	case !s.back.IsZero() && now.Sub(s.back) < calm:
		s.flaps++
	default:
		s.flaps = 0
	}
	s.elected, s.since = false, time.Time{}
}

func (s *standing) elect(now time.Time, why string) {
	s.elected, s.since, s.back, s.pardon, s.why = true, time.Time{}, now, time.Time{}, why
}

// carriers are the links that may carry: those that are elected and up. If there
// is none, the best of those that are up. Of several without the primary among
// them only the first: the kernel's choice would be any.
func (b *ballot) carriers() map[string]bool {
	var names []string
	best := b.most()
	for _, s := range b.links {
		if s.up && s.elected {
			names = append(names, s.name)
		}
	}
	if len(names) == 0 {
		for _, s := range b.links {
			if s.up && s.votes() == best {
				names = append(names, s.name)
			}
		}
	}
	slices.Sort(names)
	if b.primary != "" && len(names) > 1 && !slices.Contains(names, b.primary) {
		names = names[:1]
	}
	carry := make(map[string]bool, len(names))
	for _, name := range names {
		carry[name] = true
	}
	return carry
}
