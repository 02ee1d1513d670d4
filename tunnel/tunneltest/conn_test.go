package tunneltest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// conns returns a Pipe with its faults in reach.
func conns() (a, b *Conn) {
	x, y := Pipe()
	return x.(*Conn), y.(*Conn)
}

func mustWrite(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
}

func mustRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("Read: %q, %v; want %q", got[:n], err, want)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// elapsed runs f and asserts how long it took, exactly: it is fake time.
func elapsed(t *testing.T, want time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d != want {
		t.Errorf("took %v, want %v", d, want)
	}
}

func TestFreeze(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		mustWrite(t, a, "before")
		a.Freeze()
		mustWrite(t, a, " during")
		b.SetReadDeadline(time.Now().Add(time.Hour))
		elapsed(t, time.Hour, func() {
			_, err := b.Read(make([]byte, 1))
			wantErr(t, "Read from a frozen peer", err, os.ErrDeadlineExceeded)
		})
		b.SetReadDeadline(time.Time{})

		// A writer fills the buffer and then waits.
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		var n int
		elapsed(t, time.Minute, func() {
			var err error
			n, err = a.Write(make([]byte, 2*defaultBuffer))
			wantErr(t, "Write to a frozen peer", err, os.ErrDeadlineExceeded)
		})
		if want := defaultBuffer - len("before during"); n != want {
			t.Errorf("Write took %d bytes, want %d", n, want)
		}

		// The end is held back like the bytes, and all comes in order.
		a.Close()
		read := make(chan []byte)
		go func() { all, _ := io.ReadAll(b); read <- all }()
		synctest.Wait()
		select {
		case <-read:
			t.Error("EOF got through a freeze")
		default:
		}
		b.Thaw()
		if all := <-read; len(all) != defaultBuffer || !bytes.HasPrefix(all, []byte("before during")) {
			t.Errorf("after Thaw %d bytes arrive, %.20q…", len(all), all)
		}
		b.Close()
	})
}

func TestResetIsSeen(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		mustWrite(t, b, "arrived")
		mustWrite(t, a, "lost with its reader")
		blocked := make(chan error)
		go func() {
			var err error
			for err == nil {
				_, err = a.Write(make([]byte, 1<<20))
			}
			blocked <- err
		}()
		synctest.Wait()
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "a Write that a reset interrupts", <-blocked, syscall.ECONNRESET)
		mustRead(t, a, "arrived")
		_, err := a.Read(make([]byte, 1))
		wantErr(t, "Read after the peer's Reset", err, syscall.ECONNRESET)
		wantErr(t, "WaitRead after the peer's Reset", a.WaitRead(), syscall.ECONNRESET)
		_, err = a.Write([]byte("x"))
		wantErr(t, "Write after the peer's Reset", err, syscall.ECONNRESET)
		_, err = b.Read(make([]byte, 1))
		wantErr(t, "Read after the own Reset", err, net.ErrClosed)
		wantErr(t, "Reset after Reset", b.Reset(), net.ErrClosed)
		var op *net.OpError
		if _, err := a.Read(make([]byte, 1)); !errors.As(err, &op) || op.Op != "read" || op.Net != "tcp" || op.Addr.String() != "192.0.2.2:443" {
			t.Errorf("%#v is not the *net.OpError of a read", err)
		}
		a.Close()
	})
}

func TestCut(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		a.SetDelay(time.Second)
		mustWrite(t, b, "arrived")
		mustWrite(t, a, "on its way")
		a.Freeze()
		errs := make(chan error)
		go func() { _, err := b.Read(make([]byte, 1)); errs <- err }()
		synctest.Wait()
		a.Cut()
		wantErr(t, "a Read that a cut interrupts", <-errs, syscall.ECONNRESET)
		mustRead(t, a, "arrived")
		for _, c := range []net.Conn{a, b} {
			_, err := c.Read(make([]byte, 1))
			wantErr(t, "Read after Cut", err, syscall.ECONNRESET)
			_, err = c.Write([]byte("x"))
			wantErr(t, "Write after Cut", err, syscall.ECONNRESET)
			if err := c.Close(); err != nil {
				t.Errorf("Close after Cut: %v", err)
			}
		}
	})
}

func TestConnDelay(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		a.SetDelay(3 * time.Second) // this direction only
		elapsed(t, 3*time.Second, func() {
			mustWrite(t, a, "slow")
			mustRead(t, b, "slow")
		})
		elapsed(t, 0, func() {
			mustWrite(t, b, "fast")
			mustRead(t, a, "fast")
		})
		// Order is kept when the delay shrinks, also with what comes at the end.
		elapsed(t, 3*time.Second, func() {
			mustWrite(t, a, "one ")
			time.Sleep(time.Second)
			mustWrite(t, a, "two ")
			a.SetDelay(0)
			mustWrite(t, a, "three")
			a.CloseWrite()
			mustRead(t, b, "one ")
			time.Sleep(0)
		})
		elapsed(t, time.Second, func() {
			mustRead(t, b, "two three")
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("Read: %v", err)
			}
		})
		a.Close()
		b.Close()
	})
}

// What a delayed Close and Reset look like from the other end.
func TestDelayedEnds(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		a.SetDelay(time.Second)
		a.Close()
		elapsed(t, time.Second, func() {
			// The peer does not know yet, so its buffer fills; then the news comes.
			_, err := b.Write(make([]byte, defaultBuffer+1))
			if err != nil {
				t.Errorf("the one write that TCP lets through: %v", err)
			}
		})
		_, err := b.Write([]byte("x"))
		wantErr(t, "the next Write", err, syscall.EPIPE)
		b.Close()

		a, b = conns()
		a.SetDelay(time.Second)
		a.Reset()
		elapsed(t, time.Second, func() {
			_, err := b.Write(make([]byte, defaultBuffer+1))
			wantErr(t, "Write while a reset is on its way", err, syscall.ECONNRESET)
		})
		b.Close()
		a, b = conns()
		a.SetDelay(time.Second)
		a.Reset()
		elapsed(t, time.Second, func() {
			wantErr(t, "WaitRead while a reset is on its way", b.WaitRead(), syscall.ECONNRESET)
		})
		b.Close()
	})
}

func TestWaitRead(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		time.AfterFunc(time.Minute, func() { b.Write([]byte("x")) })
		elapsed(t, time.Minute, func() {
			if err := a.WaitRead(); err != nil {
				t.Errorf("WaitRead: %v", err)
			}
		})
		mustRead(t, a, "x")
		a.SetReadDeadline(time.Now().Add(time.Second))
		elapsed(t, time.Second, func() {
			wantErr(t, "WaitRead past the deadline", a.WaitRead(), os.ErrDeadlineExceeded)
		})
		b.CloseWrite()
		a.SetReadDeadline(time.Time{})
		wantErr(t, "WaitRead at the end", a.WaitRead(), io.EOF)
		a.Close()
		wantErr(t, "WaitRead after Close", a.WaitRead(), net.ErrClosed)
		b.Close()
	})
}

func TestEmptyReadsAndWrites(t *testing.T) {
	a, b := conns()
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("empty Read: %d, %v", n, err)
	}
	if n, err := a.Write(nil); n != 0 || err != nil {
		t.Errorf("empty Write: %d, %v", n, err)
	}
	a.Close()
	_, err := a.Read(nil)
	wantErr(t, "empty Read after Close", err, net.ErrClosed)
	_, err = a.Write(nil)
	wantErr(t, "empty Write after Close", err, net.ErrClosed)
	wantErr(t, "SetDeadline after Close", a.SetDeadline(time.Time{}), net.ErrClosed)
	wantErr(t, "CloseWrite after Close", a.CloseWrite(), net.ErrClosed)
	b.Close()
}

func TestSlowAnswerAfterHalfClose(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		a, b := conns()
		elapsed(t, 20*time.Minute, func() {
			if err := SlowAnswerAfterHalfClose(a, b, 10*time.Minute); err != nil {
				t.Error(err)
			}
		})
		a.Close()
		b.Close()

		// One that cuts off after five minutes, as yamux does.
		a, b = conns()
		time.AfterFunc(5*time.Minute, func() { b.CloseWrite() })
		if err := SlowAnswerAfterHalfClose(a, b, 10*time.Minute); err == nil {
			t.Error("a truncated answer was taken for whole")
		}
		a.Close()
		b.Close()
		time.Sleep(time.Hour) // the peer ends
	})
}
