package pathcontrol

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestFailoverAndFailback(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b", rtt: 11 * time.Millisecond}
		r := newRig(t, a, b)
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		r.expect("a 10ms")
		r.expectEvents("path-up a 10ms", "switched a 10ms", "used a 10ms", "path-up b 11ms")
		a.die()
		time.Sleep(5 * time.Second)
		r.expect("b 7.5s")
		r.expectEvents("path-down a 7.5s", "switched b 7.5s", "used b 7.5s")
		if got, want := r.Status().Reason, "a is down (fake a: no answer within 500ms); b is the only one that is up"; got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
		a.live()
		time.Sleep(10 * time.Second)
		r.expect("a 13.41s")
		r.expectEvents("path-up a 13.41s", "switched a 13.41s", "used a 13.41s")
		s := r.Status()
		if want := "a is preferred and up again: every probe was answered for 3s"; s.Reason != want {
			t.Errorf("reason %q, want %q", s.Reason, want)
		}
		if s.Path != "a" || !s.Applied || s.Switches != 2 || !s.Since.Equal(r.start.Add(13410*time.Millisecond)) {
			t.Errorf("%+v", s)
		}
		p := s.Paths[0]
		if p.Name != "a" || p.State != Up || p.Falls != 1 || p.RTT != 10*time.Millisecond || p.Loss <= 0 || p.Loss >= 0.5 ||
			p.Score <= p.RTT || p.LastError != "fake a: no answer within 500ms" || p.LastAnswer.Before(p.LastMiss) || len(p.Probers) != 1 {
			t.Errorf("%+v", p)
		}
		text, err := json.Marshal(s)
		if err != nil || !strings.Contains(string(text), `"State":"up"`) {
			t.Errorf("%s %v", text, err)
		}
	})
}

func TestFailbackNever(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.Failback = Never
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		a.die()
		time.Sleep(10 * time.Second)
		a.live()
		time.Sleep(time.Hour)
		r.expect("a 10ms", "b 7.5s")
		b.die()
		time.Sleep(10 * time.Second)
		r.expect("a 1h0m17.5s")
	})
}

// At the start the first answer decides, but one that is preferred may come a
// little later.
func TestStart(t *testing.T) {
	for name, row := range map[string]struct {
		a, b, c time.Duration // after how long they come to life: never at the moment of a probe
		settle  time.Duration
		equal   bool // preference
		want    string
	}{
		"all at once":               {want: "a 10ms"},
		"preferred is late":         {a: 250 * time.Millisecond, want: "a 310ms"},
		"preferred is too late":     {a: 2 * time.Second, want: "b 1.01s"},
		"late, and no time for it":  {a: 250 * time.Millisecond, settle: -1, want: "b 10ms"},
		"all late":                  {a: 9 * time.Second, b: 8350 * time.Millisecond, c: 6950 * time.Millisecond, want: "c 8.012s"},
		"in between":                {a: 9 * time.Second, b: 7450 * time.Millisecond, c: 6950 * time.Millisecond, want: "b 8.012s"},
		"equals do not wait":        {a: 250 * time.Millisecond, equal: true, want: "b 10ms"},
		"a bit more time":           {a: 1950 * time.Millisecond, settle: 3 * time.Second, want: "a 2.01s"},
		"the least preferred alone": {a: time.Hour, b: time.Hour, want: "c 1.012s"},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				a, b, c := &fakePath{name: "a"}, &fakePath{name: "b"}, &fakePath{name: "c", rtt: 12 * time.Millisecond}
				r := newRig(t, a, b, c)
				r.Settle = row.settle
				for p, after := range map[*fakePath]time.Duration{a: row.a, b: row.b, c: row.c} {
					if after > 0 {
						p.die()
						time.AfterFunc(after, p.live)
					}
				}
				if row.equal {
					for i := range r.Paths {
						r.Paths[i].Preference = 0
					}
				}
				r.run()
				time.Sleep(8500 * time.Millisecond)
				r.end()
				if r.uses == nil || r.uses[0] != row.want {
					t.Errorf("%q, want %s first", r.uses, row.want)
				}
				time.Sleep(2 * time.Hour) // for the timers
			})
		})
	}
}

// Where all die, the route stays, that is said once, and the first that answers
// is taken.
func TestAllDie(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		r.kinds()
		r.expect("a 10ms")
		a.die()
		b.die()
		time.Sleep(time.Minute)
		r.expect()
		r.expectEvents("path-down a 7.5s", "path-down b 7.5s", "all-down a 7.5s")
		if s := r.Status(); s.Path != "a" || s.Paths[0].State != Down || s.Paths[1].State != Down {
			t.Errorf("%+v", s)
		}
		b.live() // a second for a, which does not come
		time.Sleep(5 * time.Second)
		r.expect("b 1m6.41s")
		r.expectEvents("path-up b 1m6.41s", "switched b 1m6.41s", "used b 1m6.41s")
		if want := "the only one that answers, and none is up"; r.Status().Reason != want {
			t.Errorf("reason %q, want %q", r.Status().Reason, want)
		}
		b.die()
		time.Sleep(time.Minute)
		r.expect()
		r.kinds()
		a.live() // is preferred
		time.Sleep(10 * time.Second)
		r.expect("a 2m10.41s")
		a.die()
		time.Sleep(10 * time.Second)
		r.kinds()
		a.live() // the one that is in use: no switch
		time.Sleep(10 * time.Second)
		r.expect()
		r.expectEvents("path-up a 2m30.31s")
	})
}

// One that answers but is not trusted yet is taken when there is no other.
func TestDistrustedIsBetterThanNone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		a.die()
		time.Sleep(5 * time.Second)
		r.expect("a 10ms", "b 7.5s")
		a.live()
		b.die() // within Rise
		time.Sleep(5 * time.Second)
		r.expect("a 12.5s")
	})
}

// Paths that die together are not tried one after the other.
func TestDyingTogether(t *testing.T) {
	for phase := range 20 {
		tunneltest.Bubble(t, func(t *testing.T) {
			a, b, c := &fakePath{name: "a"}, &fakePath{name: "b", rtt: 260 * time.Millisecond}, &fakePath{name: "c", rtt: 400 * time.Millisecond}
			r := newRig(t, a, b, c)
			r.run()
			defer r.end()
			time.Sleep(10*time.Second + time.Duration(phase)*25*time.Millisecond + 1)
			r.expect("a 10ms")
			a.die()
			b.die()
			time.Sleep(10 * time.Second)
			if s := r.Status(); s.Path != "c" || s.Switches != 1 {
				t.Errorf("phase %d: %s after %d switches", phase, s.Path, s.Switches)
			}
		})
	}
}

func TestEqualsByScore(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b, c := &fakePath{name: "a"}, &fakePath{name: "b", rtt: 30 * time.Millisecond}, &fakePath{name: "c", rtt: 20 * time.Millisecond}
		r := newRig(t, a, b, c)
		for i := range r.Paths {
			r.Paths[i].Preference = 7
		}
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		a.die()
		time.Sleep(10 * time.Second)
		r.expect("a 10ms", "c 7.5s")
		if want := "a is down (fake a: no answer within 500ms); c has the best score of 2 that are equally preferred, 20ms"; r.Status().Reason != want {
			t.Errorf("reason %q, want %q", r.Status().Reason, want)
		}
		a.live()
		time.Sleep(time.Hour) // a has the better score, but there is no need
		r.expect()
	})
}

func TestCurrent(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b", rtt: 200 * time.Millisecond}
		for _, row := range []struct {
			failback Failback
			want     string
		}{{Never, "b 200ms"}, {Better, "b 200ms"}, {Always, "a 10ms"}} {
			r := newRig(t, a, b)
			r.Failback, r.Current = row.failback, "b"
			r.run()
			time.Sleep(5 * time.Second)
			r.expect(row.want)
			r.end()
		}

		a.die()
		b.die()
		r := newRig(t, a, b)
		r.Current = "b"
		r.run()
		time.Sleep(time.Minute)
		r.expect() // it is in use: nothing to do
		r.expectEvents("path-down a 1.6s", "path-down b 1.6s", "all-down b 1.6s")
		if s := r.Status(); s.Path != "b" || s.Applied || s.Switches != 0 {
			t.Errorf("%+v", s)
		}
		a.live()
		time.Sleep(time.Minute)
		r.end()
		if s := r.Status(); s.Path != "a" || s.Switches != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// All probers of a path have to answer, and the error says which did not.
func TestSeveralProbers(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		far, behind, b := &fakePath{name: "far"}, &fakePath{name: "behind", rtt: 30 * time.Millisecond}, &fakePath{name: "b"}
		r := newRig(t, far, b)
		r.Paths[0].Probers = []Prober{Named{"the far end", far}, behind}
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		r.expect("far 30ms")
		behind.die()
		time.Sleep(5 * time.Second)
		r.expect("b 7.5s")
		p := r.Status().Paths[0]
		if p.LastError != "fake behind: no answer within 500ms" || p.Probers[0].LastError != "" || p.Probers[0].Name != "the far end" ||
			p.Probers[1].LastError != "no answer within 500ms" || p.Probers[0].Lost != 0 || p.Probers[1].Lost < 12 {
			t.Errorf("%+v", p)
		}
		far.die()
		behind.live()
		time.Sleep(time.Minute)
		r.expect()
		far.live()
		time.Sleep(10 * time.Second)
		if s := r.Status(); s.Path != "far" {
			t.Errorf("%+v", s)
		}
	})
}

// Who knows that nobody is there takes the path down with one word, and it comes
// up again by answers as ever.
func TestGone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var gone atomic.Bool
		knows := ProberFunc(func(context.Context) (time.Duration, error) {
			if gone.Load() {
				return 0, &StatusError{http.StatusGone}
			}
			return time.Millisecond, nil
		})
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.Paths[0].Probers = append(r.Paths[0].Probers, Named{"who knows", knows})
		r.run()
		defer r.end()
		time.Sleep(5200 * time.Millisecond)
		r.expect("a 10ms")
		gone.Store(true)
		time.Sleep(5 * time.Second)
		r.expect("b 5.5s")
		if p := r.Status().Paths[0]; p.State != Down || p.LastError != "who knows: status 410 Gone" {
			t.Errorf("%+v", p)
		}
		gone.Store(false)
		time.Sleep(10 * time.Second)
		if s := r.Status(); s.Path != "a" {
			t.Errorf("%+v", s)
		}
	})
}

// Any other status is a miss like all others.
func TestStatusGone(t *testing.T) {
	for status, want := range map[int]bool{410: true, 404: false, 503: false} {
		if got := errors.Is(&StatusError{status}, ErrGone); got != want {
			t.Errorf("status %d: gone %v", status, got)
		}
	}
}

func TestMisconfigured(t *testing.T) {
	a := &fakePath{name: "a"}
	ok := []Path{{Name: "a", Probers: []Prober{a}}}
	use := func(context.Context, string) error { return nil }
	for _, row := range []struct {
		c    *Controller
		want string
	}{
		{&Controller{}, "without Paths"},
		{&Controller{Paths: ok}, "Controller.Use is nil"},
		{&Controller{Use: use, Paths: []Path{{Probers: []Prober{a}}}}, "Paths[0] has no Name"},
		{&Controller{Use: use, Paths: append(ok, ok...)}, `two paths are named "a"`},
		{&Controller{Use: use, Paths: []Path{{Name: "a"}}}, `path "a" has no Probers`},
		{&Controller{Use: use, Paths: []Path{{Name: "a", Probers: []Prober{a, nil}}}}, `path "a": Probers[1] is nil`},
		{&Controller{Use: use, Paths: []Path{{Name: "a", Probers: []Prober{&ICMP{}}}}}, `path "a": ICMP.Addr is not set`},
		{&Controller{Use: use, Paths: []Path{{Name: "a", Probers: []Prober{Named{"x", &TCP{}}}}}}, `path "a": TCP.Addr`},
		{&Controller{Use: use, Paths: []Path{{Name: "a", Probers: []Prober{Named{Name: "x"}}}}}, `the prober named "x" is nil`},
		{&Controller{Use: use, Paths: ok, Current: "b"}, `Controller.Current is "b", which is none of the paths`},
		{&Controller{Use: use, Paths: ok, Failback: 3}, "Controller.Failback is 3"},
		{&Controller{Use: use, Paths: ok, UseTimeout: -1}, "Controller.UseTimeout is -1ns"},
	} {
		if err := row.c.Run(context.Background()); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v, want %q", err, row.want)
		}
		if err := row.c.Run(context.Background()); err == nil || !strings.HasPrefix(err.Error(), "pathcontrol: ") {
			t.Errorf("%v", err)
		}
	}
}

// Run runs once at a time, and Status tells something at any time.
func TestRunTwice(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a := &fakePath{name: "a"}
		r := newRig(t, a)
		if s := r.Status(); s.Path != "" || len(s.Paths) != 1 || s.Paths[0].State != Unknown || s.Paths[0].State.String() != "unknown" {
			t.Errorf("before: %+v", s)
		}
		r.run()
		time.Sleep(time.Second)
		if err := r.Run(context.Background()); err != errRunning {
			t.Error(err)
		}
		r.end()
		if s := r.Status(); s.Path != "a" || s.Paths[0].State.String() != "up" {
			t.Errorf("after: %+v", s)
		}
		r.start = time.Now()
		ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, errCut)
		defer cancel()
		if err := r.Run(ctx); err != errCut {
			t.Error(err)
		}
		r.expect("a 10ms", "a 10ms")
	})
}
