package bond

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// EventKind is what an [Event] tells.
type EventKind string

// What happens to a bond. [Bond], [Kernel] and [Election] have these kinds in
// common, so that one function can take the events of all.
const (
	LinkUp       EventKind = "link-up"       // A link is there.
	LinkDown     EventKind = "link-down"     // A link has ended, or has no carrier any more.
	LinkDraining EventKind = "link-draining" // A link's server is about to end it.
	CarrierUp    EventKind = "carrier-up"    // A link may be used by the kernel's bond.
	CarrierDown  EventKind = "carrier-down"  // A link may not be used by the kernel's bond.
	Switched     EventKind = "switched"      // What goes to Peer goes over To instead of From.
	Failed       EventKind = "failed"        // Something was refused. It is tried again.
)

// Event is something that happened to a bond, with its reason.
type Event struct {
	Time time.Time `json:"time"`
	Kind EventKind `json:"kind"`
	// Link is the link that it happened to, empty if it is not about one.
	Link string `json:"link,omitempty"`
	// Peer is the member whose path has changed, by name or else by number.
	// Empty in a [Switched] means everybody: the path of a kernel's bond, or of
	// what is for nobody in particular.
	Peer string `json:"peer,omitempty"`
	// From and To are the links before and after. Empty means that there is
	// none.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Reason says why, in words.
	Reason string `json:"reason,omitempty"`
}

// teller passes events on in their order, one at a time, and with no lock held:
// who is told may ask for a status, or end a link and wait for it.
type teller struct {
	mu      sync.Mutex
	waiting []Event
	telling bool
}

func (t *teller) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(t.waiting, e)
}

// tell passes on what waits. If somebody is at it already, he takes that too.
func (t *teller) tell(f func(Event), log *slog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.telling {
		return
	}
	t.telling = true
	defer func() { t.telling = false }()
	for len(t.waiting) > 0 {
		events := t.waiting
		t.waiting = nil
		t.pass(events, f, log)
	}
}

// pass is tell without the lock.
func (t *teller) pass(events []Event, f func(Event), log *slog.Logger) {
	t.mu.Unlock()
	defer t.mu.Lock()
	for _, e := range events {
		if log != nil {
			e.log(log)
		}
		if f != nil {
			f(e)
		}
	}
}

// log writes the event as one line, of what is not empty.
func (e Event) log(log *slog.Logger) {
	level := slog.LevelInfo
	if e.Kind == Failed {
		level = slog.LevelWarn
	}
	var args []slog.Attr
	for _, a := range []struct{ key, value string }{
		{"link", e.Link}, {"peer", e.Peer}, {"from", e.From}, {"to", e.To}, {"reason", e.Reason},
	} {
		if a.value != "" {
			args = append(args, slog.String(a.key, a.value))
		}
	}
	log.LogAttrs(context.Background(), level, string(e.Kind), args...)
}
