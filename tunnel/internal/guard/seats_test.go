package guard

import (
	"net/netip"
	"testing"
)

// Nobody may take all, and who has few comes before who has many.
func TestSeats(t *testing.T) {
	var s Seats
	seats := 100
	give := make(map[string][]func())
	take := func(who string) bool {
		g, full := s.Take(seats, 1<<30, netip.MustParseAddr(who))
		if full == "" {
			give[who] = append(give[who], g)
		}
		return full == ""
	}
	const a, b, c = "10.0.0.1", "10.0.0.2", "2001:db8::1"
	count := func(who string) (n int) {
		for take(who) {
			n++
		}
		return n
	}
	// 90 for who comes first, as nine times as much as is free; who has few is let in.
	if got := [3]int{count(a), count(b), count(c)}; got != [3]int{90, 9, 1} {
		t.Errorf("%v", got)
	}
	// All hosts of an IPv6 network are one client.
	for _, g := range give[a][:60] {
		g()
		g() // twice is once
	}
	if got := [4]int{count(c), count("2001:db8::ffff"), count("2001:db8:0:1::1"), s.Count()}; got != [4]int{54, 0, 6, 100} {
		t.Errorf("%v", got)
	}
	for _, gs := range give {
		for _, g := range gs {
			g()
		}
	}
	if s.Count() != 0 || len(s.by) != 0 {
		t.Errorf("%d seats, %d clients are left", s.Count(), len(s.by))
	}
	seats = 1 << 30
	for range 50000 {
		if !take(a) {
			t.Fatal("there is a bound")
		}
	}
	var few Seats
	for i, want := range []string{"", "", "the client"} {
		if _, full := few.Take(100, 2, netip.MustParseAddr(a)); full != want {
			t.Errorf("%d: %q", i, full)
		}
	}
}
