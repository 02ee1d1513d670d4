package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// run is one Run of a Controller: one goroutine that sends probes, judges them,
// and decides. Whatever may block is in a goroutine of its own, so the loop
// itself never does.
//
//	loop ──► probe (per call) ──results──► loop
//	     ──► Use   (one)      ──used─────► loop
//	     ──► teller           ──► Logger, OnEvent
type run struct {
	c   *Controller
	h   Hysteresis
	ctx context.Context

	paths    []*pathState
	chosen   *pathState // nil: none yet
	since    time.Time
	reason   string
	switches uint64
	assumed  bool      // chosen is Controller.Current and was not up so far
	allDown  bool      // told
	settled  time.Time // Settle after the first answer of all; zero: none yet
	use      use

	results chan result
	used    chan error
	teller  *teller
	over    bool
}

func (c *Controller) newRun(ctx context.Context) *run {
	r := &run{c: c, h: c.Hysteresis.withDefaults(), ctx: ctx, used: make(chan error, 1)}
	now, probers := time.Now(), 0
	for i, p := range c.Paths {
		s := newPathState(p, i, &r.h, now)
		r.paths = append(r.paths, s)
		probers += len(p.Probers)
		if p.Name == c.Current && c.Current != "" {
			r.chosen, r.since, r.reason, r.assumed = s, now, "it was in use at the start", true
		}
	}
	// Room for the result of each call, so that none waits for the loop.
	if r.h.check() == nil {
		r.results = make(chan result, probers*r.h.calls())
	}
	return r
}

func (r *run) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(r.step()))
		select {
		case <-r.ctx.Done():
			return
		case result := <-r.results:
			r.take(result)
		case err := <-r.used:
			r.c.mu.Lock()
			r.useReturned(err, time.Now())
			r.c.mu.Unlock()
		case <-timer.C:
		}
	}
}

// take records a result.
func (r *run) take(next result) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.record(next, time.Now())
}

func (r *run) record(next result, now time.Time) {
	r.panicked(next, now)
	next.tracker.take(next, &r.h, now)
}

// takeWaiting records the results that are there. Answers must be seen before
// their time is found to be over, which matters when the process was held up.
func (r *run) takeWaiting(now time.Time) {
	for {
		select {
		case next := <-r.results:
			r.record(next, now)
		default:
			return
		}
	}
}

// panicked tells of a panic, unless the one before was one too.
func (r *run) panicked(next result, now time.Time) {
	var panicked, before *panicError
	if !errors.As(next.err, &panicked) || next.tracker.misses > 0 && errors.As(next.tracker.err, &before) {
		return
	}
	r.tell(Event{
		Time: now, Kind: Panicked, Path: next.tracker.path,
		Reason: fmt.Sprintf("%s: %v", next.tracker.name, next.err), stack: string(panicked.stack),
	})
}

// step does what is to be done now and returns when there is more to do.
func (r *run) step() (next time.Time) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	now := time.Now()
	next = now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	r.takeWaiting(now)
	// Where no path is up, decide sees to those that answer.
	rise := r.anyUp()
	fresh := now.Before(r.settled)
	for _, p := range r.paths {
		for _, t := range p.trackers {
			t.expire(&r.h, now)
		}
		if kind, reason := p.update(&r.h, now, rise, fresh); kind != "" {
			r.tell(Event{Time: now, Kind: kind, Path: p.Name, Reason: reason})
		}
	}
	if at := r.decide(now); !at.IsZero() {
		sooner(at)
	}
	if at := r.applyChoice(now); !at.IsZero() {
		sooner(at)
	}
	haste := r.haste()
	for _, p := range r.paths {
		for _, t := range p.trackers {
			if !now.Before(p.due(t, &r.h, haste)) {
				t.send(r.ctx, now, r.h.Timeout, r.h.calls(), r.results)
			}
			sooner(p.due(t, &r.h, haste))
			if len(t.flights) > 0 {
				sooner(t.flights[0].sent.Add(r.h.Timeout))
			}
		}
	}
	return next
}

func (r *run) anyUp() bool {
	return slices.ContainsFunc(r.paths, func(p *pathState) bool { return p.state == Up })
}

// end waits for what the loop has started.
func (r *run) end() {
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	late := func() bool {
		for r.pending() {
			select {
			case next := <-r.results:
				r.c.mu.Lock()
				next.tracker.calls--
				r.c.mu.Unlock()
			case err := <-r.used:
				r.c.mu.Lock()
				r.useReturned(err, time.Now())
				r.c.mu.Unlock()
			case <-timer.C:
				return true
			}
		}
		return false
	}()
	close(r.teller.events)
	if !late {
		select {
		case <-r.teller.done:
		case <-timer.C:
		}
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.over = true
}

// pending tells whether a call of a Prober or of Use has not returned.
func (r *run) pending() bool {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.use.running {
		return true
	}
	for _, p := range r.paths {
		for _, t := range p.trackers {
			if t.calls > 0 {
				return true
			}
		}
	}
	return false
}

func (r *run) tell(e Event) {
	if r.teller != nil {
		r.teller.tell(e)
	}
}

func (r *run) status(now time.Time) Status {
	s := Status{Reason: r.reason, Since: r.since, Switches: r.switches}
	if r.chosen != nil {
		s.Path = r.chosen.Name
		s.Applied = r.use.applied == r.chosen
	}
	if r.use.err != nil {
		s.UseError = r.use.err.Error()
	}
	s.UseFailures = r.use.failures
	if r.teller != nil {
		s.EventsLost = r.teller.lost
	}
	for _, p := range r.paths {
		s.Paths = append(s.Paths, p.status(&r.h, now))
	}
	return s
}
