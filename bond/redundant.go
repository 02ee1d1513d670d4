package bond

import (
	"encoding/binary"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// What is sent over several links is numbered, and of what comes with the same
// number the first counts. The numbers of an origin are looked at through a window,
// as in RFC 4303, §3.4.3: what is older than it counts as known.
//
// The origin is claimed by its sender, and anybody who gets a broadcast knows that of
// another. So windows are kept for what the server vouches for, the source of the
// frame: with whatever numbers, one spoils only his own. (Members which may use the
// same networks have one source in common and have to trust each other.)

// windowWords is the size of a window in words of 64 numbers. One word is always
// being cleared, so that a window holds windowLen numbers.
const (
	windowWords = 64
	windowLen   = (windowWords - 1) * 64
)

// window is what is known of the numbers of one origin. Its zero value knows none.
type window struct {
	origin uint64
	top    uint64 // the highest number
	bits   [windowWords]uint64
	used   uint64 // when, in frames
}

// accept reports whether seq, which is not 0, comes for the first time.
func (w *window) accept(seq uint64) bool {
	if seq > w.top {
		last, now := w.top/64, seq/64
		for i := uint64(1); i <= min(now-last, windowWords); i++ {
			w.bits[(last+i)%windowWords] = 0
		}
		w.top = seq
	} else if w.top-seq >= windowLen {
		return false
	}
	word, bit := &w.bits[seq/64%windowWords], uint64(1)<<(seq%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// source is who has sent a frame, as far as the server vouches for it: a MAC, the
// number of a member, or an address.
type source struct {
	hi, lo uint64
}

// history is what is known of the numbers of a source: of a few origins, since a
// process that begins again is a new one.
type history struct {
	windows [4]*window
	used    uint64
}

// find returns the window of an origin, a new one if need be, for which the one is
// given up that was not used for longest.
func (h *history) find(origin uint64) *window {
	oldest := 0
	for i, w := range h.windows {
		if w != nil && w.origin == origin {
			return w
		}
		if o := h.windows[oldest]; o != nil && (w == nil || w.used < o.used) {
			oldest = i
		}
	}
	w := &window{origin: origin}
	h.windows[oldest] = w
	return w
}

// maxSources bounds the histories. It is far more than a network has members: what
// is beyond has sources that no member has.
const maxSources = 1024

// filter drops what came before. Its zero value knows nothing. It is not safe for
// concurrent use.
type filter struct {
	sources map[source]*history
	clock   uint64 // counts frames
}

// accept reports whether a numbered frame comes for the first time.
func (d *filter) accept(t *table, f packet.Frame) bool {
	s, ok := t.source(f.Packet())
	if !ok {
		return false // no packet
	}
	d.clock++
	h := d.sources[s]
	if h == nil {
		h = d.add(t, s)
	}
	w := h.find(f.Origin)
	h.used, w.used = d.clock, d.clock
	return w.accept(f.Seq)
}

// add makes room for a source: of those which belong to no member the one goes
// that was not heard of for longest, and only then one of a member's.
func (d *filter) add(t *table, s source) *history {
	if d.sources == nil {
		d.sources = make(map[source]*history)
	}
	if len(d.sources) >= maxSources {
		var oldest source
		var found, stranger bool
		var used uint64
		for o, h := range d.sources {
			strange := !t.knows(o)
			if !found || strange && !stranger || strange == stranger && h.used < used {
				oldest, found, stranger, used = o, true, strange, h.used
			}
		}
		delete(d.sources, oldest)
	}
	h := new(history)
	d.sources[s] = h
	return h
}

// fresh returns b, or out with those frames of b that come for the first time, and
// how many did not. Nothing is left if the batch is nil.
func (d *filter) fresh(t *table, b, out *packet.Batch, flush func(*packet.Batch)) (rest *packet.Batch, doubles int) {
	i := 0
	for f := range b.Frames() {
		known := f.Seq != 0 && !d.accept(t, f)
		if known && doubles == 0 { // from here on it is copied
			out.Reset()
			j := 0
			for g := range b.Frames() {
				if j++; j > i {
					break
				}
				put(out, g, flush)
			}
		}
		i++
		if known {
			doubles++
		} else if doubles > 0 {
			put(out, f, flush)
		}
	}
	switch {
	case doubles == 0:
		return b, 0
	case out.Len() == 0:
		return nil, doubles
	}
	return out, doubles
}

// put appends to a batch, which is flushed when it is full.
func put(b *packet.Batch, f packet.Frame, flush func(*packet.Batch)) {
	f.Origin, f.Seq = 0, 0
	if !b.Append(f) && b.Len() > 0 {
		flush(b)
		b.Reset()
		b.Append(f)
	}
}

// source is who sent a packet: of an Ethernet frame its MAC, of an IP packet the
// member to whom the address belongs, or else the address.
func (t *table) source(p []byte) (s source, ok bool) {
	if t.mode == packet.TAP {
		if len(p) < etherLen {
			return source{}, false
		}
		first := uint64(binary.BigEndian.Uint16(p[6:]))
		if first>>8 == macFirst {
			first = macFirst << 8 // whatever the leg, it is one member
		}
		return source{lo: first<<32 | uint64(binary.BigEndian.Uint32(p[8:]))}, true
	}
	from, _, ok := addresses(p)
	if !ok {
		return source{}, false
	}
	if r := t.lookup(from); r != nil {
		return source{lo: r.peer}, true
	}
	b := from.As16()
	// A bit that no source of a member has.
	return source{hi: binary.BigEndian.Uint64(b[:8]) | 1<<63, lo: binary.BigEndian.Uint64(b[8:])}, true
}

// knows reports whether a source is a member's.
func (t *table) knows(s source) bool {
	if t.mode == packet.TAP {
		return s.lo>>40 == macFirst && t.macs[uint32(s.lo)] != nil
	}
	return s.hi == 0
}
