package pathcontrol

import (
	"context"
	"log/slog"
	"time"
)

// An EventKind is what happened, as a word that a metric can be named by.
type EventKind string

// The kinds of events.
const (
	PathUp    EventKind = "path-up"    // A path has become usable.
	PathDown  EventKind = "path-down"  // A path is no longer usable, or was not from the start.
	AllDown   EventKind = "all-down"   // No path is up any more. The routes stay as they are.
	Switched  EventKind = "switched"   // Another path was chosen, or the first one.
	Used      EventKind = "used"       // Use has succeeded: what was chosen is in use.
	UseFailed EventKind = "use-failed" // Use has failed, or is late. It will be called again.
	Panicked  EventKind = "panicked"   // A Prober has panicked, for the first time since it answered.
)

// level is how much an operator should care.
func (k EventKind) level() slog.Level {
	switch k {
	case AllDown, Panicked:
		return slog.LevelError
	case PathDown, UseFailed:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Event is something that a Controller has seen or decided.
type Event struct {
	Time time.Time
	Kind EventKind
	// Path is the name of the path that it is about: of Switched the one that
	// was chosen, of AllDown the one that was chosen and stays, empty if none
	// was.
	Path string
	// From is the path that was chosen before, of Switched only. Empty means
	// that this is the first choice.
	From string
	// Reason says why, in words for people.
	Reason string

	stack string // of Panicked, for the log
}

// teller passes events on in a goroutine of its own, because neither a callback
// nor a log may hold up a decision.
type teller struct {
	events chan Event
	done   chan struct{} // closed when all is told
	lost   uint64
}

// backlog is how many events may wait for a callback.
const backlog = 256

func newTeller(log *slog.Logger, onEvent func(Event)) *teller {
	t := &teller{events: make(chan Event, backlog), done: make(chan struct{})}
	go t.pass(log, onEvent)
	return t
}

func (t *teller) pass(log *slog.Logger, onEvent func(Event)) {
	defer close(t.done)
	for e := range t.events {
		if log != nil {
			attrs := []slog.Attr{slog.String("path", e.Path), slog.String("reason", e.Reason)}
			if e.From != "" {
				attrs = append(attrs, slog.String("from", e.From))
			}
			if e.stack != "" {
				attrs = append(attrs, slog.String("stack", e.stack))
			}
			log.LogAttrs(context.Background(), e.Kind.level(), string(e.Kind), attrs...)
		}
		if onEvent != nil {
			onEvent(e)
		}
	}
}

// tell queues an event. Where a callback is that far behind it is lost: what is
// true now stands in Status.
func (t *teller) tell(e Event) {
	select {
	case t.events <- e:
	default:
		t.lost++
	}
}
