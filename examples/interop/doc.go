// Package interop proves with the real counterparts that what the library and
// its programs say is understood: the egress selector of k8s.io/apiserver, curl,
// openssl, HAProxy, OpenVPN and Prometheus. It holds tests only:
//
//	cd examples/interop && go test -count 1 ./...
//
// A test whose counterpart is missing on this machine is skipped and says how
// to get it. With RHIZOME_REQUIRE_ALL=1 it fails instead: .ci/run sets that.
//
// (Without -count 1 go test would not see that the programs have changed.)
//
// It is a module of its own, so that nobody who uses the library downloads
// Kubernetes. The programs are built from the tree around it.
package interop
