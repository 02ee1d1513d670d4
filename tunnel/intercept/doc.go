// Package intercept makes a remote server appear at an address of this host: it
// owns the address, takes the connections to it, and forwards them to a shared
// entrypoint, which it tells where they were going.
//
//	addr := &intercept.LocalAddr{Addr: netip.MustParseAddr("240.0.10.1")}
//	err := addr.Up()                                       // sockets can be bound to it now
//	go addr.Run(ctx)                                       // keeps it; removes it at the end of ctx
//	l, err := net.Listen("tcp", "240.0.10.1:443")
//
//	i := &intercept.Interceptor{Entrypoint: "api.seed.example:8443"}
//	go i.Serve(l)                                          // blocks, owns its goroutines
//	err = i.Shutdown(ctx)                                  // drains, and waits until all is gone
//
// In a Gardener shoot the server is the API server, the address the one that it
// advertises, and this runs on each node:
//
//	pod ─► kubernetes.default ─ kube-proxy ─► advertise address        node
//	                                               │ LocalAddr
//	                                          Interceptor
//	                                               │ PROXY v2, or CONNECT
//	                                               ▼
//	                                           entrypoint ─► API server      seed
//
// # The address
//
// It is a /32 or /128 on a dummy interface of our own, or on an interface that is
// given. Packets to it end on this host wherever they come from, so it must not be
// anybody else's. The kernel does not take it as the source of what the host sends
// elsewhere: an IPv4 address has scope host, and an IPv6 address is deprecated,
// which lets the kernel take it only if there is no other of its scope. (On lo and
// of global scope it would be taken: kubelets have spoken from such an address.)
//
// What others remove, it puts back, at once and by looking every ten seconds. What
// others own, it does not take: if the address is on another interface, or another
// process of this package holds it, [LocalAddr.Up] returns an [*InUseError] that
// says whose it is and what to do.
//
// Nobody can clean up after a kill, and so the next start takes over what was left:
// an interface with our alias and an address with our looks, see [LocalAddr.Up].
// Addresses of an earlier configuration that are left on our interface are removed.
// Who holds an address shows by an abstract Unix socket, @rhizome-intercept/ADDR,
// which any process of the network namespace can bind, privileges or not, and so
// keep us from starting: the error tells.
//
// # The connections
//
// Bytes, half-close and reset go through untouched, see package relay, and
// so TLS is between the client and the server. Both legs have keep-alive of 30 s,
// so that no dead one stays for hours.
//
// The entrypoint learns the destination in one of two dialects. [ProxyV2] is one
// header, to which nothing is answered: a refusal looks like a server that closes
// at once. [Connect] is answered, and a client is not told anything else than a
// reset if the answer is not 200; the reason is in the log and in [Stats].
//
// A client that goes away while its dial is under way ends the dial. As with every
// proxy of clients that speak first, EOF before the first byte means that it went
// away; EOF behind one is a half-close, which is kept. Up to 16 KiB that it sends
// early are kept as well.
//
// Shutdown gives connections [Interceptor.DrainTimeout] to end, and then resets
// each at a moment of its own, at random in the last four fifths of it: otherwise
// all clients of a node would come back at once, and after the restart of all nodes
// all clients of a cluster, to the one entrypoint.
//
// # Goroutines
//
// Whoever blocks owns them:
//
//	LocalAddr.Run      one that hears the kernel's news
//	Interceptor.Serve  one per connection; while it dials one that watches the
//	                   client, then the relay's; all are gone when Serve and
//	                   Shutdown or Close have returned
//
// # What it does not do
//
// It sets no route and no firewall rule, and does not look at what it forwards.
// It has no list of clients that may connect: everybody whose packets reach the
// host may, as everybody may connect to the server itself. It does not retry a
// dial: the client does. LocalAddr needs linux; an Interceptor runs everywhere.
package intercept
