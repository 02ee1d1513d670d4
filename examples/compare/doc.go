// Compare measures the entrypoint beside its peers, HAProxy and
// github.com/inetaf/tcpproxy, as a passthrough by server name over loopback:
//
//	cd examples/compare && go run .                 # about five minutes
//	go run . -rounds 1 -time 1s -idle 1000          # a quick look
//	go run . -profile /tmp/cpu.pprof -only entrypoint
//
// Everything runs at once on one machine, each contender in a process of its own
// with as many threads as the machine has processors, and they take turns: each
// round measures all of them, the next one begins with another. What is printed
// is the median of the rounds, their spread, and the ratio to the entrypoint.
// The load and the backend share the processors with the contender, so that
// ratios say something and figures little; "direct" is the same load without
// anything between, which is what is left for a contender to lose.
//
//	load ── ClientHello, a byte that says what to do ──► contender ──► backend
//
// A client sends a ClientHello of crypto/tls that was recorded before, and plain
// bytes behind it, so that no TLS hides what the contender costs.
//
//   - connections: 32 clients that open a connection, get one byte and see it
//     closed, again and again.
//   - bulk: 1 and 8 streams from the backend to as many clients.
//   - idle: memory and descriptors of a fresh process with 10,000 connections, or
//     with as many as it has descriptors for, per connection.
//
// With each comes the processor time of the contender. The routes are one name.
//
// HAProxy is /usr/sbin/haproxy (apt-get install haproxy), with splicing and
// without logs; it is left out where it is missing. The entrypoint is
// entrypoint.Router as examples/seed/entrypoint has it, without a log.
//
// It needs linux, for /proc. It is a module of its own, so that nobody who uses
// the library downloads its peers.
package main
