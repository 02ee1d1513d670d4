// Package rhizome is the root of a library of tunnel primitives. It contains
// this map and nothing else: import the package that does the job.
//
// Kubernetes control planes live in a seed cluster, and their worker nodes in
// shoot clusters, often in networks that nobody can dial into. rhizome turns
// the direction round: an agent in the shoot dials out, and the control plane
// reaches nodes, pods and services back through that connection. A rhizome is
// the underground stem that connects shoots.
//
//	kube-apiserver ── egress selector, CONNECT ──►  proxy-server  ◄── session ── entrypoint ◄── proxy-agent ──► pods, nodes, services
//	Prometheus ────── CONNECT, absolute form ────►  (seed, many clusters)        (one LB)       (shoot)
//
//	kubectl ───────── TLS, by server name ─────────────────────────────────────► entrypoint ──► the shoot's kube-apiserver
//	pod ───────────── apiserver-proxy, PROXY v2 by address ────────────────────► entrypoint ──► the shoot's kube-apiserver
//
//	kube-apiserver ── route ── bond0 ══ vpn-servers ══ entrypoint ══ bond0 ── vpn-client ──► pods, nodes, services, by packets
//
// # Packages
//
//   - [github.com/rhizome-tunnel/rhizome/tunnel]: the reverse tunnel. Agents
//     dial out to a Server, and the Server dials through them; an HTTP proxy
//     and dial functions lead in.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/entrypoint]: the front that
//     all clusters share. A Router tells connections apart by server name, PROXY
//     destination or CONNECT header, and Forward carries them to backends.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/intercept]: the shoot's
//     apiserver-proxy. It owns the API server's address on a node and
//     forwards to the entrypoint.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/packet]: packets instead of
//     streams. TAP and TUN devices, their frames over one connection, and the
//     Switch of a VPN server.
//   - [github.com/rhizome-tunnel/rhizome/bond]: several packet links used as one,
//     in user space or by the kernel's bonding driver.
//   - [github.com/rhizome-tunnel/rhizome/pathcontrol]: which path is used. A
//     Controller probes, decides and gives reasons; NetlinkRouter moves routes.
//   - [github.com/rhizome-tunnel/rhizome/proxyproto]: PROXY headers at both
//     ends, stacked ones too, with trust decided by the peer's address.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/connect]: HTTP CONNECT, both
//     sides: the Dialer that Go lacks, and a Handler that makes a proxy of any
//     dial function, with typed errors that survive every hop.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/relay]: copies both directions
//     until both have ended, and keeps half-close, reset and splice.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/certs]: key pairs, CAs and
//     tokens that follow their files, and what cluster a certificate names.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/mode]: which tunnel a shoot
//     gets, from feature gates, annotations and versions.
//   - [github.com/rhizome-tunnel/rhizome/tunnel/tunneltest]: an in-memory
//     network with faults, a test suite for conns, fake time, throw-away CAs.
//   - [github.com/rhizome-tunnel/rhizome/egress]: kube-apiserver's
//     EgressSelectorConfiguration: read, validated, generated and dialled.
//
// Imports only point down this list's layers: tunnel uses connect, certs and
// relay; entrypoint and intercept use proxyproto, connect and relay; bond uses
// packet, which uses connect, certs and relay; pathcontrol uses nothing of ours; egress uses
// connect and certs; connect and proxyproto use relay; relay, certs and mode use
// nothing of ours. A user of one primitive does not pay for the rest.
//
// # Rules that hold everywhere
//
//   - Everything is a net.Conn, a net.Listener, an http.Handler or a dial
//     function, so that layers nest in any order.
//   - A dial never lies and never hangs: 200 comes only after the target has
//     accepted, and every failure has a typed reason
//     ([github.com/rhizome-tunnel/rhizome/tunnel/connect.Error]).
//   - Half-close and reset survive every hop. A stream that was cut off is
//     never read as a clean end.
//   - Identity comes from credentials that were verified, never from a name
//     or header that the peer chose.
//   - Nothing waits or grows for ever: each wait and each table has a bound
//     with a documented default. Zero means the default, negative disables.
//   - Errors speak net: closed is net.ErrClosed, a timeout is
//     os.ErrDeadlineExceeded, a reset is syscall.ECONNRESET.
//   - The method that blocks (Serve, Run, Relay) owns its goroutines, and all
//     are gone when it returns. Constructors start none.
//
// # Programs
//
// The programs under examples are thin and meant to be read. Begin with
//
//	go run ./examples/quickstart
//
// which has the whole path in one process. In real clusters the seed runs
// examples/seed/proxy-server, entrypoint and, beside what cannot speak mTLS to a
// proxy, proxy-client; the shoot runs examples/shoot/proxy-agent and
// apiserver-proxy. For packets the seed runs examples/seed/vpn-server and
// path-controller, and both sides examples/shoot/vpn-client; examples/ha shows them
// together, and what happens when each part dies.
package rhizome
