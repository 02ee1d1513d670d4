package bond

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// Election decides which links a bond of the kernel may use, and tells it by the
// carriers of their devices.
//
// A member of a network in which the kernel bonds uses one link at a time and
// drops what comes over another, so that two members meet only where both use
// the same server. Each server tells which members it has links to, and the links to
// servers that have fewer votes than the best of them lose their carrier, at all members at
// once, because all are told the same; among equals, the bond's primary decides,
// which has to be the same at all members. A server has a vote for each pair of members
// that it reaches, of which one has networks behind it and the other has none; of
// those with as many, the one that reaches more members has more.
//
//   - A link that is down, or whose server drains, has no carrier.
//   - A link that reaches fewer members keeps its carrier for Settle, because
//     two servers learn of a dead member one after the other.
//   - It gets it back when it has reached as many as any other for Hold. That
//     doubles, up to 30 s, each time that it loses it within a minute of its
//     return. If a member comes that was never seen before, which cannot know of
//     any of this, it gets it at once, but for members of one name once in a
//     minute.
//   - The last one that is up keeps its carrier, whatever it reaches.
//   - Of several equals without the primary among them, the first in the order of
//     the names alone has a carrier. If Primary is empty, all have.
//
// All members count, and none more than another: one that has a link to one server
// only draws all others there. A member is known by its ID and the name of its
// credential, so that none counts as another; but who makes several links to a server,
// each with an ID of its own, counts as several, up to what the server allows a name.
//
// The zero value with SetCarrier works. The fields must not be changed after the
// first use.
type Election struct {
	// Primary is the primary link of the kernel's bond, by the name that Serve
	// is given. Empty fits a bond that uses all its links, such as balance-rr.
	Primary string
	// Hold is how long a link must have reached as many members as any other
	// before it gets its carrier back, by default 1 s. Negative means at once.
	// It has to be the same at all members.
	Hold time.Duration
	// Settle is how long a link must have reached fewer before it loses its
	// carrier, by default 0.1 s. Negative means at once. It has to be the
	// same at all members.
	Settle time.Duration
	// SetCarrier sets the carrier of the device that goes with a link. It is
	// called by one goroutine at a time, and again after a second if it fails. It
	// must be set.
	SetCarrier func(link string, up bool) error
	// OnEvent is told what happens, one event at a time and without a lock held.
	// It should return soon, and must not wait for a Serve to return, which may be
	// what has called it. Nil means that nobody is told.
	OnEvent func(Event)
	// Logger gets what OnEvent gets, at level Info, and what failed at Warn. Nil
	// means silent.
	Logger *slog.Logger

	events teller

	// turn is held while carriers are set. It comes before mu.
	turn sync.Mutex
	mu   sync.Mutex
	vote ballot
	runs map[string]*candidate // by link
	ends map[string]string     // why a link is not there
}

// candidate is a link between the begin and the end of its Serve.
type candidate struct {
	link    Link
	since   time.Time
	carrier bool
	known   bool      // carrier is what the device has
	ended   bool      // Serve is over, and the device has its carrier still
	retry   time.Time // when to set it again, after a failure
	wake    chan struct{}
}

// defaults of Election and Bond.
const (
	defaultHold   = time.Second
	defaultSettle = 100 * time.Millisecond
	carrierRetry  = time.Second
)

// duration is v, or the default for 0, or 0 for what is negative.
func duration(v, byDefault time.Duration) time.Duration {
	if v == 0 {
		return byDefault
	}
	return max(v, 0)
}

// errNameUsed is for a second Serve with a name, before the first has returned.
func errNameUsed(name string) error {
	return fmt.Errorf("bond: link %q is being served already", name)
}

// Serve counts a link in while pump carries its packets, which [packet.Pump] does
// between the link and its device. It takes the link's OnReach and OnDrain. It ends
// when pump returns, with the same error; pump is to return when its context
// ends, and to close the link. Then the device has no carrier, and no goroutine
// is left. Each link has a name, at all members in the same order, and the
// name is served once at a time: a link for which it is taken is closed.
func (e *Election) Serve(ctx context.Context, name string, l Link, pump func(ctx context.Context) error) error {
	c := &candidate{link: l, wake: make(chan struct{}, 1)}
	if err := e.enter(name, c); err != nil {
		l.Close()
		return err
	}
	l.OnReach(func(members []packet.Member) {
		e.note(name, c, func(now time.Time) { e.vote.reach(name, members, now) })
	})
	l.OnDrain(func() {
		e.note(name, c, func(now time.Time) {
			e.vote.drain(name, now)
			e.events.add(Event{Time: now, Kind: LinkDraining, Link: name, Reason: "its server asked for it"})
		})
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- pump(ctx) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case err := <-ended:
			e.leave(name, c, err)
			return err
		case <-c.wake:
		case <-timer.C:
		}
		if next := e.settle(); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// enter lets a link take part.
func (e *Election) enter(name string, c *candidate) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.runs[name]; c != nil && !c.ended {
		return errNameUsed(name)
	}
	if e.runs == nil {
		e.runs = make(map[string]*candidate)
		e.ends = make(map[string]string)
		e.vote.primary = e.Primary
		e.vote.hold = duration(e.Hold, defaultHold)
		e.vote.settle = duration(e.Settle, defaultSettle)
	}
	c.since = time.Now()
	e.runs[name] = c
	e.vote.rise(name, c.since)
	e.events.add(Event{Time: c.since, Kind: LinkUp, Link: name})
	e.wake()
	return nil
}

// leave takes it out again, and its carrier away.
func (e *Election) leave(name string, c *candidate, err error) {
	now := time.Now()
	why := reasonOf(err)
	e.mu.Lock()
	e.vote.fall(name, now)
	e.ends[name] = why
	e.events.add(Event{Time: now, Kind: LinkDown, Link: name, Reason: why})
	e.wake()
	e.mu.Unlock()
	e.settle()
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.ended = !c.known || c.carrier; !c.ended {
		delete(e.runs, name)
	}
	e.wake() // whoever goes on has to try again
}

// reasonOf is why a link has ended, for people.
func reasonOf(err error) string {
	switch {
	case err == nil:
		return "it has ended"
	case errors.Is(err, context.Canceled):
		return "it was ended here"
	}
	return err.Error()
}

// note is told by a link what its server says.
func (e *Election) note(name string, c *candidate, f func(now time.Time)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.runs[name] != c {
		return
	}
	f(time.Now())
	e.wake()
}

// wake has all that serve look again: each may be the last to go on. e.mu is held.
func (e *Election) wake() {
	for _, c := range e.runs {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// change is a carrier to set.
type change struct {
	name string
	c    *candidate
	up   bool
	why  string
}

// settle sets the carriers as they have to be now, and returns when to look
// again; zero: not before something happens.
func (e *Election) settle() time.Time {
	defer e.events.tell(e.OnEvent, e.Logger)
	e.turn.Lock()
	defer e.turn.Unlock()
	e.mu.Lock()
	changes, next := e.changes(time.Now())
	e.mu.Unlock()
	for _, c := range changes {
		next = soonest(next, e.done(c, e.SetCarrier(c.name, c.up)))
	}
	return next
}

// changes are the carriers that are not as they have to be, those to set up
// first: at no time there is less to use than there could be. e.mu is held.
func (e *Election) changes(now time.Time) (list []change, next time.Time) {
	carry, next := e.vote.decide(now)
	for name, c := range e.runs {
		up := carry[name]
		if c.known && c.carrier == up {
			continue
		}
		if now.Before(c.retry) {
			next = soonest(next, c.retry)
			continue
		}
		list = append(list, change{name, c, up, e.why(name, up)})
	}
	slices.SortFunc(list, func(a, b change) int {
		if a.up != b.up {
			if a.up {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.name, b.name)
	})
	return list, next
}

// why says why a link has its carrier, or has it not. e.mu is held.
func (e *Election) why(name string, up bool) string {
	s := e.vote.link(name)
	switch {
	case up && s.elected:
		return cmp.Or(s.why, "it reaches as many members as any other")
	case up:
		return "no better link is up"
	case !s.up:
		return e.ends[name]
	case s.elected:
		return "another is first among equals"
	}
	return s.why
}

// done notes what SetCarrier has said, and returns when to try again, if it has to
// be.
func (e *Election) done(c change, err error) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if err != nil {
		c.c.retry = now.Add(carrierRetry)
		e.events.add(Event{Time: now, Kind: Failed, Link: c.name, Reason: fmt.Sprintf("carrier cannot be set to %v: %v", c.up, err)})
		return c.c.retry
	}
	kind := CarrierDown
	if c.up {
		kind = CarrierUp
	}
	if c.c.carrier != c.up || c.up { // that it has none at first is no news
		e.events.add(Event{Time: now, Kind: kind, Link: c.name, Reason: c.why})
	}
	c.c.carrier, c.c.known, c.c.retry = c.up, true, time.Time{}
	if c.c.ended && !c.up && e.runs[c.name] == c.c {
		delete(e.runs, c.name)
	}
	return time.Time{}
}

// ElectionStatus is how a link stands in an [Election].
type ElectionStatus struct {
	Name     string    `json:"name"`
	Up       bool      `json:"up"`
	Since    time.Time `json:"since,omitzero"` // since when it is up
	Draining bool      `json:"draining,omitempty"`
	Members  int       `json:"members"` // that its server reaches
	Carrier  bool      `json:"carrier"`
	// Reason says why it has its carrier, or has it not.
	Reason string `json:"reason"`
}

// Status returns the links in the order of their names.
func (e *Election) Status() []ElectionStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []ElectionStatus
	for name, s := range e.vote.links {
		st := ElectionStatus{Name: name, Up: s.up, Draining: s.draining, Members: len(s.members)}
		if c := e.runs[name]; c != nil && s.up {
			st.Since, st.Carrier = c.since, c.known && c.carrier
		}
		st.Reason = e.why(name, st.Carrier)
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b ElectionStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
