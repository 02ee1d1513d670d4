// Package backoff says how long to wait between tries to connect: a random time
// between zero and a bound, which grows with the outage.
//
//	policy := backoff.Policy{}.WithDefaults()
//	var outage backoff.Outage
//	for {
//		start := time.Now()
//		err := connectAndServe()
//		outage.Ended(policy, time.Since(start))
//		sleep(outage.Failed(policy, time.Now()))
//	}
//
// The bound is the time since the first failure. So a try comes, whatever the
// dice say, no later after the other side's return than the outage was long,
// and thousands of clients that lost the same server spread out over that time.
package backoff

import (
	"math/rand/v2"
	"time"
)

// Policy has the bounds. Zero fields mean the default.
type Policy struct {
	// Min is the least bound, by default 0.2 s; below 1 ms it is 1 ms.
	Min time.Duration
	// Max is the largest bound, by default 10 s.
	Max time.Duration
	// Reset is how long a connection must have lasted to start again at Min, by
	// default one minute. Negative means that each one does.
	Reset time.Duration
}

// WithDefaults resolves what is zero or out of bounds.
func (p Policy) WithDefaults() Policy {
	p = Policy{
		Min:   orDefault(p.Min, 200*time.Millisecond),
		Max:   orDefault(p.Max, 10*time.Second),
		Reset: orDefault(p.Reset, time.Minute),
	}
	p.Min = max(p.Min, time.Millisecond)
	p.Max = max(p.Max, p.Min)
	return p
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// Outage is one address's sequence of failures. Its zero value has none.
type Outage struct {
	since time.Time // of the first failure; zero: none
}

// Failed returns how long to wait before the next try: more than nothing. The
// policy has its defaults.
func (o *Outage) Failed(p Policy, now time.Time) time.Duration {
	if o.since.IsZero() {
		o.since = now
	}
	bound := min(max(p.Min, now.Sub(o.since)), p.Max)
	return rand.N(bound) + 1
}

// Ended is told that a connection has ended after the given time: a short one
// does not end the outage, so that a server which crashes every few seconds is
// tried less and less often.
func (o *Outage) Ended(p Policy, lasted time.Duration) {
	if lasted >= p.Reset {
		o.since = time.Time{}
	}
}
