package results

import (
	"os"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

func TestMedian(t *testing.T) {
	for want, v := range map[float64][]float64{1: {1}, 2: {3, 2, 1}, 2.5: {4, 1, 2, 3}} {
		if got := median(v); got != want {
			t.Errorf("median of %v is %v, want %v", v, got, want)
		}
	}
}

func Example() {
	r := New("ours", "ours", "theirs")
	for round := range 3 {
		r.Add("throughput", "MB/s", "ours", float64(100+round))
		r.Add("throughput", "MB/s", "theirs", float64(50+round))
	}
	r.Print(os.Stdout)
	// Output:
	// measurement  unit  contender  median  from    to  ratio to ours
	//    throughput  MB/s       ours     101   100   102           1.00
	//    throughput  MB/s     theirs    51.0  50.0  52.0           0.50
}
