package tunnel

import "time"

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
