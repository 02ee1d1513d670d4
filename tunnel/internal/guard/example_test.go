package guard_test

import (
	"fmt"
	"net/netip"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// One client takes all that it can of ten seats, and another one still gets in.
func ExampleSeats() {
	var seats guard.Seats
	for range 9 {
		seats.Take(10, 10, netip.MustParseAddr("192.0.2.1"))
	}
	_, full := seats.Take(10, 10, netip.MustParseAddr("192.0.2.1"))
	fmt.Println("the first:", full)
	give, full := seats.Take(10, 10, netip.MustParseAddr("192.0.2.2"))
	fmt.Printf("the second: %q\n", full)
	give()
	fmt.Println(seats.Count())
	// Output:
	// the first: the client, above its fair share
	// the second: ""
	// 9
}
