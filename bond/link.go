package bond

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// Link is the way to one server, and over it to the members that the server
// reaches. A [packet.Conn] is one.
type Link interface {
	packet.Port
	// Local is what was said to the server of this member: the same at all
	// servers.
	Local() packet.Hello
	// Run does what the link needs to stay alive, and returns why it has ended.
	// It is called once, while somebody is in ReadBatch.
	Run(ctx context.Context) error
	// Reach are the members that the server has links to, this one included, as
	// it last told. Nil means that it has told nothing yet. What it returns is not
	// changed by anybody.
	Reach() []packet.Member
	// OnReach sets a function that is called with each change of Reach, after
	// it. It is called before Run and ReadBatch, and must not be called twice.
	OnReach(func([]packet.Member))
	// Draining reports whether the server has asked to leave the link.
	Draining() bool
	// OnDrain sets a function that is called when Draining begins to be true. As
	// OnReach, it comes before Run and ReadBatch.
	OnDrain(func())
}

// lane is a link between the begin and the end of its Serve.
type lane struct {
	name  string
	link  Link
	queue packet.Queue
	since time.Time
	wake  chan struct{}

	// Under Bond.mu.
	members   []packet.Member // that its server reaches; nil: not told yet
	draining  bool
	announced time.Time

	// Of Run alone.
	late  uint64 // the batch of which a frame had no room
	stuck bool   // it was waited for in vain, and has taken nothing since

	sent, dropped, received, doubles atomic.Uint64
}

// rtt is the round trip of the link, 0 if it does not tell.
func (l *lane) rtt() time.Duration {
	if c, ok := l.link.(interface{ Stats() packet.ConnStats }); ok {
		return c.Stats().Smoothed
	}
	return 0
}

// Serve uses a link until it ends, or ctx does, and returns why. It owns the link,
// which is closed when it returns, and no goroutine is left. What goes over it is
// moved to others at once. Each link has a name, and the name is served once at
// a time.
func (b *Bond) Serve(ctx context.Context, name string, link Link) error {
	l := &lane{name: name, link: link, queue: packet.Queue{Limit: b.Queue}, since: time.Now(), wake: make(chan struct{}, 1)}
	defer link.Close()
	if err := b.enter(l); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var ran error
	var work sync.WaitGroup
	work.Go(func() {
		ran = link.Run(ctx)
		cancel(ended(ran))
	})
	work.Go(func() { cancel(ended(l.queue.Run(ctx, link))) })
	work.Go(func() { cancel(ended(b.receive(l))) })
	b.watch(ctx, l)
	b.leave(l, context.Cause(ctx))
	link.Close()
	work.Wait()
	// When a link ends, its reader may be the first to see it, and its Run the one
	// that knows why.
	err := context.Cause(ctx)
	if errors.Is(err, net.ErrClosed) && ran != nil && !errors.Is(ran, context.Canceled) {
		err = ran
	}
	return err
}

// ended is the error of what must not end without one.
func ended(err error) error {
	if err == nil {
		return net.ErrClosed
	}
	return err
}

// enter makes a link one of those in use.
func (b *Bond) enter(l *lane) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.init()
	if b.lanes[l.name] != nil {
		return errNameUsed(l.name)
	}
	hello := l.link.Local()
	if len(b.lanes) > 0 && hello.ID != b.hello.ID {
		return fmt.Errorf("bond: link %q is member %d at its server, the others are %d: packet.Hello.ID has to be the same", l.name, hello.ID, b.hello.ID)
	}
	b.hello = hello
	b.lanes[l.name] = l
	b.events.add(Event{Time: l.since, Kind: LinkUp, Link: l.name})
	l.link.OnReach(func(members []packet.Member) {
		b.note(l, func(time.Time) { l.members = members })
	})
	l.link.OnDrain(func() {
		b.note(l, func(now time.Time) {
			l.draining = true
			b.events.add(Event{Time: now, Kind: LinkDraining, Link: l.name, Reason: "its server asked for it"})
		})
	})
	l.members, l.draining = l.link.Reach(), l.link.Draining()
	b.update(l.since)
	b.alert()
	return nil
}

// note is told by a link what its server says.
func (b *Bond) note(l *lane, f func(now time.Time)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lanes[l.name] != l {
		return
	}
	now := time.Now()
	f(now)
	b.update(now)
	b.alert()
}

// leave takes a link out of use.
func (b *Bond) leave(l *lane, err error) {
	b.mu.Lock()
	now := time.Now()
	why := reasonOf(err)
	delete(b.lanes, l.name)
	b.ends[l.name] = why
	b.events.add(Event{Time: now, Kind: LinkDown, Link: l.name, Reason: why})
	b.update(now)
	b.alert()
	b.mu.Unlock()
	b.adjust()
	b.events.tell(b.OnEvent, b.Logger)
}

// alert has all links look at the clock anew. b.mu is held.
func (b *Bond) alert() {
	for _, l := range b.lanes {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// watch does what has its time, until ctx ends: paths that may be better now,
// announcements, and telling events.
func (b *Bond) watch(ctx context.Context, l *lane) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		timer.Reset(time.Until(b.review(l)))
	}
}

// review does what is due, and returns when to come back.
func (b *Bond) review(l *lane) time.Time {
	b.mu.Lock()
	now := time.Now()
	next := soonest(b.update(now), b.announce(l, now))
	b.mu.Unlock()
	next = soonest(next, b.adjust())
	b.events.tell(b.OnEvent, b.Logger)
	return next
}

// soonest is the first of some times, of which zero is none.
func soonest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

// receive hands to the device what comes over a link, until one of them ends.
func (b *Bond) receive(l *lane) error {
	var in, out packet.Batch
	for {
		if err := l.link.ReadBatch(&in); err != nil {
			return err
		}
		l.received.Add(uint64(in.Len()))
		if err := b.deliver(l, &in, &out); err != nil {
			return err
		}
	}
}
