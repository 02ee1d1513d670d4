package guard

import (
	"context"
	"log/slog"
	"sync"
)

// LinesPerSecond is how many lines the peers that share a LogLimit may cause.
const LinesPerSecond = 20

// LogLimit bounds a log to LinesPerSecond lines a second, so that a peer that can
// cause lines cannot fill the disk. The next line that passes says how many did
// not. Its zero value is ready for use, for several loggers at once.
type LogLimit struct {
	rate Rate

	mu      sync.Mutex
	skipped int
}

// Logger returns log with the limit.
func (l *LogLimit) Logger(log *slog.Logger) *slog.Logger {
	return slog.New(limitedLog{log.Handler(), l})
}

type limitedLog struct {
	slog.Handler
	limit *LogLimit
}

func (h limitedLog) Handle(ctx context.Context, r slog.Record) error {
	h.limit.mu.Lock()
	if !h.limit.rate.Take(LinesPerSecond) {
		h.limit.skipped++
		h.limit.mu.Unlock()
		return nil
	}
	skipped := h.limit.skipped
	h.limit.skipped = 0
	h.limit.mu.Unlock()
	if skipped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("skipped", skipped))
	}
	return h.Handler.Handle(ctx, r)
}

func (h limitedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limitedLog{h.Handler.WithAttrs(attrs), h.limit}
}

func (h limitedLog) WithGroup(name string) slog.Handler {
	return limitedLog{h.Handler.WithGroup(name), h.limit}
}
