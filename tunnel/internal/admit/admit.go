// Package admit looks after what came in by a credential that may be taken back: a
// certificate that expires, a CA or a token that is removed.
//
//	var admitted admit.Set
//	leave := admitted.Enter(&admit.Admission{Check: identity.Check, Log: log, End: func() { conn.Close() }})
//	defer leave()
//
// Every 10 s it asks Check. From the first error on the peer has 30 s.
package admit

import (
	"log/slog"
	"sync"
	"time"
)

// How often credentials are checked again, and how long one that no longer
// holds is still honoured for what it has opened.
const (
	Every = 10 * time.Second
	Grace = 30 * time.Second
)

// Set is what was admitted. It checks by a timer, which runs only while there is
// something. Its zero value is empty and ready for use.
type Set struct {
	mu    sync.Mutex
	all   map[*Admission]struct{}
	timer *time.Timer
}

// Admission is one connection, session or stream.
type Admission struct {
	// Check tells whether the credential still holds.
	Check func() error
	// Log gets a line when it does not any more, and one at the end.
	Log *slog.Logger
	// Warn, if not nil, is called once when the credential no longer holds. After a
	// credential that held again in between, it is called again.
	Warn func()
	// End is called when the grace is over.
	End func()

	since time.Time // when it was first found to be gone; check's own
}

// Enter registers an admission until leave is called.
func (s *Set) Enter(m *Admission) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*Admission]struct{})
	}
	s.all[m] = struct{}{}
	if s.timer == nil {
		s.timer = time.AfterFunc(Every, s.check)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, m)
		if len(s.all) == 0 && s.timer != nil && s.timer.Stop() {
			s.timer = nil // otherwise check is under way, and ends it
		}
	}
}

// check looks at every admission once.
func (s *Set) check() {
	s.mu.Lock()
	all := make([]*Admission, 0, len(s.all))
	for m := range s.all {
		all = append(all, m)
	}
	s.mu.Unlock()
	now := time.Now()
	for _, m := range all {
		m.check(now)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		s.timer = nil
		return
	}
	s.timer.Reset(Every)
}

func (m *Admission) check(now time.Time) {
	err := m.Check()
	switch {
	case err == nil:
		m.since = time.Time{}
	case m.since.IsZero():
		m.since = now
		m.Log.Warn("credential no longer holds", "error", err, "grace", Grace)
		if m.Warn != nil {
			m.Warn()
		}
	case now.Sub(m.since) >= Grace:
		m.Log.Warn("ended: its credential no longer holds", "error", err)
		m.End()
	}
}
