package backoff_test

import (
	"fmt"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/backoff"
)

// A server is down for ten seconds, and then a link lasts for an hour.
func ExampleOutage() {
	policy := backoff.Policy{}.WithDefaults()
	var outage backoff.Outage
	start := time.Now()
	fmt.Println(outage.Failed(policy, start) <= policy.Min)
	fmt.Println(outage.Failed(policy, start.Add(10*time.Second)) <= policy.Max)
	outage.Ended(policy, time.Hour)
	fmt.Println(outage.Failed(policy, start.Add(time.Hour)) <= policy.Min)
	// Output:
	// true
	// true
	// true
}
