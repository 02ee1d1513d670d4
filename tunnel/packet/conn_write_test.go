package packet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// tcpSegments is a packet of TCP over IPv4 with so much payload, to be cut into
// segments of 1000 bytes, its checksum partial.
func tcpSegments(payload int) Frame {
	f := linkPacket(40+payload, 0)
	for i := range payload {
		f.Packet()[40+i] = byte(i)
	}
	ip := f.Packet()
	ip[9] = 6
	ip[10], ip[11] = 0, 0
	c := ^sum(ip[:20])
	ip[10], ip[11] = byte(c>>8), byte(c)
	ip[32] = 5 << 4
	virtioHeader{flags: flagPartial, gso: gsoTCPv4, length: 40, size: 1000, start: 20, offset: 16}.put(f.Data)
	return f
}

// What the far end does not take is finished here, in order with the rest, and what
// cannot be is dropped and counted.
func TestWriteFinishes(t *testing.T) {
	a, b := linkPair(t, tunHello(), Hello{Mode: TUN, Offload: OffloadChecksum}, nil, nil)
	linkRun(t, a, b)
	got := make(chan Frame, 1000)
	linkDrain(b, func(f Frame) {
		f.Data = slices.Clone(f.Data)
		got <- f
	})
	numbered := tcpSegments(5000)
	numbered.Origin, numbered.Seq = 1, 1
	small := tcpSegments(500)
	small.Origin, small.Seq = 1, 2
	broken := tcpSegments(5000)
	broken.Data[4], broken.Data[5] = 0, 0 // segments of nothing
	batch := NewBatch(0)
	for _, f := range []Frame{linkPacket(100, 1), tcpSegments(5000), numbered, broken, small, linkPacket(100, 2)} {
		if !batch.Append(f) {
			t.Fatal("full")
		}
	}
	if err := a.WriteBatch(batch); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{100, 1040, 1040, 1040, 1040, 1040, 540, 100} {
		f := soon(t, got)
		if len(f.Packet()) != want || readHeader(f.Data).gso != gsoNone || (f.Seq != 0) != (i == 6) {
			t.Errorf("%d: %d bytes, number %d, header %+v", i, len(f.Packet()), f.Seq, readHeader(f.Data))
		}
		if i > 0 && i < 6 && !bytes.Equal(f.Packet()[40:], tcpSegments(5000).Packet()[40+1000*(i-1):][:1000]) {
			t.Errorf("%d: another payload", i)
		}
	}
	if s := a.Stats(); s.Unfit != 2 || s.WrittenPackets != 8 {
		t.Errorf("%+v", s)
	}
	// More segments than a batch holds.
	batch.Reset()
	for batch.Append(tcpSegments(60000)) {
	}
	n := batch.Len()
	if err := a.WriteBatch(batch); err != nil {
		t.Fatal(err)
	}
	for range n * 60 {
		if f := soon(t, got); len(f.Packet()) != 1040 {
			t.Fatalf("%d bytes", len(f.Packet()))
		}
	}
	// What needs nothing is passed on as it is.
	if err := a.WriteBatch(linkBatch(3, 200, 0)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		soon(t, got)
	}
	a.Close()
	if err := a.WriteBatch(batch); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// One batch over TLS is one write of the socket, control frames included, and is
// read in few.
func TestGatheredWrites(t *testing.T) {
	ca, cb := tunneltest.Pipe()
	counted := &countedConn{Conn: ca}
	x, y := secured(t, counted, cb, true)
	quiet := &ConnOptions{Ping: -1}
	a, b := linkOver(t, x, y, tunHello(), tunHello(), quiet, quiet)
	var got atomic.Int64
	end := linkDrain(b, func(Frame) { got.Add(1) })
	counted.writes.Store(0)
	a.out.sayDrain()
	if err := a.WriteBatch(linkBatch(80, 1400, 0)); err != nil {
		t.Fatal(err)
	}
	if n := counted.writes.Load(); n != 1 {
		t.Errorf("%d writes for one batch of 112 kB", n)
	}
	untilLink(t, "the batch", func() bool { return got.Load() == 80 && b.Draining() })
	// A large one is written in pieces, so that the far side has work meanwhile.
	counted.writes.Store(0)
	if err := a.WriteBatch(linkBatch(180, 1400, 0)); err != nil {
		t.Fatal(err)
	}
	if n := counted.writes.Load(); n != 2 {
		t.Errorf("%d writes for one batch of 252 kB", n)
	}
	untilLink(t, "the batch", func() bool { return got.Load() == 260 })
	// The memory is back.
	if a.below.held != nil {
		t.Error("it still holds")
	}
	a.Close()
	soon(t, end)
}

// The socket below TLS is a connection like any other, in one piece with TLS. Without
// patience of its own it leaves write deadlines to others.
func TestSocketConn(t *testing.T) {
	tunneltest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		ca, cb := loopback(t)
		x, y := secured(t, newSocket(ca, 0), newSocket(cb, 0), false)
		return x, y, func() { closeBelow(x); closeBelow(y) }, nil
	})
}

// The socket gives TLS records one at a time, however they come, and knows of whole
// ones.
func TestSocketRecords(t *testing.T) {
	record := func(n int) []byte { return append([]byte{23, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...) }
	stream := slices.Concat(record(10), record(0), record(300), record(5)[:7])
	for _, step := range []int{1, 3, 100, 1000} {
		a, b := tunneltest.Pipe()
		s := newSocket(b, 0)
		go func() {
			for p := range slices.Chunk(stream, step) {
				_, _ = a.Write(p)
			}
			_ = a.(interface{ CloseWrite() error }).CloseWrite()
		}()
		var all []byte
		buf := make([]byte, 1000)
		for {
			left := s.record
			if left == 0 && s.hasRecord() {
				left = recordLen(s.in.unread())
			}
			n, err := s.Read(buf)
			all = append(all, buf[:n]...)
			if left > 0 && n > left {
				t.Fatalf("step %d: a read of %d bytes where the record has %d", step, n, left)
			}
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				break
			}
		}
		if !bytes.Equal(all, stream) {
			t.Errorf("step %d: %d bytes of %d", step, len(all), len(stream))
		}
		if s.NetConn() != b {
			t.Error("NetConn")
		}
		a.Close()
		b.Close()
	}
}

// A head that is cut short is given to TLS, which knows what to make of it.
func TestSocketCutShort(t *testing.T) {
	a, b := tunneltest.Pipe()
	_, _ = a.Write([]byte{22, 3})
	a.Close()
	s := newSocket(b, 0)
	buf := make([]byte, 10)
	if n, err := s.Read(buf); n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := s.Read(buf); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
	b.Close()
}

// Patience is for a whole write of TLS that is not ours, record by record.
func TestWriteAllPatience(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		defer a.Close()
		defer b.Close()
		start := time.Now()
		err := writeAll(struct{ wrapped }{wrapped{a}}, make([]byte, 1<<20), 10*time.Second)
		if d := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || d != 10*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
}

type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }
