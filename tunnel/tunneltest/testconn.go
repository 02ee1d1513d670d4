package tunneltest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// TestConn tests that connections are good citizens of a tunnel: it runs
// nettest.TestConn and then the half-close suite, in which every subtest runs once
// in each direction, since the two ends are often of different makes. Each subtest
// makes its own pair with mp and closes it with stop.
//
// The suite beyond nettest, by the names of its subtests:
//
//   - HalfClose, CloseWriteOfSilence, HalfCloseBothWays, LargeTransfer,
//     LargeTransferBothWays: after CloseWrite the peer reads everything and then
//     io.EOF, and what it answers later arrives whole.
//   - CloseWriteThenWriteFails, DoubleCloseWrite, CloseWriteKeepsDeadlines: CloseWrite
//     ends writing, only writing, and once.
//   - CloseUnblocksRead, CloseUnblocksWrite, PeerCloseUnblocksRead,
//     PeerCloseUnblocksWrite: nobody waits for a connection that is gone.
//   - ReadAfterCloseIsErrClosed, WriteAfterCloseIsErrClosed: closed is net.ErrClosed.
//   - TimeoutIsErrDeadlineExceeded, ReadAfterReadTimeout, WriteAfterWriteTimeout: a
//     timeout is os.ErrDeadlineExceeded, costs no byte, and the stream goes on behind it.
//   - Addresses: neither is nil.
//
// Where an end is a *tls.Conn, or wraps one and says so with NetConn, TestConn first
// completes the handshake, and it does not write again after a write that timed out,
// because crypto/tls does not allow that: WriteAfterWriteTimeout is skipped, and since
// PastTimeout, FutureTimeout and ConcurrentMethods of nettest do it and nettest cannot
// leave out subtests, subtests of our own stand in for nettest's under the same names.
//
// For an answer that is minutes late see [SlowAnswerAfterHalfClose]. TestConn uses
// real time and subtests, neither of which a [Bubble] allows.
func TestConn(t *testing.T, mp nettest.MakePipe) {
	secure, err := probe(mp)
	if err != nil {
		t.Fatalf("unable to make pipe: %v", err)
	}
	mp = handshaken(mp)
	if secure {
		runSuite(t, mp, tlsChecks, false)
	} else {
		nettest.TestConn(t, mp)
	}
	runSuite(t, mp, connChecks, secure)
}

// checkLimit is when a check that is still blocked has failed.
const checkLimit = 30 * time.Second

// check is one subtest. It returns what is wrong instead of failing a testing.T, so
// that our own tests can prove that it finds what it is there to find.
type check struct {
	name   string
	run    func(a, b net.Conn) error
	notTLS bool // writes again after a write timeout
}

// connChecks is the suite beyond nettest.
var connChecks = []check{
	{name: "HalfClose", run: checkHalfClose},
	{name: "CloseWriteOfSilence", run: checkCloseWriteOfSilence},
	{name: "HalfCloseBothWays", run: checkHalfCloseBothWays},
	{name: "LargeTransfer", run: checkLargeTransfer},
	{name: "LargeTransferBothWays", run: checkLargeTransferBothWays},
	{name: "CloseWriteThenWriteFails", run: checkCloseWriteThenWriteFails},
	{name: "DoubleCloseWrite", run: checkDoubleCloseWrite},
	{name: "CloseWriteKeepsDeadlines", run: checkCloseWriteKeepsDeadlines},
	{name: "CloseUnblocksRead", run: checkCloseUnblocksRead},
	{name: "CloseUnblocksWrite", run: checkCloseUnblocksWrite},
	{name: "PeerCloseUnblocksRead", run: checkPeerCloseUnblocksRead},
	{name: "PeerCloseUnblocksWrite", run: checkPeerCloseUnblocksWrite},
	{name: "ReadAfterCloseIsErrClosed", run: checkReadAfterClose},
	{name: "WriteAfterCloseIsErrClosed", run: checkWriteAfterClose},
	{name: "TimeoutIsErrDeadlineExceeded", run: checkTimeoutErrors},
	{name: "ReadAfterReadTimeout", run: checkReadAfterReadTimeout},
	{name: "WriteAfterWriteTimeout", run: checkWriteAfterWriteTimeout, notTLS: true},
	{name: "Addresses", run: checkAddresses},
}

func runSuite(t *testing.T, mp nettest.MakePipe, suite []check, secure bool) {
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			if secure && c.notTLS {
				t.Skip("crypto/tls does not allow to write again after a write timeout")
			}
			for _, swap := range []bool{false, true} {
				if err := runCheck(mp, swap, checkLimit, c.run); err != nil {
					t.Errorf("%s: %v", map[bool]string{false: "first end to second", true: "second end to first"}[swap], err)
				}
			}
		})
	}
}

// runCheck runs one check on a fresh pair. A check that is still blocked at the
// limit is freed by closing the pair under it.
func runCheck(mp nettest.MakePipe, swap bool, limit time.Duration, run func(a, b net.Conn) error) error {
	a, b, stop, err := mp()
	if err != nil {
		return fmt.Errorf("unable to make pipe: %w", err)
	}
	if swap {
		a, b = b, a
	}
	done := async(func() error { return run(a, b) })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err = <-done:
		stop()
		return err
	case <-timer.C:
		stop()
	}
	timer.Reset(limit)
	select {
	case err = <-done:
		return fmt.Errorf("was blocked for %v, until the pair was closed; then: %v", limit, err)
	case <-timer.C:
		return fmt.Errorf("blocked for %v, even though the pair was closed", 2*limit)
	}
}

// async runs f in a goroutine. The channel has room for the result, so nobody needs
// to wait for it; a panic is a result too.
func async(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		done <- f()
	}()
	return done
}

// probe makes one pair to see whether crypto/tls is at the top of it.
func probe(mp nettest.MakePipe) (secure bool, err error) {
	a, b, stop, err := mp()
	if err != nil {
		return false, err
	}
	stop()
	return tlsConn(a) != nil || tlsConn(b) != nil, nil
}

// tlsConn finds the *tls.Conn in a connection that is one or wraps one.
func tlsConn(c net.Conn) *tls.Conn {
	for c != nil {
		if t, ok := c.(*tls.Conn); ok {
			return t
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = w.NetConn()
	}
	return nil
}

// handshaken completes the TLS handshakes of a pair: crypto/tls fails for ever when
// a deadline of a test hits its handshake.
func handshaken(mp nettest.MakePipe) nettest.MakePipe {
	return func() (a, b net.Conn, stop func(), err error) {
		if a, b, stop, err = mp(); err != nil {
			return nil, nil, nil, err
		}
		var waits []<-chan error
		for _, c := range []net.Conn{a, b} {
			if t := tlsConn(c); t != nil {
				waits = append(waits, async(t.Handshake))
			}
		}
		for _, w := range waits {
			err = errors.Join(err, <-w)
		}
		if err != nil {
			stop()
			return nil, nil, nil, err
		}
		return a, b, stop, nil
	}
}
