package intercept

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// errDrained is why a connection ended, for its log line.
var errDrained = errors.New("intercept: cut off while draining")

// Shutdown closes the listeners and waits until the connections have ended, each
// at last at its own moment of DrainTimeout; if any was reset then, the error says
// how many and is a context.DeadlineExceeded. If ctx ends before, what is open is
// reset, and the error is ctx's cause. Nil means that all ended by themselves. It
// returns when everything that Serve started is gone. Serve returns ErrClosed at
// once.
func (i *Interceptor) Shutdown(ctx context.Context) error {
	i.closeListeners()
	var cut atomic.Int64
	for _, t := range i.cutLater(&cut) {
		defer t.Stop()
	}
	var err error
	select {
	case <-i.empty:
	default:
		select {
		case <-i.empty:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	i.cancel(ErrClosed)
	i.work.Wait()
	if n := cut.Load(); err == nil && n > 0 {
		err = fmt.Errorf("intercept: %d connections did not end by themselves: %w", n, context.DeadlineExceeded)
	}
	return err
}

// cutLater has each connection end at a moment of its own, and counts those in cut
// that it ends.
func (i *Interceptor) cutLater(cut *atomic.Int64) []*time.Timer {
	d := i.DrainTimeout
	switch {
	case d == 0:
		d = 25 * time.Second
	case d < 0:
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	timers := make([]*time.Timer, 0, len(i.conns))
	for c := range i.conns {
		moment := d/5 + rand.N(d-d/5+1)
		timers = append(timers, time.AfterFunc(moment, func() {
			i.mu.Lock()
			defer i.mu.Unlock()
			if _, there := i.conns[c]; there { // else it has ended by itself
				cut.Add(1)
				c.end(errDrained)
			}
		}))
	}
	return timers
}

// Close resets all connections and returns when everything that Serve started
// is gone.
func (i *Interceptor) Close() error {
	i.closeListeners()
	i.cancel(ErrClosed)
	i.work.Wait()
	return nil
}

// closeListeners lets nothing new in.
func (i *Interceptor) closeListeners() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.init()
	if i.draining {
		return
	}
	i.draining = true
	i.checkEmpty()
	for l := range i.listeners {
		_ = l.Close()
	}
}

// checkEmpty tells Shutdown when nothing is left and nothing can come. i.mu is
// held.
func (i *Interceptor) checkEmpty() {
	if i.draining && i.loops == 0 && len(i.conns) == 0 {
		close(i.empty)
	}
}
