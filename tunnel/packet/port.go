package packet

import (
	"encoding/binary"
	"iter"
)

// Port is where packets come from and go to: a [Device], a [Conn], or a fake in
// a test. Packets travel in batches, because a system call for each would be
// most of the work.
type Port interface {
	// ReadBatch waits until there is at least one packet, and fills b with
	// that and what else is there. What b held before is gone, and what it
	// holds now is good until the next ReadBatch. One goroutine reads.
	ReadBatch(b *Batch) error
	// WriteBatch sends the packets of b in their order, and does not keep b.
	// Several goroutines may write.
	WriteBatch(b *Batch) error
	// Close ends both, also where they wait. Their errors are net.ErrClosed
	// then.
	Close() error
}

// Mode is what a packet is.
type Mode int

const (
	TUN Mode = iota // an IP packet, version 4 or 6
	TAP             // an Ethernet frame without its check sequence
)

// String returns tun or tap.
func (m Mode) String() string {
	switch m {
	case TUN:
		return "tun"
	case TAP:
		return "tap"
	}
	return "unknown"
}

// Sizes of what is carried.
const (
	// HeaderLen is the length of the virtio-net header in front of each packet.
	HeaderLen = 10
	// MaxPacket is the longest packet: an IP packet of 65,535 bytes, which
	// segmentation offload makes, behind an Ethernet header with one VLAN tag.
	MaxPacket = 65535 + 18
)

// Frame is one packet on its way.
type Frame struct {
	// Origin and Seq number what may arrive more than once, because it was sent
	// over several links: Seq counts from 1 for each Origin. Zero: it is not
	// numbered.
	Origin, Seq uint64
	// Data is the virtio-net header of [HeaderLen] bytes, in little endian (Virtual I/O
	// Device 1.2, §5.1.6, without num_buffers), and the packet. All zeros mean a whole
	// packet with all its checksums.
	Data []byte
}

// Packet is the packet without its virtio-net header.
func (f Frame) Packet() []byte { return f.Data[HeaderLen:] }

// DefaultBatch is how many bytes a Batch holds unless told otherwise.
const DefaultBatch = 256 << 10

// On the wire and in a Batch each frame has a head of four bytes:
//
//	type (1 byte) | length (3 bytes, big endian) | payload
const (
	frameHead    = 4
	numberLen    = 16 // origin and seq, big endian
	typePacket   = 1  // virtio-net header, packet
	typeNumbered = 2  // origin, seq, virtio-net header, packet
	// Longest payload of a frame that carries a packet.
	maxPayload = numberLen + HeaderLen + MaxPacket
)

// Batch is a run of frames in one piece of memory, laid out as they are on the
// wire, so that what was read in one piece is written in one piece. The zero
// value is empty and holds up to [DefaultBatch] bytes. It is not safe for
// concurrent use.
type Batch struct {
	data  []byte // frames; own memory or, after a read, the reader's
	own   []byte // memory to append to, made at the first use
	limit int    // capacity of own
	n     int    // frames
}

// NewBatch returns a Batch that holds size bytes, at least one packet of the
// largest size. 0 means [DefaultBatch].
func NewBatch(size int) *Batch {
	if size == 0 {
		size = DefaultBatch
	}
	return &Batch{limit: max(size, frameHead+maxPayload)}
}

// Len is the number of frames.
func (b *Batch) Len() int { return b.n }

// Size is the number of bytes on the wire.
func (b *Batch) Size() int { return len(b.data) }

// Reset empties the batch.
func (b *Batch) Reset() {
	b.data = b.own[:0]
	b.n = 0
}

// Append copies a frame to the end. It reports false, and leaves b as it was, if
// the frame does not fit or is no frame: a packet is 1 to [MaxPacket] bytes
// long.
func (b *Batch) Append(f Frame) bool {
	room := b.room(frameHead + numberLen + len(f.Data))
	if room == nil || len(f.Data) <= HeaderLen || len(f.Data) > HeaderLen+MaxPacket {
		return false
	}
	payload := room[frameHead:]
	if f.Seq != 0 {
		binary.BigEndian.PutUint64(payload, f.Origin)
		binary.BigEndian.PutUint64(payload[8:], f.Seq)
		copy(payload[numberLen:], f.Data)
		b.commit(typeNumbered, numberLen+len(f.Data))
		return true
	}
	copy(payload, f.Data)
	b.commit(typePacket, len(f.Data))
	return true
}

// room returns at least n bytes behind the last frame, all that there are, or
// nil. The caller fills them from frameHead on and commits.
func (b *Batch) room(n int) []byte {
	if b.limit == 0 {
		b.limit = DefaultBatch
	}
	if b.own == nil {
		b.own = make([]byte, 0, b.limit)
	}
	if len(b.data) == 0 {
		b.data = b.own[:0]
	}
	if cap(b.data)-len(b.data) < n {
		return nil
	}
	return b.data[len(b.data):cap(b.data)]
}

// commit makes a frame of what room returned and the caller filled.
func (b *Batch) commit(kind byte, payload int) {
	at := len(b.data)
	b.data = b.data[:at+frameHead+payload]
	binary.BigEndian.PutUint32(b.data[at:], uint32(payload))
	b.data[at] = kind
	b.n++
}

// borrow makes b a view of n whole and checked frames that belong to a reader.
// Frames of other types than packets may be among them, and do not count.
func (b *Batch) borrow(data []byte, n int) {
	b.data = data[:len(data):len(data)]
	b.n = n
}

// Frames are the frames in their order. Their Data may be changed in place, and
// is good as long as that of the batch is.
func (b *Batch) Frames() iter.Seq[Frame] {
	return func(yield func(Frame) bool) {
		for rest := b.data; len(rest) >= frameHead; {
			kind, payload, next := cutFrame(rest)
			rest = next
			var f Frame
			switch {
			case kind == typePacket && len(payload) > HeaderLen:
				f.Data = payload
			case kind == typeNumbered && len(payload) > numberLen+HeaderLen:
				f.Origin = binary.BigEndian.Uint64(payload)
				f.Seq = binary.BigEndian.Uint64(payload[8:])
				f.Data = payload[numberLen:]
			default:
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

// cutFrame takes the first frame off data, which has a head at least. What is cut
// short ends it.
func cutFrame(data []byte) (kind byte, payload, rest []byte) {
	n := int(binary.BigEndian.Uint32(data) & 0xffffff)
	if n > len(data)-frameHead {
		return 0, nil, nil
	}
	end := frameHead + n
	return data[0], data[frameHead:end:end], data[end:]
}
