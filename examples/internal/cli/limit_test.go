package cli

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestLogLimit has others cause more lines than there may be, by two loggers.
func TestLogLimit(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var b bytes.Buffer
		limit := new(LogLimit)
		base := slog.New(slog.NewTextHandler(&b, nil))
		one, two := limit.Logger(base).With("remote", "a"), limit.Logger(base).WithGroup("g")
		for range 50 {
			one.Info("flood")
			two.Info("flood")
		}
		if n := strings.Count(b.String(), "\n"); n != linesPerSecond {
			t.Errorf("%d lines at once, want %d", n, linesPerSecond)
		}
		one.Debug("too low") // takes no room
		time.Sleep(time.Second / linesPerSecond)
		one.Info("after")
		if !strings.HasSuffix(b.String(), "msg=after remote=a skipped=80\n") {
			t.Errorf("no word of what was skipped:\n%s", &b)
		}
		two.Info("again")
		time.Sleep(time.Hour)
		b.Reset()
		for range 50 {
			one.Info("flood")
		}
		if n := strings.Count(b.String(), "\n"); n != linesPerSecond {
			t.Errorf("%d lines after an hour, want %d", n, linesPerSecond)
		}
	})
}
