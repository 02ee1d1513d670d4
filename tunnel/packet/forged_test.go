package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// forged is a packet of a test, written out field by field.
type forged struct {
	mode       Mode
	vlan       int   // tags
	version    uint8 // of IP
	options    []byte
	extensions []byte // IPv6: of protocol first, the last of which names protocol
	first      uint8  // IPv6: the protocol in the IP header, if there are extensions
	protocol   uint8  // TCP or UDP
	flags      byte   // of TCP
	tcpOptions []byte
	seq        uint32
	id         uint16
	ttl        byte
	payload    []byte
	src, dst   byte // last byte of the addresses 10.0.x.x and fd00::x

	header virtioHeader // put as it is, but for start and offset of what is partial
	whole  bool         // the checksum is complete
}

// frame writes the packet.
func (g forged) frame() Frame {
	b := make([]byte, HeaderLen)
	if g.mode == TAP {
		b = append(b, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1)
		for range g.vlan {
			b = append(b, 0x81, 0, 0, 7)
		}
		if g.version == 4 {
			b = append(b, 8, 0)
		} else {
			b = append(b, 0x86, 0xdd)
		}
	}
	transport := g.transport()
	var pseudo []byte
	ttl := g.ttl
	if ttl == 0 {
		ttl = 64
	}
	if g.version == 4 {
		src, dst := []byte{10, 0, g.src, 1}, []byte{10, 0, g.dst, 2}
		ip := []byte{0x45 + byte(len(g.options)/4), 0, 0, 0, byte(g.id >> 8), byte(g.id), 0x40, 0, ttl, g.protocol, 0, 0}
		ip = append(append(append(ip, src...), dst...), g.options...)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(transport)))
		binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip))
		b = append(b, ip...)
		pseudo = append(append(pseudo, src...), dst...)
		pseudo = append(pseudo, 0, g.protocol, byte(len(transport)>>8), byte(len(transport)))
	} else {
		next := g.protocol
		if g.extensions != nil {
			next = g.first
		}
		src, dst := make([]byte, 16), make([]byte, 16)
		src[0], src[7], src[15], dst[0], dst[7], dst[15] = 0xfd, g.src, 1, 0xfd, g.dst, 2
		n := len(g.extensions) + len(transport)
		b = append(b, 0x60, 0, 0, 0, byte(n>>8), byte(n), next, ttl)
		b = append(append(append(b, src...), dst...), g.extensions...)
		pseudo = append(append(pseudo, src...), dst...)
		pseudo = append(pseudo, 0, 0, byte(len(transport)>>8), byte(len(transport)), 0, 0, 0, g.protocol)
	}
	start := len(b) - HeaderLen
	offset := 16
	if g.protocol == protoUDP {
		offset = 6
	}
	partial := plainSum(pseudo)
	binary.BigEndian.PutUint16(transport[offset:], partial)
	h := g.header
	if g.whole {
		c := ^plainSum(transport)
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(transport[offset:], c)
	} else {
		h.flags |= flagPartial
		h.start, h.offset = uint16(start), uint16(offset)
	}
	b = append(b, transport...)
	h.put(b)
	return Frame{Data: b}
}

func (g forged) transport() []byte {
	if g.protocol == protoUDP {
		n := udpLen + len(g.payload)
		return append([]byte{0x12, 0x34, 0x56, 0x78, byte(n >> 8), byte(n), 0, 0}, g.payload...)
	}
	t := []byte{0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 1, 2, 3, 4, byte((tcpLen + len(g.tcpOptions)) / 4 << 4), g.flags, 0xff, 0xff, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(t[4:], g.seq)
	return append(append(t, g.tcpOptions...), g.payload...)
}

// gso returns the kind of segmentation that fits.
func (g forged) gso() uint8 {
	switch {
	case g.protocol == protoUDP:
		return gsoUDP
	case g.version == 4:
		return gsoTCPv4
	}
	return gsoTCPv6
}

// plainSum is the sum as RFC 1071 writes it.
func plainSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// dissected is what a test reads in a packet. All its lengths and checksums are right.
type dissected struct {
	layout
	id      uint16
	seq     uint32
	flags   byte
	payload []byte
	headers []byte // with all zero that differs among segments
}

// dissect reads a packet of TCP or UDP without this package's functions but to locate
// it.
func dissect(t testing.TB, f Frame, m Mode) dissected {
	t.Helper()
	p := f.Packet()
	l, err := locate(p, m)
	if err == nil {
		err = l.findTransport(p)
	}
	if err != nil {
		t.Fatalf("%v: % x", err, p)
	}
	d := dissected{layout: l}
	d.headers = bytes.Clone(p)
	ip := p[l.network:]
	transport := p[l.transport:]
	var pseudo []byte
	if l.version == 4 {
		if n := int(binary.BigEndian.Uint16(ip[2:])); n != len(ip) {
			t.Fatalf("IPv4 length %d, want %d", n, len(ip))
		}
		if s := plainSum(ip[:l.transport-l.network]); s != 0xffff {
			t.Fatalf("the IPv4 header sums up to %#x", s)
		}
		d.id = binary.BigEndian.Uint16(ip[4:])
		pseudo = append(pseudo, ip[12:20]...)
		clear(d.headers[l.network+2 : l.network+6])
		clear(d.headers[l.network+10 : l.network+12])
	} else {
		if n := int(binary.BigEndian.Uint16(ip[4:])); n != len(ip)-ipv6Len {
			t.Fatalf("IPv6 length %d, want %d", n, len(ip)-ipv6Len)
		}
		pseudo = append(pseudo, ip[8:40]...)
		clear(d.headers[l.network+4 : l.network+6])
	}
	pseudo = append(pseudo, 0, l.protocol, byte(len(transport)>>8), byte(len(transport)))
	switch l.protocol {
	case protoTCP:
		n := int(transport[12]>>4) * 4
		d.seq, d.flags, d.payload = binary.BigEndian.Uint32(transport[4:]), transport[13], transport[n:]
		d.headers = d.headers[:l.transport+n]
		clear(d.headers[l.transport+4 : l.transport+8])
		clear(d.headers[l.transport+13 : l.transport+14])
		clear(d.headers[l.transport+16 : l.transport+18])
	case protoUDP:
		if n := int(binary.BigEndian.Uint16(transport[4:])); n != len(transport) {
			t.Fatalf("UDP length %d, want %d", n, len(transport))
		}
		if transport[6] == 0 && transport[7] == 0 {
			t.Fatal("UDP without a checksum")
		}
		d.payload = transport[udpLen:]
		d.headers = d.headers[:l.transport+udpLen]
		clear(d.headers[l.transport+4 : l.transport+8])
	}
	h := readHeader(f.Data)
	if h.flags&flagPartial != 0 {
		at := l.transport + int(h.offset)
		if int(h.start) != l.transport || binary.BigEndian.Uint16(p[at:])%0xffff != plainSum(pseudo)%0xffff {
			t.Fatalf("partial checksum %#x at %d, want %#x at %d", p[at:at+2], h.start, plainSum(pseudo), l.transport)
		}
		h.flags, h.start, h.offset = 0, 0, 0
	} else if s := plainSum(append(pseudo, transport...)); s != 0xffff {
		t.Fatalf("transport with its pseudo header sums up to %#x", s)
	}
	if h != (virtioHeader{}) {
		t.Fatalf("virtio-net header %+v is left", h)
	}
	return d
}

// randomForged draws a packet that asks for segmentation.
func randomForged(r *rand.Rand) forged {
	pick := func(n int) []byte {
		b := make([]byte, n, n+8)
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(b[i:i+8], r.Uint64())
		}
		return b
	}
	g := forged{
		mode: Mode(r.IntN(2)), version: 4 + 2*uint8(r.IntN(2)), protocol: protoTCP,
		flags: byte(r.Uint32()) &^ tcpSYN, seq: r.Uint32(), id: uint16(r.Uint32()), src: byte(r.Uint32()), dst: byte(r.Uint32()),
	}
	if g.mode == TAP {
		g.vlan = r.IntN(3)
	}
	if r.IntN(4) == 0 {
		g.protocol = protoUDP
	} else {
		g.tcpOptions = pick(4 * r.IntN(11))
	}
	if g.version == 4 {
		g.options = pick(4 * r.IntN(11))
	} else if r.IntN(3) == 0 {
		g.first, g.extensions = protoHopByHop, append([]byte{g.protocol, 1, 5, 2, 0, 0, 1, 12}, pick(8)...)
	}
	size := 8 + r.IntN(1500)
	most := 60000
	if g.protocol == protoUDP {
		most = min(most, size*maxSegmentsUDP)
	}
	g.payload = pick(r.IntN(most))
	if len(g.payload)/size > MaxSegments-1 {
		size = 40
	}
	g.header = virtioHeader{gso: g.gso(), size: uint16(size)}
	if g.protocol == protoTCP && g.flags&tcpCWR != 0 {
		g.header.gso |= gsoECN
	}
	return g
}
