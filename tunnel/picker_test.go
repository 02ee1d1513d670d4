package tunnel

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestLeastStreams(t *testing.T) {
	for _, tt := range []struct {
		name       string
		candidates []Candidate
		want       int
	}{
		{"one", []Candidate{{Streams: 9}}, 0},
		{"fewest", []Candidate{{Streams: 3}, {Streams: 1}, {Streams: 2}}, 1},
		{"equal: the first", []Candidate{{Streams: 1}, {Streams: 1}}, 0},
		{"equal: the nearest", []Candidate{{Streams: 1, RTT: 30}, {Streams: 1, RTT: 10}, {Streams: 1, RTT: 20}}, 1},
		{"streams before distance", []Candidate{{Streams: 2, RTT: 1}, {Streams: 1, RTT: time.Second}}, 1},
	} {
		if got := LeastStreams("", tt.candidates); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestRoundRobin(t *testing.T) {
	pick := RoundRobin()
	for i := range 9 {
		if got := pick("", make([]Candidate, 3)); got != i%3 {
			t.Errorf("turn %d: %d", i, got)
		}
	}
	if got := pick("", make([]Candidate, 1)); got != 0 {
		t.Errorf("of one: %d", got)
	}
}

func TestByDestination(t *testing.T) {
	// The last of those that fit, so that the choice shows who does.
	last := func(_ string, c []Candidate) int { return len(c) - 1 }
	agents := func(serves ...string) (c []Candidate) {
		for i, s := range serves {
			var one Candidate
			if s != "" {
				one.Serves = strings.Fields(s)
			}
			for _, text := range one.Serves {
				d, err := parseServed(text)
				if err != nil {
					t.Fatal(err)
				}
				one.served = append(one.served, d)
			}
			one.ID = string(rune('a' + i))
			c = append(c, one)
		}
		return c
	}
	for _, tt := range []struct {
		target string
		serves []string
		want   int
	}{
		{"10.0.0.7:80", []string{"10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0"}, 1},
		{"10.0.1.7:80", []string{"10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0"}, 0},
		{"11.0.0.7:80", []string{"10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0"}, 2},
		{"10.0.0.7:80", []string{"10.0.0.7", "10.0.0.0/24"}, 0},
		{"10.0.0.7:80", []string{"10.0.0.0/24 192.0.2.0/24", "192.0.2.0/24"}, 0},
		{"10.0.0.7:80", []string{"10.0.0.0/24", "10.0.0.0/24"}, 1}, // next chooses
		{"10.0.0.7:80", []string{"", "10.0.0.0/8", ""}, 1},         // declared before undeclared
		{"10.0.0.7:80", []string{"", "192.0.2.0/24", ""}, 2},       // undeclared before others
		{"10.0.0.7:80", []string{"192.0.2.0/24", "198.51.100.0/24"}, 1},
		{"[::ffff:10.0.0.7]:80", []string{"10.0.0.0/8", "::/0"}, 0},
		{"[64:ff9b::10.0.0.7]:80", []string{"10.0.0.0/8", "::/0"}, 0},
		{"[2001:db8::7]:80", []string{"10.0.0.0/8", "2001:db8::/32"}, 1},
		{"metrics.kube-system.svc:443", []string{".svc", ".kube-system.svc", "10.0.0.0/8"}, 1},
		{"metrics.kube-system.svc:443", []string{"metrics.kube-system.svc", ".kube-system.svc"}, 0},
		{"METRICS.kube-system.svc.:443", []string{"metrics.kube-system.svc", ".kube-system.svc"}, 0},
		{"node.example:443", []string{"example", ".example", "0.0.0.0/0"}, 1},
		{"asvc:443", []string{"", ".svc"}, 0},
		{"not a target", []string{"", ".svc", "10.0.0.0/8"}, 2}, // next chooses among all
	} {
		if got := ByDestination(last)(tt.target, agents(tt.serves...)); got != tt.want {
			t.Errorf("%s of %q: %d, want %d", tt.target, tt.serves, got, tt.want)
		}
	}
	c := agents("10.0.0.0/8", "10.0.0.0/8")
	c[0].Streams = 5
	if got := ByDestination(nil)("10.0.0.7:80", c); got != 1 {
		t.Errorf("without a next it is not LeastStreams: %d", got)
	}
}

// A Picker that returns nonsense costs the dial, not the server.
func TestPickerOutOfRange(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		choice := 0
		w := newWorld(t, func(s *Server) { s.Picker = func(string, []Candidate) int { return choice } })
		w.agent("a", "agent-1", nil)
		w.agent("a", "agent-2", nil)
		w.ready("a", 2)
		for _, choice = range []int{-1, 2, 1 << 40} {
			_, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			if !errors.Is(err, connect.ErrInternal) {
				t.Errorf("%d: %v", choice, err)
			}
			_, err = w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
			var ce *connect.Error
			if !errors.As(err, &ce) || ce.Status != 500 {
				t.Errorf("%d: CONNECT: %v", choice, err)
			}
		}
		choice = 1
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
	})
}
