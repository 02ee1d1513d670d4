package backoff

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestBackoffDefaults(t *testing.T) {
	if got, want := (Policy{}).WithDefaults(), (Policy{200 * time.Millisecond, 10 * time.Second, time.Minute}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := (Policy{Min: -1, Max: -1}).WithDefaults(); got.Min != time.Millisecond || got.Max != got.Min {
		t.Errorf("negative: %+v", got)
	}
	if got := (Policy{Min: time.Minute}).WithDefaults(); got.Max != time.Minute {
		t.Errorf("Min above Max: %+v", got)
	}
}

// A wait is never longer than Max, and never longer than the outage has
// lasted or Min: so the other side's return is noticed in time.
func TestBackoffBounds(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	spread := false
	for range 500 {
		b := Policy{Min: time.Duration(r.Int64N(int64(time.Second))), Max: time.Duration(r.Int64N(int64(time.Minute)))}.WithDefaults()
		var o Outage
		start := time.Unix(0, 0).Add(time.Hour)
		now := start
		for range 50 {
			wait := o.Failed(b, now)
			if bound := min(b.Max, max(b.Min, now.Sub(start))); wait <= 0 || wait > bound {
				t.Fatalf("%+v: after %v: wait %v, want more than 0 and at most %v", b, now.Sub(start), wait, bound)
			}
			spread = spread || wait > b.Max/2
			now = now.Add(wait + time.Duration(r.Int64N(int64(time.Second))))
		}
	}
	if !spread {
		t.Error("no wait came near Max")
	}
}

func TestBackoffReset(t *testing.T) {
	b := Policy{}.WithDefaults()
	now := time.Unix(1000, 0)
	longest := func(o Outage, at time.Time) (d time.Duration) {
		for range 200 {
			p := o
			d = max(d, p.Failed(b, at))
		}
		return d
	}
	var o Outage
	o.Failed(b, now)
	now = now.Add(time.Hour)
	if d := longest(o, now); d <= 5*time.Second {
		t.Errorf("after an hour the longest of 200 waits is %v", d)
	}
	o.Ended(b, b.Reset-1) // it did not last
	if d := longest(o, now); d <= 5*time.Second {
		t.Errorf("a short session reset the back-off: %v", d)
	}
	o.Ended(b, b.Reset)
	if d := longest(o, now); d > b.Min {
		t.Errorf("after a healthy minute: %v", d)
	}
}
