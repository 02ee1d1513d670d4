package pathcontrol

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Under Better a path that is clearly and lastingly better is moved to, after
// Dwell and not before.
func TestFailbackBetter(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a", rtt: 20 * time.Millisecond}, &fakePath{name: "b", rtt: 30 * time.Millisecond}
		r := newRig(t, a, b)
		r.Failback = Better
		r.run()
		defer r.end()
		time.Sleep(10*time.Minute + 50*time.Millisecond)
		r.expect("a 20ms")
		a.slow(35 * time.Millisecond) // not by the margin
		time.Sleep(10 * time.Minute)
		r.expect()
		a.slow(200 * time.Millisecond)
		time.Sleep(59 * time.Second)
		r.expect()
		time.Sleep(time.Minute)
		if s := r.Status(); s.Path != "b" || s.Switches != 1 {
			t.Errorf("%+v", s)
		}
		a.slow(20 * time.Millisecond) // is better by a third
		time.Sleep(time.Hour)
		if s := r.Status(); s.Path != "a" || s.Switches != 2 {
			t.Errorf("%+v", s)
		}
		a.slow(time.Millisecond)
		b.slow(100 * time.Microsecond)
		time.Sleep(time.Hour) // an order of magnitude, and nothing that counts
		if s := r.Status(); s.Path != "a" || s.Switches != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// Better does not move for what does not last.
func TestBetterDwells(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a", rtt: 20 * time.Millisecond}, &fakePath{name: "b", rtt: 20 * time.Millisecond}
		r := newRig(t, a, b)
		r.Failback = Better
		r.run()
		defer r.end()
		for range 20 {
			time.Sleep(2 * time.Minute)
			a.slow(100 * time.Millisecond)
			time.Sleep(20 * time.Second)
			a.slow(20 * time.Millisecond)
		}
		if s := r.Status(); s.Switches != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// play is a controller's view of two paths for a day, without the goroutines: it
// returns how often one would be left for the other. Under the race detector, which
// has nothing to find here, it is an hour.
func play(random *rand.Rand, sample func(path int) (rtt time.Duration, lost bool)) (switches int) {
	var paths [2]quality
	now, used, better := time.Unix(0, 0), 0, time.Time{}
	next := [2]time.Time{now, now}
	length := 24 * time.Hour
	if underRace {
		length = time.Hour
	}
	for end := now.Add(length); now.Before(end); {
		for i := range paths {
			if now.Before(next[i]) {
				continue
			}
			rtt, lost := sample(i)
			paths[i].add(now, 500*time.Millisecond, rtt, lost)
			next[i] = now.Add(500 * time.Millisecond)
			if lost {
				next[i] = now.Add(100 * time.Millisecond)
			}
		}
		switch {
		case !clearlyBetter(&paths[1-used], &paths[used], 0.25):
			better = time.Time{}
		case better.IsZero():
			better = now
		case now.Sub(better) >= time.Minute:
			used, better = 1-used, time.Time{}
			switches++
		}
		now = now.Add(100 * time.Millisecond)
	}
	return switches
}

// Noise is no reason to switch, not once in a day.
func TestNoiseIsNotBetter(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	for name, sample := range map[string]func(r *rand.Rand) (time.Duration, bool){
		"a fifth lost":    func(r *rand.Rand) (time.Duration, bool) { return 20 * time.Millisecond, r.Float64() < 0.2 },
		"one of 100 lost": func(r *rand.Rand) (time.Duration, bool) { return time.Millisecond, r.Float64() < 0.01 },
		"long tail": func(r *rand.Rand) (time.Duration, bool) {
			return time.Duration(float64(20*time.Millisecond) * r.ExpFloat64()), false
		},
		"both": func(r *rand.Rand) (time.Duration, bool) {
			return 10*time.Millisecond + time.Duration(float64(50*time.Millisecond)*r.ExpFloat64()), r.Float64() < 0.2
		},
	} {
		random := rand.New(rand.NewPCG(seed, 1))
		for range 2 {
			if n := play(random, func(int) (time.Duration, bool) { return sample(random) }); n != 0 {
				t.Errorf("%s: %d switches in a day (seed %d)", name, n, seed)
			}
		}
	}
}

// The average of loss is that of time: probes that follow a miss do not count
// for more because they come more often.
func TestLossIsAnAverageOfTime(t *testing.T) {
	var q quality
	now := time.Unix(0, 0)
	step := func(d time.Duration, missed bool) {
		now = now.Add(d)
		q.add(now, 500*time.Millisecond, 20*time.Millisecond, missed)
	}
	for range 200 {
		step(500*time.Millisecond, false)
	}
	if q.score() != 20*time.Millisecond || q.variation() != 0 {
		t.Errorf("score %v, variation %v", q.score(), q.variation())
	}
	for range 12 { // a blink of 1.2 s
		step(100*time.Millisecond, true)
	}
	if loss := q.loss.mean(); loss < 0.03 || loss > 0.06 {
		t.Errorf("1.2 s of 30 s make a loss of %.3f", loss)
	}
	for range 600 {
		step(500*time.Millisecond, false)
	}
	if loss := q.loss.mean(); loss > 1e-4 {
		t.Errorf("after five minutes it is %.6f", loss)
	}
	if (&quality{}).score() != 0 || clearlyBetter(&quality{}, &q, 0) || clearlyBetter(&q, &quality{}, 0) {
		t.Error("a path that never answered has a score")
	}
}
