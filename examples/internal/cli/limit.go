package cli

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// linesPerSecond is how many lines others may cause.
const linesPerSecond = 20

// LogLimit bounds a log to 20 lines a second, so that whoever can cause lines from
// outside cannot fill the disk. The next line that passes says how many did not. Its
// zero value is ready for use, for several loggers at once, which share the bound.
type LogLimit struct {
	mu      sync.Mutex
	room    float64 // lines that may come now
	last    time.Time
	skipped int
}

// Logger returns log with the limit.
func (l *LogLimit) Logger(log *slog.Logger) *slog.Logger {
	return slog.New(limited{log.Handler(), l})
}

// take reports whether a line may be written now, and how many may not since the
// last one.
func (l *LogLimit) take() (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.room += now.Sub(l.last).Seconds() * linesPerSecond // the first time much
	l.last = now
	if l.room = min(l.room, linesPerSecond); l.room < 1 {
		l.skipped++
		return 0, false
	}
	l.room--
	skipped, l.skipped = l.skipped, 0
	return skipped, true
}

// limited is a handler with the limit.
type limited struct {
	slog.Handler
	limit *LogLimit
}

func (h limited) Handle(ctx context.Context, r slog.Record) error {
	skipped, ok := h.limit.take()
	if !ok {
		return nil
	}
	if skipped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("skipped", skipped))
	}
	return h.Handler.Handle(ctx, r)
}

func (h limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limited{h.Handler.WithAttrs(attrs), h.limit}
}

func (h limited) WithGroup(name string) slog.Handler {
	return limited{h.Handler.WithGroup(name), h.limit}
}
