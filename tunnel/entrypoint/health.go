package entrypoint

import (
	"slices"
	"sync"
	"time"
)

// How long a backend is passed over after dials that failed.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// health knows which backends could not be dialled lately. Its zero value takes
// all for good.
type health struct {
	mu   sync.Mutex
	next int // whose turn it is
	sick map[string]*sickness
}

type sickness struct {
	until time.Time
	pause time.Duration
}

// order returns the backends in the order in which to try them: the good ones,
// another first each time, and then the others, the longest sick first.
func (h *health) order(backends []string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	var good, sick []string
	for _, b := range backends {
		if s := h.sick[b]; s != nil && now.Before(s.until) {
			sick = append(sick, b)
		} else {
			good = append(good, b)
		}
	}
	slices.SortStableFunc(sick, func(a, b string) int { return h.sick[a].until.Compare(h.sick[b].until) })
	if n := len(good); n > 0 {
		turn := h.next % n
		h.next++
		good = append(good[turn:n:n], good[:turn]...) // also of the rest each gets the same share
	}
	return append(good, sick...)
}

// bad notes a failed dial. One that failed beside others of the same moment
// counts once.
func (h *health) bad(backend string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	s := h.sick[backend]
	switch {
	case s == nil:
		s = &sickness{pause: firstPause}
		if h.sick == nil {
			h.sick = make(map[string]*sickness)
		}
		h.sick[backend] = s
	case now.Before(s.until):
		return
	default:
		s.pause = min(2*s.pause, maxPause)
	}
	s.until = now.Add(s.pause)
}

// good forgets what was bad.
func (h *health) good(backend string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sick, backend)
}

// BackendStatus is what a [Forward] knows of a backend.
type BackendStatus struct {
	Backend string `json:"backend"`
	// SickUntil is until when the backend is passed over, because it could not be
	// dialled; zero if it is good for all that is known.
	SickUntil time.Time `json:"sickUntil,omitzero"`
}

// Status returns what is known of the backends, in their order.
func (f *Forward) Status() []BackendStatus {
	h := &f.health
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []BackendStatus
	for _, b := range f.Backends {
		s := BackendStatus{Backend: b}
		if sick := h.sick[b]; sick != nil && time.Now().Before(sick.until) {
			s.SickUntil = sick.until
		}
		all = append(all, s)
	}
	return all
}
