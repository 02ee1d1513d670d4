// Package relay joins two connections into one: what comes from either goes to
// the other, with half-close and reset intact, until both directions have ended.
//
//	client, _ := listener.Accept()
//	target, err := net.Dial("tcp", "10.0.0.7:10250")
//	…
//	err = relay.Relay(ctx, client, target, nil) // blocks; closes both
//
// Any [net.Conn] will do. TCP and Unix sockets are spliced on linux.
//
// # How it ends
//
// A direction that reads EOF half-closes the other leg and the other direction
// goes on: a client that has asked and finished still gets a late answer. When
// both have ended that way, Relay closes both legs and returns nil.
//
// Everything else is a failure of the whole, because a peer must be able to tell
// a broken answer from a complete one: an error or a reset on one leg, a
// deadline, the end of ctx, or [Options.IdleTimeout] reset both legs, and Relay
// returns an [*Error] that names the leg, the operation and the cause:
//
//	var e *relay.Error
//	if errors.As(err, &e) && e.Leg == "b" { … } // the target's fault
//	errors.Is(err, relay.ErrIdle)               // nothing moved for too long
//	errors.Is(err, syscall.ECONNRESET)          // a peer gave up
//
// TLS that ends without close_notify is such a failure (io.ErrUnexpectedEOF).
// A reset is noticed also where nobody reads: on a leg that has already sent its
// EOF (at once, on linux), and on a leg whose direction is stuck in a write to
// the other one (within ten seconds).
//
// A TCP peer that is gone without a word is found on linux: when data was on its
// way to it for a minute and not one ACK came, Relay ends with [ErrSilent], within
// 60 to 90 seconds. A peer that does not read is not gone: it may pause for hours,
// for it acknowledges every probe of its closed window; if it dies there, the end
// comes after three probes, which are up to two minutes apart. Silent connections
// are found by keep-alive, see [KeepAlive]. Other systems give up when their
// kernel does.
//
// # What is asked of a connection
//
// Nothing but net.Conn. A connection that can do more has one of four methods:
//
//	CloseWrite() error    half-close; else its peer sees EOF when all is over
//	Reset() error         abort; else it is closed
//	WaitRead() error      wait without a buffer; else 2 KiB wait with it
//	WaitReset() error     tell of a reset while nobody reads
//
// [CloseWrite] and [Reset] do the same for any connection, TCP, Unix and TLS
// included, and look through wrappers which have NetConn. That method promises
// that the wrapper alone uses the connection below: a stream of a session must
// not offer the session's. A wrapper that only holds bytes which were read too
// early is a [Prefixed], or an [Unwrapper] of your own; Relay takes it apart and
// finds the socket.
//
// # Why the hot path looks as it does
//
// Figures are ratios within one run, on two cores and loopback: read the
// direction, not the digits.
//
// Splicing moves 0.6 times what the two peers would move without a relay, and
// copying 0.4 times, at three times the CPU time. But package net's splice
// keeps a pipe while it waits: six descriptors and 100 KiB for a stream that
// says nothing, and a ping takes 5 % longer than with a plain copy. So each
// direction first copies, and splices after 256 KiB, which no interactive stream
// gets to soon. A spliced direction that waits gives its pipe back, and one that
// moves less than 8 KiB eight times in a row copies again. Relay makes the system
// calls itself for that, and can count the bytes of each.
//
// A socket is read through its descriptor: the pooled buffer, 128 KiB, is taken
// when there are bytes, and EAGAIN gives it back. The same is done for a
// connection with WaitRead. Any other, *tls.Conn for one, waits with 2 KiB, and
// takes 16 KiB and then 128 KiB as its reads fill them. An idle relay between
// sockets costs 5 to 9 KiB, mostly its goroutines' stacks, and no descriptor.
//
// The idle timeout is one timer, set anew only when it fires. What is moved costs
// one look at the clock, which does not show in the time of a ping. Before it
// ends anything, the kernel is asked how much the peers have acknowledged: a send
// buffer holds minutes of a slow reader's life.
//
// # What it does not do
//
// It limits no rate, changes no byte, sets no socket option but the linger of a
// reset, and logs nothing. It does not pass on file descriptors of Unix sockets,
// TCP urgent data, or the bounds of messages.
package relay
