package relay

import (
	"sync"
	"time"
)

// alarm calls look from time to time, on a timer's goroutine and so without one
// of its own. look returns when it wants to be called next; zero means not until
// set is called again.
type alarm struct {
	look func() time.Duration

	mu      sync.Mutex
	timer   *time.Timer
	pending bool          // the timer runs, or look does
	want    time.Duration // set was called while pending
	stopped bool
	done    chan struct{} // gets a value when the last fire after stop is over
}

// set lets the alarm look after d. If it is going to look anyway, or is doing it
// right now, d counts from the end of that.
func (a *alarm) set(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return
	}
	if a.pending {
		a.want = d
		return
	}
	a.pending = true
	if a.timer == nil {
		a.done = make(chan struct{}, 1)
		a.timer = time.AfterFunc(d, a.fire)
		return
	}
	a.timer.Reset(d)
}

// stop ends the alarm and returns when look does not run any more.
func (a *alarm) stop() {
	a.mu.Lock()
	a.stopped = true
	pending := a.pending
	a.mu.Unlock()
	// fire sets the timer only under mu and not once it is stopped. So if there
	// is nothing to stop, fire is on its way to say that it is over.
	if pending && !a.timer.Stop() {
		<-a.done
	}
}

func (a *alarm) fire() {
	var next time.Duration
	if !a.isStopped() {
		next = a.look()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if next == 0 {
		next = a.want
	}
	a.want = 0
	switch {
	case a.stopped:
		a.done <- struct{}{}
	case next > 0:
		a.timer.Reset(next)
	default:
		a.pending = false
	}
}

func (a *alarm) isStopped() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopped
}
