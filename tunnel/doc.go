// Package tunnel is a reverse tunnel: agents in closed networks dial out to a
// server, and the server dials through them.
//
// In the seed, a [Server] takes in agents and gives out dial functions. In the
// shoot, an [Agent] connects to it and dials targets on its behalf:
//
//	srv := &tunnel.Server{}
//	go srv.Serve(tlsListener) // agents and proxy clients, by certificate
//
//	agent := &tunnel.Agent{Servers: []string{"https://seed.example:8132"}, TLS: tlsConfig}
//	go agent.Run(ctx)
//
//	conn, err := srv.Dialer("shoot--dev--a")(ctx, "tcp", "10.0.0.7:10250")
//
// The same listener is an HTTP proxy for clients such as kube-apiserver, curl
// and Prometheus, which come with a certificate of their cluster:
//
//	kube-apiserver ── CONNECT 10.0.0.7:10250 ──► Server ◄── GET /v1/session, Upgrade ── Agent
//	                                                │                                    │
//	                                                └── stream: CONNECT 10.0.0.7:10250 ──┴─► 10.0.0.7:10250
//
// PROTOCOL.md beside this file has the wire, byte by byte.
//
// # Clusters
//
// A cluster is the unit of isolation, and one server serves many. Agents and
// clients belong to the cluster that their credential names ([AgentAuth],
// [ClientAuth]); a server name or a header can only select among what the
// credential allows. A dial of one cluster cannot reach an agent of another:
// the agents hang on the cluster's own entry, and there is no other way to them.
//
// # Errors
//
// A dial fails with a [DialError]. Its Err is a connect.Error whose Reason says
// what happened, wherever it happened:
//
//	errors.Is(err, connect.ErrRefused)     // the target refused: 502
//	errors.Is(err, connect.ErrDNS)         // the agent found no such name: 502
//	errors.Is(err, connect.ErrTimeout)     // no answer in time: 504
//	errors.Is(err, connect.ErrProhibited)  // the agent may not dial it: 403
//	errors.Is(err, connect.ErrUnavailable) // no agent, or draining: 503, Retry-After
//	errors.Is(err, connect.ErrLimit)       // over quota: 429
//
// Streams end with io.EOF only if the target said so. Everything else is
// [ErrReset], which is also what a target sees when a client is cut off.
//
// # Loss of agents and servers
//
// Both sides PING ([Liveness]). A frozen peer is suspected after one second of
// a dial or PING without an answer, dials move to another agent of the cluster,
// and three seconds later its session is given up. A dial while no agent is
// there waits a few seconds for one that reconnects ([Server].AgentWait).
// Agents reconnect with jitter ([Backoff]), have one session with each distinct
// server behind a name or a load balancer, and make a new session before a
// draining one ends. An open stream does not survive the loss of its session.
//
// # Goroutines
//
//	Server.Serve      one that accepts
//	  per agent       one for the session, one that writes control messages, the multiplexer's two
//	  per client      one for the connection; while relaying one more
//	Server.DialAgent  one; the session's as above
//	Agent.Run         one that connects, one that resolves names
//	  per session     one for the session, one that accepts streams, one that writes
//	                  control messages, the multiplexer's two
//	  per stream      one; while relaying one more
//	a dial            one or two until it is answered
//
// Timers do the rest: liveness, credentials, idle memory. All of them are gone when Serve or Run and Shutdown or Close have returned.
//
// # What it does not do
//
// It carries TCP streams and no packets: no UDP, no ICMP. It does not resume
// streams over another session. It does not terminate TLS between client and
// target.
package tunnel
