package pathcontrol

import (
	"fmt"
	"time"
)

// Hysteresis says how often a path is probed and what it takes to change its
// state.
//
//	          Fall misses in a row, of one prober
//	up ─────────────────────────────────────────────► down
//	 ▲                                                  │
//	 └──────── every probe answered for Rise ───────────┘
//	           (longer after a relapse)
//
// Probes overlap: after a miss the next one is sent AfterMiss after the last,
// and each has a Timeout of its own. A path that dies is therefore down within
// 2.5 s, see FallWithin, but only after twelve probes in a row were lost, which
// a path that loses 20 % of its packets at random does once in 0.2^12.
//
// A fall within Stable after the path came up again is a relapse. Each doubles
// what Rise asks for, up to MaxRise, so that a path that comes and goes is soon
// left alone; each Stable that the path is up halves it again, down to Rise.
//
// Its zero value has the defaults. Negative values are refused where they are
// not explained.
type Hysteresis struct {
	// Interval is the time from one probe to the next, by default 0.5 s.
	Interval time.Duration
	// Timeout is how long an answer may take, by default 0.5 s, and at most 64
	// times AfterMiss.
	Timeout time.Duration
	// AfterMiss is the time from one probe to the next while the last one is
	// missed and the path not down yet, by default 0.1 s, or Interval if that
	// is less. It is also the time between the first probes, until an answer
	// comes.
	AfterMiss time.Duration
	// Fall is how many probes in a row must be missed until the path is down,
	// by default 12.
	Fall int
	// Rise is for how long every probe must be answered until a path that was
	// down is up again, by default 3 s. Negative means that one answer is
	// enough, and that there is nothing to double.
	Rise time.Duration
	// MaxRise is the most that relapses make of Rise, by default 1 min, or
	// Rise if that is more. Negative means no doubling.
	MaxRise time.Duration
	// Stable is how long a path must be up until its fall is no relapse, by
	// default 1 min.
	Stable time.Duration
}

// mostOverlap is how many probes may be under way by design.
const mostOverlap = 64

func (h Hysteresis) withDefaults() Hysteresis {
	h.Interval = orDefault(h.Interval, 500*time.Millisecond)
	h.Timeout = orDefault(h.Timeout, 500*time.Millisecond)
	h.AfterMiss = orDefault(h.AfterMiss, min(100*time.Millisecond, h.Interval))
	h.Fall = orDefault(h.Fall, 12)
	h.Rise = max(orDefault(h.Rise, 3*time.Second), 0)
	h.MaxRise = orDefault(h.MaxRise, max(time.Minute, h.Rise))
	if h.MaxRise < 0 {
		h.MaxRise = h.Rise
	}
	h.Stable = orDefault(h.Stable, time.Minute)
	return h
}

// check refuses what cannot be meant; h has its defaults.
func (h Hysteresis) check() error {
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"AfterMiss", h.AfterMiss}, {"Stable", h.Stable}} {
		if f.d < 0 {
			return fmt.Errorf("pathcontrol: Hysteresis.%s is %v, which is negative; zero means the default", f.name, f.d)
		}
	}
	switch {
	case h.Fall < 0:
		return fmt.Errorf("pathcontrol: Hysteresis.Fall is %d, which is negative; zero means the default", h.Fall)
	case h.AfterMiss > h.Interval:
		return fmt.Errorf("pathcontrol: Hysteresis.AfterMiss is %v, more than the Interval of %v", h.AfterMiss, h.Interval)
	case h.Timeout > mostOverlap*h.AfterMiss:
		return fmt.Errorf("pathcontrol: Hysteresis.Timeout is %v, more than %d times AfterMiss, which is %v: too many probes would be under way",
			h.Timeout, mostOverlap, h.AfterMiss)
	case h.MaxRise < h.Rise:
		return fmt.Errorf("pathcontrol: Hysteresis.MaxRise is %v, less than Rise, which is %v", h.MaxRise, h.Rise)
	}
	return nil
}

// FallWithin returns how long it takes at most from the death of a path that
// was up to its being down: 2.5 s by default. It is so long if the path dies
// right after an answer that took no time.
func (h Hysteresis) FallWithin() time.Duration {
	h = h.withDefaults()
	if h.check() != nil {
		return 0
	}
	// The first miss is known here; before, probes go out each Interval.
	known := h.Interval + h.Timeout
	sent := h.Interval
	for range h.Fall - 1 {
		if next := sent + h.Interval; next <= known {
			sent = next
		} else {
			sent = max(sent+h.AfterMiss, min(known, next))
		}
	}
	return sent + h.Timeout
}

// calls bounds the calls of one Prober that have not returned. Twice what a
// prober needs that returns in time leaves room for one that is a bit late.
func (h Hysteresis) calls() int {
	return 2 * int((h.Timeout+h.AfterMiss-1)/h.AfterMiss)
}

// afterFall is what Rise is after a fall: hold is what it was, up how long the
// path was up, and first tells that it was never down before.
func (h Hysteresis) afterFall(hold, up time.Duration, first bool) time.Duration {
	if up < h.Stable {
		if first {
			return hold
		}
		return min(2*hold, h.MaxRise)
	}
	return h.decayed(hold, up)
}

// decayed is what is left of hold after the path was up for so long.
func (h Hysteresis) decayed(hold, up time.Duration) time.Duration {
	for ; up >= h.Stable && hold > h.Rise; up -= h.Stable {
		hold /= 2
	}
	return max(hold, h.Rise)
}

// orDefault resolves the rule of all our settings: zero means the default,
// negative is what the field says.
func orDefault[T ~int | ~int64 | ~float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
