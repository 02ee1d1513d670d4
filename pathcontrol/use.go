package pathcontrol

import (
	"context"
	"fmt"
	"time"
)

// use is what has become of the choice.
//
//	idle ──choice──► running ──nil──► applied
//	                  ▲   │
//	                  └───┘ error, UseTimeout and then its return: after a while
type use struct {
	running  bool
	target   *pathState         // of the call that runs or ran last
	cancel   context.CancelFunc // of the call that runs
	deadline time.Time          // of the call that runs; zero: its being late was told
	applied  *pathState         // what is in use; nil: nothing, or nobody knows
	failures int                // of this choice, one after the other
	err      error              // of the last
	retry    time.Time          // when to call again after a failure
}

// applyChoice sees to it that what is chosen is used. It returns when to look
// again, zero if never.
func (r *run) applyChoice(now time.Time) (again time.Time) {
	u := &r.use
	if u.running {
		if u.target != r.chosen {
			u.cancel()
		}
		if u.deadline.IsZero() {
			return time.Time{}
		}
		if now.Before(u.deadline) {
			return u.deadline
		}
		u.deadline = time.Time{}
		r.useFailed(fmt.Errorf("Use did not return within %v; it is not called again before it has returned", r.useTimeout()), now)
		return time.Time{}
	}
	r.assumed = r.assumed && r.chosen.state != Up
	if r.chosen == nil || u.applied == r.chosen || r.assumed {
		return time.Time{}
	}
	if u.target == r.chosen && now.Before(u.retry) {
		return u.retry
	}
	if u.target != r.chosen {
		u.failures, u.err = 0, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.useTimeout())
	u.running, u.target, u.cancel, u.applied = true, r.chosen, cancel, nil
	u.deadline = now.Add(r.useTimeout())
	go callUse(ctx, r.c.Use, r.chosen.Name, r.used)
	return u.deadline
}

func (r *run) useTimeout() time.Duration { return orDefault(r.c.UseTimeout, 5*time.Second) }

// callUse calls Use, whose panic is an error, since the traffic on the path
// that is in use must go on.
func callUse(ctx context.Context, f func(context.Context, string) error, path string, used chan<- error) {
	err := errExited
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("Use panicked: %v", v)
		}
		used <- err
	}()
	err = f(ctx, path)
}

// useReturned records what the call of Use has come to.
func (r *run) useReturned(err error, now time.Time) {
	u := &r.use
	u.running = false
	u.cancel()
	switch {
	case err == nil:
		u.applied, u.failures, u.err = u.target, 0, nil
		if u.target == r.chosen {
			r.tell(Event{Time: now, Kind: Used, Path: u.target.Name, Reason: r.reason})
		}
	case u.target == r.chosen && !u.deadline.IsZero(): // else another choice has ended it, or its being late was told
		r.useFailed(err, now)
	}
}

// useFailed counts a failure, tells it, and has Use called again later.
func (r *run) useFailed(err error, now time.Time) {
	u := &r.use
	if r.ctx.Err() != nil {
		return
	}
	u.failures++
	u.err = err
	u.retry = now.Add(min(useRetry<<min(u.failures-1, 10), useRetryMax))
	r.tell(Event{Time: now, Kind: UseFailed, Path: u.target.Name, Reason: fmt.Sprintf("try %d: %v", u.failures, err)})
}
