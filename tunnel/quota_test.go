package tunnel

import "testing"

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
