package pathcontrol

import (
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// flap has a path live and die in turns, for so long each.
func flap(p *fakePath, alive, dead, during time.Duration) {
	for end := time.Now().Add(during); time.Now().Before(end); {
		p.die()
		time.Sleep(dead)
		p.live()
		time.Sleep(alive)
	}
}

// A path that comes and goes is left alone after a few times, whatever the
// period, although it is preferred; when it has become steady it is used again.
func TestFlappingPathDoesNotFlap(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		type one struct {
			*rig
			period time.Duration
		}
		var all []one
		const flaps = 5 * time.Minute
		for period := 200 * time.Millisecond; period <= 10*time.Second; period += 200 * time.Millisecond {
			a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
			r := newRig(t, a, b)
			r.run()
			time.AfterFunc(5123*time.Millisecond, func() { flap(a, period/2, period/2, flaps) })
			all = append(all, one{r, period})
		}
		time.Sleep(flaps)
		for _, r := range all {
			// Dead for less than 2 s, it is never down. Otherwise it is trusted
			// once more after 3 s, but 6 s are more than it ever lives.
			s, most := r.Status(), uint64(3)
			if r.period < 4*time.Second {
				most = 0
			} else if r.period/2 < 3*time.Second {
				most = 1
			}
			if s.Switches > most {
				t.Errorf("period %v: %d switches in %v, want %d at most; hold %v", r.period, s.Switches, flaps, most, s.Paths[0].Hold)
			}
		}
		time.Sleep(time.Minute)
		for _, r := range all {
			if s := r.Status(); s.Path != "a" {
				t.Errorf("period %v: not used again: %+v", r.period, s.Paths[0])
			}
			r.end()
		}
	})
}

// With long lives it takes a few relapses more, and what has been steady for a
// while has its trust back.
func TestFlappingDoubles(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, row := range []struct {
			alive, dead time.Duration
			most        uint64
			hold        time.Duration
		}{
			{20 * time.Second, 4 * time.Second, 9, 24 * time.Second},
			{40 * time.Second, 20 * time.Second, 9, 48 * time.Second},
			{55 * time.Second, 5 * time.Second, 11, time.Minute},
		} {
			a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
			r := newRig(t, a, b)
			r.run()
			time.Sleep(time.Minute)
			flap(a, row.alive, row.dead, time.Hour)
			s := r.Status()
			if p := s.Paths[0]; s.Switches > row.most || p.Hold != row.hold || p.State != Down {
				t.Errorf("%v alive, %v dead: %d switches, want %d at most; %+v", row.alive, row.dead, s.Switches, row.most, p)
			}
			time.Sleep(2 * time.Minute)
			if p := r.Status().Paths[0]; p.State != Up || p.Hold == row.hold {
				t.Errorf("%v alive, %v dead: then %+v", row.alive, row.dead, p)
			}
			time.Sleep(10 * time.Minute)
			if p := r.Status().Paths[0]; p.Hold != 3*time.Second {
				t.Errorf("%v alive, %v dead: in the end %+v", row.alive, row.dead, p)
			}
			r.end()
		}
	})
}

// Paths that come and go together cause no switch at all; those that take turns
// one for each death.
func TestAllFlap(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, period := range []time.Duration{5 * time.Second, 7 * time.Second, 10 * time.Second} {
			a, b := &fakePath{name: "a"}, &fakePath{name: "b", rtt: 11 * time.Millisecond}
			r := newRig(t, a, b)
			r.run()
			time.Sleep(5123 * time.Millisecond)
			go flap(b, period/2, period/2, 5*time.Minute)
			flap(a, period/2, period/2, 5*time.Minute)
			if n := r.Status().Switches; n != 0 {
				t.Errorf("period %v, together: %d switches", period, n)
			}
			time.Sleep(2 * time.Minute)
			before := r.Status().Switches
			const times = 30
			for range times {
				a.die()
				b.live()
				time.Sleep(period / 2)
				a.live()
				b.die()
				time.Sleep(period / 2)
			}
			if n := r.Status().Switches - before; n > 2*times {
				t.Errorf("period %v, in turns: %d switches", period, n)
			}
			r.end()
		}
	})
}
