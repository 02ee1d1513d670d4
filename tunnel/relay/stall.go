package relay

import (
	"sync/atomic"
	"time"
)

// stallCheck is how often a direction whose write does not return looks whether
// the leg that it reads from still lives. It finds out within twice of that.
const stallCheck = 5 * time.Second

// stall watches the leg that a direction reads from while the direction is stuck
// in a write to the other one. Nobody reads then, so nobody would learn that the
// peer has reset: a target that takes nothing could keep a relay for ever whose
// client is long gone.
//
// A write costs two atomic additions, and none if nothing could be learned. The timer is not touched by it; it runs
// through while there are writes, and sleeps when there have been none.
type stall struct {
	alarm
	d     *direction
	every time.Duration
	seq   atomic.Uint64 // odd while in a write
	armed atomic.Bool
	off   bool   // nothing can be learned of that leg
	seen  uint64 // what seq was at the last look; only look uses it
}

func (s *stall) init(d *direction) {
	s.d, s.every, s.look = d, d.r.stallCheck, s.check
	s.off = !d.from.tellsFailure()
}

func (s *stall) enter() {
	if s.off {
		return
	}
	s.seq.Add(1)
	if !s.armed.Load() && s.armed.CompareAndSwap(false, true) {
		s.set(s.every)
	}
}

func (s *stall) leave() {
	if !s.off {
		s.seq.Add(1)
	}
}

func (s *stall) check() time.Duration {
	seq := s.seq.Load()
	if seq == s.seen && seq%2 == 0 {
		// No write since the last look. One that starts now either sees armed
		// false and sets the alarm, once this look is over, or is seen here.
		s.armed.Store(false)
		if s.seq.Load() == seq || !s.armed.CompareAndSwap(false, true) {
			return 0
		}
		seq = s.seq.Load()
	}
	stuck := seq == s.seen
	s.seen = seq
	if stuck {
		if err := s.d.from.failure(); err != nil {
			s.d.r.fail(s.d.readError(err))
			return 0
		}
	}
	return s.every
}
