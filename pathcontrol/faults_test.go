package pathcontrol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A prober that never returns is a miss each time, and costs no more than ten
// goroutines; the other path is judged and used in time.
func TestHangingProber(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls, hangs atomic.Int64
		a := &fakePath{name: "a", rtt: 10 * time.Millisecond}
		b, c := &fakePath{name: "b"}, &fakePath{name: "c"}
		r := newRig(t, a, b, c)
		r.Paths[0].Probers = append(r.Paths[0].Probers, ProberFunc(func(ctx context.Context) (time.Duration, error) {
			if time.Since(r.start) < 5*time.Second {
				return time.Millisecond, nil
			}
			hangs.Add(1)
			calls.Add(1)
			defer calls.Add(-1)
			<-release
			return time.Millisecond, nil
		}))
		r.run()
		time.Sleep(10 * time.Second)
		r.expect("a 10ms", "b 7s") // the first to hang is that of 5 s
		b.die()                    // and what comes then is found as fast
		time.Sleep(5 * time.Second)
		r.expect("c 12s")
		time.Sleep(time.Hour)
		if hangs.Load() != 10 || calls.Load() != 10 {
			t.Errorf("%d calls, of which %d hang, want 10", hangs.Load(), calls.Load())
		}
		p := r.Status().Paths[0]
		if p.State != Down || p.Probers[1].Hung != 10 || p.Probers[0].Hung != 0 ||
			p.LastError != "prober 2: not asked, because 10 earlier calls have not returned" {
			t.Errorf("%+v", p)
		}

		// It comes back, and the path with it.
		close(release)
		synctest.Wait()
		if calls.Load() != 0 {
			t.Errorf("%d calls", calls.Load())
		}
		time.Sleep(10 * time.Second)
		r.expect("a " + fmt.Sprint(r.Status().Since.Sub(r.start)))
		r.end()
	})
}

// Run does not wait for ever for a call that does not return.
func TestEndWithHangingProber(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.Paths[1].Probers = []Prober{ProberFunc(func(ctx context.Context) (time.Duration, error) {
			<-release
			return 0, nil
		})}
		r.run()
		time.Sleep(10 * time.Second)
		stopped := time.Now()
		r.end()
		if d := time.Since(stopped); d != farewell {
			t.Errorf("ended after %v, want %v", d, farewell)
		}
	})
}

// A prober that panics, or ends its goroutine, is a miss, and that is told once.
func TestPanickingProber(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var panics, exits atomic.Bool
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		var log bytes.Buffer
		r.Logger = slog.New(slog.NewTextHandler(&log, nil))
		probe := func(ctx context.Context) (time.Duration, error) {
			if panics.Load() {
				panic("no map")
			}
			if exits.Load() {
				runtime.Goexit()
			}
			return time.Millisecond, nil
		}
		r.Paths[0].Probers = []Prober{Named{"buggy", ProberFunc(probe)}}
		r.run()
		time.Sleep(5250 * time.Millisecond)
		r.kinds()
		panics.Store(true)
		time.Sleep(10 * time.Second)
		r.expectEvents("panicked a 5.5s", "path-down a 6.6s", "switched b 6.6s", "used b 6.6s")
		if e := r.Status().Paths[0].LastError; e != "buggy: the prober panicked: no map" {
			t.Error(e)
		}
		panics.Store(false)
		exits.Store(true)
		time.Sleep(10 * time.Second)
		if e := r.Status().Paths[0].LastError; e != "buggy: the prober has ended its goroutine" {
			t.Error(e)
		}
		exits.Store(false)
		time.Sleep(10 * time.Second)
		r.kinds()
		panics.Store(true)
		time.Sleep(10 * time.Second)
		if got := strings.Join(r.kinds(), ", "); strings.Count(got, "panicked") != 1 {
			t.Error(got)
		}
		r.end()
		if got := log.String(); strings.Count(got, "level=ERROR msg=panicked") != 2 || !strings.Contains(got, "faults_test.go") {
			t.Errorf("log without the stack of two panics:\n%s", got)
		}
	})
}

// Use that fails is called again, and that is told.
func TestUseFails(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var fails atomic.Bool
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.Use = func(ctx context.Context, path string) error {
			if fails.Load() {
				return errCut
			}
			return nil
		}
		fails.Store(true)
		r.run()
		time.Sleep(10 * time.Second)
		r.expect("a 10ms", "a 210ms", "a 610ms", "a 1.41s", "a 3.01s", "a 6.21s")
		s := r.Status()
		if s.Path != "a" || s.Applied || s.UseError != "cut" || s.UseFailures != 6 {
			t.Errorf("%+v", s)
		}
		time.Sleep(10250 * time.Millisecond)
		r.expect("a 11.21s", "a 16.21s") // no rarer than each 5 s
		r.kinds()

		a.die() // probing has gone on meanwhile, and another choice begins anew
		time.Sleep(2750 * time.Millisecond)
		r.expect("a 21.21s", "b 22.5s", "b 22.7s")
		fails.Store(false)
		time.Sleep(10 * time.Second)
		r.expect("b 23.1s")
		got := strings.Join(r.kinds(), ", ")
		want := "use-failed a 21.21s, path-down a 22.5s, switched b 22.5s, use-failed b 22.5s, use-failed b 22.7s, used b 23.1s"
		if got != want {
			t.Errorf("events\n%s, want\n%s", got, want)
		}
		if s := r.Status(); !s.Applied || s.UseError != "" || s.UseFailures != 0 {
			t.Errorf("%+v", s)
		}
		r.end()
	})
}

// Use that blocks is ended when another path has been chosen, and by its
// deadline.
func TestUseBlocks(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b, c := &fakePath{name: "a"}, &fakePath{name: "b"}, &fakePath{name: "c"}
		r := newRig(t, a, b, c)
		var mu sync.Mutex
		var ends []string
		r.Use = func(ctx context.Context, path string) error {
			if path != "b" {
				return nil
			}
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			ends = append(ends, fmt.Sprintf("%v %v", ctx.Err(), time.Since(r.start)))
			return ctx.Err()
		}
		r.run()
		time.Sleep(5250 * time.Millisecond)
		a.die()
		time.Sleep(10 * time.Second)
		r.expect("a 10ms", "b 7.5s", "b 12.7s")
		b.die() // that of 15.5 s is the first it misses
		time.Sleep(5 * time.Second)
		r.expect("c 17.5s")
		if got, want := fmt.Sprint(ends), "[context deadline exceeded 12.5s context canceled 17.5s]"; got != want {
			t.Errorf("ended %s, want %s", got, want)
		}
		if s := r.Status(); s.Path != "c" || !s.Applied || s.UseFailures != 0 {
			t.Errorf("%+v", s)
		}
		r.end()
	})
}

// Use that ignores its context is never called twice at a time, and its being
// late is told. What was chosen meanwhile is used as soon as it returns.
func TestUseHangs(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b, c := &fakePath{name: "a"}, &fakePath{name: "b"}, &fakePath{name: "c"}
		r := newRig(t, a, b, c)
		var calls, most atomic.Int64
		hang := make(chan error)
		r.Use = func(ctx context.Context, path string) error {
			most.Store(max(most.Load(), calls.Add(1)))
			defer calls.Add(-1)
			if path == "a" {
				return <-hang
			}
			return nil
		}
		r.run()
		time.Sleep(10 * time.Second)
		r.expect("a 10ms")
		got := strings.Join(r.kinds(), ", ")
		if !strings.Contains(got, "use-failed a 5.01s") || strings.Count(got, "use-failed") != 1 {
			t.Error(got)
		}
		if e := r.Status().UseError; e != "Use did not return within 5s; it is not called again before it has returned" {
			t.Error(e)
		}
		a.die()
		time.Sleep(10 * time.Second)
		r.expect()
		if s := r.Status(); s.Path != "b" || s.Applied {
			t.Errorf("%+v", s)
		}
		hang <- nil
		time.Sleep(time.Second)
		r.expect("b 20s")
		if s := r.Status(); s.Path != "b" || !s.Applied {
			t.Errorf("%+v", s)
		}
		a.live()
		time.Sleep(10 * time.Second) // uses a, and hangs
		hang <- errCut               // late, and failed
		time.Sleep(time.Second)
		if s := r.Status(); s.Path != "a" || s.Applied {
			t.Errorf("%+v", s)
		}
		stopped := time.Now()
		r.end()
		if d := time.Since(stopped); d != farewell {
			t.Errorf("ended after %v, want %v", d, farewell)
		}
		if err := r.Run(context.Background()); err != errInUse {
			t.Error(err)
		}
		hang <- nil
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		if err := r.Run(ctx); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if most.Load() != 1 {
			t.Errorf("%d calls at a time", most.Load())
		}
	})
}

func TestUsePanics(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		r := newRig(t, &fakePath{name: "a"})
		first := true
		r.Use = func(ctx context.Context, path string) error {
			if first {
				first = false
				panic("no route")
			}
			return nil
		}
		r.run()
		time.Sleep(100 * time.Millisecond)
		if e := r.Status().UseError; e != "Use panicked: no route" {
			t.Error(e)
		}
		time.Sleep(time.Second)
		r.expect("a 10ms", "a 210ms")
		r.end()
	})
}

// OnEvent that blocks loses events in the end, but no decision.
func TestOnEventBlocks(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		release := make(chan struct{})
		r.OnEvent = func(Event) { <-release }
		r.Hysteresis.Rise = -1
		r.run()
		for range 100 {
			time.Sleep(5 * time.Second)
			a.die()
			time.Sleep(5 * time.Second)
			a.live()
		}
		s := r.Status()
		if s.Switches != 199 || s.EventsLost == 0 {
			t.Errorf("%d switches, %d events lost", s.Switches, s.EventsLost)
		}
		time.Sleep(time.Second)
		stopped := time.Now()
		r.end()
		if d := time.Since(stopped); d != farewell {
			t.Errorf("ended after %v, want %v", d, farewell)
		}
		close(release)
	})
}

// Slow is not dead: an answer right before the timeout is one.
func TestSlowPath(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a", rtt: 499 * time.Millisecond}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		r.run()
		defer r.end()
		time.Sleep(time.Minute)
		r.expect("a 499ms")
		s := r.Status().Paths[0]
		if s.State != Up || s.RTT.Round(time.Millisecond) != 499*time.Millisecond || s.Loss != 0 {
			t.Errorf("%+v", s)
		}
		a.slow(501 * time.Millisecond) // and one behind it is none
		time.Sleep(time.Minute)
		if s := r.Status(); s.Path != "b" || s.Switches != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A process that was stopped for a while finds its probes late, but no path
// dead: it has missed only those that were under way.
func TestStoppedProcess(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := &fakePath{name: "a", rtt: 100 * time.Millisecond}, &fakePath{name: "b"}
		r := newRig(t, a, b).newRun(t.Context())
		for range 20 {
			r.loopFor(5 * time.Second)
			time.Sleep(10 * time.Second) // with the loop held up
		}
		r.loopFor(5 * time.Second)
		if s := r.status(time.Now()); s.Path != "a" || s.Switches != 0 || s.Paths[0].Falls != 0 || s.Paths[1].Falls != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// loopFor is loop for a while.
func (r *run) loopFor(d time.Duration) {
	ctx, cancel := context.WithTimeout(r.ctx, d)
	defer cancel()
	before := r.ctx
	r.ctx = ctx
	r.loop()
	r.ctx = before
}

// Errors that come at once are misses at once, so that the path is down sooner.
func TestFastErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var dead atomic.Bool
		a, b := &fakePath{name: "a"}, &fakePath{name: "b"}
		r := newRig(t, a, b)
		var calls atomic.Int64
		refused := errors.New("refused")
		r.Paths[0].Probers = []Prober{ProberFunc(func(ctx context.Context) (time.Duration, error) {
			calls.Add(1)
			if dead.Load() {
				return 0, refused
			}
			return time.Millisecond, nil
		})}
		r.run()
		defer r.end()
		time.Sleep(5250 * time.Millisecond)
		dead.Store(true)
		time.Sleep(2 * time.Second)
		r.expect("a 0s", "b 6.6s")
		calls.Store(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := calls.Load(); n != 120 { // no haste for what is down
			t.Errorf("%d probes in a minute, want 120", n)
		}
	})
}
