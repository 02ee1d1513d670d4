package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options changes how [Relay] works. The zero value, and a nil pointer, relay
// without an idle timeout and count nothing.
type Options struct {
	// IdleTimeout resets both legs when no byte went either way for so long.
	// Zero and negative: never, because `kubectl logs -f` is idle by nature.
	//
	// Progress is a byte that a leg took, in either direction, and on linux
	// also a byte that a TCP peer acknowledged, so that a slow reader who works
	// through a full send buffer is not called idle. Where the kernel has to be
	// asked, the end may come up to one IdleTimeout late, never early. When one
	// direction has ended, the timeout goes on for the other.
	IdleTimeout time.Duration

	// Counter, if not nil, counts the bytes while they go by.
	Counter *Counter
}

// Relay copies from a to b and from b to a until both directions have ended,
// and returns nil if each ended with EOF.
//
// The end of one direction is a half-close: EOF from a becomes CloseWrite of b
// (see the function [CloseWrite]), and bytes from b to a go on. If b cannot
// half-close, its peer learns of the end only when all is over; b to a goes on
// all the same until it ends by itself, and nothing is cut short.
//
// Anything else ends both directions at once, and both legs are reset (see
// [Reset]) so that no peer takes half an answer for a whole one: an error, a
// reset or a timeout on either leg, a TCP peer that has acknowledged nothing for
// a minute although data is on its way to it ([ErrSilent], on linux only), ctx
// that ends, or Options.IdleTimeout. That also holds for a failure after one
// direction has ended in order. The error is an [*Error].
//
// Relay owns a and b from the call on and has closed both when it returns. It
// uses the caller's goroutine for one direction and one more for the other,
// and all it started is gone when it returns. Deadlines set on a and b before
// the call stay in force; whoever used one for a handshake clears it. ctx is
// the context of the whole relay, not only of its start.
func Relay(ctx context.Context, a, b net.Conn, o *Options) error {
	return newRelay(a, b, o).run(ctx)
}

// relay is one call of Relay.
//
//	        ab.run                      ab ended, ba runs        both ended
//	copy ─────────► EOF ─► CloseWrite(b) ─────► watch a ───────► Close a, b ─► nil
//	  │ error                │ error              │ reset
//	  └──────────────────────┴────────────────────┴──► fail: Reset a, b; both
//	                                                   directions end ──────► *Error
//	  ctx.Done, idle and silence timers ───────────►
type relay struct {
	opt     Options
	a, b    leg
	ab, ba  direction
	running atomic.Int32 // directions that have not ended yet

	failed sync.Once
	err    error // written inside failed, read after both directions ended

	idle       idleTimer
	silence    silenceTimer
	stallCheck time.Duration

	// trace, if not nil, learns what the directions do. For tests.
	trace func(from string, what event, n int64)
}

// event is what relay.trace is told.
type event int

const (
	eventSplice event = iota // splicing begins; n bytes went through user space before
	eventCopy                // splicing stops, because it does not pay or is not possible
	eventPark                // waiting for bytes without holding a buffer or a pipe
	eventWatch               // the direction ended, its leg is watched for a reset
)

func newRelay(a, b net.Conn, o *Options) *relay {
	r := &relay{stallCheck: stallCheck}
	r.silence.limit, r.silence.every = silenceLimit, silenceCheck
	if o != nil {
		r.opt = *o
	}
	if r.opt.Counter == nil {
		r.opt.Counter = new(Counter)
	}
	r.a.init("a", a)
	r.b.init("b", b)
	r.ab.init(r, &r.a, &r.b, &r.opt.Counter.aToB)
	r.ba.init(r, &r.b, &r.a, &r.opt.Counter.bToA)
	r.running.Store(2)
	return r
}

// leg is one of the two connections.
type leg struct {
	name   string
	outer  net.Conn // what the caller gave us: half-closed, reset and closed
	data   net.Conn // what is read and written: outer, or what Unwrap found in it
	prefix []byte   // read before data is
	raw    syscall.RawConn
}

func (l *leg) init(name string, c net.Conn) {
	l.name, l.outer, l.data = name, c, c
	for {
		u, ok := l.data.(Unwrapper)
		if !ok {
			break
		}
		unread, inner := u.Unwrap()
		// The inner connection's own prefix comes after that of the outer one,
		// which was put in front of it.
		l.prefix, l.data = append(l.prefix[:len(l.prefix):len(l.prefix)], unread...), inner
	}
	l.raw = rawSocket(l.data)
}

func (r *relay) run(ctx context.Context) error {
	ended := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() {
		r.fail(&Error{Op: OpContext, Err: context.Cause(ctx)})
		ended <- struct{}{}
	})
	r.idle.start(r)
	r.silence.start(r)
	r.ab.stall.init(&r.ab)
	r.ba.stall.init(&r.ba)
	var wg sync.WaitGroup
	wg.Add(1)
	go r.relayBack(&wg)
	r.ab.run()
	wg.Wait()
	r.idle.stop()
	r.silence.stop()
	r.ab.stall.stop()
	r.ba.stall.stop()
	if !stop() {
		<-ended
	}
	// In the good case the direction that ended last has closed both legs.
	// After a failure Reset has.
	return r.result()
}

// relayBack is named so that a stack dump tells what the goroutine is.
func (r *relay) relayBack(wg *sync.WaitGroup) {
	defer wg.Done()
	r.ba.run()
}

// result is called when nothing runs any more.
func (r *relay) result() error {
	// Spend the Once, so that it orders our read of err behind a fail that was
	// under way.
	r.failed.Do(func() {})
	return r.err
}

// fail notes the first error and resets both legs, which makes both directions
// fail too and end.
func (r *relay) fail(err error) {
	r.failed.Do(func() {
		r.err = err
		_ = Reset(r.a.outer)
		_ = Reset(r.b.outer)
	})
}

// succeed closes both legs after both directions ended with EOF. It spends the
// Once: the watch of a leg, which is woken by that, and a timer that fires now
// have nothing to report any more.
func (r *relay) succeed() {
	r.failed.Do(func() {
		_ = r.a.outer.Close()
		_ = r.b.outer.Close()
	})
}

// run moves everything of one direction, passes its end on, and then watches
// the leg it read from for as long as the other direction needs it.
func (d *direction) run() {
	err := d.copy()
	if err == nil {
		err = d.to.closeWrite()
	}
	last := d.r.running.Add(-1) == 0
	switch {
	case err != nil:
		d.r.fail(err)
	case last:
		d.r.succeed()
	default:
		d.watch()
	}
}

// closeWrite passes EOF on to the leg. A connection without half-close is left
// alone: its peer sees the end when the relay closes it.
func (l *leg) closeWrite() error {
	err := CloseWrite(l.outer)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return &Error{Op: OpCloseWrite, Leg: l.name, Err: err}
}

// tellsFailure reports whether failure and watch can learn anything.
func (l *leg) tellsFailure() bool {
	_, tells := l.data.(ResetWaiter)
	return tells || control(below(l.outer)) != nil
}

// watch looks for a reset of a leg that has ended already: its peer may send
// nothing more, but it can still give up on the answer, and an idle other
// direction would not notice before its next write.
func (d *direction) watch() {
	d.trace(eventWatch, 0)
	var err error
	if w, ok := d.from.data.(ResetWaiter); ok {
		err = w.WaitReset()
	} else if c := d.from.watchable(); c != nil {
		err = waitSocketError(c)
	} else {
		// Look from time to time, as if this were a write that does not return.
		d.stall.enter()
		return
	}
	if err != nil {
		d.r.fail(d.readError(err))
	}
}
