package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestHalfClose(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		r := start(t.Context(), t, a, b, 0, nil)
		// One side asks and finishes, the other answers only after it saw that.
		asker := make(chan error, 1)
		go func() {
			if _, err := io.WriteString(pa, "question"); err != nil {
				asker <- err
				return
			}
			asker <- CloseWrite(pa)
		}()
		mustRead(t, pb, "question")
		mustEOF(t, pb)
		if err := <-asker; err != nil {
			t.Fatal(err)
		}
		mustWrite(t, pb, "late answer")
		mustRead(t, pa, "late answer")
		mustWrite(t, pb, "and more")
		mustCloseWrite(t, pb)
		mustRead(t, pa, "and more")
		mustEOF(t, pa)
		r.wantNil()
		r.wantBytes(8, 19)
	})
}

// TestHalfCloseOfSilence ends a direction before any byte, over TLS also before
// any handshake.
func TestHalfCloseOfSilence(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		r := start(t.Context(), t, a, b, 0, nil)
		closed := make(chan error, 1)
		go func() { closed <- CloseWrite(pa) }()
		mustEOF(t, pb)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		mustCloseWrite(t, pb)
		mustEOF(t, pa)
		r.wantNil()
		r.wantBytes(0, 0)
	})
}

// shake completes the handshakes of TLS legs by one byte each way.
func shake(t *testing.T, pa, pb net.Conn) {
	t.Helper()
	wrote := make(chan error, 1)
	go func() { _, err := io.WriteString(pa, "x"); wrote <- err }()
	mustRead(t, pb, "x")
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	mustWrite(t, pb, "y")
	mustRead(t, pa, "y")
}

// resetPeer makes the peer's end vanish in a way that is not an orderly end.
// before is how much the relay carried to it until now.
func resetPeer(t *testing.T, r *running, pa, pb net.Conn, before int64) {
	t.Helper()
	if _, ok := pa.(*net.UnixConn); ok {
		// A Unix socket says ECONNRESET if it is closed with bytes unread. They
		// are there when the relay has counted them.
		mustWrite(t, pb, "unread")
		eventually(t, func() bool { _, n := r.Bytes(); return n == before+6 })
	}
	if err := Reset(pa); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen")
		}
	}
}

func TestReset(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		r := start(t.Context(), t, a, b, 0, nil)
		shake(t, pa, pb)
		resetPeer(t, r, pa, pb, 1)
		r.wantError("", "a", syscall.ECONNRESET)
		if kb.resets {
			mustReset(t, pb)
		} else if _, err := pb.Read(make([]byte, 1)); err == nil {
			t.Error("the other leg is still open")
		}
	})
}

// TestResetAfterHalfClose resets a leg whose direction has ended, while nothing
// at all moves the other way: nobody reads or writes it any more.
func TestResetAfterHalfClose(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		switch ka.name {
		case "memory":
			t.Skip("has no WaitReset: TestWaitReset")
		case "unix":
			t.Skip("a Unix socket that has shut down is not told of a reset")
		}
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		r := start(t.Context(), t, a, b, 0, func(r *relay) { r.stallCheck = 10 * time.Millisecond })
		shake(t, pa, pb)
		mustCloseWrite(t, pa)
		mustEOF(t, pb)
		if err := Reset(pa); err != nil {
			t.Fatal(err)
		}
		r.wantError(OpRead, "a", syscall.ECONNRESET)
		// It has read EOF, and behind that a reset shows in writes only.
		var err error
		eventually(t, func() bool { _, err = pb.Write([]byte("answer")); return err != nil })
		if !isReset(err) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v, want ECONNRESET or EPIPE", err)
		}
	})
}

// resetWaiter is a memory connection that can tell of its end.
type resetWaiter struct {
	net.Conn
	end chan struct{}
}

func (c resetWaiter) WaitReset() error {
	<-c.end
	return syscall.ECONNRESET
}
func (c resetWaiter) CloseWrite() error { return CloseWrite(c.Conn) }
func (c resetWaiter) Reset() error      { return Reset(c.Conn) }

func TestWaitReset(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		t.Run(fmt.Sprintf("stuck=%v", stuck), func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				pa, a := memoryPair(t)
				pb, b := memoryPair(t)
				end := make(chan struct{})
				begin := time.Now()
				r := start(t.Context(), t, resetWaiter{a, end}, b, 0, nil)
				if stuck {
					// More than the far end holds, and nobody there reads.
					go func() { _, _ = pa.Write(make([]byte, 1<<20)) }()
				} else {
					mustCloseWrite(t, pa)
					mustEOF(t, pb)
				}
				time.Sleep(time.Hour)
				close(end)
				r.wantError(OpRead, "a", syscall.ECONNRESET)
				if d := time.Since(begin); d != time.Hour {
					t.Errorf("noticed after %v, want 1h", d)
				}
				if _, err := io.Copy(io.Discard, pb); !isReset(err) {
					t.Errorf("the other leg: %v, want ECONNRESET", err)
				}
				pa.Close()
			})
		})
	}
}

// TestResetWhileStuck resets a client whose target takes nothing: the relay is
// inside a write and reads neither leg of that direction.
func TestResetWhileStuck(t *testing.T) {
	for _, name := range []string{"tcp", "tlsServer", "unix"} {
		t.Run(name, func(t *testing.T) {
			var pa, a net.Conn
			for _, k := range kinds() {
				if k.name == name {
					pa, a = k.pair(t)
				}
			}
			pb, b := tcpPair(t)
			limit(pa, pb)
			r := start(t.Context(), t, a, b, 0, func(r *relay) { r.stallCheck = 10 * time.Millisecond })
			shake(t, pa, pb)
			if name == "unix" {
				mustWrite(t, pb, "unread")
			}
			// Fill every buffer up to where the sender itself is blocked.
			_ = pa.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if err := sendPattern(pa, 0, 1<<30); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("write: %v, want a full buffer", err)
			}
			if err := Reset(pa); err != nil {
				t.Fatal(err)
			}
			r.wantError(OpRead, "a", syscall.ECONNRESET)
			if _, err := io.Copy(io.Discard, pb); !isReset(err) {
				t.Errorf("the other leg: %v, want ECONNRESET", err)
			}
		})
	}
}

func TestContext(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		ctx, cancel := context.WithCancelCause(t.Context())
		r := start(ctx, t, a, b, 0, nil)
		shake(t, pa, pb)
		cause := errors.New("drained")
		cancel(cause)
		e := r.wantError(OpContext, "", cause)
		if e.Leg != "" || e.Timeout() {
			t.Errorf("leg %q, timeout %v", e.Leg, e.Timeout())
		}
		for _, p := range []struct {
			c net.Conn
			k kind
		}{{pa, ka}, {pb, kb}} {
			if p.k.resets {
				mustReset(t, p.c)
			}
		}
	})
}

func TestContextBefore(t *testing.T) {
	pa, a := tcpPair(t)
	pb, b := tcpPair(t)
	limit(pa, pb)
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	err := Relay(ctx, a, b, nil)
	var e *Error
	if !errors.As(err, &e) || e.Op != OpContext || !e.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Relay = %v", err)
	}
	mustReset(t, pa)
	mustReset(t, pb)
}

// TestDeadline shows that a timeout on one leg resets the other.
func TestDeadline(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			pa, a := k.pair(t)
			pb, b := tcpPair(t)
			limit(pb)
			_ = a.SetReadDeadline(time.Now().Add(-time.Second))
			// A TLS leg needs its peer for the handshake, if it comes to that.
			go func() { _, _ = pa.Read(make([]byte, 1)) }()
			e := start(t.Context(), t, a, b, 0, nil).wantError(OpRead, "a", os.ErrDeadlineExceeded)
			if !e.Timeout() {
				t.Error("Timeout is false")
			}
			mustReset(t, pb)
		})
	}
}

// faulty fails in one operation.
type faulty struct {
	net.Conn
	write, closeWrite error
	short             bool
}

func (c faulty) Write(p []byte) (int, error) {
	if c.write != nil {
		n, _ := c.Conn.Write(p[:1])
		return n, c.write
	}
	if c.short {
		return c.Conn.Write(p[:len(p)/2])
	}
	return c.Conn.Write(p)
}

func (c faulty) CloseWrite() error {
	if c.closeWrite != nil {
		return c.closeWrite
	}
	return CloseWrite(c.Conn)
}

func (c faulty) Reset() error { return Reset(c.Conn) }

// TestWriteError ends the reading of the other leg too, which is idle: only the
// reset can wake it.
func TestWriteError(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name  string
		fault faulty
		op    string
		want  error
		bytes int64
	}{
		{"write", faulty{write: boom}, OpWrite, boom, 1},
		{"short", faulty{short: true}, OpWrite, io.ErrShortWrite, 2},
		{"closeWrite", faulty{closeWrite: boom}, OpCloseWrite, boom, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			pa, a := tcpPair(t)
			pb, b := memoryPair(t)
			limit(pa, pb)
			c.fault.Conn = b
			r := start(t.Context(), t, a, c.fault, 0, nil)
			mustWrite(t, pa, "1234")
			if c.op == OpCloseWrite {
				mustCloseWrite(t, pa)
			}
			r.wantError(c.op, "b", c.want)
			r.wantBytes(c.bytes, 0)
			mustReset(t, pa)
			if _, err := io.Copy(io.Discard, pb); !isReset(err) {
				t.Errorf("peer b: %v, want ECONNRESET", err)
			}
		})
	}
}

// TestLateFailure breaks the second direction after the first ended in order.
func TestLateFailure(t *testing.T) {
	boom := errors.New("boom")
	pa, a := tcpPair(t)
	pb, b := memoryPair(t)
	limit(pa, pb)
	r := start(t.Context(), t, faulty{Conn: a, write: boom}, b, 0, nil)
	mustWrite(t, pa, "question")
	mustCloseWrite(t, pa)
	mustRead(t, pb, "question")
	mustEOF(t, pb)
	mustWrite(t, pb, "answer")
	r.wantError(OpWrite, "a", boom)
	mustRead(t, pa, "a")
	mustReset(t, pa)
	mustReset(t, pb)
	r.wantBytes(8, 1)
}

// plain hides everything but net.Conn.
type plain struct{ net.Conn }

// TestNoCloseWrite has a leg that cannot half-close: the other way goes on, and
// the peer learns of the end with the last byte.
func TestNoCloseWrite(t *testing.T) {
	pa, a := tcpPair(t)
	pb, b := net.Pipe()
	limit(pa, pb)
	r := start(t.Context(), t, a, plain{b}, 0, nil)
	mustWrite(t, pa, "question")
	mustCloseWrite(t, pa)
	mustRead(t, pb, "question")
	for range 3 {
		mustWrite(t, pb, "answer")
		mustRead(t, pa, "answer")
	}
	pb.Close()
	mustEOF(t, pa)
	r.wantNil()
	r.wantBytes(8, 18)
}

// TestNoCloseWriteEOF is the other order: the leg without half-close ends last.
func TestNoCloseWriteEOF(t *testing.T) {
	pa, a := net.Pipe()
	pb, b := net.Pipe()
	limit(pa, pb)
	r := start(t.Context(), t, a, b, 0, nil)
	mustWrite(t, pa, "1")
	mustRead(t, pb, "1")
	mustWrite(t, pb, "2")
	mustRead(t, pa, "2")
	pa.Close()
	pb.Close()
	_ = r.wait() // nil or a write error, as the two Closes fall
	if _, err := a.Write(nil); err == nil {
		t.Error("a is still open")
	}
}

// TestClosesBoth checks that a stranger's wrapper is closed too, on both ways out.
func TestClosesBoth(t *testing.T) {
	for _, reset := range []bool{false, true} {
		pa, a := tcpPair(t)
		pb, b := tcpPair(t)
		limit(pa, pb)
		w := wrapped{a, new(atomic.Int32)}
		r := start(t.Context(), t, w, NewPrefixed(b, []byte("p")), 0, nil)
		mustRead(t, pa, "p")
		if reset {
			_ = Reset(pb)
			r.wantError("", "b", nil)
		} else {
			mustCloseWrite(t, pa)
			mustCloseWrite(t, pb)
			r.wantNil()
		}
		if w.closed.Load() == 0 {
			t.Errorf("reset %v: wrapper was not closed", reset)
		}
		for _, c := range []net.Conn{a, b} {
			if err := c.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("reset %v: leg not closed: %v", reset, err)
			}
		}
	}
}

// TestRandomChunks moves random chunks both ways at once over every combination.
func TestRandomChunks(t *testing.T) {
	eachPair(t, func(t *testing.T, ka, kb kind) {
		t.Parallel()
		seed := rand.Uint64()
		pa, a := ka.pair(t)
		pb, b := kb.pair(t)
		limit(pa, pb)
		r := start(t.Context(), t, a, b, time.Hour, nil)
		rng := rand.New(rand.NewPCG(seed, 1))
		sizes := [2]int64{rng.Int64N(1 << 20), rng.Int64N(1 << 20)}
		errs := make(chan error, 4)
		send := func(c net.Conn, n int64, rng *rand.Rand) {
			p := pattern{}
			for p.off < n {
				m := min(n-p.off, 1+rng.Int64N(1<<(1+rng.IntN(18))))
				b := make([]byte, m)
				_, _ = p.Read(b)
				if _, err := c.Write(b); err != nil {
					errs <- err
					return
				}
			}
			errs <- CloseWrite(c)
		}
		receive := func(c net.Conn, n int64) {
			if err := checkPattern(c, 0, n); err != nil {
				errs <- err
				return
			}
			if k, err := c.Read(make([]byte, 1)); k != 0 || err != io.EOF {
				errs <- fmt.Errorf("behind the last byte: %d, %v", k, err)
				return
			}
			errs <- nil
		}
		go send(pa, sizes[0], rand.New(rand.NewPCG(seed, 2)))
		go send(pb, sizes[1], rand.New(rand.NewPCG(seed, 3)))
		go receive(pb, sizes[0])
		go receive(pa, sizes[1])
		for range 4 {
			if err := <-errs; err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		r.wantNil()
		r.wantBytes(sizes[0], sizes[1])
	})
}
