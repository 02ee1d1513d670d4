package packet

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"time"
)

// ReadBatch waits for packets and makes b a view of all that came in one piece;
// nothing is copied. What the peer says of the link is dealt with on the way. The
// error is why the link has ended: a *[ByeError], [ErrDead], [ErrStalled],
// [ErrProtocol], the loss of the connection, or net.ErrClosed after Close.
//
// A single packet that is wrong in itself, such as an empty one, one longer than
// the link's MTU, or one with a nonsensical virtio-net header, is dropped and counted.
func (c *Conn) ReadBatch(b *Batch) error {
	for {
		n, need, err := c.cut(b)
		if n > 0 {
			return nil
		}
		if err != nil {
			return c.failWith(err)
		}
		if err := c.fill(need); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errUnread // nobody sets one but BYE
			}
			return c.failWith(lost(err))
		}
	}
}

var errUnread = errors.New("the peer did not close")

// fill waits for more, and takes all that is there.
func (c *Conn) fill(need int) error {
	c.waiting.Store(int64(time.Since(c.born)) + 1)
	err := c.in.fill(c.conn, need)
	c.waiting.Store(0)
	if err != nil || c.below == nil {
		return err
	}
	// A TLS connection gives one record at a time. What ends it comes again.
	for c.below.hasRecord() && c.in.room() > 0 && c.in.more(c.conn) == nil {
	}
	return nil
}

// cut makes b a view of the packets that were read, up to what is none: a frame that
// is not a packet, or a bad packet. These are taken out first, so that a view
// can be passed on as it is. If there is no packet, it says how many bytes the next
// frame needs.
func (c *Conn) cut(b *Batch) (n, need int, err error) {
	at := c.in.start
	for {
		rest := c.in.buf[at:c.in.end]
		need = frameHead
		if len(rest) < need {
			break
		}
		kind, length := rest[0], int(binary.BigEndian.Uint32(rest)&0xffffff)
		least, most, err := bounds(kind)
		if err == nil && (length < least || length > most) {
			err = malformed("type %d with a payload of %d bytes, not %d to %d", kind, length, least, most)
		}
		if err != nil {
			if n > 0 {
				break
			}
			return 0, 0, err
		}
		if need = frameHead + length; len(rest) < need {
			break
		}
		payload := rest[frameHead:need:need]
		if kind < firstControl && c.acceptable(kind, payload) {
			n++
			at += need
			continue
		}
		if n > 0 {
			break // the next call comes by here again
		}
		at += need
		c.in.start = at
		if kind < firstControl {
			c.counts.bad.Add(1)
		} else if err := c.handle(kind, payload); err != nil {
			return 0, 0, err
		}
	}
	if n == 0 || c.isLeaving() {
		c.in.start = at
		return 0, need, nil
	}
	c.counts.readPackets.Add(uint64(n))
	c.counts.readBytes.Add(uint64(at - c.in.start))
	b.borrow(c.in.buf[c.in.start:at], n)
	c.in.start = at
	return n, 0, nil
}

// acceptable reports whether a packet is good enough to be passed on.
func (c *Conn) acceptable(kind byte, payload []byte) bool {
	f := Frame{Data: payload}
	if kind == typeNumbered {
		f.Origin = binary.BigEndian.Uint64(payload)
		f.Seq = binary.BigEndian.Uint64(payload[8:])
		f.Data = payload[numberLen:]
		if f.Seq == 0 {
			return false
		}
	}
	return Check(f, c.local.Mode, c.MTU()) == nil
}

// handle takes a control frame. What it keeps of body it copies.
func (c *Conn) handle(kind byte, body []byte) error {
	switch kind {
	case typeHello:
		return malformed("a second HELLO")
	case typePing:
		if len(body) > maxPing {
			return malformed("PING with %d bytes", len(body))
		}
		if !c.pongs.Take(maxPongs) {
			c.counts.ignored.Add(1)
			return nil
		}
		c.out.pong(body)
		c.nudge()
	case typePong:
		if len(body) > maxPing {
			return malformed("PONG with %d bytes", len(body))
		}
		if !c.pings.expects() {
			c.counts.ignored.Add(1)
			return nil
		}
		var m pingMessage
		if err := json.Unmarshal(body, &m); err != nil {
			return malformed("PONG: %v", err)
		}
		c.pings.pong(m, time.Since(c.born))
	case typeReach:
		if c.o.NoReach {
			c.counts.ignored.Add(1)
			return nil
		}
		members, skipped, err := decodeReach(body)
		if err != nil {
			return err
		}
		c.counts.skipped.Add(uint64(skipped))
		c.mu.Lock()
		c.reach = members
		told := c.onReach
		c.mu.Unlock()
		if told != nil {
			told(members)
		}
	case typeDrain:
		c.mu.Lock()
		first := !c.draining
		c.draining = true
		told := c.onDrain
		c.mu.Unlock()
		if first && told != nil {
			told()
		}
	case typeBye:
		return decodeBye(body)
	default:
		c.counts.ignored.Add(1)
	}
	return nil
}

// OnReach sets the function that is called with the members that the peer, a
// server, has links to: soon after the start and after each change. It is called
// by the goroutine in ReadBatch, must not block, and must not change the
// members. Set it before ReadBatch and Run.
func (c *Conn) OnReach(f func([]Member)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReach = f
}

// OnDrain sets the function that is called once when the peer says that it will
// end the link soon. It is called as OnReach's is.
func (c *Conn) OnDrain(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onDrain = f
}

// Reach is what the peer said last of the members that it has links to; nil if
// it did not yet. It must not be changed.
func (c *Conn) Reach() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reach
}

// Draining reports whether the peer has said that it will end the link soon.
func (c *Conn) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

func (c *Conn) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving != nil
}
