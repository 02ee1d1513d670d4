package packet

import (
	"encoding/binary"
	"sync"
)

// scratch holds packets while they are made.
var scratch = sync.Pool{New: func() any { return new([HeaderLen + MaxPacket]byte) }}

// Segment finishes what the sender of a frame has left to its receiver, as far as
// the receiver does not take it: it cuts a packet of TCP or UDP into segments, and
// completes checksums. Each frame that results is given to emit in turn and good
// until emit returns; f itself is one if there is nothing to do. Segment returns the first
// error of emit, and a [FrameError] if f is malformed, after which nothing was
// emitted. f is left as it is.
//
// Segments are what the kernel would make: sequence numbers and IP identifications
// go up, FIN and PSH are on the last one, CWR is on the first. If take has
// OffloadChecksum, their checksums are left partial.
//
// They have no number: a frame with Origin and Seq that may arrive twice has to be
// segmented before it is numbered.
func Segment(f Frame, m Mode, take Offload, emit func(Frame) error) error {
	if len(f.Data) <= HeaderLen {
		return ErrTooShort
	}
	h := readHeader(f.Data)
	needs, take := h.needs(), take.usable()
	if needs&^take == 0 {
		return emit(f)
	}
	p := f.Packet()
	if len(p) > MaxPacket {
		return ErrTooLong
	}
	l, err := locate(p, m)
	if err == nil {
		err = l.unfinished(p, h)
	}
	if err != nil {
		return err
	}
	buffer := scratch.Get().(*[HeaderLen + MaxPacket]byte)
	defer scratch.Put(buffer)
	if h.gso != gsoNone {
		return l.cut(p, h, take, buffer[:], emit)
	}
	n := copy(buffer[:], f.Data)
	virtioHeader{}.put(buffer[:])
	finishChecksum(buffer[HeaderLen+int(h.start):n], int(h.offset))
	f.Data = buffer[:n]
	return emit(f)
}

// cut makes the segments of p in buffer, one after the other.
func (l *layout) cut(p []byte, h virtioHeader, take Offload, buffer []byte, emit func(Frame) error) error {
	head := virtioHeader{}
	if take&OffloadChecksum != 0 {
		head = virtioHeader{flags: flagPartial, start: h.start, offset: h.offset}
	}
	whole := len(p) - l.transport
	payload := p[l.payload:]
	for i := 0; i == 0 || len(payload) > 0; i++ {
		n := min(int(h.size), len(payload))
		last := n == len(payload)
		head.put(buffer)
		s := buffer[HeaderLen : HeaderLen+l.payload+n]
		copy(s, p[:l.payload])
		copy(s[l.payload:], payload[:n])
		payload = payload[n:]

		l.fitNetwork(s, i)
		transport := s[l.transport:]
		if l.protocol == protoTCP {
			fitTCP(transport, i*int(h.size), i == 0, last)
		} else {
			binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
		}
		// The partial checksum is a sum which has the length in it.
		field := transport[h.offset:]
		binary.BigEndian.PutUint16(field, exchange(binary.BigEndian.Uint16(field), uint16(whole), uint16(len(transport))))
		if head.flags == 0 {
			finishChecksum(transport, int(h.offset))
		}
		if err := emit(Frame{Data: buffer[:HeaderLen+len(s)]}); err != nil {
			return err
		}
	}
	return nil
}

// fitNetwork gives the segment s the IP header of number i of its packet.
func (l *layout) fitNetwork(s []byte, i int) {
	ip := s[l.network:]
	if l.version == 6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
		return
	}
	header := ip[:l.transport-l.network]
	binary.BigEndian.PutUint16(header[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(header[4:], binary.BigEndian.Uint16(header[4:])+uint16(i))
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^sum(header))
}

// Flags of TCP.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// fitTCP gives the header of a segment its sequence number and flags.
func fitTCP(tcp []byte, offset int, first, last bool) {
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(offset))
	if !first {
		tcp[13] &^= tcpCWR
	}
	if !last {
		tcp[13] &^= tcpFIN | tcpPSH
	}
}
