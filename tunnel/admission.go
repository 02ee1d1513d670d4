package tunnel

import (
	"context"
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

// admissions is what came in through a door by a credential that may be taken
// back: a certificate that expires, a CA or token that is removed.
type admissions struct {
	mu  sync.Mutex
	all map[*admission]struct{}
}

// admission is one client connection or agent session.
type admission struct {
	identity Identity
	log      *slog.Logger
	warn     func() // the credential no longer holds: told once, may be nil
	end      func() // the grace is over

	since time.Time // when it was first found to be gone; watch's own
}

// enter registers an admission until leave is called.
func (a *admissions) enter(m *admission) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = make(map[*admission]struct{})
	}
	a.all[m] = struct{}{}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.all, m)
	}
}

func (a *admissions) list() []*admission {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*admission, 0, len(a.all))
	for m := range a.all {
		all = append(all, m)
	}
	return all
}

// watch checks the credentials until ctx ends, and calls also, if not nil,
// each time.
func (a *admissions) watch(ctx context.Context, also func(now time.Time)) {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			for _, m := range a.list() {
				m.check(now)
			}
			if also != nil {
				also(now)
			}
		case <-ctx.Done():
			return
		}
	}
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
