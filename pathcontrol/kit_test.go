package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// aWhile is what nothing takes that works.
func aWhile() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}

// fakePath is a path in fake time. It answers a probe after rtt, unless it is
// dead at any moment from the probe to its answer, or the probe is lost.
type fakePath struct {
	name string
	lost func(seq uint64) bool // nil: none

	mu    sync.Mutex
	rtt   time.Duration
	dead  bool
	died  time.Time // the last time
	seq   uint64
	calls int // under way
	most  int // of these
}

var errCut = errors.New("cut")

func (p *fakePath) Probe(ctx context.Context) (time.Duration, error) {
	p.mu.Lock()
	p.seq++
	sent, rtt := time.Now(), p.rtt
	lost := p.dead || p.lost != nil && p.lost(p.seq)
	p.calls++
	p.most = max(p.most, p.calls)
	p.mu.Unlock()
	defer p.do(func() { p.calls-- })
	answer := make(<-chan time.Time)
	if !lost {
		timer := time.NewTimer(rtt)
		defer timer.Stop()
		answer = timer.C
	}
	for {
		select {
		case <-answer:
			p.mu.Lock()
			gone := p.dead || p.died.After(sent)
			p.mu.Unlock()
			if !gone {
				return rtt, nil
			}
			answer = nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (p *fakePath) String() string { return "fake " + p.name }

func (p *fakePath) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *fakePath) die()                   { p.do(func() { p.dead, p.died = true, time.Now() }) }
func (p *fakePath) live()                  { p.do(func() { p.dead = false }) }
func (p *fakePath) slow(rtt time.Duration) { p.do(func() { p.rtt = rtt }) }

// rig is a Controller that runs, in a bubble, over fake paths.
type rig struct {
	t *testing.T
	*Controller
	start time.Time
	stop  context.CancelFunc
	ended chan error

	mu     sync.Mutex
	uses   []string // name and time of each call of Use
	events []Event
}

// newRig makes a Controller over these paths, in this order of preference.
func newRig(t *testing.T, paths ...*fakePath) *rig {
	r := &rig{t: t, Controller: new(Controller)}
	for i, p := range paths {
		if p.rtt == 0 {
			p.rtt = 10 * time.Millisecond
		}
		r.Paths = append(r.Paths, Path{Name: p.name, Preference: i, Probers: []Prober{p}})
	}
	r.Use = func(ctx context.Context, path string) error { return nil }
	return r
}

// run starts it. Its end is part of the test's.
func (r *rig) run() {
	use, onEvent := r.Use, r.OnEvent
	r.Use = func(ctx context.Context, path string) error {
		r.mu.Lock()
		r.uses = append(r.uses, fmt.Sprintf("%s %v", path, time.Since(r.start)))
		r.mu.Unlock()
		return use(ctx, path)
	}
	r.OnEvent = func(e Event) {
		r.mu.Lock()
		r.events = append(r.events, e)
		r.mu.Unlock()
		if onEvent != nil {
			onEvent(e)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.start, r.stop, r.ended = time.Now(), cancel, make(chan error, 1)
	go func() { r.ended <- r.Run(ctx) }()
}

func (r *rig) end() {
	r.t.Helper()
	r.stop()
	if err := <-r.ended; err != context.Canceled {
		r.t.Errorf("Run: %v", err)
	}
}

// expect compares the calls of Use since the last time, "name time".
func (r *rig) expect(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.uses, want) {
		r.t.Errorf("used %q, want %q", r.uses, want)
	}
	r.uses = nil
}

// kinds are the events since the last time, without their reasons.
func (r *rig) kinds() []string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var kinds []string
	for _, e := range r.events {
		kinds = append(kinds, fmt.Sprintf("%s %s %v", e.Kind, e.Path, e.Time.Sub(r.start)))
	}
	r.events = nil
	return kinds
}

func (r *rig) expectEvents(want ...string) {
	r.t.Helper()
	if got := r.kinds(); !slices.Equal(got, want) {
		r.t.Errorf("events %q, want %q", got, want)
	}
}
