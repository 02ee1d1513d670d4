package relay

import (
	"os"
	"syscall"
	"time"
)

const (
	// silenceLimit is how long a TCP peer may owe an answer.
	silenceLimit = time.Minute
	// silenceCheck is how often the kernel is asked whether it does. A dead peer
	// with data in flight is found at the latest two checks after the limit.
	silenceCheck = 15 * time.Second
)

// ErrSilent is the cause of an [Error] when data was on its way to a TCP peer for
// a minute and nothing at all came back, not even an acknowledgement, on linux.
// It is a timeout: errors.Is(ErrSilent, os.ErrDeadlineExceeded) is true, and also
// errors.Is(ErrSilent, syscall.ETIMEDOUT), which is what the kernel says of it
// after a quarter of an hour.
var ErrSilent error = silentError{}

type silentError struct{}

func (silentError) Error() string { return "the peer acknowledges nothing any more" }
func (silentError) Timeout() bool { return true }
func (silentError) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == syscall.ETIMEDOUT
}

// silenceTimer ends a relay one of whose peers is dead. Neither a read nor a
// write would tell: keep-alive rests while data is on its way, and the kernel
// itself tries for some 15 minutes. It costs one timer per relay with a TCP leg,
// and one system call per such leg at each check.
type silenceTimer struct {
	alarm
	r            *relay
	limit, every time.Duration
	begin        time.Time
	a, b         silence
}

func (t *silenceTimer) start(r *relay) {
	t.r = r
	_, a := r.a.owed()
	_, b := r.b.owed()
	if !a && !b {
		return
	}
	t.begin = time.Now()
	t.look = t.check
	t.set(t.every)
}

func (t *silenceTimer) check() time.Duration {
	now := time.Since(t.begin)
	if t.dead(&t.r.a, &t.a, now) || t.dead(&t.r.b, &t.b, now) {
		return 0
	}
	return t.every
}

func (t *silenceTimer) dead(l *leg, s *silence, now time.Duration) bool {
	d, _ := l.owed() // no debt where there is no answer
	if s.look(now, d) < t.limit {
		return false
	}
	t.r.fail(&Error{Op: OpAcknowledge, Leg: l.name, Err: ErrSilent})
	return true
}

// debt is what a TCP peer owes us.
type debt struct {
	owes  bool          // an answer to what was sent more than once
	heard time.Duration // how long ago anything came
}

// silence follows one peer. One look is not enough: the last sign of life of a
// connection that was idle is old when data is sent, and that says nothing yet.
type silence struct {
	owes  bool
	since time.Duration // the first look that found it so, with no answer since
}

// look returns for how long the peer is known to have owed an answer. An answer
// at the very time of the last look counts as one after it, which errs on the
// side of the peer.
func (s *silence) look(now time.Duration, d debt) time.Duration {
	if !s.owes || !d.owes || d.heard <= now-s.since {
		s.owes, s.since = d.owes, now
	}
	if !s.owes {
		return 0
	}
	return now - s.since
}
