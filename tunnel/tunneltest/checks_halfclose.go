package tunneltest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// late is how long the peer waits in real time before it answers an end of stream.
// A connection that closes both ways at the first EOF needs a moment to do so; the
// wait gives it that. A longer wait could only find more defects, never report one
// that is not there.
const late = 20 * time.Millisecond

var (
	request = []byte("What is the answer?")
	answer  = []byte("0123456789")
)

func closeWrite(c net.Conn) error {
	cw, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T has no CloseWrite", c)
	}
	if err := cw.CloseWrite(); err != nil {
		return fmt.Errorf("CloseWrite: %w", err)
	}
	return nil
}

// both runs the two sides of a check and returns the first error, at once: the other
// side may be blocked for no other reason, and ends when the pair is closed.
func both(side, peer func() error) error {
	first, second := async(side), async(func() error {
		if err := peer(); err != nil {
			return fmt.Errorf("the peer: %w", err)
		}
		return nil
	})
	for range 2 {
		var err error
		select {
		case err = <-first:
		case err = <-second:
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SlowAnswerAfterHalfClose writes a request to a, half-closes, and has b answer d
// after it has read the end of the request: half of the answer then, the other half
// another d later, and the end of it. It returns an error unless a reads the whole
// answer. The caller closes both connections, at once after an error, since one side
// may still be blocked then.
//
// It is meant for minutes of fake time in a [Bubble]: some multiplexers cut off a
// half-closed stream after a while, with a clean EOF.
func SlowAnswerAfterHalfClose(a, b net.Conn, d time.Duration) error {
	return both(func() error {
		if _, err := a.Write(request); err != nil {
			return fmt.Errorf("writing the request: %w", err)
		}
		if err := closeWrite(a); err != nil {
			return err
		}
		if err := readAll(a, answer); err != nil {
			return fmt.Errorf("reading an answer that takes 2 × %v after CloseWrite: %w", d, err)
		}
		return nil
	}, func() error {
		if err := readAll(b, request); err != nil {
			return fmt.Errorf("reading the request: %w", err)
		}
		half := len(answer) / 2
		for _, part := range [][]byte{answer[:half], answer[half:]} {
			time.Sleep(d)
			if _, err := b.Write(part); err != nil {
				return fmt.Errorf("writing %v after the end of the request: %w", d, err)
			}
		}
		return closeWrite(b)
	})
}

func checkHalfClose(a, b net.Conn) error { return SlowAnswerAfterHalfClose(a, b, late) }

// checkCloseWriteOfSilence: the end of a direction that carried no byte arrives too,
// also at a reader that waited before.
func checkCloseWriteOfSilence(a, b net.Conn) error {
	return both(func() error {
		if err := closeWrite(a); err != nil {
			return err
		}
		if err := readAll(a, answer); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		return nil
	}, func() error {
		if err := readAll(b, nil); err != nil {
			return fmt.Errorf("after CloseWrite without any byte: %w", err)
		}
		time.Sleep(late)
		if _, err := b.Write(answer); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
		return closeWrite(b)
	})
}

func checkHalfCloseBothWays(a, b net.Conn) error {
	one := func(c net.Conn, send, want []byte) error {
		if _, err := c.Write(send); err != nil {
			return err
		}
		if err := closeWrite(c); err != nil {
			return err
		}
		if err := readAll(c, want); err != nil {
			return err
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return fmt.Errorf("Read behind io.EOF: %d bytes, %v; want 0, EOF again", n, err)
		}
		return nil
	}
	if err := both(
		func() error { return one(a, request, answer) },
		func() error { return one(b, answer, request) },
	); err != nil {
		return err
	}
	for _, c := range []net.Conn{a, b} {
		if err := c.Close(); err != nil {
			return fmt.Errorf("Close after both directions ended: %w", err)
		}
	}
	return nil
}

// large is above every buffer on the way, in pieces that fit no power of two.
const large, piece = 2 << 20, 24<<10 + 7

// checkLargeTransfer: a big request, its end, and then a big answer.
func checkLargeTransfer(a, b net.Conn) error {
	return both(func() error {
		if err := writeLarge(a, 1); err != nil {
			return fmt.Errorf("writing the request: %w", err)
		}
		if err := readLarge(a, 2); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		return nil
	}, func() error {
		if err := readLarge(b, 1); err != nil {
			return fmt.Errorf("reading the request: %w", err)
		}
		if err := writeLarge(b, 2); err != nil {
			return fmt.Errorf("writing the answer: %w", err)
		}
		return nil
	})
}

func checkLargeTransferBothWays(a, b net.Conn) error {
	duplex := func(c net.Conn, send, receive byte) error {
		return both(
			func() error { return writeLarge(c, send) },
			func() error { return readLarge(c, receive) })
	}
	return both(
		func() error { return duplex(a, 1, 2) },
		func() error { return duplex(b, 2, 1) })
}

func noise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

func writeLarge(c net.Conn, seed byte) error {
	b := make([]byte, piece)
	for r := io.LimitReader(noise(seed), large); ; {
		n, err := io.ReadFull(r, b)
		if n > 0 {
			if m, err := c.Write(b[:n]); err != nil || m != n {
				return fmt.Errorf("Write: %d of %d bytes, %v", m, n, err)
			}
		}
		if err != nil {
			return closeWrite(c)
		}
	}
}

func readLarge(c net.Conn, seed byte) error {
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, c)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, large, err)
	}
	if n != large {
		return fmt.Errorf("EOF after %d of %d bytes", n, large)
	}
	io.CopyN(want, noise(seed), large)
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return errors.New("the checksum differs")
	}
	return nil
}

func checkCloseWriteThenWriteFails(a, b net.Conn) error {
	if _, err := a.Write(request); err != nil {
		return err
	}
	if err := closeWrite(a); err != nil {
		return err
	}
	n, err := a.Write([]byte("too late"))
	if n != 0 || err == nil {
		return fmt.Errorf("Write after CloseWrite: %d bytes, %v; want 0 and an error", n, err)
	}
	if isTimeout(err) {
		return fmt.Errorf("Write after CloseWrite: %w; want an error that is no timeout", err)
	}
	if err := readAll(b, request); err != nil {
		return fmt.Errorf("the peer, reading: %w", err)
	}
	return answers(a, b)
}

func checkDoubleCloseWrite(a, b net.Conn) error {
	if _, err := a.Write(request); err != nil {
		return err
	}
	for range 3 {
		if err := closeWrite(a); err != nil {
			return err
		}
	}
	if err := readAll(b, request); err != nil {
		return fmt.Errorf("the peer, reading: %w", err)
	}
	if err := closeWrite(a); err != nil {
		return err
	}
	return answers(a, b)
}

// answers has b send the answer late, over a connection that a half-closed.
func answers(a, b net.Conn) error {
	time.Sleep(late)
	if _, err := b.Write(answer); err != nil {
		return fmt.Errorf("the peer, answering after CloseWrite: %w", err)
	}
	if err := closeWrite(b); err != nil {
		return err
	}
	if err := readAll(a, answer); err != nil {
		return fmt.Errorf("reading the answer after CloseWrite: %w", err)
	}
	return nil
}

func checkCloseWriteKeepsDeadlines(a, b net.Conn) error {
	if err := closeWrite(a); err != nil {
		return err
	}
	if err := a.SetReadDeadline(time.Now().Add(late)); err != nil {
		return fmt.Errorf("SetReadDeadline after CloseWrite: %w", err)
	}
	if n, err := a.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("Read past its deadline after CloseWrite: %d bytes, %v; want os.ErrDeadlineExceeded", n, err)
	}
	if err := a.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return answers(a, b)
}

// readAll reads to the end and compares.
func readAll(c net.Conn, want []byte) error {
	got, err := io.ReadAll(c)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", len(got), len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %q and EOF, want %q", got, want)
	}
	return nil
}
