// Package e2e tests the example programs as processes: they are built, talk to
// each other over loopback, directly or through the entrypoint, are killed, and
// come back. Those of the packet tunnel do so in network namespaces, as root.
//
//	go test -v ./examples/internal/e2e        # logs how long recovery took
//	RHIZOME_LONG=1 go test -v …               # with more lengths of an outage
//	go test -short ./examples/internal/e2e    # skips it all
//
// # What it does not do
//
// It has no code that a program needs, and no network but loopback and the cables
// between its namespaces.
package e2e
