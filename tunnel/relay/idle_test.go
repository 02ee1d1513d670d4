package relay

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestIdle checks the idle timeout to the nanosecond, in fake time.
func TestIdle(t *testing.T) {
	const idle = time.Minute
	for _, c := range []struct {
		name string
		// do works with the peers from the start on; the relay must end that long
		// after it has returned.
		do func(t *testing.T, pa, pb net.Conn)
	}{
		{"silence", func(*testing.T, net.Conn, net.Conn) {}},
		{"aToB", func(t *testing.T, pa, pb net.Conn) {
			for range 10 {
				time.Sleep(idle - 1)
				mustWrite(t, pa, "x")
				mustRead(t, pb, "x")
			}
		}},
		{"bothWays", func(t *testing.T, pa, pb net.Conn) {
			for range 10 {
				time.Sleep(idle - 1)
				mustWrite(t, pa, "x")
				mustRead(t, pb, "x")
				time.Sleep(idle / 2)
				mustWrite(t, pb, "x")
				mustRead(t, pa, "x")
			}
		}},
		{"oneEnded", func(t *testing.T, pa, pb net.Conn) {
			time.Sleep(idle / 2)
			mustWrite(t, pa, "x")
			mustCloseWrite(t, pa)
			mustRead(t, pb, "x")
			mustEOF(t, pb)
			for range 10 {
				time.Sleep(idle - 1)
				mustWrite(t, pb, "x")
				mustRead(t, pa, "x")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				pa, a := memoryPair(t)
				pb, b := memoryPair(t)
				r := start(t.Context(), t, a, b, idle, nil)
				c.do(t, pa, pb)
				last := time.Now()
				err := <-r.done
				if d := time.Since(last); d != idle {
					t.Errorf("ended after %v, want %v", d, idle)
				}
				var e *Error
				if !errors.As(err, &e) || e.Op != OpIdle || e.Leg != "" || !e.Timeout() ||
					!errors.Is(err, ErrIdle) || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Relay = %v", err)
				}
				if c.name != "oneEnded" {
					mustReset(t, pb)
				}
				mustReset(t, pa)
			})
		})
	}
}

// TestNoIdle never ends: zero and negative mean no timeout.
func TestNoIdle(t *testing.T) {
	for _, idle := range []time.Duration{0, -1} {
		tunneltest.Bubble(t, func(t *testing.T) {
			pa, a := memoryPair(t)
			pb, b := memoryPair(t)
			r := start(t.Context(), t, a, b, idle, nil)
			time.Sleep(1000 * time.Hour)
			mustCloseWrite(t, pa)
			mustCloseWrite(t, pb)
			if err := <-r.done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSlowAnswerAfterHalfClose waits ten minutes for each byte of the answer.
func TestSlowAnswerAfterHalfClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		pa, a := memoryPair(t)
		pb, b := memoryPair(t)
		r := start(t.Context(), t, a, b, 0, nil)
		mustCloseWrite(t, pa)
		mustEOF(t, pb)
		for range 10 {
			time.Sleep(10 * time.Minute)
			mustWrite(t, pb, "x")
		}
		mustCloseWrite(t, pb)
		mustRead(t, pa, "xxxxxxxxxx")
		mustEOF(t, pa)
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		r.wantBytes(0, 10)
	})
}

// TestIdleSockets uses real time: the relay must not end before the timeout, and
// it must end at all, in both modes of copying.
func TestIdleSockets(t *testing.T) {
	const idle = time.Second
	type one struct {
		name string
		r    *running
		last time.Time
	}
	var all []one
	for _, bulk := range []bool{false, true} {
		for _, k := range kinds() {
			pa, a := k.pair(t)
			pb, b := k.pair(t)
			limit(pa, pb)
			r := start(t.Context(), t, a, b, idle, nil)
			shake(t, pa, pb)
			last := time.Now()
			if bulk {
				sent := make(chan error, 1)
				go func() { sent <- sendPattern(pa, 0, 2*spliceAfter) }()
				last = time.Now()
				if err := errors.Join(checkPattern(pb, 0, 2*spliceAfter), <-sent); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, one{k.name, r, last})
		}
	}
	for _, o := range all {
		o.r.wantError(OpIdle, "", ErrIdle)
		// The relay saw the last byte a little before we did.
		if d := time.Since(o.last); d < idle*9/10 {
			t.Errorf("%s ended after %v, before the idle timeout of %v", o.name, d, idle)
		}
	}
}

// TestAlarm sets the alarm from everywhere and stops it in every state.
func TestAlarm(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var looks atomic.Int32
		var a alarm
		a.look = func() time.Duration {
			if looks.Add(1) == 1 {
				a.set(time.Second) // while it looks: afterwards, then
				return 0
			}
			return 0
		}
		begin := time.Now()
		a.set(time.Second)
		a.set(time.Second) // is counted from the end of the first
		time.Sleep(10 * time.Second)
		if n := looks.Load(); n != 2 {
			t.Errorf("looked %d times in %v, want 2", n, time.Since(begin))
		}
		a.set(time.Second)
		time.Sleep(10 * time.Second)
		if n := looks.Load(); n != 3 {
			t.Errorf("looked %d times, want 3", n)
		}
		a.set(time.Second)
		a.stop()
		a.set(time.Second)
		time.Sleep(10 * time.Second)
		if n := looks.Load(); n != 3 {
			t.Errorf("looked %d times after stop, want 3", n)
		}
		var unused alarm
		unused.stop()

		// stop waits for a look that is under way.
		in, out := make(chan bool), make(chan bool)
		b := alarm{look: func() time.Duration { in <- true; <-out; return time.Second }}
		b.set(time.Second)
		<-in
		stopped := make(chan bool)
		go func() { b.stop(); close(stopped) }()
		time.Sleep(time.Second)
		select {
		case <-stopped:
			t.Error("stop did not wait")
		default:
		}
		close(out)
		<-stopped
	})
}
