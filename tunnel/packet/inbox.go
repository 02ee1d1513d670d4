package packet

import "io"

// Sizes of an inbox.
const (
	smallInbox = 4 << 10
	largeInbox = 256 << 10 // at least one frame of the largest size
	// After so many reads in a row that needed little, an inbox shrinks: that is
	// eight seconds of PINGs and PONGs and nothing else.
	fewReads = 32
)

// inbox is the memory that a reader reads into in big pieces. It grows as reads fill
// it and shrinks when they do not, so that an idle link holds 4 KiB and a busy
// one makes few system calls. What was cut from it is good until the next fill.
type inbox struct {
	buf        []byte
	start, end int // what is unread
	most       int // largest that it may grow to
	little     int // reads in a row that needed less than an eighth
}

// unread is what was read and not cut yet.
func (b *inbox) unread() []byte { return b.buf[b.start:b.end] }

// fill reads once. Before, it makes room for need bytes, counted from the first
// unread one.
func (b *inbox) fill(r io.Reader, need int) error {
	b.arrange(need)
	return b.more(r)
}

// more reads once into the room that there is.
func (b *inbox) more(r io.Reader) error {
	n, err := r.Read(b.buf[b.end:])
	b.end += n
	if n > 0 {
		return nil // the error comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// room is how many bytes more can be read.
func (b *inbox) room() int { return len(b.buf) - b.end }

func (b *inbox) arrange(need int) {
	size := max(len(b.buf), smallInbox)
	switch {
	case b.end == len(b.buf): // the last read filled it
		size = min(4*len(b.buf), b.most)
		b.little = 0
	case b.end >= len(b.buf)/8:
		b.little = 0
	default:
		if b.little++; b.little >= fewReads {
			size = max(len(b.buf)/8, smallInbox)
			b.little = 0
		}
	}
	size = max(size, need, smallInbox)
	unread := b.unread()
	if size < len(unread)+1 {
		size = len(b.buf)
	}
	if size != len(b.buf) {
		b.buf = make([]byte, size)
	}
	b.end = copy(b.buf, unread)
	b.start = 0
}
