package admit

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// A credential that does not hold is warned of at the next look and ends after
// the grace; one that holds again in between goes on.
func TestGrace(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var (
			s      Set
			b      bytes.Buffer
			gone   atomic.Pointer[error]
			warned atomic.Int32
			start  = time.Now()
			ended  atomic.Int64
		)
		remove := func(err error) { gone.Store(&err) }
		remove(nil)
		leave := s.Enter(&Admission{
			Check: func() error { return *gone.Load() }, Log: slog.New(slog.NewTextHandler(&b, nil)),
			Warn: func() { warned.Add(1) }, End: func() { ended.Store(int64(time.Since(start))) },
		})
		good := s.Enter(&Admission{Check: func() error { return nil }, Log: slog.New(slog.DiscardHandler), End: func() { t.Error("ended") }})
		at := func(d time.Duration) { time.Sleep(time.Until(start.Add(d + 1))); synctest.Wait() }
		remove(errors.New("removed"))
		at(Every)
		if n := warned.Load(); n != 1 {
			t.Fatalf("warned %d times", n)
		}
		remove(nil)
		at(4 * Every)
		remove(errors.New("removed again"))
		at(5*Every + Grace - Every)
		if warned.Load() != 2 || ended.Load() != 0 {
			t.Fatalf("warned %d times, ended after %v", warned.Load(), time.Duration(ended.Load()))
		}
		at(5*Every + Grace)
		if d := time.Duration(ended.Load()); d != 5*Every+Grace {
			t.Errorf("ended after %v", d)
		}
		leave()
		leave()
		good()
		if s.timer != nil || len(s.all) != 0 {
			t.Error("it goes on without anything to look at")
		}
		if n := strings.Count(b.String(), "\n"); n != 3 {
			t.Errorf("%d lines\n%s", n, &b)
		}
	})
}

// The last one leaves while it is being checked.
func TestLeaveMeanwhile(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var s Set
		leave := make(chan func(), 1)
		leave <- s.Enter(&Admission{Check: func() error { (<-leave)(); return nil }, Log: slog.New(slog.DiscardHandler)})
		time.Sleep(2 * Every)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.timer != nil {
			t.Error("the timer goes on")
		}
	})
}
