package proxyproto

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// wantTimeout runs f and wants it to end with a timeout after exactly d of fake
// time. An error of the caller's deadline is no HeaderError.
func wantTimeout(t *testing.T, d time.Duration, final bool, f func() error) {
	t.Helper()
	start := time.Now()
	err := f()
	if took := time.Since(start); took != d {
		t.Errorf("took %v, want %v", took, d)
	}
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("%v, want a timeout", err)
	}
	if errors.Is(err, ErrNoHeader) || errors.Is(err, ErrMalformed) {
		t.Errorf("%v is not only a timeout", err)
	}
	if e := new(HeaderError); errors.As(err, &e) != final {
		t.Errorf("%v (%T), final %v", err, err, final)
	}
}

func readOne(c net.Conn) func() error {
	return func() error { _, err := c.Read(make([]byte, 1)); return err }
}

// TestTimeout is the slow loris: nothing, a part, a byte now and then.
func TestTimeout(t *testing.T) {
	for name, o := range map[string]*Options{"require": {Default: Require}, "accept": {Default: Accept}, "inner": {Inner: Require}} {
		for _, sent := range []string{"", "P", "PROXY TCP4", signatureV2 + "\x21\x11\x0f\xff"} {
			t.Run(name+" "+sent[:min(1, len(sent))], func(t *testing.T) {
				tunneltest.Bubble(t, func(t *testing.T) {
					a, b := memoryPair(t)
					c := NewConn(b, o)
					mustWrite(t, a, sent)
					time.Sleep(time.Hour) // not from the call of NewConn
					wantTimeout(t, 10*time.Second, true, c.ReadHeader)
					wantTimeout(t, 0, true, readOne(c))
					if c.RemoteAddr() != b.RemoteAddr() {
						t.Error("another address")
					}
				})
			})
		}
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := memoryPair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, x := range wire(t, outerHeader, innerHeader) {
				time.Sleep(time.Second)
				if _, err := a.Write([]byte{x}); err != nil {
					return
				}
			}
		}()
		c := NewConn(b, &Options{Default: Require, Timeout: 5500 * time.Millisecond})
		wantTimeout(t, 5500*time.Millisecond, true, c.ReadHeader)
		b.Close()
		<-done
	})
}

// TestTimeoutIsForBoth lets the second header have what the first one left.
func TestTimeoutIsForBoth(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := memoryPair(t)
		c := NewConn(b, &Options{Default: Require, Inner: Require, Timeout: 10 * time.Second})
		time.AfterFunc(4*time.Second, func() { a.Write(wire(t, outerHeader)) })
		start := time.Now()
		if got := c.RemoteAddr(); got.String() != client.String() || time.Since(start) != 4*time.Second {
			t.Errorf("%v after %v", got, time.Since(start))
		}
		time.Sleep(time.Hour) // the server's own time is not the peer's
		wantTimeout(t, 6*time.Second, true, c.ReadHeader)
		if c.Header() == nil || c.Inner() != nil || c.RemoteAddr().String() != client.String() {
			t.Error("the first header is gone")
		}
	})
}

// TestNoTimeout waits as long as it takes.
func TestNoTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := memoryPair(t)
		c := NewConn(b, &Options{Default: Require, Timeout: -1})
		time.AfterFunc(24*time.Hour, func() { a.Write(wire(t, outerHeader)) })
		if err := c.ReadHeader(); err != nil {
			t.Error(err)
		}
	})
}

// TestSilentClient serves a protocol in which the server speaks first, to
// clients whose headers nobody wants.
func TestSilentClient(t *testing.T) {
	for name, in := range map[string]string{"data": "hello", "a letter": "P", "the same": "PROXY"} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				a, b := memoryPair(t)
				c := NewConn(b, nil)
				start := time.Now()
				if c.RemoteAddr() != b.RemoteAddr() || c.LocalAddr() != b.LocalAddr() || c.Header() != nil || c.Inner() != nil || c.ReadHeader() != nil {
					t.Error("not itself")
				}
				mustWrite(t, c, "220 ready")
				mustRead(t, a, "220 ready")
				if d := time.Since(start); d != 0 {
					t.Errorf("waited %v", d)
				}
				time.AfterFunc(time.Hour, func() { a.Write([]byte(in)) })
				mustRead(t, c, in)
				if d := time.Since(start); d != time.Hour {
					t.Errorf("waited %v", d)
				}
				// What it did say does not start a clock either.
				mustWrite(t, c, "250 yes?")
				mustRead(t, a, "250 yes?")
				time.AfterFunc(time.Hour, func() { a.Write([]byte("!")) })
				mustRead(t, c, "!")
			})
		})
	}
}

// TestAddressesDoNotWaitForInner: the route's key does not name the client.
func TestAddressesDoNotWaitForInner(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		_, b := memoryPair(t)
		c := NewConn(b, &Options{Inner: Require})
		start := time.Now()
		if c.RemoteAddr() != b.RemoteAddr() || c.LocalAddr() != b.LocalAddr() || c.Header() != nil || time.Since(start) != 0 {
			t.Error("waited for what cannot change it")
		}
	})
}

// TestDeadlineBeforeHeader: the caller's deadline counts where it is earlier,
// is no end, and is in force again behind the header.
func TestDeadlineBeforeHeader(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := memoryPair(t)
		c := NewConn(b, &Options{Default: Require, Inner: Require})
		c.SetReadDeadline(time.Now().Add(time.Second))
		mustWrite(t, a, string(wire(t, outerHeader)[:20]))
		wantTimeout(t, time.Second, false, readOne(c))
		wantTimeout(t, 0, false, c.ReadHeader)
		if c.Header() != nil || c.RemoteAddr() != b.RemoteAddr() {
			t.Error("half a header counts")
		}

		c.SetDeadline(time.Now().Add(2 * time.Second))
		mustWrite(t, a, string(wire(t, outerHeader, innerHeader)[20:]))
		wantTimeout(t, 2*time.Second, false, readOne(c)) // behind the headers
		if c.Header() == nil || c.Inner() == nil {
			t.Error("no headers")
		}
		wantTimeout(t, 0, false, func() error { _, err := c.WriteTo(io.Discard); return err })
		c.SetReadDeadline(time.Time{})
		mustWrite(t, a, "data")
		mustRead(t, c, "data")
	})
}

// TestDeadlineAfterTimeout: the caller's deadline does not lengthen the wait.
func TestDeadlineAfterTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		_, b := memoryPair(t)
		c := NewConn(b, &Options{Default: Require, Timeout: 3 * time.Second})
		c.SetReadDeadline(time.Now().Add(time.Second))
		wantTimeout(t, time.Second, false, c.ReadHeader)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		wantTimeout(t, 2*time.Second, true, c.ReadHeader)
	})
}

// TestDeadlineWhileWaiting sets it from elsewhere.
func TestDeadlineWhileWaiting(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := memoryPair(t)
		c := NewConn(b, &Options{Default: Require})
		time.AfterFunc(time.Second, func() { c.SetReadDeadline(time.Now()) })
		wantTimeout(t, time.Second, false, readOne(c))

		// A deadline that ends, and is moved before anybody could notice, does
		// not end the wait.
		c.SetReadDeadline(time.Time{})
		done := make(chan error, 1)
		go func() { done <- c.ReadHeader() }()
		synctest.Wait()
		c.SetReadDeadline(time.Now().Add(time.Hour))
		synctest.Wait()
		mustWrite(t, a, string(wire(t, outerHeader)))
		if err := <-done; err != nil {
			t.Error(err)
		}
		// The timeout of the header is not in force any more.
		time.AfterFunc(time.Minute, func() { a.Write([]byte("x")) })
		mustRead(t, c, "x")
	})
}
