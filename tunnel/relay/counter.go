package relay

import "sync/atomic"

// Counter counts the bytes that a [Relay] has carried. Its zero value is ready
// for use, and all its methods may be called at any time by any goroutine.
//
// A byte counts when the leg it goes to has taken it: it then is in that
// connection's send buffer, which is not yet the peer's program. A byte that
// was read and could not be written is not counted. Bytes of a [Prefixed] do
// count. One Counter given to several Relays counts their sum.
type Counter struct {
	aToB, bToA atomic.Int64
}

// Bytes returns how many bytes went from a to b and from b to a so far. The
// numbers never go down, are live while the Relay runs, also while it splices,
// and are final once Relay has returned.
func (c *Counter) Bytes() (aToB, bToA int64) {
	return c.aToB.Load(), c.bToA.Load()
}
