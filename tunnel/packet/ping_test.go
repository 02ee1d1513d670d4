package packet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// linkOnNetwork makes a link between two hosts.
func linkOnNetwork(t *testing.T, n *tunneltest.Network, oa, ob *ConnOptions) (client, server *Conn) {
	t.Helper()
	l, err := n.Listen("tcp", "server:443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca, err := n.Host("client").Dial(t.Context(), "tcp", "server:443")
	if err != nil {
		t.Fatal(err)
	}
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return linkOver(t, ca, cb, tunHello(), tunHello(), oa, ob)
}

// countedConn counts the calls that wake somebody.
type countedConn struct {
	net.Conn
	reads, writes, bytes atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.reads.Add(1)
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Conn.Write(p)
}

// A link between two that are well lives for ever, measures the round trip, wakes up
// four times a second, and holds little memory.
func TestIdleLink(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		ca, cb := tunneltest.Pipe()
		ca.(*tunneltest.Conn).SetDelay(20 * time.Millisecond)
		cb.(*tunneltest.Conn).SetDelay(30 * time.Millisecond)
		counted := &countedConn{Conn: ca}
		a, b := linkOver(t, counted, cb, tunHello(), tunHello(), nil, nil)
		linkRun(t, a, b)
		end := linkDrain(a, nil)
		linkDrain(b, nil)
		_ = b.WriteBatch(linkBatch(1000, 200, 0)) // it grows
		time.Sleep(time.Minute)
		synctest.Wait()
		counted.reads.Store(0)
		counted.writes.Store(0)
		counted.bytes.Store(0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if a.failure() != nil || b.failure() != nil {
			t.Fatal(a.failure(), b.failure())
		}
		r, w, n := counted.reads.Load(), counted.writes.Load(), counted.bytes.Load()
		if r > 4*3600 || w > 4*3600 || n > 4*3600*64 {
			t.Errorf("%d reads, %d writes, %d bytes in an hour", r, w, n)
		}
		for _, l := range []*Conn{a, b} {
			if s := l.Stats(); s.RTT != 50*time.Millisecond || s.Smoothed != 50*time.Millisecond || s.Loss != 0 {
				t.Errorf("%+v", s)
			}
		}
		a.Close()
		b.Close()
		<-end
		if len(a.in.buf) != smallInbox {
			t.Errorf("idle, the inbox has %d bytes", len(a.in.buf))
		}
	})
}

// An inbox grows as it is filled, shrinks when little comes for a while, and loses
// nothing meanwhile.
func TestInbox(t *testing.T) {
	b := inbox{most: largeInbox}
	read := func(n int) {
		t.Helper()
		if err := b.fill(bytes.NewReader(make([]byte, n)), 1); err != nil {
			t.Fatal(err)
		}
		b.start = b.end
	}
	for i, want := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 256 << 10} {
		read(1 << 20)
		if len(b.buf) != want {
			t.Errorf("read %d: %d bytes, want %d", i, len(b.buf), want)
		}
	}
	reads := 0
	for ; len(b.buf) > smallInbox && reads < 1000; reads++ {
		read(100)
	}
	if reads > 3*fewReads {
		t.Errorf("it took %d small reads to shrink", reads)
	}
	if err := b.fill(bytes.NewReader([]byte("tail")), 100<<10); err != nil {
		t.Fatal(err)
	}
	if string(b.unread()) != "tail" || len(b.buf) < 100<<10 {
		t.Errorf("%q in %d bytes", b.unread(), len(b.buf))
	}
	if err := b.fill(bytes.NewReader([]byte(" and more")), 100<<10); err != nil || string(b.unread()) != "tail and more" {
		t.Errorf("%q %v", b.unread(), err)
	}
	if err := b.fill(bytes.NewReader(nil), 1); err != io.EOF {
		t.Error(err)
	}
}

// A peer that is silent is given up after 2.5 s, to the nanosecond, also where something
// is being sent; one second of silence is nothing.
func TestDead(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprint("busy ", busy), func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				n := new(tunneltest.Network)
				a, b := linkOnNetwork(t, n, nil, nil)
				ran := linkRun(t, a, b)
				ends := []chan error{linkDrain(a, nil), linkDrain(b, nil), ran[0], ran[1]}
				var work sync.WaitGroup
				if busy {
					for _, l := range []*Conn{a, b} {
						work.Go(func() {
							for l.WriteBatch(linkBatch(10, 1000, 0)) == nil {
								time.Sleep(7 * time.Millisecond)
							}
						})
					}
				}
				time.Sleep(10*time.Second + 100*time.Millisecond)
				n.Freeze("server")
				time.Sleep(time.Second)
				n.Thaw("server")
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if a.failure() != nil || b.failure() != nil {
					t.Fatal("a second of silence: ", a.failure(), b.failure())
				}
				if loss := a.Stats().Loss; loss != 0 && !busy {
					t.Errorf("loss %v: answers within a second are in time", loss)
				}
				since := [2]time.Time{}
				for i, l := range []*Conn{a, b} {
					since[i] = l.born.Add(time.Duration(l.waiting.Load() - 1)) // it reads since then
				}
				n.Freeze("server")
				for i, c := range ends {
					err := <-c
					var timeout net.Error
					if !errors.Is(err, ErrDead) || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
						t.Errorf("%d: %v", i, err)
					}
					if d := time.Since(since[i%2]); i < 2 && d != 2500*time.Millisecond {
						t.Errorf("%d: after %v", i, d)
					}
				}
				a.Close()
				b.Close()
				work.Wait()
			})
		})
	}
}

// A side that does not read for seconds is neither dead nor takes the other for
// dead; what was written meanwhile arrives. One that takes nothing for ten seconds loses
// its link, by the writer's word.
func TestSlowReader(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
		linkRun(t, a, b)
		end := linkDrain(a, nil)
		written := make(chan error, 1)
		flood := func(batches uint32) {
			for i := range batches {
				if err := a.WriteBatch(linkBatch(180, 1400, i*180)); err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}
		go flood(10)
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if a.failure() != nil || b.failure() != nil {
			t.Fatal("nine seconds without a reader: ", a.failure(), b.failure())
		}
		marks := make(chan uint32, 10000)
		stop := make(chan bool)
		slow := make(chan error, 1)
		go func() { // it reads now
			var batch Batch
			for {
				select {
				case <-stop:
					slow <- nil
					return
				default:
				}
				if err := b.ReadBatch(&batch); err != nil {
					slow <- err
					return
				}
				for f := range batch.Frames() {
					marks <- markOf(f)
				}
			}
		}()
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(marks) != 1800 || a.failure() != nil || b.failure() != nil {
			t.Fatalf("%d packets arrived, %v, %v", len(marks), a.failure(), b.failure())
		}
		if s := a.Stats(); s.Loss != 0 {
			t.Errorf("%+v", s)
		}
		close(stop)
		_ = a.WriteBatch(linkBatch(1, 100, 0)) // it wakes up and leaves
		<-slow
		start := time.Now()
		go flood(10)
		err := <-written
		if d := time.Since(start); !errors.Is(err, ErrStalled) || !errors.Is(err, os.ErrDeadlineExceeded) || d < 10*time.Second || d > 12*time.Second {
			t.Errorf("%v after %v", err, d)
		}
		if err := <-end; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		b.Close()
	})
}

// A write that goes on slowly is no stall.
func TestSlowWrite(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		l, raw := rawLink(t, &ConnOptions{Dead: -1})
		linkRun(t, l)
		written := make(chan error, 1)
		go func() { // twice what the connection holds
			err := l.WriteBatch(linkBatch(180, 1400, 0))
			if err == nil {
				err = l.WriteBatch(linkBatch(180, 1400, 0))
			}
			written <- err
		}()
		buf := make([]byte, 1000)
		for range 40 {
			time.Sleep(9 * time.Second)
			if _, err := raw.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		if l.failure() != nil {
			t.Fatalf("%v after six minutes of 1000 bytes each 9 s", l.failure())
		}
		time.Sleep(12 * time.Second)
		if err := <-written; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
	})
}

// A late answer counts as lost, and so does none.
func TestLoss(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		l, raw := rawLink(t, &ConnOptions{Dead: -1})
		linkRun(t, l)
		linkDrain(l, nil)
		go func() {
			for i := 0; ; i++ {
				kind, body, err := rawRead(raw)
				if err != nil {
					return
				}
				if kind == typePing && i%4 == 0 {
					continue // not answered
				}
				delay := 100 * time.Millisecond
				if i%4 == 1 {
					delay = 1001 * time.Millisecond
				}
				go func() {
					time.Sleep(delay)
					_, _ = raw.Write(rawFrame(typePong, body))
					_, _ = raw.Write(rawFrame(typePong, body)) // twice changes nothing
				}()
			}
		}()
		time.Sleep(30*time.Second + 10*time.Millisecond)
		s := l.Stats()
		if s.Loss < 0.45 || s.Loss > 0.55 {
			t.Errorf("%+v, want a loss of about 0.5", s)
		}
		if s.RTT != 100*time.Millisecond && s.RTT != 1001*time.Millisecond || s.Smoothed < 100*time.Millisecond || s.Smoothed > 1001*time.Millisecond {
			t.Errorf("%+v", s)
		}
		_, _ = raw.Write(rawControl(typePong, pingMessage{Seq: 1 << 40, Sent: 1}))
		_, _ = raw.Write(rawControl(typePong, pingMessage{}))
		time.Sleep(5 * time.Second)
		if after := l.Stats(); after.RTT > 2*time.Second {
			t.Errorf("answers to nothing count: %+v", after)
		}
		raw.Close()
		time.Sleep(2 * time.Second)
	})
}

// Run without PINGs and without an end sends nothing and waits for ever.
func TestNoLiveness(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		off := &ConnOptions{Ping: -1, Dead: -1, WriteTimeout: -1, HelloTimeout: -1}
		a, b := linkPair(t, tunHello(), tunHello(), off, off)
		linkRun(t, a, b)
		linkDrain(a, nil)
		linkDrain(b, nil)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if a.failure() != nil || b.failure() != nil {
			t.Error(a.failure(), b.failure())
		}
		if err := a.WriteBatch(linkBatch(1, 100, 0)); err != nil {
			t.Error(err)
		}
		if s := a.Stats(); s.RTT != 0 || s.Loss != 0 {
			t.Errorf("%+v", s)
		}
		a.Close()
		b.Close()
		if err := a.Run(context.Background()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
