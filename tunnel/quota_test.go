package tunnel

import (
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestRate(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		taken := func(r *rate, perSecond float64) (n int) {
			for r.take(perSecond) {
				if n++; n == 1000 {
					break
				}
			}
			return n
		}
		var r rate
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
		var slow rate
		for range 3 {
			if n := taken(&slow, 0.5); n != 1 {
				t.Errorf("%d at one in two seconds", n)
			}
			time.Sleep(time.Second)
			if slow.take(0.5) {
				t.Error("two in one second at one in two")
			}
			time.Sleep(time.Second)
		}
		if n := taken(&r, -1); n != 1000 {
			t.Errorf("%d without a bound", n)
		}
	})
}

func TestLimits(t *testing.T) {
	want := Limits{
		StreamsPerSession: 1024, Agents: 64, Streams: 8192, DialsPerSecond: 2000, ReceiveMemory: 64 << 20,
		ClusterReceiveMemory: 256 << 20, Handshakes: 1024, Clients: 16384,
	}
	if got := (Limits{}).withDefaults(); got != want {
		t.Errorf("zero: %+v", got)
	}
	none := Limits{-1, -1, -1, -1, -1, -1, -1, -1}.withDefaults()
	if none.DialsPerSecond >= 0 {
		t.Errorf("dials: %v", none.DialsPerSecond)
	}
	for _, n := range []int64{int64(none.StreamsPerSession), int64(none.Agents), int64(none.Streams), none.ReceiveMemory, none.ClusterReceiveMemory, int64(none.Handshakes), int64(none.Clients)} {
		if n < 1<<30 {
			t.Errorf("a negative limit is %d", n)
		}
	}
	some := Limits{1, 2, 3, 4, 5, 6, 7, 8}
	if got := some.withDefaults(); got != some {
		t.Errorf("%+v became %+v", some, got)
	}
}
