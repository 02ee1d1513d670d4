package packet

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// outbox is what is to be said of the link itself. It never waits for who writes
// packets: it rides along with the next batch, or with a write of Run's. It is
// bounded: PINGs are not sent faster than they are written, PONGs are few, and
// of REACH only the newest counts.
type outbox struct {
	reachWanted bool

	mu     sync.Mutex
	frames []byte // PING, PONG, DRAIN
	pinged bool   // a PING is among them
	pongs  int    // of them
	reach  []byte // the newest REACH
	drain  bool   // DRAIN was said
}

// sayDrain adds DRAIN, once.
func (o *outbox) sayDrain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.drain {
		o.drain = true
		o.frames, _ = appendControl(o.frames, typeDrain, struct{}{})
	}
}

// ping adds a PING, unless there is one that was not written yet: that says as
// much.
func (o *outbox) ping(m pingMessage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.pinged {
		o.pinged = true
		o.frames, _ = appendControl(o.frames, typePing, m)
	}
}

// pong adds the answer to a PING.
func (o *outbox) pong(body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pongs < maxPongsQueued {
		o.pongs++
		o.frames = append(o.frames, typePong, 0, byte(len(body)>>8), byte(len(body)))
		o.frames = append(o.frames, body...)
	}
}

func (o *outbox) setReach(frame []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reach = frame
}

// take moves everything to b.
func (o *outbox) take(b []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b = append(append(b, o.frames...), o.reach...)
	o.frames, o.reach = o.frames[:0], nil
	o.pinged, o.pongs = false, 0
	return b
}

func (o *outbox) empty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.frames) == 0 && len(o.reach) == 0
}

// writeLock is a mutex that may be held for seconds, and so is one that fake time goes
// on behind.
type writeLock chan struct{}

func (l writeLock) lock()   { l <- struct{}{} }
func (l writeLock) unlock() { <-l }

func (l writeLock) tryLock() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

// nudge has Run write what is in the outbox.
func (c *Conn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// WriteBatch sends the packets of b in one write (over TLS in pieces of 128 KiB),
// together with what there is to say of the link itself. What the peer does not take unfinished is finished
// here, see [Segment]; a packet that cannot be, or that is numbered and would become several,
// is dropped and counted: whoever numbers packets segments them before. So is what is longer
// than the link's MTU, which the far side would drop. It waits while the peer does not read, up to ConnOptions.WriteTimeout without
// progress, which ends the link. The error is that of ReadBatch.
func (c *Conn) WriteBatch(b *Batch) error {
	c.writing.lock()
	err := c.writeLocked(b)
	c.writing.unlock()
	if !c.out.empty() { // it came meanwhile
		c.nudge()
	}
	return err
}

// flush writes what is in the outbox, unless somebody is writing, who then calls
// for it.
func (c *Conn) flush() {
	if c.out.empty() || !c.writing.tryLock() {
		return
	}
	_ = c.writeLocked(nil)
	c.writing.unlock()
}

// writeLocked writes the outbox and then b, which may be nil.
func (c *Conn) writeLocked(b *Batch) error {
	c.mu.Lock()
	err := c.cause
	if err == nil && c.leaving != nil {
		err = c.leaving
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.control = c.out.take(c.control[:0])
	if c.below != nil {
		c.below.hold()
	}
	if len(c.control) > 0 {
		err = c.writeAll(c.control)
		if cap(c.control) > smallInbox {
			c.control = nil // REACH can be long, and is rare
		}
	}
	if err == nil && b != nil && b.Len() > 0 {
		err = c.writePackets(b)
	}
	if c.below != nil {
		err = errors.Join(err, c.below.flush())
	}
	if err != nil {
		return c.failWith(stalledOr(err))
	}
	return nil
}

// writePackets writes a batch as the peer takes it.
func (c *Conn) writePackets(b *Batch) error {
	if c.takes(b) {
		c.count(b)
		return c.writeAll(b.data)
	}
	c.parts.Reset()
	for f := range b.Frames() {
		if err := c.finish(f); err != nil {
			return err
		}
	}
	return c.flushParts()
}

// takes reports whether the peer takes all of b as it is.
func (c *Conn) takes(b *Batch) bool {
	for f := range b.Frames() {
		if !c.whole && readHeader(f.Data).needs()&^c.remote.Offload != 0 || c.tooLong(f) {
			return false
		}
	}
	return true
}

// tooLong reports whether a packet, or what it is to be cut into, is longer than the
// link's MTU. Most packets are shorter as they are.
func (c *Conn) tooLong(f Frame) bool {
	most := HeaderLen + c.MTU()
	if c.local.Mode == TAP {
		most += ethernetLen
	}
	return len(f.Data) > most && Check(f, c.local.Mode, c.MTU()) == ErrTooLong
}

// finish adds to the parts what Segment makes of a packet, all or nothing. The
// error is that of the connection.
func (c *Conn) finish(f Frame) error {
	if c.tooLong(f) {
		c.counts.tooLong.Add(1)
		return nil
	}
	n, before, whole := 0, c.parts, true
	var broken error
	err := Segment(f, c.local.Mode, c.remote.Offload, func(part Frame) error {
		if n++; n > 1 && f.Seq != 0 {
			return errNumbered
		}
		part.Origin, part.Seq = f.Origin, f.Seq
		if c.parts.Append(part) {
			return nil
		}
		whole = false // the beginning is on its way
		if broken = c.flushParts(); broken == nil && !c.parts.Append(part) {
			return errNumbered
		}
		return broken
	})
	if broken != nil {
		return broken
	}
	if err != nil {
		c.counts.unfit.Add(1)
		if whole {
			c.parts = before
		}
	}
	return nil
}

// flushParts writes the parts that there are.
func (c *Conn) flushParts() error {
	c.count(&c.parts)
	err := c.writeAll(c.parts.data)
	c.parts.Reset()
	return err
}

var errNumbered = errors.New("packet: a numbered packet cannot be cut")

func (c *Conn) count(b *Batch) {
	c.counts.writtenPackets.Add(uint64(b.Len()))
	c.counts.writtenBytes.Add(uint64(b.Size()))
}

// writeAll writes p. Our own socket below watches over progress itself.
func (c *Conn) writeAll(p []byte) error {
	if c.below != nil {
		_, err := c.conn.Write(p)
		return err
	}
	return writeAll(c.conn, p, c.o.WriteTimeout)
}

// stalledOr is the error of a failed write.
func stalledOr(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrStalled
	}
	return lost(err)
}

// SendReach tells the peer which members there are to reach, if it wants to
// know. Only the newest is sent where they come faster than they are written. What is
// more than it may be told is left out: members that are out of the bounds of a
// [Hello], and of 240 KiB of JSON the networks of those that have most of
// them, then addresses, then the last members. The error is why the link has ended.
func (c *Conn) SendReach(members []Member) error {
	return c.sendReach(func() []byte {
		frame, _ := encodeReach(members)
		return frame
	})
}

// sendReach is SendReach with a frame that others may get, too.
func (c *Conn) sendReach(frame func() []byte) error {
	if err := c.failure(); err != nil {
		return err
	}
	if !c.out.reachWanted {
		return nil
	}
	c.out.setReach(frame())
	c.nudge()
	return nil
}

// SendDrain tells the peer that this side will end the link soon. It may be called
// more than once. The error is why the link has ended.
func (c *Conn) SendDrain() error {
	if err := c.failure(); err != nil {
		return err
	}
	c.out.sayDrain()
	c.nudge()
	return nil
}

// byeTime bounds how long a BYE may take to be written, and then how long the peer
// may take to close.
const byeTime = time.Second

// Bye ends the link with words. It returns when the peer has closed its side,
// after two seconds at the latest. ReadBatch gives no packets any more and
// WriteBatch takes none; both end, as does Run, with a *[ByeError].
func (c *Conn) Bye(code, reason string) error { return c.end(bye(code, reason)) }

func (c *Conn) end(e *ByeError) error {
	if !c.startLeaving(e) {
		<-c.over
		return c.failure()
	}
	// It ends what waits to be written, too.
	late := time.AfterFunc(2*byeTime, func() { c.fail(e) })
	defer late.Stop()
	c.sayBye(e)
	<-c.over // the reader has seen the peer close, or it is too late
	return nil
}

// leave is end where nobody reads: it reads away what the peer has sent, because
// a close with bytes unread would reset the connection, and BYE with it.
func (c *Conn) leave(e *ByeError) {
	if !c.startLeaving(e) {
		return
	}
	late := time.AfterFunc(2*byeTime, func() { c.fail(e) })
	defer late.Stop()
	c.sayBye(e)
	var away [4 << 10]byte
	for {
		if _, err := c.conn.Read(away[:]); err != nil {
			break
		}
	}
	c.fail(e)
}

// startLeaving makes e the end of the link, unless there is one already.
func (c *Conn) startLeaving(e *ByeError) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil || c.leaving != nil {
		return false
	}
	c.leaving = e
	return true
}

// sayBye writes what is in the outbox and BYE, and half-closes.
func (c *Conn) sayBye(e *ByeError) {
	late := time.AfterFunc(byeTime, func() { c.fail(e) })
	defer late.Stop()
	c.writing.lock()
	defer c.writing.unlock()
	b, err := appendControl(c.out.take(nil), typeBye, e.message())
	if err == nil {
		err = c.writeAll(b)
	}
	if err == nil {
		_ = relay.CloseWrite(c.conn)
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(byeTime))
}
