package tunneltest

import (
	"sync"
	"testing"
	"time"
)

// timers is what yamux has: a pool of timers that outlives a bubble.
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

func usePool() {
	t := timers.Get().(*time.Timer)
	t.Reset(time.Minute)
	select {
	case <-t.C:
	case <-time.After(time.Second):
		t.Stop()
	}
	timers.Put(t)
}

// Without the collections of Bubble the second one dies with "select on synctest channel
// from outside bubble", and so does what comes after the last.
func TestBubbleEmptiesPools(t *testing.T) {
	for range 5 {
		Bubble(t, func(t *testing.T) {
			elapsed(t, time.Second, usePool)
		})
	}
	timer := timers.Get().(*time.Timer)
	timer.Reset(0)
	<-timer.C
	timers.Put(timer)
	Bubble(t, func(t *testing.T) {
		elapsed(t, time.Second, usePool)
	})
}
