package tunnel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The yamux frame header, twelve bytes: version, type, flags (2), stream id
// (4), length (4), big endian. Source: the specification beside yamux's code.
const (
	yamuxHeader  = 12
	yamuxData    = 0
	yamuxWindow  = 1
	yamuxPing    = 2
	yamuxGoAway  = 3
	yamuxSYN     = 1
	yamuxACK     = 2
	yamuxFIN     = 4
	yamuxRST     = 8
	controlID    = 1 // of the first stream
	yamuxVersion = 0
)

var (
	errForeignSYN = errors.New("tunnel: peer opened a stream where only this side may")
	// yamux would start a goroutine for each ping.
	errForeignPing    = errors.New("tunnel: peer sent a multiplexer ping, which this protocol does not use")
	errTooManyStreams = errors.New("tunnel: peer opened more streams than it may")
)

// frameWatch is the carrier of a yamux session. It follows the frame headers
// that come in, because yamux itself does not tell four things that a tunnel
// must know: whether a stream ended by FIN or only because the session died
// (yamux reports both as io.EOF), how many bytes of a stream wait unread, when
// the last byte came, and that a peer misuses the session. It never changes a
// byte.
type frameWatch struct {
	carrier    net.Conn
	mayOpen    bool // the peer may open streams
	maxStreams int  // inboxes at a time; more end the session

	grown atomic.Pointer[func()] // called as held grows, once per growthStep
	onAck func()                 // called when the peer has accepted a stream, or will not

	violation atomic.Pointer[error] // why follow refused a frame

	received atomic.Int64 // UnixNano of the last read
	unread   atomic.Int64 // of all streams
	held     atomic.Int64 // bytes that yamux's buffers may have, unread or not

	head    [yamuxHeader]byte // of the frame that is being read
	have    int               // bytes of head that are there
	body    uint32            // bytes of the frame's body still to come
	current *inbox            // of the frame's stream, nil if it has none

	mu      sync.Mutex
	inboxes map[uint32]*inbox
}

// inbox is what is known of one stream's receiving side.
type inbox struct {
	mu       sync.Mutex
	received int64
	read     int64
	peak     int64         // most unread bytes since yamux's buffer was let go
	swept    int64         // received when sweep last looked
	acked    bool          // the peer has accepted the stream, or will not
	fin      bool          // the peer half-closed
	rst      bool          // the peer's multiplexer refused the stream
	closed   bool          // the local side has closed the stream
	leaving  time.Time     // when it began to; zero: not yet
	doomed   bool          // picked by excess
	gone     bool          // forgotten: nothing is accounted any more
	stream   *yamuxStream  // nil until it was accepted
	reset    *resetMessage // came before the stream was accepted
}

// ended reports whether all that the peer sent has been read and the peer
// said that this was all.
func (b *inbox) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fin && b.received == b.read
}

// over reports whether the peer sends no more.
func (b *inbox) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fin || b.rst
}

func (b *inbox) refused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rst
}

func newFrameWatch(c net.Conn, mayOpen bool, maxStreams int) *frameWatch {
	w := &frameWatch{carrier: c, mayOpen: mayOpen, maxStreams: maxStreams, inboxes: make(map[uint32]*inbox)}
	w.received.Store(time.Now().UnixNano())
	return w
}

// Read is called by yamux's receive goroutine only.
func (w *frameWatch) Read(p []byte) (int, error) {
	n, err := w.carrier.Read(p)
	if n > 0 {
		w.received.Store(time.Now().UnixNano())
		if ferr := w.follow(p[:n]); ferr != nil {
			w.violation.Store(&ferr)
			return 0, ferr
		}
	}
	return n, err
}

// Write and Close pass on.
func (w *frameWatch) Write(p []byte) (int, error) { return w.carrier.Write(p) }
func (w *frameWatch) Close() error                { return w.carrier.Close() }

// follow goes through the frames in p, which may begin and end anywhere.
func (w *frameWatch) follow(p []byte) error {
	for len(p) > 0 {
		if w.body > 0 {
			n := min(uint32(len(p)), w.body)
			w.account(w.current, int64(n), 0)
			w.body -= n
			p = p[n:]
			continue
		}
		n := copy(w.head[w.have:], p)
		w.have += n
		p = p[n:]
		if w.have < yamuxHeader {
			return nil
		}
		w.have = 0
		if err := w.frame(); err != nil {
			return err
		}
	}
	return nil
}

// frame looks at the header that is complete.
func (w *frameWatch) frame() error {
	kind, flags := w.head[1], binary.BigEndian.Uint16(w.head[2:])
	id, length := binary.BigEndian.Uint32(w.head[4:]), binary.BigEndian.Uint32(w.head[8:])
	if w.head[0] != yamuxVersion || kind > yamuxGoAway || kind == yamuxGoAway {
		return nil // yamux reads the same header next and judges it
	}
	if kind == yamuxPing {
		return errForeignPing
	}
	if flags&yamuxSYN != 0 {
		if !w.mayOpen {
			return errForeignSYN
		}
		if err := w.expect(id); err != nil {
			return err
		}
	}
	w.mu.Lock()
	b := w.inboxes[id]
	w.mu.Unlock()
	w.current = b
	if kind == yamuxData {
		w.body = length
	}
	if b == nil {
		return nil
	}
	b.mu.Lock()
	b.fin = b.fin || flags&yamuxFIN != 0
	b.rst = b.rst || flags&yamuxRST != 0
	over := b.rst || b.fin && b.closed
	if flags&yamuxACK != 0 {
		w.acknowledged(b)
	}
	b.mu.Unlock()
	if over {
		w.forget(id)
	}
	return nil
}

// expect makes the inbox of a stream whose id is known before its frames come.
func (w *frameWatch) expect(id uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.inboxes) >= w.maxStreams {
		return errTooManyStreams
	}
	if w.inboxes[id] == nil {
		w.inboxes[id] = &inbox{}
	}
	return nil
}

// attach gives the stream its inbox, and returns a reset that came before it.
func (w *frameWatch) attach(id uint32, s *yamuxStream) (*inbox, *resetMessage) {
	w.mu.Lock()
	b := w.inboxes[id]
	if b == nil { // the peer refused the stream meanwhile
		b = &inbox{rst: true, gone: true}
	}
	w.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stream = s
	return b, b.reset
}

// find returns the stream with the id. A reset for one that was not accepted
// yet is kept for attach.
func (w *frameWatch) find(id uint32, m *resetMessage) *yamuxStream {
	w.mu.Lock()
	b := w.inboxes[id]
	w.mu.Unlock()
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stream == nil {
		b.reset = m
	}
	return b.stream
}

// growthStep is how often grown is called.
const growthStep = 256 << 10

// acknowledged gives back the place of an open in flight; b.mu is held.
func (w *frameWatch) acknowledged(b *inbox) {
	if !b.acked {
		b.acked = true
		if w.onAck != nil {
			w.onAck()
		}
	}
}

// account adds to the bytes of a stream that came and that were read.
func (w *frameWatch) account(b *inbox, received, read int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.received += received
	b.read += read
	if b.gone {
		b.mu.Unlock()
		return
	}
	w.unread.Add(received - read)
	more := max(b.received-b.read-b.peak, 0)
	b.peak += more
	now := w.held.Add(more)
	empty := read > 0 && b.received == b.read
	b.mu.Unlock()
	if empty && now > shrinkAbove {
		w.shrink(b)
	}
	if now/growthStep > (now-more)/growthStep {
		if grown := w.grown.Load(); grown != nil {
			(*grown)()
		}
	}
}

// shrinkAbove is how many bytes buffers may keep for their next use: yamux
// would keep them for as long as the stream lives.
const shrinkAbove = 8 << 20

// shrink has yamux let go of the buffer of a stream that has nothing unread.
// yamux's own lock is held while bytes come in here, so that ours must not be
// held meanwhile.
func (w *frameWatch) shrink(b *inbox) {
	b.mu.Lock()
	st := b.stream
	b.mu.Unlock()
	if st == nil {
		return
	}
	st.y.Shrink() // does nothing if bytes have come meanwhile
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.received == b.read && !b.gone {
		w.held.Add(-b.peak)
		b.peak = 0
	}
}

// lingering is how long the peer may take to finish a stream that was closed
// or reset here; its multiplexer does so by itself.
const lingering = 30 * time.Second

// sweep lets go of the buffers of streams that were idle since the last sweep.
// It reports whether the peer leaves streams unfinished.
func (w *frameWatch) sweep(now time.Time) (unfinished bool) {
	w.mu.Lock()
	all := make([]*inbox, 0, len(w.inboxes))
	for _, b := range w.inboxes {
		all = append(all, b)
	}
	w.mu.Unlock()
	for _, b := range all {
		b.mu.Lock()
		idle := b.received == b.swept && b.received == b.read && b.peak > 0
		b.swept = b.received
		unfinished = unfinished || !b.leaving.IsZero() && now.Sub(b.leaving) > lingering
		b.mu.Unlock()
		if idle {
			w.shrink(b)
		}
	}
	return unfinished
}

// leave is told when the local side begins to close or reset a stream.
func (b *inbox) leave(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leaving.IsZero() {
		b.leaving = now
	}
}

// closed is told when the local side has closed a stream. What it holds
// counts until the peer has finished too, because yamux keeps it till then.
func (w *frameWatch) closed(id uint32, b *inbox) {
	b.mu.Lock()
	b.closed = true
	over := b.fin || b.rst
	b.mu.Unlock()
	if over {
		w.forget(id)
	}
}

func (w *frameWatch) forget(id uint32) {
	w.mu.Lock()
	b := w.inboxes[id]
	delete(w.inboxes, id)
	w.mu.Unlock()
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	w.acknowledged(b)
	w.unread.Add(b.read - b.received)
	w.held.Add(-b.peak)
}

// excess picks the streams to be reset so that the others hold no more than
// limit bytes: the largest first. What was picked once is not picked
// again, although it counts until the peer has finished it.
func (w *frameWatch) excess(limit int64) (doomed []*yamuxStream) {
	type held struct {
		b *inbox
		n int64
	}
	var all []held
	var sum int64
	w.mu.Lock()
	for id, b := range w.inboxes {
		if id == controlID {
			continue // a window of it is all it can hold
		}
		b.mu.Lock()
		if n := b.peak; n > 0 && b.stream != nil && !b.doomed {
			all = append(all, held{b, n})
			sum += n
		}
		b.mu.Unlock()
	}
	w.mu.Unlock()
	slices.SortFunc(all, func(x, y held) int { return cmp.Compare(y.n, x.n) })
	for _, h := range all {
		if sum <= limit {
			break
		}
		h.b.mu.Lock()
		h.b.doomed = true
		doomed = append(doomed, h.b.stream)
		h.b.mu.Unlock()
		sum -= h.n
	}
	return doomed
}
