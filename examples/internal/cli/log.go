package cli

import (
	"io"
	"log/slog"
)

// Log holds the flags of the logs. Its zero value means text at level info.
type Log struct {
	Format string
	Level  slog.Level
}

// Define defines --log-format and --log-level.
func (l *Log) Define(f *Flags) {
	l.Format = "text"
	f.Text(&l.Format, "log-format", "text|json", "how log lines are written, to standard error")
	level := "info"
	l.Level = slog.LevelInfo
	f.set.Func("log-level", "", func(s string) error {
		err := l.Level.UnmarshalText([]byte(s))
		if err != nil {
			f.bad = Usagef("--log-level %q: want debug, info, warn or error", s)
		}
		return err
	})
	f.add("log-level", "LEVEL", "what is logged: debug (each stream), info (each session), warn or error", level)
}

// Check refuses an unknown format.
func (l *Log) Check() error {
	switch l.Format {
	case "", "text", "json":
		return nil
	}
	return Usagef("--log-format %q: want text or json", l.Format)
}

// Logger makes the logger.
func (l *Log) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
