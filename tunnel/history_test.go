package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// content is the byte at an offset of one direction of a stream.
func content(id uint32, side byte, offset int64) byte {
	x := uint64(id)*0x9e3779b97f4a7c15 ^ uint64(side)<<56 ^ uint64(offset)*0xbf58476d1ce4e5b9
	return byte(x >> 32)
}

// historyEnd drives one end of one stream: random writes, pauses and
// deadlines, then a half-close, a close or a reset, while everything that
// comes is checked by its content.
type historyEnd struct {
	stream
	id        uint32
	mine, his byte
	seed      uint64
	written   int64 // by this end
	got       int64
	clean     bool // this end half-closed and read to the end
	finished  bool // the peer's end of data was seen
}

func (e *historyEnd) run(t *testing.T) {
	var wait sync.WaitGroup
	wait.Go(func() { e.read(t) })
	e.write(t)
	wait.Wait()
	_ = e.Close()
}

func (e *historyEnd) write(t *testing.T) {
	r := rand.New(rand.NewPCG(e.seed, uint64(e.mine)))
	for range r.IntN(12) {
		switch r.IntN(10) {
		case 0:
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond) // stall
		case 1:
			_ = e.SetWriteDeadline(time.Now().Add(time.Duration(r.IntN(2000)) * time.Microsecond))
		default:
			p := make([]byte, r.IntN(1<<r.IntN(18)+1))
			for i := range p {
				p[i] = content(e.id, e.mine, e.written+int64(i))
			}
			n, err := e.Write(p)
			e.written += int64(n)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				_ = e.SetWriteDeadline(time.Time{})
				continue
			}
			if err != nil {
				if !errors.Is(err, ErrReset) && !errors.Is(err, net.ErrClosed) {
					t.Errorf("stream %d: write: %v", e.id, err)
				}
				return
			}
		}
	}
	switch r.IntN(6) {
	case 0:
		_ = e.Reset()
	case 1:
		_ = e.Close()
	default:
		if err := e.CloseWrite(); err == nil {
			e.clean = true
		}
	}
}

func (e *historyEnd) read(t *testing.T) {
	r := rand.New(rand.NewPCG(e.seed, uint64(e.his)+100))
	for {
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		}
		if r.IntN(20) == 0 {
			_ = e.SetReadDeadline(time.Now().Add(time.Duration(r.IntN(1000)) * time.Microsecond))
		}
		p := make([]byte, 1+r.IntN(1<<r.IntN(17)))
		n, err := e.Read(p)
		for i, b := range p[:n] {
			if want := content(e.id, e.his, e.got+int64(i)); b != want {
				t.Errorf("stream %d: byte %d is %#x, want %#x", e.id, e.got+int64(i), b, want)
				return
			}
		}
		e.got += int64(n)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = e.SetReadDeadline(time.Time{})
		case err == io.EOF:
			e.finished = true
			return
		case errors.Is(err, ErrReset), errors.Is(err, net.ErrClosed):
			return
		default:
			t.Errorf("stream %d: read: %v", e.id, err)
			return
		}
	}
}

// Whatever both ends of many streams do to each other, no byte is lost, added
// or found in another stream, a clean end means all of it, and nothing stays.
// RHIZOME_SEED repeats a run, RHIZOME_LONG=1 makes it long.
func TestRandomHistories(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("RHIZOME_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("RHIZOME_SEED=%d", seed)
	rounds, streams := 3, 40
	if os.Getenv("RHIZOME_LONG") != "" {
		rounds, streams = 100, 200
	}
	for round := range rounds {
		a, b := tunneltest.Pipe()
		opener, accepter := sessionsOver(t, a, b)
		var wait sync.WaitGroup
		var mu sync.Mutex
		ends := make(map[uint32][]*historyEnd)
		drive := func(s stream, mine, his byte) {
			e := &historyEnd{stream: s, id: s.ID(), mine: mine, his: his, seed: seed + uint64(round)<<32 + uint64(s.ID())}
			mu.Lock()
			ends[e.id] = append(ends[e.id], e)
			mu.Unlock()
			wait.Go(func() { e.run(t) })
		}
		for range streams {
			s, err := opener.mux.Open(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			// The first bytes say which stream it is, so that a mix-up shows.
			if err := binary.Write(s, binary.BigEndian, s.ID()); err != nil {
				t.Fatal(err)
			}
			drive(s, 1, 2)
			far, err := accepter.mux.Accept()
			if err != nil {
				t.Fatal(err)
			}
			var id uint32
			err = binary.Read(far, binary.BigEndian, &id)
			if err != nil && !errors.Is(err, ErrReset) || err == nil && id != far.ID() {
				t.Fatalf("stream %d says it is %d, %v", far.ID(), id, err)
			}
			drive(far, 2, 1)
		}
		done := make(chan struct{})
		go func() { wait.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("the streams hang")
		}
		for id, pair := range ends {
			for i, e := range pair {
				peer := pair[1-i]
				if e.got > peer.written || e.finished && e.got != peer.written {
					t.Errorf("stream %d: read %d of %d bytes, clean end: %v", id, e.got, peer.written, e.finished)
				}
				if e.clean && peer.clean && !e.finished {
					t.Errorf("stream %d: both ends finished in order, and one did not see it", id)
				}
			}
		}
		// The books are closed by the control writer, soon after the streams.
		for i := 0; opener.mux.Unread()+accepter.mux.Unread() > 0 && i < 500; i++ {
			time.Sleep(10 * time.Millisecond)
		}
		waitStreams(t, opener, accepter)
		_ = opener.mux.Close(nil)
		_ = accepter.mux.Close(nil)
	}
}
