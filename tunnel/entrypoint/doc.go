// Package entrypoint is the front that all clusters of a seed share: one load
// balancer, three ports, three ways to find the right backend.
//
//	router := &entrypoint.Router{Logger: slog.Default()}
//	err := router.SetRoutes([]*entrypoint.Route{{
//		Name:         "shoot--dev--a/kube-apiserver",
//		SNI:          []string{"api.a.dev.example.com"},
//		Destinations: []entrypoint.Destination{{Prefix: netip.MustParsePrefix("240.0.10.1/32"), Port: 443}},
//		HeaderValues: []string{"outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"},
//		Handler:      &entrypoint.Forward{Backends: []string{"10.0.0.1:443", "10.0.0.2:443"}},
//	}})
//	go router.Serve(l443, &entrypoint.Door{By: entrypoint.BySNI})
//	go router.Serve(l8443, &entrypoint.Door{By: entrypoint.ByDestination})
//	go router.Serve(l8132, &entrypoint.Door{By: entrypoint.ByHeader})
//	…
//	err = router.Shutdown(ctx)
//
// A Door tells what connections at a listener are told apart by, a Route what is
// its own, and a Handler, which is a Forward as a rule, what becomes of it. All
// doors share the routes, so that an API server is one Route however it is
// reached. [ParseConfig] reads all of that from a file.
//
//	:443   TLS ClientHello ── server name ─────┐
//	:8443  PROXY v2 header ── its destination ─┼─► route ─► client allowed? ─► limits ─► Authorize ─► Handler
//	:8132  CONNECT request ── one header ──────┘
//	  ▲                                                                                            │
//	  └─ deadline, bounds; refusals are counted by reason                  dial, accept, relay ────┘
//
// # What is believed
//
// Nothing in a connection is an address to dial: server names, PROXY destinations
// and header values are keys of the routes, and the authority of a CONNECT request
// is not looked at. The client's address, which Allow and Deny are about, is that
// of the socket, or what the PROXY header of a load balancer says whose address
// Door.Proxy holds. At a door by destination that header comes first and the
// client's own behind it; the source in the client's own is nobody's.
//
// Whoever knows a key reaches the backend: TLS, or whatever the backend does, is
// what authenticates. [Router.Authorize] can do more before a byte is forwarded.
//
// # Refusals
//
// A refused connection costs nobody else. Over CONNECT it gets a status with
// Proxy-Status: 403 (no route, not allowed) or 301 instead for no route, 503 (no
// backend answers, draining, too many connections), 400, 408, or 431 for a head
// above 16 KiB. Over TLS it gets an alert: unrecognized_name, access_denied,
// internal_error, decode_error, the last also for a ClientHello above 64 KiB.
// Behind a PROXY header it gets a reset. None of it names routes or backends.
// [Stats] counts each [Reason].
//
// # Changes
//
// [Router.SetRoutes] replaces all routes in one step. Connections belong to the
// name of their route: while that is there they go on, whatever else has changed.
//
// # Draining
//
// What goes through is opaque, so nobody can be asked to come again: after
// [Router.Shutdown] each connection may go on for a while, and is then reset at a
// moment of its own, so that not all come back at once. The session of a tunnel's
// agent ends so, too, with its streams, and the agent dials again at once. Take a
// replica out of its load balancer some seconds before.
//
// # Goroutines
//
// One for each Serve, one more for each connection, and what relay.Relay has. All
// are gone when Serve and Shutdown or Close have returned. Forward dials on
// goroutines that end with the dial.
//
// # What it does not do
//
// It terminates no TLS, speaks no HTTP/2 and no QUIC, knows no path of a URL, and
// does not balance the requests of one connection. A name that is hidden in an
// encrypted ClientHello stays hidden: the outer name counts.
package entrypoint
