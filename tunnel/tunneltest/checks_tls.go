package tunneltest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// tlsChecks stands in for nettest.TestConn where crypto/tls is at the top: the same
// properties under the same names, without a write after one that timed out.
var tlsChecks = []check{
	{name: "BasicIO", run: tlsBasicIO},
	{name: "PingPong", run: tlsPingPong},
	{name: "RacyRead", run: tlsRacyRead},
	{name: "RacyWrite", run: tlsRacyWrite},
	{name: "ReadTimeout", run: tlsReadTimeout},
	{name: "WriteTimeout", run: tlsWriteTimeout},
	{name: "PastTimeout", run: tlsPastTimeout},
	{name: "PresentTimeout", run: checkTimeoutErrors},
	{name: "FutureTimeout", run: tlsFutureTimeout},
	{name: "CloseTimeout", run: tlsCloseTimeout},
	{name: "ConcurrentMethods", run: tlsConcurrentMethods},
}

// past is a deadline that was missed long ago, forever one that is never reached.
var past, forever = time.Unix(1, 0), time.Time{}

// drain reads and forgets; echo answers what it reads; pour writes noise. Each ends
// with its connection.
func drain(c net.Conn) <-chan error {
	return async(func() error { _, err := io.Copy(io.Discard, c); return err })
}

func echo(c net.Conn) <-chan error {
	return async(func() error {
		_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		return err
	})
}

func pour(c net.Conn) <-chan error {
	return async(func() error {
		_, err := io.Copy(struct{ io.Writer }{c}, noise(3))
		return err
	})
}

// roundTrip writes to a peer that echoes.
func roundTrip(c net.Conn) error {
	if _, err := c.Write(request); err != nil {
		return fmt.Errorf("round trip: %w", err)
	}
	got := make([]byte, len(request))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, request) {
		return fmt.Errorf("round trip: %q, %v; want %q", got, err, request)
	}
	return nil
}

// tlsBasicIO: a stream whose end is Close, not CloseWrite.
func tlsBasicIO(a, b net.Conn) error {
	writer := async(func() error {
		if _, err := io.Copy(struct{ io.Writer }{a}, io.LimitReader(noise(1), large)); err != nil {
			return err
		}
		return a.Close()
	})
	if err := readLarge(b, 1); err != nil {
		return err
	}
	b.Close() // crypto/tls answers if it could not say goodbye to a peer that is gone
	return <-writer
}

func tlsPingPong(a, b net.Conn) error {
	const rounds = 500
	done := echo(b)
	for range rounds {
		if err := roundTrip(a); err != nil {
			return err
		}
	}
	if err := a.Close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	return <-done
}

// tlsRacyRead: the buffer of a Read that timed out belongs to the caller again.
func tlsRacyRead(a, b net.Conn) error {
	pour(b)
	return racy(a.Read, a.SetReadDeadline)
}

// tlsRacyWrite is nettest's, which already expects no success after a timeout.
func tlsRacyWrite(a, b net.Conn) error {
	drain(b)
	return racy(a.Write, a.SetWriteDeadline)
}

// racy calls f from several goroutines over a deadline that passes all the time; the
// race detector is the judge of the buffers.
func racy(f func([]byte) (int, error), setDeadline func(time.Time) error) error {
	setDeadline(time.Now().Add(time.Millisecond))
	var waits []<-chan error
	for range 10 {
		waits = append(waits, async(func() error {
			mine, other := make([]byte, 1024), make([]byte, 1024)
			for range 100 {
				_, err := f(mine)
				copy(mine, other)
				if err == nil {
					continue
				}
				if !isTimeout(err) {
					return fmt.Errorf("%w, want a timeout", err)
				}
				setDeadline(time.Now().Add(time.Millisecond))
			}
			return nil
		}))
	}
	var err error
	for _, w := range waits {
		err = errors.Join(err, <-w)
	}
	return err
}

// tlsReadTimeout: a timeout of Read leaves Write alone.
func tlsReadTimeout(a, b net.Conn) error {
	drain(b)
	a.SetReadDeadline(past)
	_, err := a.Read(make([]byte, 1024))
	if err := wantTimeout("Read", err); err != nil {
		return err
	}
	if _, err := a.Write(request); err != nil {
		return fmt.Errorf("Write after a Read that timed out: %w", err)
	}
	return nil
}

// tlsWriteTimeout: a timeout of Write leaves Read alone.
func tlsWriteTimeout(a, b net.Conn) error {
	pour(b)
	a.SetWriteDeadline(past)
	_, err := a.Write(make([]byte, 1024))
	if err := wantTimeout("Write", err); err != nil {
		return err
	}
	if _, err := a.Read(make([]byte, 1024)); err != nil {
		return fmt.Errorf("Read after a Write that timed out: %w", err)
	}
	return nil
}

// tlsPastTimeout does the round trip between the timeout of Read and that of Write.
func tlsPastTimeout(a, b net.Conn) error {
	echo(b)
	if err := roundTrip(a); err != nil {
		return err
	}
	a.SetDeadline(past)
	n, err := a.Read(make([]byte, 1024))
	if err := wantTimeout("Read", err); err != nil || n != 0 {
		return errors.Join(fmt.Errorf("Read past its deadline: %d bytes", n), err)
	}
	a.SetDeadline(forever)
	if err := roundTrip(a); err != nil {
		return err
	}
	a.SetDeadline(past)
	n, err = a.Write(make([]byte, 1024))
	if err := wantTimeout("Write", err); err != nil || n != 0 {
		return errors.Join(fmt.Errorf("Write past its deadline: %d bytes", n), err)
	}
	return nil
}

// tlsFutureTimeout: deadlines that pass during the calls.
func tlsFutureTimeout(a, b net.Conn) error {
	a.SetReadDeadline(time.Now().Add(late))
	_, err := a.Read(make([]byte, 1024))
	if err := wantTimeout("Read", err); err != nil {
		return err
	}
	a.SetReadDeadline(forever)

	// The peer answers only afterwards, so that this Write must block.
	a.SetWriteDeadline(time.Now().Add(2 * late))
	for err = nil; err == nil; {
		_, err = a.Write(make([]byte, 16<<10))
	}
	if err := wantTimeout("Write", err); err != nil {
		return err
	}
	drain(b)
	if _, err := b.Write(answer); err != nil {
		return err
	}
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, answer) {
		return fmt.Errorf("Read after the timeouts: %q, %v; want %q", got, err, answer)
	}
	return nil
}

// tlsCloseTimeout: Close ends calls that are under way whatever their deadlines.
func tlsCloseTimeout(a, b net.Conn) error {
	echo(b)
	a.SetDeadline(forever)
	reader, writer := drain(a), pour(a)
	time.Sleep(late)
	a.Close()
	return errors.Join(
		wantClosed("Read", <-reader),
		wantClosed("Write", <-writer))
}

// tlsConcurrentMethods calls everything at once, but for write deadlines that pass.
func tlsConcurrentMethods(a, b net.Conn) error {
	echo(b)
	var wg sync.WaitGroup
	for range 100 {
		for _, f := range []func(){
			func() { a.Read(make([]byte, 1024)) },
			func() { a.Write(make([]byte, 1024)) },
			func() { a.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) },
			func() { a.SetReadDeadline(past) },
			func() { a.SetWriteDeadline(time.Now().Add(time.Hour)) },
			func() { a.LocalAddr() },
			func() { a.RemoteAddr() },
		} {
			wg.Go(f)
		}
	}
	wg.Wait()
	// What the peer still echoes are zeros; read up to the mark.
	a.SetDeadline(forever)
	if _, err := a.Write([]byte{0xff}); err != nil {
		return err
	}
	for mark := make([]byte, 1); mark[0] != 0xff; {
		if _, err := a.Read(mark); err != nil {
			return err
		}
	}
	return roundTrip(a)
}
