package guard

import (
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestRate(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		taken := func(r *Rate, perSecond float64) (n int) {
			for r.Take(perSecond) {
				if n++; n == 1000 {
					break
				}
			}
			return n
		}
		var r Rate
		if n := taken(&r, 10); n != 10 {
			t.Errorf("a burst of %d at 10 a second", n)
		}
		time.Sleep(100 * time.Millisecond)
		if n := taken(&r, 10); n != 1 {
			t.Errorf("%d after 100 ms", n)
		}
		time.Sleep(250 * time.Millisecond)
		if n := taken(&r, 10); n != 2 {
			t.Errorf("%d after 250 ms", n)
		}
		time.Sleep(50 * time.Millisecond)
		if n := taken(&r, 10); n != 1 {
			t.Errorf("%d with the half of before", n)
		}
		time.Sleep(time.Hour)
		if n := taken(&r, 10); n != 10 {
			t.Errorf("%d after an hour", n)
		}
		var slow Rate
		for range 3 {
			if n := taken(&slow, 0.5); n != 1 {
				t.Errorf("%d at one in two seconds", n)
			}
			time.Sleep(time.Second)
			if slow.Take(0.5) {
				t.Error("two in one second at one in two")
			}
			time.Sleep(time.Second)
		}
		if n := taken(&r, -1); n != 1000 {
			t.Errorf("%d without a bound", n)
		}
	})
}
