package tunneltest

import (
	"runtime"
	"testing"
	"testing/synctest"
)

// Bubble runs f as [synctest.Test] does, in a bubble of fake time, and can be
// called any number of times in one process whatever the code below keeps in
// package-global pools.
//
// A sync.Pool that holds timers or channels outlives the bubble that filled it.
// yamux has one of timers, so a second bubble that uses yamux would take a timer
// of the first one and die with "select on synctest channel from outside bubble",
// as would a later test without a bubble. Two collections empty every pool (the
// first moves its items to the victim cache, the second drops them), so Bubble
// runs two before f and two after it.
//
// Other tests must not fill such a pool at the same time: a test with Bubble does
// not call t.Parallel. All rules of synctest hold; in particular f must not call
// t.Run, every goroutine that it starts must end, and everything it uses (a
// [Network], a connection, a context) must have been made inside.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	synctest.Test(t, f)
}

func emptyPools() {
	runtime.GC()
	runtime.GC()
}
