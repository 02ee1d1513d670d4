// Command ha runs the highly available packet tunnel, two servers and two shoot
// clients, on hosts that it makes of network namespaces, kills and blackholes each
// part in turn under traffic, and prints how long the traffic paused and what was
// lost.
//
//	go build -o /tmp/ha ./examples/ha && sudo /tmp/ha
package main
