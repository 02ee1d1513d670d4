package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Failback says when a path that works is left for another.
type Failback int

const (
	// Always returns to a path of a lower Preference as soon as it is up.
	Always Failback = iota
	// Never stays until the path in use is down.
	Never
	// Better leaves for the path with the best score, whatever its
	// Preference, if that was better by Margin, and by more than chance
	// explains, throughout Dwell. Traffic makes the path in use slower than
	// an idle one, so the margin must be more than that.
	Better
)

// Controller chooses one of several paths and keeps to the choice for as long
// as it may. Paths and Use must be set.
//
//	            a path is up, or nothing is and one answers
//	no choice ──────────────────────────────────────────────► chosen ◄─┐
//	                                                            │      │
//	                            down, and another is up or answers;    │
//	                            or Failback: another is preferred  ────┘
//
// Where no path is up, the routes stay, and the first that answers is taken at
// once: it need not be clean for Rise. It is so at the start as well. Only
// where one that would be chosen before it has not answered yet, that one has
// Settle to do so.
//
// When the path in use is down, the choice is, of the paths that are up, those
// that have missed less than half of Fall probes in a row, of these the ones
// with the lowest Preference, of these the one with the best score.
//
// The fields must not be changed after the first use.
type Controller struct {
	// Paths are the ways there are, at least one.
	Paths []Path
	// Hysteresis says how paths are probed and judged.
	Hysteresis Hysteresis
	// Failback says when a path that works is left for another, by default
	// Always.
	Failback Failback
	// Use makes everything go through the path of this name, as
	// [NetlinkRouter.Use] does. There is one call at a time. It is called for
	// each choice, and again after a failure, 0.2 s later at first and 5 s in
	// the end. The context ends after UseTimeout, and when another path has
	// been chosen.
	Use func(ctx context.Context, path string) error
	// UseTimeout bounds a call of Use, by default 5 s. One that does not
	// return then has failed, but there is no other call until it has
	// returned. Negative is refused.
	UseTimeout time.Duration
	// Current is the name of the path that is in use when Run begins, by an
	// earlier process. It counts as the choice so far. Empty means none.
	Current string
	// Settle is how long the first path that answers waits for one that would
	// be chosen before it, where none is up, by default 1 s. Negative means
	// not at all.
	Settle time.Duration
	// Margin is by how much a score must be better under Better, as a share
	// of the score of the path in use, by default 0.25. Negative means not at
	// all, and then chance alone is kept out.
	Margin float64
	// Dwell is for how long it must be better, and how long ago the last
	// switch must be, by default 1 min. Negative means no time.
	Dwell time.Duration
	// OnEvent is told what happens, one event at a time and in order. It may
	// block, but not for ever: 256 events wait, further ones are lost.
	OnEvent func(Event)
	// Logger gets one line per event. Nil means silent.
	Logger *slog.Logger

	mu  sync.Mutex
	run *run // the newest; what it holds is mu's too
}

const (
	useRetry    = 200 * time.Millisecond
	useRetryMax = 5 * time.Second
	// farewell is how long Run waits for calls that do not end with their
	// context.
	farewell = time.Second
)

// check refuses a configuration that cannot be meant.
func (c *Controller) check() error {
	if len(c.Paths) == 0 {
		return errors.New("pathcontrol: a Controller without Paths has nothing to choose from")
	}
	if c.Use == nil {
		return errors.New("pathcontrol: Controller.Use is nil, so a choice would have no effect")
	}
	names := make(map[string]bool)
	for i, p := range c.Paths {
		switch {
		case p.Name == "":
			return fmt.Errorf("pathcontrol: Paths[%d] has no Name", i)
		case names[p.Name]:
			return fmt.Errorf("pathcontrol: two paths are named %q", p.Name)
		case len(p.Probers) == 0:
			return fmt.Errorf("pathcontrol: path %q has no Probers, so nothing would tell that it is up", p.Name)
		}
		names[p.Name] = true
		for j, prober := range p.Probers {
			if prober == nil {
				return fmt.Errorf("pathcontrol: path %q: Probers[%d] is nil", p.Name, j)
			}
			if err := validate(prober); err != nil {
				return fmt.Errorf("pathcontrol: path %q: %w", p.Name, err)
			}
		}
	}
	switch {
	case c.Current != "" && !names[c.Current]:
		return fmt.Errorf("pathcontrol: Controller.Current is %q, which is none of the paths", c.Current)
	case c.Failback < Always || c.Failback > Better:
		return fmt.Errorf("pathcontrol: Controller.Failback is %d; there are Always, Never and Better", c.Failback)
	case c.UseTimeout < 0:
		return fmt.Errorf("pathcontrol: Controller.UseTimeout is %v, which is negative; zero means the default", c.UseTimeout)
	}
	return c.Hysteresis.withDefaults().check()
}

// Run probes the paths and calls Use until ctx ends, and returns its cause, or
// at once what is wrong with the configuration. It leaves the routes as they
// are. A Controller runs once at a time.
//
// All goroutines that it started are gone when it returns, but for calls of a
// Prober, of Use or of OnEvent that have not returned within a second of the
// end: nothing can end those. Of one Prober there are at most ten by default,
// or twice Timeout divided by AfterMiss.
func (c *Controller) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	r, err := c.begin(ctx)
	if err != nil {
		return err
	}
	r.loop()
	r.end()
	return context.Cause(ctx)
}

var (
	errRunning = errors.New("pathcontrol: this Controller runs already")
	errInUse   = errors.New("pathcontrol: a call of Use from an earlier Run has not returned")
)

func (c *Controller) begin(ctx context.Context) (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil && !c.run.over {
		return nil, errRunning
	}
	if c.run != nil && c.run.use.running && len(c.run.used) == 0 {
		return nil, errInUse
	}
	r := c.newRun(ctx)
	r.teller = newTeller(c.Logger, c.OnEvent)
	c.run = r
	return r, nil
}

// Status returns what is known now. It may be called at any time, also before
// and after Run.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.run
	if r == nil {
		r = c.newRun(context.Background())
	}
	return r.status(time.Now())
}
