package relay

import "time"

// idleTimer ends a relay that makes no progress. It costs one timer, which is
// set anew only when it fires, never when bytes go by.
type idleTimer struct {
	alarm
	r       *relay
	timeout time.Duration // zero or negative: none
	begin   time.Time
	a, b    acked
}

func (t *idleTimer) start(r *relay) {
	t.r, t.timeout = r, r.opt.IdleTimeout
	if t.timeout <= 0 {
		return
	}
	t.begin = time.Now()
	t.a.init(&r.a)
	t.b.init(&r.b)
	t.look = t.check
	t.set(t.timeout)
}

// check looks how long ago the last progress was, and either ends the relay or
// says when that could be due.
func (t *idleTimer) check() time.Duration {
	now := time.Since(t.begin)
	last := max(time.Duration(t.r.ab.last.Load()), time.Duration(t.r.ba.last.Load()))
	// Both are asked each time, to have a fresh mark for the next time.
	last = max(last, t.a.progress(now), t.b.progress(now))
	if rest := last + t.timeout - now; rest > 0 {
		return rest
	}
	t.r.fail(&Error{Op: OpIdle, Err: ErrIdle})
	return 0
}

// acked follows how much a TCP peer has acknowledged. Bytes leave the relay when
// the socket takes them, and a send buffer may hold megabytes: while a slow
// reader works through them, nothing moves here for minutes.
type acked struct {
	leg   *leg
	bytes uint64
}

func (k *acked) init(l *leg) {
	k.leg = l
	k.bytes, _, _ = l.acknowledged()
}

// progress returns when the last acknowledgement of new bytes came, or zero if
// there was none since the last call. The kernel knows when the last ACK came,
// but not whether that one was for new bytes; a later answer to a keep-alive
// makes the result too late, which errs on the side of the peer.
func (k *acked) progress(now time.Duration) time.Duration {
	bytes, age, ok := k.leg.acknowledged()
	if !ok || bytes == k.bytes {
		return 0
	}
	k.bytes = bytes
	return now - age
}
