package packettest

import (
	"context"
	"net"
	"slices"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// PairBuffer is how many bytes of packets each direction of a [Pair] holds before a
// writer waits.
const PairBuffer = 4 << 20

// Port is one end of a [Pair]. It is a [packet.Port] and made by Pair alone. All its
// methods may be called by several goroutines at once.
type Port struct {
	in, out *pipe
}

// Pair returns two ports: what is written to one is read from the other, in its
// order and without loss. A writer waits while [PairBuffer] is full. When one end is
// closed or fails, the other fails with net.ErrClosed once it has read what was
// written before.
func Pair() (a, b *Port) {
	x, y := newPipe(), newPipe()
	return &Port{in: x, out: y}, &Port{in: y, out: x}
}

// ReadBatch implements [packet.Port].
func (p *Port) ReadBatch(b *packet.Batch) error { return p.in.read(b) }

// WriteBatch implements [packet.Port].
func (p *Port) WriteBatch(b *packet.Batch) error {
	for f := range b.Frames() {
		if err := p.out.write(f); err != nil {
			return err
		}
	}
	return nil
}

// Send writes frames, each in a batch of its own.
func (p *Port) Send(frames ...packet.Frame) error {
	for _, f := range frames {
		if err := p.out.write(f); err != nil {
			return err
		}
	}
	return nil
}

// Receive reads one frame, which is the caller's. It waits until there is one or ctx
// ends, and returns its cause then.
func (p *Port) Receive(ctx context.Context) (packet.Frame, error) { return p.in.next(ctx) }

// Stall makes WriteBatch and Send of this end wait until [Port.Resume]: the peer
// reads too slowly, or not at all.
func (p *Port) Stall() { p.out.setStalled(true) }

// Resume ends what Stall began.
func (p *Port) Resume() { p.out.setStalled(false) }

// Fail ends both directions with an error, as a device does which is deleted: what was
// not read yet is gone, and both methods return err from now on.
func (p *Port) Fail(err error) {
	p.in.end(err, err, true)
	p.out.end(net.ErrClosed, err, false)
}

// Close implements [packet.Port].
func (p *Port) Close() error {
	p.Fail(net.ErrClosed)
	return nil
}

// pipe is one direction.
type pipe struct {
	mu       sync.Mutex
	changed  sync.Cond
	frames   []packet.Frame
	bytes    int
	stalled  bool
	readErr  error // once frames is empty
	writeErr error
}

func newPipe() *pipe {
	p := new(pipe)
	p.changed.L = &p.mu
	return p
}

func (p *pipe) write(f packet.Frame) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.writeErr == nil && (p.stalled || p.bytes > 0 && p.bytes+len(f.Data) > PairBuffer) {
		p.changed.Wait()
	}
	if p.writeErr != nil {
		return p.writeErr
	}
	f.Data = slices.Clone(f.Data)
	p.frames = append(p.frames, f)
	p.bytes += len(f.Data)
	p.changed.Broadcast()
	return nil
}

func (p *pipe) read(b *packet.Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.Reset()
	for {
		for len(p.frames) > 0 {
			if !b.Append(p.frames[0]) && b.Len() > 0 {
				return nil // full
			}
			p.pop() // also what is no frame, which no port would carry
		}
		if b.Len() > 0 {
			return nil
		}
		if p.readErr != nil {
			return p.readErr
		}
		p.changed.Wait()
	}
}

// pop takes the first frame off; p.mu is held.
func (p *pipe) pop() {
	p.bytes -= len(p.frames[0].Data)
	p.frames[0] = packet.Frame{}
	p.frames = p.frames[1:]
	p.changed.Broadcast()
}

func (p *pipe) next(ctx context.Context) (packet.Frame, error) {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changed.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.frames) == 0 && p.readErr == nil && ctx.Err() == nil {
		p.changed.Wait()
	}
	switch {
	case len(p.frames) > 0:
		f := p.frames[0]
		p.pop()
		return f, nil
	case p.readErr != nil:
		return packet.Frame{}, p.readErr
	}
	return packet.Frame{}, context.Cause(ctx)
}

// end ends the pipe; what ended it first counts. If drop, what is in it is gone.
func (p *pipe) end(readErr, writeErr error, drop bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if drop {
		p.frames, p.bytes = nil, 0
	}
	if p.readErr == nil {
		p.readErr, p.writeErr = readErr, writeErr
	}
	p.changed.Broadcast()
}

func (p *pipe) setStalled(stalled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = stalled
	p.changed.Broadcast()
}
