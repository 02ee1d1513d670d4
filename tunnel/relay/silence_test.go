package relay

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestSilenceLook has a clock and a kernel of its own.
func TestSilenceLook(t *testing.T) {
	const hour = time.Hour
	type look struct {
		at, heard time.Duration // in seconds
		owes      bool
		want      time.Duration
	}
	for name, looks := range map[string][]look{
		"idle for hours":       {{15, hour, false, 0}, {30, hour, false, 0}},
		"dead":                 {{15, hour, true, 0}, {30, hour, true, 15}, {45, hour, true, 30}, {75, hour, true, 60}},
		"acknowledges slowly":  {{15, 3, true, 0}, {30, 14, true, 0}, {45, 14, true, 0}, {60, 29, true, 15}, {75, 1, true, 0}},
		"pays in between":      {{15, hour, true, 0}, {30, hour, true, 15}, {45, hour, false, 0}, {60, hour, true, 0}, {75, hour, true, 15}},
		"answers at the look":  {{15, 0, true, 0}, {30, 15, true, 0}, {45, 16, true, 15}},
		"dies after an answer": {{15, 1, true, 0}, {30, 16, true, 15}, {90, 76, true, 75}},
	} {
		var s silence
		for i, l := range looks {
			if got := s.look(l.at*time.Second, debt{l.owes, l.heard * time.Second}); got != l.want*time.Second {
				t.Errorf("%s: look %d: %v, want %v s", name, i, got, int(l.want))
			}
		}
	}
}

func TestErrSilent(t *testing.T) {
	err := &Error{Op: OpAcknowledge, Leg: "b", Err: ErrSilent}
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, syscall.ETIMEDOUT) || !err.Timeout() || errors.Is(err, ErrIdle) {
		t.Errorf("%v is not the timeout that it should be", err)
	}
	if got, want := err.Error(), "relay: acknowledge b: the peer acknowledges nothing any more"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
