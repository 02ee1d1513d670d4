package packet

import (
	"context"
	"net"
	"sync"
	"time"
)

// DefaultQueue is how many bytes a [Queue] holds unless told otherwise.
const DefaultQueue = 1 << 20

const (
	// queueChunk is how much is written in one piece: progress shows, and room
	// comes free, after each.
	queueChunk = 128 << 10
	// queueStall is how long a writer may take for a piece before it counts as
	// stalled.
	queueStall = 100 * time.Millisecond
	// queueLeast is what a frame counts for at least: a writer's time goes by frames as
	// much as by bytes, and whoever fills a queue with small ones must not have the
	// others wait for longer than with large ones.
	queueLeast = 256
	// queueShare is how many times the free room one source may hold.
	queueShare = 4
	// A buffer begins with queueSmall bytes, grows by doubling, and is given back when
	// it was four times too large for queueCalm turns.
	queueSmall = 16 << 10
	queueCalm  = 64
)

// Queue holds frames for one [Port] whose writer may be slow. Whoever has frames
// never waits for the port, unless it wants to: what does not fit is dropped and
// counted.
//
//	Put ──► pending ──┐ swapped when the writer is done
//	                  ▼
//	        writing ──► Port.WriteBatch, in pieces of 128 KiB
//
// Its zero value is ready for use. Put copies, so the memory of a frame is the
// caller's again at once, and allocates nothing once the two buffers have grown to
// what is needed. All methods may be called by several goroutines at once, but
// for Run, which is called once.
type Queue struct {
	// Limit is how many bytes may wait, what is being written included; 0
	// means [DefaultQueue]. A frame of less than 256 bytes counts as so many. An empty
	// queue takes one frame of any size.
	Limit int

	mu      sync.Mutex
	work    sync.Cond // Run waits for frames
	room    sync.Cond // PutWait waits for room
	pending *Batch
	writing *Batch
	weight  int  // what the frames of pending count for
	heavy   int  // what those of writing count for that are not written yet
	unsent  int  // bytes of them
	late    int  // and frames
	idle    bool // Run waits for work
	closed  bool // Run has returned

	shares []share // by source
	turn   uint64  // counts the swaps

	waiters int
	moves   uint64 // counts the pieces that were written
	stalled bool   // a caller of PutWait has waited in vain, and nothing was written since
	alarm   *time.Timer
	alarmAt time.Time // when it goes off, zero when it does not
	piece   Batch     // Run's
	calm    int       // swaps in a row that needed little memory

	frames, bytes, dropped uint64
}

// share is what a source holds of pending; of an earlier turn it is nothing.
type share struct {
	turn   uint64
	weight int
}

// QueueStats is what a [Queue] did since it was made.
type QueueStats struct {
	// Frames and Bytes are what was taken, as on the wire.
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
	// Dropped is how many frames were not.
	Dropped uint64 `json:"dropped"`
	// Waiting is how many bytes are in the queue now.
	Waiting int `json:"waiting"`
}

// anonymous is the source that has no share and may fill the queue.
const anonymous = -1

// Put appends a copy of f. It reports false if there is no room or Run has
// returned: then f is dropped.
func (q *Queue) Put(f Frame) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	ok := q.append(f, anonymous)
	q.wake()
	return ok
}

// PutWait is Put for who can push back, such as the reader of a device, where
// the kernel holds and shapes what is not read. If there is no room it waits until
// there is, for at most the given time, and only while the writer makes progress:
// one that gets nothing written for 100 ms costs one call these 100 ms, and
// later calls nothing, until it moves again.
func (q *Queue) PutWait(f Frame, most time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.wake()
	if q.fits(f, anonymous) || most <= 0 {
		return q.append(f, anonymous)
	}
	q.wake() // what waits must be under way before this waits for it
	now := time.Now()
	last := now.Add(most)
	stall, moves := now.Add(queueStall), q.moves
	for !q.closed && !q.stalled && !q.fits(f, anonymous) && now.Before(last) {
		if q.moves != moves {
			stall, moves = now.Add(queueStall), q.moves
		} else if !now.Before(stall) {
			q.stalled = true
			q.room.Broadcast()
			break
		}
		q.wait(now, earlier(stall, last))
		now = time.Now()
	}
	return q.append(f, anonymous)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// wait waits until there may be room, or until then; q.mu is held. It may return
// early.
func (q *Queue) wait(now, then time.Time) {
	if q.room.L == nil {
		q.room.L = &q.mu
	}
	// One timer serves all who wait: it goes off for the first of them and wakes
	// all, and the others set it again.
	switch {
	case q.alarm == nil:
		q.alarm = time.AfterFunc(then.Sub(now), q.ring)
		q.alarmAt = then
	case q.alarmAt.IsZero() || then.Before(q.alarmAt):
		q.alarm.Reset(then.Sub(now))
		q.alarmAt = then
	}
	q.waiters++
	q.room.Wait()
	q.waiters--
	if q.waiters == 0 {
		q.alarm.Stop()
		q.alarmAt = time.Time{}
	}
}

func (q *Queue) ring() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.alarmAt = time.Time{}
	q.room.Broadcast()
}

// from is Put for a source that has its share, a small number from 0 on: it may
// hold at most four times what is free. So one source alone fills four fifths, two
// get four ninths each, and there is always some room for who has little. It
// does not wake the writer: whoever puts a run of frames calls flush behind it.
func (q *Queue) from(f Frame, source int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.append(f, source)
}

// flush has written what was put by from. It reports whether the queue is filling up.
func (q *Queue) flush() (crowded bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake()
	return q.load() > q.limit()/4
}

// wake wakes the writer if it sleeps and there is something; q.mu is held.
func (q *Queue) wake() {
	if q.idle && q.pending != nil && q.pending.Len() > 0 {
		q.idle = false
		q.work.Signal()
	}
}

func (q *Queue) limit() int {
	if q.Limit > 0 {
		return q.Limit
	}
	return DefaultQueue
}

// sizeOf is the most that a frame takes on the wire.
func sizeOf(f Frame) int { return frameHead + numberLen + len(f.Data) }

// load is what the frames in the queue count for; q.mu is held.
func (q *Queue) load() int { return q.heavy + q.weight }

// waiting is how many bytes are in the queue; q.mu is held.
func (q *Queue) waiting() int {
	if q.pending == nil {
		return q.unsent
	}
	return q.unsent + q.pending.Size()
}

// fits reports whether there is room; q.mu is held.
func (q *Queue) fits(f Frame, source int) bool {
	load := q.load()
	if load == 0 {
		return true
	}
	free := q.limit() - load - max(sizeOf(f), queueLeast)
	if free < 0 {
		return false
	}
	if source == anonymous || source >= len(q.shares) || q.shares[source].turn != q.turn {
		return true
	}
	return q.shares[source].weight <= queueShare*free
}

// append takes f or drops it; q.mu is held.
func (q *Queue) append(f Frame, source int) bool {
	if q.closed || !q.fits(f, source) {
		q.dropped++
		return false
	}
	if q.pending == nil {
		q.pending = new(Batch)
	}
	before := q.pending.Size()
	q.pending.reserve(sizeOf(f))
	if !q.pending.Append(f) {
		q.dropped++
		return false
	}
	n := q.pending.Size() - before
	q.frames++
	q.bytes += uint64(n)
	n = max(n, queueLeast)
	q.weight += n
	if source != anonymous {
		if source >= len(q.shares) {
			q.shares = append(q.shares, make([]share, source+1-len(q.shares))...)
		}
		s := &q.shares[source]
		if s.turn != q.turn {
			*s = share{turn: q.turn}
		}
		s.weight += n
	}
	return true
}

// reserve makes room for n bytes more. Unlike the memory of a batch that is read
// into, that of one which waits grows as it is needed: 256 ports that say
// little hold little.
func (b *Batch) reserve(n int) {
	used := len(b.data)
	if cap(b.own)-used >= n {
		return
	}
	size := max(queueSmall, 2*cap(b.own))
	for size < used+n {
		size *= 2
	}
	own := make([]byte, size)
	copy(own, b.data)
	b.own, b.data, b.limit = own[:0], own[:used], size
}

// Run writes what is put to p, in the order of its arrival and in batches, until
// p fails, and returns that error, or until ctx ends, and returns its cause. It
// does not end while it is in p.WriteBatch: close p to end that. What waits then is
// dropped, and Put takes nothing more. Run leaves p open.
func (q *Queue) Run(ctx context.Context, p Port) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return net.ErrClosed
	}
	q.work.L = &q.mu
	q.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.work.Signal()
	})
	defer stop()
	defer q.close()
	for {
		b := q.take(ctx)
		if b == nil {
			return context.Cause(ctx)
		}
		if err := q.write(p, b); err != nil {
			return err
		}
	}
}

// take waits for frames and swaps the two batches. It returns nil when ctx has
// ended.
func (q *Queue) take(ctx context.Context) *Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.pending == nil || q.pending.Len() == 0 {
		if ctx.Err() != nil {
			return nil
		}
		q.idle = true
		q.work.Wait()
		q.idle = false
	}
	if ctx.Err() != nil {
		return nil
	}
	b, next := q.pending, q.writing
	if next == nil {
		next = new(Batch)
	}
	next.Reset()
	q.shrink(b.Size(), next)
	q.pending, q.writing = next, b
	q.unsent, q.late = b.Size(), b.Len()
	q.heavy, q.weight = q.weight, 0
	q.turn++
	return b
}

// shrink gives the memory of an empty batch back when much less was used for many
// turns; q.mu is held.
func (q *Queue) shrink(used int, empty *Batch) {
	switch {
	case cap(empty.own) <= queueSmall:
	case used > cap(empty.own)/4:
		q.calm = 0
	case q.calm < queueCalm:
		q.calm++
	default:
		q.calm = 0
		*empty = Batch{}
	}
}

// write writes b in pieces and makes their room free.
func (q *Queue) write(p Port, b *Batch) error {
	if b.Size() <= queueChunk {
		if err := p.WriteBatch(b); err != nil {
			return err
		}
		q.moved(q.unsent, q.late, q.heavy) // only Run changes these
		return nil
	}
	for rest := b.data; len(rest) > 0; {
		size, n, weight := cutPiece(rest, queueChunk)
		q.piece.borrow(rest[:size], n)
		if err := p.WriteBatch(&q.piece); err != nil {
			return err
		}
		q.moved(size, n, weight)
		rest = rest[size:]
	}
	return nil
}

// cutPiece returns the length of the longest run of whole frames that is within most,
// one frame at least, how many they are, and what they count for.
func cutPiece(data []byte, most int) (size, frames, weight int) {
	for rest := data; len(rest) >= frameHead; {
		_, _, next := cutFrame(rest)
		if end := len(data) - len(next); frames == 0 || end <= most {
			size, frames, weight = end, frames+1, weight+max(len(rest)-len(next), queueLeast)
			rest = next
			continue
		}
		break
	}
	return size, frames, weight
}

// moved notes that a piece was written.
func (q *Queue) moved(size, frames, weight int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unsent -= size
	q.late -= frames
	q.heavy -= weight
	q.moves++
	q.stalled = false
	if q.waiters > 0 {
		q.room.Broadcast()
	}
}

// close drops what waits and refuses the rest.
func (q *Queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.dropped += uint64(q.late)
	if q.pending != nil {
		q.dropped += uint64(q.pending.Len())
	}
	q.pending, q.writing, q.piece, q.shares = nil, nil, Batch{}, nil
	q.unsent, q.late, q.heavy, q.weight = 0, 0, 0, 0
	if q.waiters > 0 {
		q.room.Broadcast()
	}
}

// Stats returns the counts.
func (q *Queue) Stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{Frames: q.frames, Bytes: q.bytes, Dropped: q.dropped, Waiting: q.waiting()}
}
