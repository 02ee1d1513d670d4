package packettest

import (
	"context"
	"net"
	"slices"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// Recorder is a port that keeps what is written to it and yields what it is given. It
// is told what a server tells its links and keeps that too. Its zero value is ready
// for use. All methods may be called by several goroutines at once.
type Recorder struct {
	once    sync.Once
	in, out *pipe

	mu      sync.Mutex
	reaches [][]packet.Member
	drains  int
	bye     string
}

func (r *Recorder) init() {
	r.once.Do(func() { r.in, r.out = newPipe(), newPipe() })
}

// Give has ReadBatch yield frames.
func (r *Recorder) Give(frames ...packet.Frame) {
	r.init()
	for _, f := range frames {
		_ = r.in.write(f) // a closed port reads nothing
	}
}

// Next takes the first frame that was written and not taken yet. It waits until there
// is one, the port is closed, or ctx ends.
func (r *Recorder) Next(ctx context.Context) (packet.Frame, error) {
	r.init()
	return r.out.next(ctx)
}

// Written takes all frames that were written and not taken yet.
func (r *Recorder) Written() []packet.Frame {
	r.init()
	r.out.mu.Lock()
	defer r.out.mu.Unlock()
	frames := slices.Clone(r.out.frames)
	r.out.frames, r.out.bytes = nil, 0
	r.out.changed.Broadcast()
	return frames
}

// Stall makes WriteBatch wait until [Recorder.Resume]: the peer reads too slowly, or
// not at all.
func (r *Recorder) Stall() { r.init(); r.out.setStalled(true) }

// Resume ends what Stall began.
func (r *Recorder) Resume() { r.init(); r.out.setStalled(false) }

// Fail makes reads and writes return err from now on.
func (r *Recorder) Fail(err error) {
	r.init()
	r.in.end(err, err, true)
	r.out.end(err, err, false)
}

// ReadBatch implements [packet.Port].
func (r *Recorder) ReadBatch(b *packet.Batch) error { r.init(); return r.in.read(b) }

// WriteBatch implements [packet.Port]. It waits while [PairBuffer] is full.
func (r *Recorder) WriteBatch(b *packet.Batch) error {
	r.init()
	for f := range b.Frames() {
		if err := r.out.write(f); err != nil {
			return err
		}
	}
	return nil
}

// Close implements [packet.Port]. What was written can still be taken.
func (r *Recorder) Close() error {
	r.Fail(net.ErrClosed)
	return nil
}

// SendReach keeps what a server tells of its members.
func (r *Recorder) SendReach(members []packet.Member) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reaches = append(r.reaches, slices.Clone(members))
	return nil
}

// Reaches returns what SendReach was given, in its order.
func (r *Recorder) Reaches() [][]packet.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reaches)
}

// SendDrain counts that a server drains.
func (r *Recorder) SendDrain() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drains++
	return nil
}

// Drains is how often SendDrain was called.
func (r *Recorder) Drains() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drains
}

// Bye keeps the code of why a server ends the link.
func (r *Recorder) Bye(code, _ string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bye = code
	return nil
}

// ByeCode is the code that Bye was given last, empty before.
func (r *Recorder) ByeCode() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bye
}
