// Package tunneltest helps to test code that deals in connections: an in-memory
// network with faults, a conn suite that proves half-close, fake time, a leak check,
// network namespaces, and throw-away certificates.
//
// A package whose tests must leave no goroutine behind says so once:
//
//	func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }
//
// A type that is a net.Conn proves it, with everything that a tunnel needs beyond
// what nettest.TestConn asks:
//
//	tunneltest.TestConn(t, func() (a, b net.Conn, stop func(), err error) {
//		a, b = tunneltest.Pipe()
//		return wrap(a), b, func() { a.Close(); b.Close() }, nil
//	})
//
// And a test of minutes takes no time, on a network of its own:
//
//	tunneltest.Bubble(t, func(t *testing.T) {
//		n := new(tunneltest.Network)
//		l, err := n.Listen("tcp", "server:443")
//		...
//		c, err := n.Host("agent").Dial(t.Context(), "tcp", "server:443")
//		...
//		n.Freeze("server") // no bytes, no error
//		time.Sleep(10 * time.Minute)
//	})
//
// # Fakes that are not kind
//
// A fake that forgives more than the real thing hides defects, so the connections of
// [Network] and [Pipe] do what TCP does where code depends on it: a write after the
// peer's Close succeeds once; a writer blocks when the buffer is full; a frozen host
// gives no error, not even for a reset; a full backlog makes dials wait; the errors
// have the types and the texts of package net. They are simpler where code must not
// depend on it: one buffer per direction instead of two, delivery in exact order
// after an exact delay, and a Close that leaves unread bytes behind does not reset.
//
// # Goroutines
//
// Nothing here starts a goroutine that outlives the call, so what VerifyNoLeaks reports
// is the doing of the code under test.
//
// # What it does not do
//
// It injects no loss, no reordering and no corruption (TCP hides them), has no datagrams,
// limits no bandwidth, and simulates no packet layers: for these see InNetns, which
// gives a test a real network stack. Its certificates are for tests and examples only.
package tunneltest
