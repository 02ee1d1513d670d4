package guard

import (
	"sync"
	"time"
)

// Rate is a token bucket that holds one second's worth. Its zero value is full.
type Rate struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// Take reports whether one more may go at perSecond; negative is no bound.
func (r *Rate) Take(perSecond float64) bool {
	if perSecond < 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.last.IsZero() {
		r.tokens = max(perSecond, 1)
	} else {
		r.tokens = min(r.tokens+now.Sub(r.last).Seconds()*perSecond, max(perSecond, 1))
	}
	r.last = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}
