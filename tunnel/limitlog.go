package tunnel

import (
	"context"
	"log/slog"
	"sync"
)

// limitedLog passes on so many lines a second, so that a peer that can cause
// lines cannot fill the disk. The next line that passes says how many did not.
type limitedLog struct {
	slog.Handler
	limit *logLimit
}

// logLimit is shared by all handlers that derive from one.
type logLimit struct {
	perSecond float64
	rate      rate

	mu      sync.Mutex
	skipped int
}

// linesPerSecond is how many lines the strangers of a door, the clients of a
// cluster, and its agents may each cause.
const linesPerSecond = 20

func limitLog(log *slog.Logger, l *logLimit) *slog.Logger {
	return slog.New(limitedLog{log.Handler(), l})
}

func (h limitedLog) Handle(ctx context.Context, r slog.Record) error {
	h.limit.mu.Lock()
	if !h.limit.rate.take(h.limit.perSecond) {
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
