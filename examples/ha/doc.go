// Command ha runs the highly available packet tunnel, two servers and two shoot
// clients, on hosts that it makes of network namespaces, kills and blackholes each
// part in turn under traffic, and prints how long the traffic paused and what was
// lost.
//
//	go build -o /tmp/ha ./examples/ha && sudo /tmp/ha
//
// The kernel's bonding driver is missing in many kernels; there is one to be had
// without a machine of its own:
//
//	CGO_ENABLED=0 go build -o /tmp/bin/ ./examples/ha ./examples/seed/... ./examples/shoot/...
//	.ci/run-in-kernel /tmp/bin/ha --programs /tmp/bin --backend kernel
package main
