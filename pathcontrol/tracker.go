package pathcontrol

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"
)

// tracker judges one prober of a path. The loop of Run owns it.
//
// Probes have numbers, and verdicts come in any order: "in a row" means in the
// order of sending, so a miss that is known late says nothing against a probe
// that was sent after it and is answered.
type tracker struct {
	prober Prober
	name   string
	path   string

	seq     uint64    // of the newest probe
	last    time.Time // when it was sent
	flights []flight  // without a verdict, by number
	calls   int       // of Probe that have not returned

	answered uint64    // newest that was
	missed   uint64    // newest that was
	row      []uint64  // missed and newer than answered; the oldest may be left out
	misses   int       // how many these are
	clean    time.Time // when the first probe of an unbroken run of answers was sent
	spotless time.Time // when the newest of them was sent

	quality    quality
	err        error // of the newest miss
	errAt      time.Time
	answeredAt time.Time
	lost       uint64
}

type flight struct {
	seq  uint64
	sent time.Time
	call bool // Probe was called
}

// result is what a call of Probe has come to.
type result struct {
	tracker *tracker
	seq     uint64
	rtt     time.Duration
	err     error
}

// errNoAnswer is the verdict on a probe whose time is over.
type errNoAnswer struct{ timeout time.Duration }

func (e errNoAnswer) Error() string        { return fmt.Sprintf("no answer within %v", e.timeout) }
func (e errNoAnswer) Timeout() bool        { return true }
func (e errNoAnswer) Temporary() bool      { return true }
func (e errNoAnswer) Is(target error) bool { return target == os.ErrDeadlineExceeded }

// errHung is the same where Probe was not even called.
type errHung struct{ calls int }

func (e errHung) Error() string {
	return fmt.Sprintf("not asked, because %d earlier calls have not returned", e.calls)
}

// panicError is what a prober panicked with.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("the prober panicked: %v", e.value) }

var errExited = errors.New("the prober has ended its goroutine")

// send begins a probe. Its result goes to results, which must have room for
// it. Where most calls have not returned, none is added: the probe is a miss
// when its time is over, as if it had been sent.
func (t *tracker) send(ctx context.Context, now time.Time, timeout time.Duration, most int, results chan<- result) {
	t.seq++
	t.last = now
	f := flight{seq: t.seq, sent: now, call: t.calls < most}
	t.flights = append(t.flights, f)
	if f.call {
		t.calls++
		go probe(ctx, t.prober, timeout, result{tracker: t, seq: t.seq}, results)
	}
}

// probe calls Probe. A panic in it must not end what keeps the traffic going,
// so it becomes a miss.
func probe(ctx context.Context, p Prober, timeout time.Duration, r result, results chan<- result) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r.err = errExited
	defer func() {
		if v := recover(); v != nil {
			r.err = &panicError{v, debug.Stack()}
		}
		results <- r
	}()
	r.rtt, r.err = p.Probe(ctx)
}

// take records what a call has come to. A result after the verdict only says
// more about why.
func (t *tracker) take(r result, h *Hysteresis, now time.Time) {
	t.calls--
	i, pending := slices.BinarySearchFunc(t.flights, r.seq, func(f flight, seq uint64) int { return cmp.Compare(f.seq, seq) })
	if !pending {
		if r.seq == t.missed && r.err != nil && !isTimeout(r.err) {
			t.err = r.err
		}
		return
	}
	f := t.flights[i]
	t.flights = slices.Delete(t.flights, i, i+1)
	switch {
	case r.err == nil:
		t.answer(f, r.rtt, h, now)
	case isTimeout(r.err):
		t.miss(f, errNoAnswer{h.Timeout}, h, now)
	default:
		t.miss(f, r.err, h, now)
	}
}

// isTimeout tells whether an error says no more than that the time is over.
func isTimeout(err error) bool {
	return err == context.DeadlineExceeded || err == os.ErrDeadlineExceeded
}

// expire misses the probes whose time is over.
func (t *tracker) expire(h *Hysteresis, now time.Time) {
	for len(t.flights) > 0 && !now.Before(t.flights[0].sent.Add(h.Timeout)) {
		f := t.flights[0]
		t.flights = slices.Delete(t.flights, 0, 1)
		var err error = errNoAnswer{h.Timeout}
		if !f.call {
			err = errHung{t.calls}
		}
		t.miss(f, err, h, now)
	}
}

func (t *tracker) answer(f flight, rtt time.Duration, h *Hysteresis, now time.Time) {
	t.answeredAt = now
	t.quality.add(f.sent, h.Interval, rtt, false)
	if f.seq > t.answered {
		t.answered = f.seq
		t.row = slices.DeleteFunc(t.row, func(seq uint64) bool { return seq < f.seq })
		t.misses = len(t.row)
	}
	if f.seq < t.missed {
		return
	}
	if t.clean.IsZero() || f.sent.Before(t.clean) {
		t.clean = f.sent
	}
	if f.sent.After(t.spotless) {
		t.spotless = f.sent
	}
}

func (t *tracker) miss(f flight, err error, h *Hysteresis, now time.Time) {
	t.lost++
	t.quality.add(f.sent, h.Interval, 0, true)
	if f.seq >= t.missed {
		t.missed = f.seq
		t.err, t.errAt = err, now
	}
	if !f.sent.Before(t.clean) {
		t.clean, t.spotless = time.Time{}, time.Time{}
	}
	if f.seq < t.answered {
		return
	}
	t.misses++
	if errors.Is(err, ErrGone) {
		t.misses = max(t.misses, h.Fall)
	}
	t.row = append(t.row, f.seq)
	// An answer can still come to a probe under way, so no older ones matter.
	if len(t.row) > mostOverlap+1 {
		t.row = slices.Delete(t.row, 0, 1)
	}
}

// answering tells whether the newest verdict is an answer.
func (t *tracker) answering() bool { return t.answered > 0 && t.misses == 0 }

// cleanFor is for how long every probe has been answered.
func (t *tracker) cleanFor() time.Duration {
	if t.clean.IsZero() {
		return 0
	}
	return t.spotless.Sub(t.clean)
}

// hung is how many calls go on although their time is over.
func (t *tracker) hung() int {
	n := t.calls
	for _, f := range t.flights {
		if f.call {
			n--
		}
	}
	return n
}
