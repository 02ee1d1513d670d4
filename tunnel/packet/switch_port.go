package packet

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// switchPort is one port of a switch while it is served. Its goroutines are a
// reader, which checks and forwards what comes, a writer, one that tells news, and
// that of the port's own Run.
type switchPort struct {
	s       *Switch
	port    Port
	options PortOptions
	trusted bool
	cancel  context.CancelCauseFunc

	// Set by attach, and not changed after it.
	rules  rules
	member Member // as far as it is believed
	slot   int    // a small number of its own

	queue     Queue
	gone      atomic.Bool // it is not attached any more; changed under the table's lock
	unwelcome atomic.Bool // it should stay away for a while
	macs      int         // how many the table has; the table's lock

	news chan struct{} // there is something to tell

	in     portCounters
	within portReader
}

// portCounters are what came from a port.
type portCounters struct {
	frames, bytes atomic.Uint64
	dropped       [drops]atomic.Uint64
}

// portReader is what only the reader uses.
type portReader struct {
	flood   floodBucket
	touched []*switchPort // who got something of this batch
	marks   []uint64      // by slot: the last batch that it got something of
	batch   uint64
}

func newSwitchPort(s *Switch, p Port, o PortOptions, cancel context.CancelCauseFunc) *switchPort {
	return &switchPort{
		s: s, port: p, options: o, trusted: o.Trusted, cancel: cancel,
		queue: Queue{Limit: s.QueueLimit}, news: make(chan struct{}, 1),
	}
}

func (p *switchPort) name() string {
	if p.options.Name != "" {
		return p.options.Name
	}
	return p.options.Member.Name
}

// serve runs an attached port and takes it out in the end.
func (p *switchPort) serve(ctx context.Context) error {
	var work sync.WaitGroup
	var ran error // of Run
	work.Go(func() { p.cancel(ended(p.read())) })
	work.Go(func() { p.cancel(ended(p.queue.Run(ctx, p.port))) })
	work.Go(func() { p.tell(ctx) })
	// A link is run until the last words are said.
	running, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	if r, ok := p.port.(interface{ Run(context.Context) error }); ok {
		work.Go(func() {
			ran = r.Run(running)
			p.cancel(ended(ran))
		})
	}
	<-ctx.Done()
	p.s.detach(p)
	err := context.Cause(ctx)
	if p.unwelcome.Load() && err == ErrReplaced {
		p.sayBye(err)
	}
	stop(err)
	p.port.Close()
	work.Wait()
	p.s.end(p)
	// When a link ends, its reader may be the first to see it, and its Run the
	// one that knows why.
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

// byeTimeout bounds how long a goodbye may take.
const byeTimeout = 3 * time.Second

// refuse tells the peer why it is not served, and closes the port.
func (p *switchPort) refuse(reason error) {
	var work sync.WaitGroup
	work.Go(func() { // what is unread when a link closes can cost the peer the last words
		for b := new(Batch); p.port.ReadBatch(b) == nil; {
		}
	})
	p.sayBye(reason)
	p.port.Close()
	work.Wait()
}

// sayBye tells the peer why it is not served, if there is a way to, and returns when
// that is done or takes too long.
func (p *switchPort) sayBye(reason error) {
	b, ok := p.port.(interface {
		Bye(code, reason string) error
	})
	if !ok {
		return
	}
	code := ByeDenied
	switch {
	case errors.Is(reason, ErrReplaced):
		code = ByeReplaced
	case errors.Is(reason, ErrFull):
		code = ByeFull
	}
	late := time.AfterFunc(byeTimeout, func() { p.port.Close() })
	defer late.Stop()
	if err := b.Bye(code, reason.Error()); err != nil {
		p.s.logger().Debug("no goodbye", "port", p.name(), "error", err)
	}
}

// tellSoon has the port told what is new. It does not block.
func (p *switchPort) tellSoon() {
	select {
	case p.news <- struct{}{}:
	default: // what is about to be told will be the latest
	}
}

// newsRate is how often a second, and how often at once, a port is told news. Of more
// changes it hears the result: a member that comes and goes all the time must not
// have the others busy with it.
const newsRate = 10

// tell tells the port who the members are, and once that the switch drains, until
// ctx ends. Errors are left to the reader and to Run: they are told why a link ended.
func (p *switchPort) tell(ctx context.Context) {
	drain, _ := p.port.(interface{ SendDrain() error })
	var pace floodBucket
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.news:
		}
		for !pace.take(time.Now(), newsRate, 1) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second / newsRate):
			}
		}
		select {
		case <-p.news: // came while this waited, and is told now
		default:
		}
		if err := p.tellMembers(); err != nil {
			p.s.logger().Debug("members not told", "port", p.name(), "error", err)
		}
		if drain != nil && p.s.draining.Load() {
			if err := drain.SendDrain(); err != nil {
				p.s.logger().Debug("drain not told", "port", p.name(), "error", err)
			}
			drain = nil
		}
	}
}

// tellMembers tells the port who the members are, if there is a way to. A link gets
// what all links get, since it can be long, and there can be many.
func (p *switchPort) tellMembers() error {
	switch to := p.port.(type) {
	case *Conn:
		return to.sendReach(p.s.view.Load().reach)
	case interface{ SendReach([]Member) error }:
		return to.SendReach(p.s.Members())
	}
	return nil
}

// read forwards what comes until the port fails.
func (p *switchPort) read() error {
	b := new(Batch)
	for {
		if err := p.port.ReadBatch(b); err != nil {
			return err
		}
		p.forward(b)
	}
}
