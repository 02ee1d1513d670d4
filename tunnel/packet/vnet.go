package packet

import "encoding/binary"

// virtioHeader is the header in front of a packet (Virtual I/O Device 1.2, §5.1.6):
//
//	flags | gso | length (2) | size (2) | start (2) | offset (2)
type virtioHeader struct {
	flags  uint8
	gso    uint8  // kind of segmentation
	length uint16 // of all headers; a hint
	size   uint16 // payload of each segment
	start  uint16 // what the checksum covers begins here in the packet, and goes to its end
	offset uint16 // of the checksum's field behind start
}

// Values of flags and gso.
const (
	flagPartial   = 1 // the checksum is partial: its field holds the sum of the pseudo header
	flagDataValid = 2 // some host has verified the checksum

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
	gsoECN   = 0x80 // with TCP: there is CWR, which only the first segment keeps
)

// readHeader takes the header off data, which has HeaderLen bytes at least.
func readHeader(data []byte) virtioHeader {
	_ = data[HeaderLen-1]
	return virtioHeader{
		flags:  data[0],
		gso:    data[1],
		length: binary.LittleEndian.Uint16(data[2:]),
		size:   binary.LittleEndian.Uint16(data[4:]),
		start:  binary.LittleEndian.Uint16(data[6:]),
		offset: binary.LittleEndian.Uint16(data[8:]),
	}
}

// put writes the header to data.
func (h virtioHeader) put(data []byte) {
	_ = data[HeaderLen-1]
	data[0], data[1] = h.flags, h.gso
	binary.LittleEndian.PutUint16(data[2:], h.length)
	binary.LittleEndian.PutUint16(data[4:], h.size)
	binary.LittleEndian.PutUint16(data[6:], h.start)
	binary.LittleEndian.PutUint16(data[8:], h.offset)
}

// needs is what the packet asks of its receiver. A kind of segmentation that there
// is not asks for a bit which nobody offers.
func (h virtioHeader) needs() Offload {
	var o Offload
	if h.flags&flagPartial != 0 {
		o = OffloadChecksum
	}
	switch h.gso {
	case gsoNone:
		return o
	case gsoTCPv4, gsoTCPv4 | gsoECN:
		return o | OffloadTSO4
	case gsoTCPv6, gsoTCPv6 | gsoECN:
		return o | OffloadTSO6
	case gsoUDP:
		return o | OffloadUSO
	}
	return ^OffloadAll
}

// A FrameError says what is wrong with a frame. It is one of the constants below, so that
// refusing a frame costs no memory.
type FrameError string

// Error returns the text.
func (e FrameError) Error() string { return string(e) }

// What [Check] and [Segment] find.
const (
	ErrTooShort     FrameError = "packet: shorter than its headers"
	ErrTooLong      FrameError = "packet: longer than the MTU allows"
	ErrMalformed    FrameError = "packet: headers contradict each other"
	ErrNotIP        FrameError = "packet: not an IP packet"
	ErrHeader       FrameError = "packet: virtio-net header with unknown values"
	ErrPartial      FrameError = "packet: partial checksum in a place where there is none"
	ErrSegmentation FrameError = "packet: segmentation that does not fit the packet"
)

// Check tells whether a frame that comes from somebody else may be given to a device,
// to [Segment] and to others. Nil means that it may. Otherwise it is a [FrameError]:
//
//   - The packet has its Ethernet header (TAP) and an IP header of full length if it is
//     IP, which it is in a TUN.
//   - A packet that is not to be segmented is no longer than mtu, and of one which is no
//     segment is; both count from the IP header on. (Ethernet: what is behind the
//     header and up to two VLAN tags.)
//   - A partial checksum lies behind the IP header, where the transport protocol has it,
//     else somebody could change addresses and ports after they were checked.
//   - Segmentation is TCP's or UDP's, agrees with what the packet is, has a partial
//     checksum, and makes at most [MaxSegments] packets (UDP: 128), of TCP none with
//     less than 8 bytes of payload but the last.
//
// Everything else is left to who reads the packet: addresses are not looked at. Check
// does not change the frame and does not allocate.
func Check(f Frame, m Mode, mtu int) error {
	switch n := len(f.Data) - HeaderLen; {
	case n <= 0:
		return ErrTooShort
	case n > MaxPacket:
		return ErrTooLong
	}
	h, p := readHeader(f.Data), f.Packet()
	l, err := locate(p, m)
	switch {
	case err != nil:
		return err
	case h.flags&^(flagPartial|flagDataValid) != 0 || int(h.length) > len(p):
		return ErrHeader
	case h.gso == gsoNone && len(p)-l.network > mtu:
		return ErrTooLong
	case h.gso == gsoNone && h.flags&flagPartial == 0:
		return nil
	}
	if err := l.unfinished(p, h); err != nil {
		return err
	}
	if h.gso != gsoNone && l.payload-l.network+min(int(h.size), len(p)-l.payload) > mtu {
		return ErrTooLong
	}
	return nil
}

// MaxSegments is the most packets that [Segment] makes of one. A packet of 64 KiB
// makes 45, unless its sender has a small MTU, or wants to make work.
const MaxSegments = 2048

const (
	// maxSegmentsUDP is the kernel's bound.
	maxSegmentsUDP = 128
	// minSizeTCP is what the kernel leaves of its least MSS, 48 bytes, for payload.
	minSizeTCP = 8
)

// unfinished checks the header of a packet that has a partial checksum or is to be
// segmented, and finds all that is needed to finish it.
func (l *layout) unfinished(p []byte, h virtioHeader) error {
	if h.flags&flagPartial == 0 {
		return ErrSegmentation // each segment needs a checksum
	}
	if l.version == 0 {
		return ErrPartial
	}
	if err := l.findTransport(p); err != nil {
		return err
	}
	start, field := int(h.start), int(h.start)+int(h.offset)
	if l.fragment != fragmentNone || start < l.transport || field+2 > len(p) {
		return ErrPartial
	}
	at := -1 // of the checksum in the transport header
	switch l.protocol {
	case protoTCP:
		at = 16
	case protoUDP, protoDCCP, protoUDPLite:
		at = 6
	case protoICMPv6:
		at = 2
	}
	switch {
	case at < 0: // a tunnel's: whatever is in there
	case start == l.transport && int(h.offset) == at:
	case start >= l.transport+udpLen && l.protocol == protoUDP: // likewise
	default:
		return ErrPartial
	}
	if h.gso == gsoNone {
		return nil
	}
	return l.segments(p, h)
}

// segments checks that what is to be segmented can be.
func (l *layout) segments(p []byte, h virtioHeader) error {
	version, protocol, most := uint8(4), uint8(protoTCP), MaxSegments
	switch h.gso {
	case gsoTCPv4, gsoTCPv4 | gsoECN:
	case gsoTCPv6, gsoTCPv6 | gsoECN:
		version = 6
	case gsoUDP:
		version, protocol, most = l.version, protoUDP, maxSegmentsUDP
	default:
		return ErrHeader
	}
	if l.version != version || l.protocol != protocol || int(h.start) != l.transport || h.size == 0 {
		return ErrSegmentation
	}
	length, rest := udpLen, len(p)-l.transport
	if protocol == protoTCP {
		if rest < tcpLen {
			return ErrTooShort
		}
		length = int(p[l.transport+12]>>4) * 4
		if length < tcpLen {
			return ErrMalformed
		}
		if h.size < minSizeTCP {
			return ErrSegmentation
		}
	}
	if rest < length {
		return ErrTooShort
	}
	l.payload = l.transport + length
	if (rest-length+int(h.size)-1)/int(h.size) > most {
		return ErrSegmentation
	}
	// The lengths in the headers are those of the whole, else they could not be
	// changed into those of the pieces.
	ip, lies := p[l.network:], false
	if l.version == 4 {
		lies = int(binary.BigEndian.Uint16(ip[2:])) != len(ip)
	} else {
		lies = int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-ipv6Len
	}
	if protocol == protoUDP && int(binary.BigEndian.Uint16(p[l.transport+4:])) != rest {
		lies = true
	}
	if lies {
		return ErrMalformed
	}
	return nil
}
