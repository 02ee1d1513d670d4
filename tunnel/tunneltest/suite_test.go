package tunneltest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// spoiled makes pairs with a defect; stop closes the real ends under it.
func spoiled(f func(good) net.Conn) nettest.MakePipe {
	return func() (net.Conn, net.Conn, func(), error) {
		a, b := Pipe()
		return f(good{a.(*Conn)}), f(good{b.(*Conn)}), func() { a.Close(); b.Close() }, nil
	}
}

// TestSuiteFindsDefects proves of every check that it fails for a connection that lacks what
// it is about.
func TestSuiteFindsDefects(t *testing.T) {
	proven := make(map[string]bool)
	for _, tt := range []struct {
		defect string
		wrap   func(c good) net.Conn
		checks string // that must fail
	}{
		{"no CloseWrite", func(c good) net.Conn { return noCloseWrite{c} },
			"HalfClose CloseWriteOfSilence HalfCloseBothWays LargeTransfer LargeTransferBothWays CloseWriteThenWriteFails DoubleCloseWrite CloseWriteKeepsDeadlines"},
		{"CloseWrite closes both directions", func(c good) net.Conn { return closeWriteCloses{c} },
			"HalfClose CloseWriteOfSilence HalfCloseBothWays LargeTransfer CloseWriteThenWriteFails DoubleCloseWrite CloseWriteKeepsDeadlines"},
		{"CloseWrite does nothing", func(c good) net.Conn { return closeWriteIdle{c} },
			"HalfClose CloseWriteOfSilence HalfCloseBothWays LargeTransfer LargeTransferBothWays CloseWriteThenWriteFails DoubleCloseWrite"},
		{"CloseWrite fails", func(c good) net.Conn { return closeWriteFails{c} },
			"HalfClose CloseWriteOfSilence LargeTransferBothWays"},
		{"CloseWrite resets", func(c good) net.Conn { return closeWriteResets{c} },
			"HalfClose CloseWriteOfSilence HalfCloseBothWays LargeTransfer DoubleCloseWrite"},
		{"CloseWrite drops what was not read", func(c good) net.Conn { return &closeWriteDrops{good: c} },
			"HalfClose LargeTransfer CloseWriteThenWriteFails"},
		{"the end overtakes the bytes", func(c good) net.Conn { return &closeWriteFirst{good: c} },
			"HalfClose HalfCloseBothWays LargeTransfer DoubleCloseWrite CloseWriteThenWriteFails"},
		{"a second CloseWrite fails", func(c good) net.Conn { return &closeWriteOnce{good: c} }, "DoubleCloseWrite"},
		{"a second CloseWrite panics", func(c good) net.Conn { return &closeWritePanics{good: c} }, "DoubleCloseWrite"},
		{"Write after CloseWrite succeeds", func(c good) net.Conn { return &closeWriteForgotten{good: c} }, "CloseWriteThenWriteFails"},
		{"CloseWrite ends reads with EOF", func(c good) net.Conn { return &closeWriteEndsReads{good: c} },
			"HalfClose CloseWriteOfSilence LargeTransfer DoubleCloseWrite CloseWriteThenWriteFails CloseWriteKeepsDeadlines"},
		{"no read deadline after CloseWrite", func(c good) net.Conn { return &closeWriteBlindToDeadline{good: c} }, "CloseWriteKeepsDeadlines"},
		{"a half-closed stream is cut off with EOF", func(c good) net.Conn { return &guillotine{good: c} },
			"HalfClose CloseWriteOfSilence HalfCloseBothWays LargeTransfer"},
		{"EOF comes once", func(c good) net.Conn { return &eofOnce{good: c} }, "HalfCloseBothWays"},
		{"Close does nothing", func(c good) net.Conn { return closeQuiet{c} },
			"CloseUnblocksRead CloseUnblocksWrite PeerCloseUnblocksRead PeerCloseUnblocksWrite ReadAfterCloseIsErrClosed WriteAfterCloseIsErrClosed"},
		{"a second Close panics", func(c good) net.Conn { return &closeTwice{good: c} }, "ReadAfterCloseIsErrClosed WriteAfterCloseIsErrClosed"},
		{"closed is an error of its own", func(c good) net.Conn { return closeStrings{c} },
			"CloseUnblocksRead CloseUnblocksWrite ReadAfterCloseIsErrClosed WriteAfterCloseIsErrClosed"},
		{"closed is EOF", func(c good) net.Conn { return closeAsEOF{c} }, "CloseUnblocksRead ReadAfterCloseIsErrClosed"},
		{"Read goes on after Close", func(c good) net.Conn { return readsClosed{c} }, "CloseUnblocksRead ReadAfterCloseIsErrClosed"},
		{"Close does not reach a writing peer", func(c good) net.Conn { return deafToPeer{c} }, "PeerCloseUnblocksWrite CloseUnblocksRead"},
		{"timeout is an error of its own", func(c good) net.Conn { return timeoutText{c} },
			"TimeoutIsErrDeadlineExceeded ReadAfterReadTimeout CloseWriteKeepsDeadlines"},
		{"timeout has no Timeout", func(c good) net.Conn { return timeoutPlain{c} },
			"TimeoutIsErrDeadlineExceeded WriteAfterWriteTimeout"},
		{"a read timeout costs a byte", func(c good) net.Conn { return &timeoutEats{good: c} }, "ReadAfterReadTimeout"},
		{"a write timeout miscounts", func(c good) net.Conn { return countsTooMuch{c} }, "WriteAfterWriteTimeout"},
		{"a bit flips", func(c good) net.Conn { return &flips{good: c} }, "LargeTransfer LargeTransferBothWays"},
		{"no back-pressure", func(c good) net.Conn { return &bottomless{good: c} },
			"CloseUnblocksWrite PeerCloseUnblocksWrite TimeoutIsErrDeadlineExceeded"},
		{"no remote address", func(c good) net.Conn { return nowhere{c} }, "Addresses"},
		{"an address without a network", func(c good) net.Conn { return unnamed{c} }, "Addresses"},
	} {
		for _, name := range strings.Fields(tt.checks) {
			proven[name] = true
		}
		t.Run(tt.defect, func(t *testing.T) {
			t.Parallel() // most of it is waiting for what never comes
			for _, name := range strings.Fields(tt.checks) {
				i := slices.IndexFunc(connChecks, func(c check) bool { return c.name == name })
				if i < 0 {
					t.Fatalf("no check %s", name)
				}
				if err := runCheck(spoiled(tt.wrap), false, 500*time.Millisecond, connChecks[i].run); err == nil {
					t.Errorf("%s passes", name)
				} else if testing.Verbose() {
					t.Logf("%s: %v", name, strings.SplitN(fmt.Sprint(err), "\n", 2)[0])
				}
			}
		})
	}
	for _, c := range connChecks {
		if !proven[c.name] {
			t.Errorf("%s: no defect proves that it finds anything", c.name)
		}
	}
}

// The same for what stands in for nettest.
func TestTLSChecksFindDefects(t *testing.T) {
	for _, tt := range []struct {
		defect string
		wrap   func(c good) net.Conn
		checks string
	}{
		{"a bit flips", func(c good) net.Conn { return &flips{good: c} }, "BasicIO"},
		{"Close does nothing", func(c good) net.Conn { return closeQuiet{c} }, "BasicIO PingPong CloseTimeout"},
		{"timeout is an error of its own", func(c good) net.Conn { return timeoutText{c} },
			"ReadTimeout PastTimeout PresentTimeout FutureTimeout"},
		{"timeout has no Timeout", func(c good) net.Conn { return timeoutPlain{c} },
			"WriteTimeout RacyWrite PastTimeout FutureTimeout"},
		{"a read timeout costs a byte", func(c good) net.Conn { return &timeoutEats{good: c} }, "PastTimeout FutureTimeout"},
		{"closed is an error of its own", func(c good) net.Conn { return closeStrings{c} }, "CloseTimeout"},
	} {
		t.Run(tt.defect, func(t *testing.T) {
			t.Parallel()
			for _, name := range strings.Fields(tt.checks) {
				i := slices.IndexFunc(tlsChecks, func(c check) bool { return c.name == name })
				if i < 0 {
					t.Fatalf("no check %s", name)
				}
				if err := runCheck(spoiled(tt.wrap), false, 500*time.Millisecond, tlsChecks[i].run); err == nil {
					t.Errorf("%s passes", name)
				}
			}
		})
	}
	// Without a defect they pass for what is no TLS too.
	runSuite(t, pipePair, tlsChecks, false)
}
