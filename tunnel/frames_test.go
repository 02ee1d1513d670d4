package tunnel

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// yamuxFrame is one frame; the body of a data frame is n zeros.
func yamuxFrame(kind byte, flags uint16, id, length uint32) []byte {
	b := make([]byte, yamuxHeader)
	b[1] = kind
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint32(b[4:], id)
	binary.BigEndian.PutUint32(b[8:], length)
	if kind == yamuxData {
		b = append(b, make([]byte, length)...)
	}
	return b
}

func newTestWatch(t testing.TB, mayOpen bool, maxStreams int) (w *frameWatch, grown *int) {
	a, b := tunneltest.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	grown = new(int)
	w = newFrameWatch(a, mayOpen, maxStreams)
	count := func() { *grown++ }
	w.grown.Store(&count)
	return w, grown
}

func TestFrameAccounting(t *testing.T) {
	w, grown := newTestWatch(t, true, 10)
	feed := func(b []byte) {
		t.Helper()
		if err := w.follow(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []uint32{1, 3, 5} {
		feed(yamuxFrame(yamuxWindow, yamuxSYN, id, 0))
	}
	feed(yamuxFrame(yamuxData, 0, 1, growthStep-1))
	feed(yamuxFrame(yamuxData, 0, 99, 1000)) // of a stream that is not there
	if got := w.unread.Load(); got != growthStep-1 || *grown != 0 {
		t.Errorf("unread %d, grown %d times", got, *grown)
	}
	feed(yamuxFrame(yamuxData, 0, 3, 2))
	if *grown != 1 {
		t.Errorf("grown %d times after a step", *grown)
	}
	in, _ := w.attach(1, &yamuxStream{})
	w.account(in, 0, growthStep-1)
	if got := w.unread.Load(); got != 2 {
		t.Errorf("unread %d", got)
	}
	if in.ended() {
		t.Error("ended without FIN")
	}
	feed(yamuxFrame(yamuxData, yamuxFIN, 1, 10))
	if in.ended() || !in.over() {
		t.Error("a lost session ended with bytes unread, or not over")
	}
	w.account(in, 0, 10)
	if !in.ended() {
		t.Error("not ended")
	}
	w.closed(1, in)
	if _, ok := w.inboxes[1]; ok {
		t.Error("a stream that both sides have closed is remembered")
	}
	feed(yamuxFrame(yamuxWindow, yamuxRST, 3, 0)) // refused, with 2 bytes unread
	if got := w.unread.Load(); got != 0 {
		t.Errorf("unread %d after the reset", got)
	}
	// Closed here first: what it holds counts until the peer has finished.
	in, _ = w.attach(5, &yamuxStream{})
	feed(yamuxFrame(yamuxData, 0, 5, 7))
	w.closed(5, in)
	if got := w.unread.Load(); got != 7 {
		t.Errorf("unread %d", got)
	}
	feed(yamuxFrame(yamuxWindow, yamuxFIN, 5, 0))
	w.account(in, 0, 7) // a late reader
	if got := w.unread.Load(); got != 0 || len(w.inboxes) != 0 {
		t.Errorf("unread %d with %d streams", got, len(w.inboxes))
	}
	if in, reset := w.attach(7, &yamuxStream{}); !in.refused() || reset != nil {
		t.Error("a stream that the peer has refused is attached as a healthy one")
	}
}

func TestFrameViolations(t *testing.T) {
	w, _ := newTestWatch(t, false, 2)
	if err := w.follow(yamuxFrame(yamuxWindow, yamuxSYN, 2, 0)); err != errForeignSYN {
		t.Errorf("SYN: %v", err)
	}
	w, _ = newTestWatch(t, true, 2)
	if err := w.follow(yamuxFrame(yamuxPing, yamuxSYN, 0, 1)); err != errForeignPing {
		t.Errorf("ping: %v", err)
	}
	var err error
	for id := uint32(1); err == nil && id < 20; id += 2 {
		err = w.follow(yamuxFrame(yamuxData, yamuxSYN, id, 0))
	}
	if err != errTooManyStreams || len(w.inboxes) != 2 {
		t.Errorf("%v with %d streams of 2", err, len(w.inboxes))
	}
	if err := w.follow(yamuxFrame(yamuxGoAway, 0, 0, 1)); err != nil {
		t.Errorf("go away is yamux's own matter: %v", err)
	}
}

// A RESET that comes before its stream was accepted is kept for it.
func TestEarlyReset(t *testing.T) {
	w, _ := newTestWatch(t, true, 2)
	if err := w.follow(yamuxFrame(yamuxWindow, yamuxSYN, 1, 0)); err != nil {
		t.Fatal(err)
	}
	m := &resetMessage{Stream: 1, Code: resetAbort}
	if s := w.find(1, m); s != nil {
		t.Error("found a stream before it was accepted")
	}
	if s := w.find(9, m); s != nil {
		t.Error("found a stream that is not there")
	}
	s := &yamuxStream{}
	if _, got := w.attach(1, s); got != m {
		t.Errorf("the reset was lost: %v", got)
	}
	if got := w.find(1, m); got != s {
		t.Error("not found after it was accepted")
	}
}

func TestExcess(t *testing.T) {
	w, _ := newTestWatch(t, true, 10)
	streams := make(map[uint32]*yamuxStream)
	for id, n := range map[uint32]uint32{1: 5000, 11: 100, 3: 400, 5: 300, 7: 0, 9: 200} {
		_ = w.follow(yamuxFrame(yamuxData, yamuxSYN, id, n))
		streams[id] = &yamuxStream{}
		if id != 9 { // not accepted: cannot be reset
			w.attach(id, streams[id])
		}
	}
	check := func(limit int64, want ...uint32) {
		t.Helper()
		var ids []uint32
		for _, s := range w.excess(limit) {
			for id, have := range streams {
				if have == s {
					ids = append(ids, id)
				}
			}
		}
		if !slices.Equal(ids, want) {
			t.Errorf("limit %d: picked %v, want %v", limit, ids, want)
		}
	}
	check(800)
	check(799, 3)
	check(400)      // 3 does not count again: 100 and 300 are left
	check(0, 5, 11) // the largest first, and never the control stream
	check(0)
}

// watchModel is what frameWatch is to know, by reading all at once.
type watchModel struct {
	mayOpen    bool
	maxStreams int
	boxes      map[uint32]*inbox
}

func (m *watchModel) follow(p []byte) (unread int64, err error) {
	sum := func() (n int64) {
		for _, b := range m.boxes {
			n += b.received - b.read
		}
		return n
	}
	for len(p) >= yamuxHeader {
		kind, flags := p[1], binary.BigEndian.Uint16(p[2:])
		id, length := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:])
		version := p[0]
		p = p[yamuxHeader:]
		if version != 0 || kind >= yamuxGoAway {
			continue
		}
		switch {
		case kind == yamuxPing:
			return sum(), errForeignPing
		case flags&yamuxSYN != 0 && !m.mayOpen:
			return sum(), errForeignSYN
		case flags&yamuxSYN != 0 && len(m.boxes) >= m.maxStreams:
			return sum(), errTooManyStreams
		case flags&yamuxSYN != 0 && m.boxes[id] == nil:
			m.boxes[id] = &inbox{}
		}
		b := m.boxes[id]
		if b != nil {
			b.fin = b.fin || flags&yamuxFIN != 0
			if flags&yamuxRST != 0 || b.fin && b.closed {
				delete(m.boxes, id)
				b = nil
			}
		}
		if kind == yamuxData {
			n := min(int64(length), int64(len(p)))
			if b != nil {
				b.received += n
			}
			p = p[n:]
		}
	}
	return sum(), nil
}

// Frames may be cut anywhere, and nothing that a peer sends confuses the books.
func FuzzFrameWatch(f *testing.F) {
	f.Add(slices.Concat(yamuxFrame(yamuxWindow, yamuxSYN, 1, 0), yamuxFrame(yamuxData, 0, 1, 20), yamuxFrame(yamuxData, yamuxFIN, 1, 3)), uint64(1), true)
	f.Add(slices.Concat(yamuxFrame(yamuxData, yamuxSYN|yamuxRST, 1, 5), yamuxFrame(yamuxPing, 0, 0, 0)), uint64(2), true)
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xffxyz"), uint64(3), false)
	f.Fuzz(func(t *testing.T, data []byte, cuts uint64, mayOpen bool) {
		w := newFrameWatch(nil, mayOpen, 4)
		m := &watchModel{mayOpen: mayOpen, maxStreams: 4, boxes: make(map[uint32]*inbox)}
		if !mayOpen { // streams of our own
			for _, id := range []uint32{1, 3} {
				_ = w.expect(id)
				m.boxes[id] = &inbox{}
			}
		}
		r := rand.New(rand.NewPCG(cuts, 0))
		feed := func(p []byte) (err error) {
			for len(p) > 0 && err == nil {
				n := 1 + r.IntN(min(len(p), 40))
				err = w.follow(p[:n])
				p = p[n:]
				if w.unread.Load() < 0 {
					t.Fatalf("unread %d", w.unread.Load())
				}
			}
			return err
		}
		err := feed(data)
		want, wantErr := m.follow(data)
		if err != wantErr || w.unread.Load() != want {
			t.Fatalf("%v with %d unread, want %v with %d", err, w.unread.Load(), wantErr, want)
		}
		if err == nil && len(w.inboxes) != len(m.boxes) {
			t.Fatalf("%d streams, want %d", len(w.inboxes), len(m.boxes))
		}
		if err != nil {
			return
		}
		// Half of the streams are read and closed here, and the peer says the
		// same again, from the next frame on.
		w.have, w.body = 0, 0
		for _, id := range slices.Sorted(maps.Keys(m.boxes)) {
			if id%4 == 1 {
				b := w.inboxes[id]
				w.account(b, 0, b.received)
				w.closed(id, b)
				mb := m.boxes[id]
				mb.read, mb.closed = mb.received, true
				if mb.fin {
					delete(m.boxes, id)
				}
			}
		}
		err = feed(data)
		want, wantErr = m.follow(data)
		if err != wantErr || w.unread.Load() != want {
			t.Fatalf("again: %v with %d unread, want %v with %d", err, w.unread.Load(), wantErr, want)
		}
		for _, id := range slices.Collect(maps.Keys(w.inboxes)) {
			w.forget(id)
		}
		if w.unread.Load() != 0 {
			t.Fatalf("%d unread with no stream", w.unread.Load())
		}
	})
}
