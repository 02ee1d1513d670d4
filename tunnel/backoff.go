package tunnel

import (
	"math/rand/v2"
	"time"
)

// Backoff is how long to wait between tries to connect: a random time between
// zero and a bound, which grows with the outage from Min to Max. Zero fields
// mean the default.
//
// The bound is the time since the first failure. So a try comes, whatever the
// dice say, no later after the other side's return than the outage was long,
// and thousands of agents that lost the same server spread out over that time.
// Failures that follow a session shorter than Reset count as the same outage: a
// server that crashes every few seconds is tried less and less often.
type Backoff struct {
	// Min is the least bound, by default 0.2 s; below 1 ms it is 1 ms.
	Min time.Duration
	// Max is the largest bound, by default 10 s.
	Max time.Duration
	// Reset is how long a session must have lasted to start again at Min, by
	// default one minute. Negative means that each session does.
	Reset time.Duration
}

func (b Backoff) withDefaults() Backoff {
	b = Backoff{
		Min:   orDefault(b.Min, 200*time.Millisecond),
		Max:   orDefault(b.Max, 10*time.Second),
		Reset: orDefault(b.Reset, time.Minute),
	}
	b.Min = max(b.Min, time.Millisecond)
	b.Max = max(b.Max, b.Min)
	return b
}

// outage is one address's sequence of failures.
type outage struct {
	since time.Time // of the first failure; zero: none
}

// failed returns how long to wait before the next try.
func (o *outage) failed(b Backoff, now time.Time) time.Duration {
	if o.since.IsZero() {
		o.since = now
	}
	bound := min(max(b.Min, now.Sub(o.since)), b.Max)
	return rand.N(bound) + 1
}

// ended is told that a session has ended after the given time: a short one
// does not end the outage.
func (o *outage) ended(b Backoff, lasted time.Duration) {
	if lasted >= b.Reset {
		o.since = time.Time{}
	}
}
