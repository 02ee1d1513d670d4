package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// fallTimes returns how long it takes until a path is down, with a Controller
// for each moment of death: 20 intervals after the start plus the phase.
func fallTimes(t *testing.T, h Hysteresis, rtt time.Duration, phases []time.Duration) []time.Duration {
	times := make([]time.Duration, len(phases))
	d := h.withDefaults()
	var rigs []*rig
	for i, phase := range phases {
		a := &fakePath{name: "a", rtt: rtt}
		r := newRig(t, a)
		r.Hysteresis = h
		died := time.Now().Add(20*d.Interval + phase)
		time.AfterFunc(time.Until(died), a.die)
		r.OnEvent = func(e Event) {
			if e.Kind == PathDown && times[i] == 0 {
				times[i] = e.Time.Sub(died)
			}
		}
		r.run()
		rigs = append(rigs, r)
	}
	time.Sleep(21*d.Interval + 2*h.FallWithin())
	for _, r := range rigs {
		r.end()
	}
	return times
}

// phases are from 1 ns to the length of an interval, all moments at which a
// probe can have been answered last.
func phases(interval time.Duration, steps int) []time.Duration {
	var list []time.Duration
	for i := range steps {
		list = append(list, interval*time.Duration(i)/time.Duration(steps)+1)
	}
	return append(list, interval)
}

// A path that dies is down within 2.5 s, whenever it dies. The worst moment is
// right after an answer that took no time.
func TestFallWithin(t *testing.T) {
	var h Hysteresis
	if got := h.FallWithin(); got != 2500*time.Millisecond {
		t.Fatalf("FallWithin is %v, want 2.5s", got)
	}
	for _, rtt := range []time.Duration{1, 99 * time.Millisecond, 249 * time.Millisecond, 499 * time.Millisecond} {
		tunneltest.Bubble(t, func(t *testing.T) {
			worst := time.Duration(0)
			for i, took := range fallTimes(t, h, rtt, phases(500*time.Millisecond, 100)) {
				if took <= 0 || took > h.FallWithin() {
					t.Errorf("rtt %v, phase %d of 100: %v", rtt, i, took)
				}
				worst = max(worst, took)
			}
			// Died right after the answer, or right before the next probe.
			if want := h.FallWithin() - rtt; worst < want-6*time.Millisecond {
				t.Errorf("rtt %v: %v at worst, less than %v: is this test still one?", rtt, worst, want)
			}
		})
	}
}

// The bound holds for other settings, and is no larger than it must be.
func TestFallWithinOthers(t *testing.T) {
	for _, h := range []Hysteresis{
		{Fall: 1},
		{Fall: 2},
		{Fall: 3, Interval: time.Second, Timeout: 3 * time.Second},
		{Fall: 4, Interval: time.Second, Timeout: 200 * time.Millisecond},
		{Fall: 5, Interval: 10 * time.Second, Timeout: time.Second, AfterMiss: 2 * time.Second},
		{Interval: 50 * time.Millisecond},
		{AfterMiss: 500 * time.Millisecond},
		{Fall: 12, Interval: 300 * time.Millisecond, Timeout: 700 * time.Millisecond, AfterMiss: 100 * time.Millisecond},
	} {
		tunneltest.Bubble(t, func(t *testing.T) {
			worst, interval := time.Duration(0), h.withDefaults().Interval
			for _, took := range fallTimes(t, h, 1, phases(interval, 50)) {
				if took <= 0 {
					t.Errorf("%+v: never down", h)
				}
				worst = max(worst, took)
			}
			if bound := h.FallWithin(); worst > bound || worst < bound-interval/25 {
				t.Errorf("%+v: down after %v at worst, said %v", h, worst, bound)
			}
		})
	}
}

// A path that was down is up when it has answered every probe for Rise, and a
// miss begins that anew.
func TestRise(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.run()
		defer r.end()
		time.Sleep(10 * time.Second)
		a.die()
		time.Sleep(5*time.Second - 50*time.Millisecond)
		r.kinds()
		a.live() // probes go out 0.1 s before each half second
		time.Sleep(2 * time.Second)
		a.die()
		time.Sleep(500 * time.Millisecond) // one is lost
		a.live()
		time.Sleep(500 * time.Millisecond)
		if s := r.Status().Paths[0]; s.State != Down || s.Misses != 0 || s.Clean >= time.Second {
			t.Errorf("%+v", s)
		}
		time.Sleep(10 * time.Second)
		// The last miss is the probe of 17.4 s. Answered are those from 17.9
		// to 20.9.
		r.expectEvents("path-up a 20.91s", "switched a 20.91s", "used a 20.91s")
	})
}

// Without Rise the first answer is enough, and nothing doubles.
func TestNoRise(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.Hysteresis.Rise = -1
		r.run()
		defer r.end()
		for range 5 {
			time.Sleep(5 * time.Second)
			a.die()
			time.Sleep(5 * time.Second)
			a.live()
		}
		if n := r.Status().Switches; n != 9 {
			t.Errorf("%d switches, want 9", n)
		}
	})
}

func TestRelapses(t *testing.T) {
	h := Hysteresis{}.withDefaults()
	for _, row := range []struct {
		hold, up time.Duration
		first    bool
		want     time.Duration
	}{
		{3 * time.Second, time.Second, true, 3 * time.Second}, // the first fall is none
		{3 * time.Second, time.Second, false, 6 * time.Second},
		{6 * time.Second, 59 * time.Second, false, 12 * time.Second},
		{48 * time.Second, 0, false, time.Minute}, // bounded
		{time.Minute, 0, false, time.Minute},
		{3 * time.Second, time.Minute, false, 3 * time.Second},
		{time.Minute, time.Minute, false, 30 * time.Second}, // decays
		{time.Minute, 2*time.Minute + 1, false, 15 * time.Second},
		{time.Minute, 1000 * time.Hour, false, 3 * time.Second},
	} {
		if got := h.afterFall(row.hold, row.up, row.first); got != row.want {
			t.Errorf("%+v: %v", row, got)
		}
	}
	h = Hysteresis{MaxRise: -1}.withDefaults()
	if got := h.afterFall(3*time.Second, 0, false); got != 3*time.Second {
		t.Errorf("without doubling it is %v", got)
	}
	if h = (Hysteresis{Rise: 2 * time.Minute}).withDefaults(); h.MaxRise != 2*time.Minute || h.check() != nil {
		t.Errorf("a long Rise: %+v, %v", h, h.check())
	}
}

func TestHysteresisCheck(t *testing.T) {
	for _, row := range []struct {
		h    Hysteresis
		want string
	}{
		{Hysteresis{Interval: -1}, "Hysteresis.Interval is -1ns, which is negative; zero means the default"},
		{Hysteresis{Timeout: -1}, "Hysteresis.Timeout is -1ns"},
		{Hysteresis{AfterMiss: -1}, "Hysteresis.AfterMiss is -1ns"},
		{Hysteresis{Stable: -1}, "Hysteresis.Stable is -1ns"},
		{Hysteresis{Fall: -1}, "Hysteresis.Fall is -1"},
		{Hysteresis{AfterMiss: time.Second}, "AfterMiss is 1s, more than the Interval of 500ms"},
		{Hysteresis{Timeout: time.Minute}, "Timeout is 1m0s, more than 64 times AfterMiss"},
		{Hysteresis{MaxRise: time.Second}, "MaxRise is 1s, less than Rise"},
	} {
		r := newRig(t, &fakePath{name: "a"})
		r.Hysteresis = row.h
		if err := r.Run(context.Background()); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.h, err, row.want)
		}
		if row.h.MaxRise == 0 && row.h.Stable == 0 && row.h.FallWithin() != 0 {
			t.Errorf("%+v: FallWithin is %v", row.h, row.h.FallWithin())
		}
	}
}

// Verdicts come in any order; what counts is the order of sending.
func TestTrackerOrder(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := Hysteresis{}.withDefaults()
		results := make(chan result, 100)
		hang := make(chan struct{})
		tr := &tracker{prober: ProberFunc(func(ctx context.Context) (time.Duration, error) {
			<-hang
			return 0, nil
		})}
		for range 5 {
			tr.send(context.Background(), time.Now(), h.Timeout, h.calls(), results)
			time.Sleep(100 * time.Millisecond)
		}
		take := func(seq uint64, err error) string {
			tr.take(result{tracker: tr, seq: seq, rtt: time.Millisecond, err: err}, &h, time.Now())
			return fmt.Sprintf("misses %d, answering %t, clean %v", tr.misses, tr.answering(), tr.cleanFor())
		}
		for i, step := range []struct {
			seq  uint64
			err  error
			want string
		}{
			{3, errCut, "misses 1, answering false, clean 0s"},
			{2, nil, "misses 1, answering false, clean 0s"}, // 3 is newer
			{4, nil, "misses 0, answering true, clean 0s"},
			{1, errCut, "misses 0, answering true, clean 0s"}, // 1 is older
			{5, nil, "misses 0, answering true, clean 100ms"},
			{5, errCut, "misses 0, answering true, clean 100ms"}, // has its verdict
		} {
			if got := take(step.seq, step.err); got != step.want {
				t.Errorf("step %d: %s, want %s", i, got, step.want)
			}
		}
		if tr.lost != 2 || len(tr.flights) != 0 || !errors.Is(tr.err, errCut) {
			t.Errorf("%+v", tr)
		}
		close(hang)
		synctest.Wait()
	})
}
