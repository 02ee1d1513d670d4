package tunnel

import (
	"log/slog"
	"sync"
	"time"
)

// How often credentials are checked again, and how long one that no longer
// holds is still honoured for what it has opened.
const (
	recheckEvery = 10 * time.Second
	recheckGrace = 30 * time.Second
)

// admissions is what came in by a credential that may be taken back: a
// certificate that expires, a CA or token that is removed. It checks them by a
// timer, which runs only while there are some.
type admissions struct {
	mu    sync.Mutex
	all   map[*admission]struct{}
	timer *time.Timer
}

// admission is one client connection, agent session or stream to a target.
type admission struct {
	identity Identity
	log      *slog.Logger
	warn     func() // the credential no longer holds: told once, may be nil
	end      func() // the grace is over

	since time.Time // when it was first found to be gone; check's own
}

// enter registers an admission until leave is called.
func (a *admissions) enter(m *admission) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = make(map[*admission]struct{})
	}
	a.all[m] = struct{}{}
	if a.timer == nil {
		a.timer = time.AfterFunc(recheckEvery, a.check)
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.all, m)
		if len(a.all) == 0 && a.timer != nil && a.timer.Stop() {
			a.timer = nil // otherwise check is under way, and ends it
		}
	}
}

// check looks at every admission once.
func (a *admissions) check() {
	a.mu.Lock()
	all := make([]*admission, 0, len(a.all))
	for m := range a.all {
		all = append(all, m)
	}
	a.mu.Unlock()
	now := time.Now()
	for _, m := range all {
		m.check(now)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) == 0 {
		a.timer = nil
		return
	}
	a.timer.Reset(recheckEvery)
}

func (m *admission) check(now time.Time) {
	err := m.identity.Check()
	switch {
	case err == nil:
		m.since = time.Time{}
	case m.since.IsZero():
		m.since = now
		m.log.Warn("credential no longer holds", "error", err, "grace", recheckGrace)
		if m.warn != nil {
			m.warn()
		}
	case now.Sub(m.since) >= recheckGrace:
		m.log.Warn("ended: its credential no longer holds", "error", err)
		m.end()
	}
}
