package tunneltest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// tooMuch is how many bytes that nobody reads a connection may take before it is
// said to have no back-pressure. It is far above what kernels buffer.
const tooMuch = 256 << 20

// stuffed writes to c in a goroutine until that blocks. The channel answers the
// error that ends it.
func stuffed(c net.Conn) (<-chan error, error) {
	var total atomic.Int64
	done := async(func() error {
		for b := make([]byte, 32<<10); ; {
			n, err := c.Write(b)
			if total.Add(int64(n)); err != nil {
				return err
			}
			if total.Load() > tooMuch {
				return errors.New("no back-pressure")
			}
		}
	})
	// A writer that made no progress for a while is taken for blocked. If it is
	// only slow the check is weaker, not wrong.
	for last, same := int64(-1), 0; same < 5; {
		select {
		case err := <-done:
			return nil, fmt.Errorf("%d bytes were written that nobody read, then: %w", total.Load(), err)
		case <-time.After(10 * time.Millisecond):
		}
		if now := total.Load(); now != last {
			last, same = now, 0
		} else {
			same++
		}
	}
	return done, nil
}

// reading starts a Read that has nothing to read yet.
func reading(c net.Conn) <-chan error {
	started := make(chan struct{})
	done := async(func() error {
		close(started)
		n, err := c.Read(make([]byte, 1))
		if n != 0 {
			return fmt.Errorf("%d bytes that nobody wrote (and %v)", n, err)
		}
		return err
	})
	<-started
	time.Sleep(late) // most likely it is blocked by now
	return done
}

func checkCloseUnblocksRead(a, b net.Conn) error {
	done := reading(a)
	if err := a.Close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	return wantClosed("a Read that Close interrupts", <-done)
}

func checkCloseUnblocksWrite(a, b net.Conn) error {
	done, err := stuffed(a)
	if err != nil {
		return err
	}
	a.Close() // crypto/tls answers that it could not say goodbye
	return wantClosed("a Write that Close interrupts", <-done)
}

func checkPeerCloseUnblocksRead(a, b net.Conn) error {
	done := reading(a)
	if err := b.Close(); err != nil {
		return fmt.Errorf("the peer's Close: %w", err)
	}
	if err := <-done; err != io.EOF {
		return fmt.Errorf("Read while the peer closes: %v, want EOF", err)
	}
	return nil
}

// checkPeerCloseUnblocksWrite: a writer whose reader is gone must not wait for ever.
// Which error it gets depends on what is below; that it is no timeout does not.
func checkPeerCloseUnblocksWrite(a, b net.Conn) error {
	done, err := stuffed(a)
	if err != nil {
		return err
	}
	b.Close()
	if err := <-done; isTimeout(err) {
		return fmt.Errorf("Write while the peer closes: %w, want an error that is no timeout", err)
	}
	return nil
}

func checkReadAfterClose(a, b net.Conn) error {
	if _, err := b.Write(answer); err != nil {
		return err
	}
	if err := a.Close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	n, err := a.Read(make([]byte, 100))
	if n != 0 {
		return fmt.Errorf("Read after Close: %d bytes", n)
	}
	if err := wantClosed("Read after Close", err); err != nil {
		return err
	}
	return closeAgain(a)
}

func checkWriteAfterClose(a, b net.Conn) error {
	if err := a.Close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	n, err := a.Write(request)
	if n != 0 {
		return fmt.Errorf("Write after Close: %d bytes", n)
	}
	if err := wantClosed("Write after Close", err); err != nil {
		return err
	}
	return closeAgain(a)
}

// closeAgain: net.Conn leaves open whether a second Close is an error; if it is one,
// then this one. CloseWrite of crypto/tls is silent.
func closeAgain(c net.Conn) error {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("second Close: %w, want nil or net.ErrClosed", err)
	}
	if cw, ok := c.(interface{ CloseWrite() error }); ok && tlsConn(c) == nil {
		return wantClosed("CloseWrite after Close", cw.CloseWrite())
	}
	return nil
}

func wantClosed(what string, err error) error {
	if !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%s: %v, want net.ErrClosed", what, err)
	}
	return nil
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func wantTimeout(what string, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s: %v, want os.ErrDeadlineExceeded", what, err)
	}
	if !isTimeout(err) {
		return fmt.Errorf("%s: %v (%T) is not a net.Error with Timeout", what, err, err)
	}
	return nil
}

// checkTimeoutErrors sets the deadline before the call and during the call.
func checkTimeoutErrors(a, b net.Conn) error {
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	_, err := a.Read(make([]byte, 1))
	if err := wantTimeout("Read past its deadline", err); err != nil {
		return err
	}
	a.SetReadDeadline(time.Time{})
	reader := reading(a)
	writer, err := stuffed(a)
	if err != nil {
		return err
	}
	if err := a.SetDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	return errors.Join(
		wantTimeout("Read that a deadline interrupts", <-reader),
		wantTimeout("Write that a deadline interrupts", <-writer))
}

func checkReadAfterReadTimeout(a, b net.Conn) error {
	for range 3 {
		a.SetReadDeadline(time.Now().Add(late / 4))
		_, err := a.Read(make([]byte, 1))
		if err := wantTimeout("Read", err); err != nil {
			return err
		}
		// A read that is late already takes nothing away.
		if _, err := b.Write(answer); err != nil {
			return err
		}
		_, err = a.Read(make([]byte, 1))
		if err := wantTimeout("Read past its deadline", err); err != nil {
			return err
		}
		a.SetReadDeadline(time.Time{})
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(a, got); err != nil || string(got) != string(answer) {
			return fmt.Errorf("Read after a timeout: %q, %v; want %q", got, err, answer)
		}
	}
	return nil
}

// checkWriteAfterWriteTimeout: a write that timed out says how much it wrote, and the
// stream goes on exactly there.
func checkWriteAfterWriteTimeout(a, b net.Conn) error {
	buf := make([]byte, 64<<10)
	written := 0
	fill := func() {
		for i := range buf {
			buf[i] = byte((written + i) % 251)
		}
	}
	if err := a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return err
	}
	for {
		fill()
		n, err := a.Write(buf)
		written += n
		if err != nil {
			if err := wantTimeout("Write to a peer that does not read", err); err != nil {
				return err
			}
			break
		}
		if n != len(buf) {
			return fmt.Errorf("Write: %d of %d bytes without an error", n, len(buf))
		}
	}
	if err := a.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	count := make(chan int, 1)
	peer := async(func() error {
		n, err := readPattern(b)
		count <- n
		return err
	})
	fill()
	n, err := a.Write(buf)
	if written += n; err != nil || n != len(buf) {
		return fmt.Errorf("Write after a timeout: %d of %d bytes, %v", n, len(buf), err)
	}
	if err := closeWrite(a); err != nil {
		return err
	}
	if err := <-peer; err != nil {
		return err
	}
	if got := <-count; got != written {
		return fmt.Errorf("Write said %d bytes, the peer got %d", written, got)
	}
	return nil
}

func readPattern(c net.Conn) (int, error) {
	buf := make([]byte, 64<<10)
	for total := 0; ; {
		n, err := c.Read(buf)
		for i, x := range buf[:n] {
			if x != byte((total+i)%251) {
				return total, fmt.Errorf("byte %d differs", total+i)
			}
		}
		if total += n; err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, fmt.Errorf("after %d bytes: %w", total, err)
		}
	}
}

func checkAddresses(a, b net.Conn) error {
	for _, c := range []net.Conn{a, b} {
		for what, addr := range map[string]net.Addr{"LocalAddr": c.LocalAddr(), "RemoteAddr": c.RemoteAddr()} {
			if addr == nil {
				return fmt.Errorf("%s is nil", what)
			}
			if addr.Network() == "" {
				return fmt.Errorf("%s of type %T names no network", what, addr)
			}
		}
	}
	return nil
}
