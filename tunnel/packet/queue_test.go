package packet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// writerFunc is a port that can only be written to.
type writerFunc func(b *Batch) error

func (w writerFunc) ReadBatch(*Batch) error    { return net.ErrClosed }
func (w writerFunc) WriteBatch(b *Batch) error { return w(b) }
func (w writerFunc) Close() error              { return nil }

// queued makes a frame of so many bytes which says a number.
func queued(n, size int) Frame {
	f := Frame{Data: make([]byte, HeaderLen+size)}
	copy(f.Packet(), fmt.Sprintf("%d;", n))
	return f
}

// numberOf reads it.
func numberOf(t *testing.T, f Frame) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(string(f.Packet()[:min(len(f.Packet()), 12)]), "%d;", &n); err != nil {
		t.Errorf("%q: %v", f.Packet(), err)
	}
	return n
}

// runQueue runs q into w until the returned function is called, which returns the error.
func runQueue(q *Queue, w Port) (stop func() error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, w) }()
	return func() error {
		cancel(errStopped)
		return <-done
	}
}

var errStopped = errors.New("stopped")

func TestQueueOrder(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var q Queue
		var got []int
		var numbered, batches int
		const frames = 4000
		for n := range frames / 2 { // what is put before Run is kept, as far as there is room
			if !q.Put(queued(n, 100)) {
				t.Fatalf("frame %d was dropped", n)
			}
		}
		stop := runQueue(&q, writerFunc(func(b *Batch) error {
			batches++
			if b.Size() > queueChunk {
				t.Errorf("a piece of %d bytes", b.Size())
			}
			n := 0
			for f := range b.Frames() {
				n++
				got = append(got, numberOf(t, f))
				if f.Origin == 7 && f.Seq == 9 {
					numbered++
				}
			}
			if n != b.Len() {
				t.Errorf("%d frames, Len is %d", n, b.Len())
			}
			return nil
		}))
		for n := frames / 2; n < frames; n++ {
			f := queued(n, 100)
			f.Origin, f.Seq = 7, 9
			if !q.Put(f) {
				t.Errorf("frame %d was dropped", n)
			}
		}
		synctest.Wait()
		if st := q.Stats(); st.Frames != frames || st.Dropped != 0 || st.Waiting != 0 || st.Bytes < frames*110 {
			t.Errorf("stats: %+v", st)
		}
		if err := stop(); err != errStopped {
			t.Errorf("Run: %v", err)
		}
		if len(got) != frames || numbered != frames/2 {
			t.Fatalf("%d frames, %d with a number", len(got), numbered)
		}
		for n := range got {
			if got[n] != n {
				t.Fatalf("frame %d in place %d", got[n], n)
			}
		}
		if batches > frames/10 {
			t.Errorf("%d frames in %d batches", frames, batches)
		}
	})
}

// A peer that does not read costs the others nothing but its own frames.
func TestQueueFull(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 10 << 10}
		stall, resume := make(chan struct{}), make(chan struct{})
		written := 0
		stop := runQueue(&q, writerFunc(func(b *Batch) error {
			written += b.Len()
			stall <- struct{}{}
			<-resume
			return nil
		}))
		if !q.Put(queued(0, 50<<10)) {
			t.Error("an empty queue did not take a large frame")
		}
		<-stall // it is being written, which counts
		if q.Put(queued(1, 1)) {
			t.Error("a full queue took a frame")
		}
		resume <- struct{}{}
		synctest.Wait()
		taken := 0
		for n := range 100 {
			if q.Put(queued(n, 1000)) {
				taken++
			}
			synctest.Wait()
			if n == 0 {
				<-stall
			}
		}
		if taken != 10 {
			t.Errorf("%d frames of 1 KiB in 10 KiB", taken)
		}
		st := q.Stats()
		if st.Dropped != 1+90 || st.Frames != 11 || st.Waiting > q.Limit {
			t.Errorf("stats: %+v", st)
		}
		resume <- struct{}{}
		<-stall
		resume <- struct{}{}
		synctest.Wait()
		if written != 11 {
			t.Errorf("%d frames written", written)
		}
		stop()
	})
}

// Small frames count for more than their bytes: a writer needs its time for each, and
// a queue full of them must not hold up the others for longer than with large ones.
func TestQueueSmallFrames(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 100 * queueLeast}
		for range 1000 {
			q.from(queued(0, 60), 0)
		}
		if n := q.Stats().Frames; n != 80 {
			t.Errorf("one source has %d of 100", n)
		}
		if !q.from(queued(1, 60), 1) {
			t.Error("another has no room")
		}
		// What was written is free again, in one piece and in several.
		for _, size := range []int{60, 200, queueChunk} {
			stop := runQueue(&q, writerFunc(func(*Batch) error { return nil }))
			q.Put(queued(2, size))
			q.Put(queued(3, size))
			synctest.Wait()
			if n := q.load(); n != 0 || q.Stats().Waiting != 0 {
				t.Errorf("frames of %d bytes: the empty queue counts %d", size, n)
			}
			stop()
			q = Queue{Limit: 1 << 20}
			q.Put(queued(1, 60))
		}
	})
}

func TestQueueRefusesNonsense(t *testing.T) {
	var q Queue
	for _, f := range []Frame{{}, {Data: make([]byte, HeaderLen)}, {Data: make([]byte, HeaderLen+MaxPacket+1)}} {
		if q.Put(f) {
			t.Errorf("a frame of %d bytes was taken", len(f.Data))
		}
	}
	if !q.Put(queued(1, MaxPacket)) {
		t.Error("the longest packet was not taken")
	}
	if st := q.Stats(); st.Dropped != 3 || st.Frames != 1 {
		t.Errorf("stats: %+v", st)
	}
}

// Whoever can push back waits for a writer that makes progress, and never for long for one
// that does not.
func TestQueueWait(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 4 << 10}
		pause := 60 * time.Millisecond // for each piece
		block := make(chan struct{})
		close(block)
		var mu sync.Mutex
		stop := runQueue(&q, writerFunc(func(b *Batch) error {
			mu.Lock()
			d, wait := pause, block
			mu.Unlock()
			time.Sleep(d)
			<-wait
			return nil
		}))
		put := func(most time.Duration) (ok bool, took time.Duration) {
			start := time.Now()
			ok = q.PutWait(queued(0, 1000), most)
			return ok, time.Since(start)
		}

		// It moves, if slowly: nothing is lost.
		for n := range 100 {
			if ok, took := put(time.Second); !ok || took > pause {
				t.Fatalf("frame %d: %v after %v", n, ok, took)
			}
		}
		if st := q.Stats(); st.Dropped != 0 {
			t.Errorf("stats: %+v", st)
		}

		// It stalls: one call pays for it.
		mu.Lock()
		pause, block = 0, make(chan struct{})
		mu.Unlock()
		time.Sleep(time.Second)
		for q.Put(queued(0, 1000)) {
			synctest.Wait()
		}
		if ok, took := put(time.Second); ok || took != queueStall {
			t.Errorf("the first: %v after %v", ok, took)
		}
		for range 10 {
			if ok, took := put(time.Second); ok || took != 0 {
				t.Errorf("a later one: %v after %v", ok, took)
			}
		}

		// It moves again, and is waited for again.
		close(block)
		synctest.Wait()
		if ok, took := put(time.Second); !ok || took != 0 {
			t.Errorf("with room: %v after %v", ok, took)
		}
		mu.Lock()
		block = make(chan struct{})
		mu.Unlock()
		time.Sleep(time.Second)
		for q.Put(queued(0, 1000)) {
			synctest.Wait()
		}
		if ok, took := put(30 * time.Millisecond); ok || took != 30*time.Millisecond {
			t.Errorf("with less patience: %v after %v", ok, took)
		}
		if ok, took := put(0); ok || took != 0 {
			t.Errorf("with none: %v after %v", ok, took)
		}
		close(block)
		stop()
	})
}

// Several wait at a time, each as long as it may.
func TestQueueWaitMany(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 1}
		block := make(chan struct{})
		stop := runQueue(&q, writerFunc(func(b *Batch) error { <-block; return net.ErrClosed }))
		q.Put(queued(0, 100))
		synctest.Wait()
		start := time.Now()
		var work sync.WaitGroup
		for _, most := range []time.Duration{90, 30, 60, 70, 10} {
			work.Go(func() {
				most *= time.Millisecond
				if q.PutWait(queued(0, 100), most) || time.Since(start) != most {
					t.Errorf("%v waited %v", most, time.Since(start))
				}
			})
		}
		work.Wait()
		work.Go(func() {
			if q.PutWait(queued(0, 100), time.Minute) {
				t.Error("a queue that has ended took a frame")
			}
		})
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(block) })
		stop()
		work.Wait()
	})
}

// However much one source has, others get their frames in, and what one alone gets is
// most of the queue.
func TestQueueShares(t *testing.T) {
	const limit = 1 << 20
	full := func(q *Queue, source int) (bytes int) {
		for q.from(queued(0, 1000), source) {
			bytes += 1000
		}
		return bytes
	}
	q := &Queue{Limit: limit}
	alone := full(q, 3)
	if alone < limit*7/10 || alone > limit*8/10 {
		t.Errorf("one source alone has %d of %d", alone, limit)
	}
	if q.from(queued(0, 1000), 3) {
		t.Error("its share has no end")
	}
	second, third := full(q, 0), full(q, 1)
	if second < limit/10 || third < limit/100 {
		t.Errorf("behind one that has %d the next have %d and %d", alone, second, third)
	}
	if !q.from(queued(0, 1000), 7) {
		t.Error("there is no room for who has nothing")
	}

	// At the same time they get the same.
	q = &Queue{Limit: limit}
	var have [4]int
	for more := true; more; {
		more = false
		for source := range have {
			if q.from(queued(0, 1000), source) {
				have[source] += 1000
				more = true
			}
		}
	}
	for _, n := range have {
		if n < limit/5 || n > limit/4 {
			t.Errorf("shares: %v", have)
		}
	}
}

// A flood from one source does not starve a second one for longer than a turn.
func TestQueueFlood(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 64 << 10}
		stop := runQueue(&q, writerFunc(func(b *Batch) error {
			time.Sleep(900 * time.Microsecond) // two rounds, and never at the same moment
			return nil
		}))
		const rounds = 100
		taken := 0
		for range rounds {
			for range 200 { // six times what there is room for in a turn
				q.from(queued(0, 1000), 0)
			}
			if q.from(queued(0, 1000), 1) {
				taken++
			}
			q.flush()
			time.Sleep(500 * time.Microsecond)
		}
		if taken < rounds {
			t.Errorf("of %d frames of who says little %d were taken", rounds, taken)
		}
		stop()
	})
}

func TestQueueEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var q Queue
		broken := errors.New("broken")
		stop := runQueue(&q, writerFunc(func(b *Batch) error {
			time.Sleep(time.Second)
			return broken
		}))
		q.Put(queued(0, 1000))
		synctest.Wait()
		q.Put(queued(1, 1000))
		time.Sleep(2 * time.Second)
		if q.Put(queued(2, 1000)) {
			t.Error("a queue that has ended took a frame")
		}
		if err := stop(); err != broken {
			t.Errorf("Run: %v", err)
		}
		if st := q.Stats(); st.Frames != 2 || st.Dropped != 3 || st.Waiting != 0 {
			t.Errorf("stats: %+v", st)
		}
		if err := q.Run(t.Context(), writerFunc(nil)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Run: %v", err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var unused Queue
		unused.Put(queued(0, 1))
		if err := unused.Run(ctx, writerFunc(func(*Batch) error { t.Error("written"); return nil })); err != context.Canceled {
			t.Errorf("Run in an ended context: %v", err)
		}
	})
}

// A queue that was full once gives its memory back.
func TestQueueMemory(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		q := Queue{Limit: 1 << 20}
		stop := runQueue(&q, writerFunc(func(b *Batch) error { time.Sleep(time.Millisecond); return nil }))
		held := func() int {
			q.mu.Lock()
			defer q.mu.Unlock()
			return cap(q.pending.own) + cap(q.writing.own)
		}
		for range 2 {
			for q.Put(queued(0, 1000)) {
			}
			time.Sleep(time.Second)
		}
		if n := held(); n < 1<<20 || n > 4<<20 {
			t.Errorf("a queue of 1 MiB holds %d bytes", n)
		}
		for range 4 * queueCalm {
			q.Put(queued(0, 1000))
			time.Sleep(2 * time.Millisecond)
		}
		if n := held(); n > 2*queueSmall {
			t.Errorf("a calm queue holds %d bytes", n)
		}
		stop()
	})
}

func TestQueueAllocs(t *testing.T) {
	var q Queue
	w := writerFunc(func(*Batch) error { return nil })
	f := queued(0, 1400)
	ctx := context.Background()
	turn := func() {
		for range 100 {
			if !q.from(f, 3) {
				t.Fatal("dropped")
			}
		}
		q.flush()
		if err := q.write(w, q.take(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		turn()
	}
	if n := testing.AllocsPerRun(100, turn); n > 0 {
		t.Errorf("%v allocations for 100 frames", n)
	}
}

func ExampleQueue() {
	slow := writerFunc(func(b *Batch) error {
		fmt.Println("writes", b.Len(), "frames")
		return net.ErrClosed
	})
	q := Queue{Limit: 3000}
	for range 4 {
		f := Frame{Data: make([]byte, HeaderLen+1000)}
		fmt.Println("taken:", q.Put(f))
	}
	fmt.Println(q.Run(context.Background(), slow))
	// Output:
	// taken: true
	// taken: true
	// taken: false
	// taken: false
	// writes 2 frames
	// use of closed network connection
}
