package packet_test

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// tcp makes an IPv4 packet of TCP behind its virtio-net header. Its checksum
// is left to the receiver.
func tcp(flags byte, options, payload []byte) packet.Frame {
	const ip, port = 20, 20
	b := make([]byte, packet.HeaderLen+ip+port)
	b[0] = 1 // the checksum is partial
	binary.LittleEndian.PutUint16(b[6:], ip)
	binary.LittleEndian.PutUint16(b[8:], 16)
	p := b[packet.HeaderLen:]
	length := ip + port + len(options) + len(payload)
	copy(p, []byte{0x45, 0, byte(length >> 8), byte(length), 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	p[ip+12] = byte(port+len(options)) / 4 << 4
	p[ip+13] = flags
	return packet.Frame{Data: append(append(b, options...), payload...)}
}

// A packet that the kernel left to be segmented is cut for a receiver which takes whole
// packets only.
func ExampleSegment() {
	f := tcp(0x18, nil, make([]byte, 3000))
	f.Data[1] = 1 // segmentation of TCP over IPv4
	binary.LittleEndian.PutUint16(f.Data[4:], 1400)

	fmt.Println(len(f.Packet()), packet.Check(f, packet.TUN, 1440))
	_ = packet.Segment(f, packet.TUN, 0, func(s packet.Frame) error {
		p := s.Packet()
		fmt.Println(len(p), "seq", binary.BigEndian.Uint32(p[24:]))
		return nil
	})
	_ = packet.Segment(f, packet.TUN, packet.OffloadAll, func(s packet.Frame) error {
		fmt.Println(len(s.Packet()), "to one that takes it")
		return nil
	})
	// Output:
	// 3040 <nil>
	// 1440 seq 0
	// 1440 seq 1400
	// 240 seq 2800
	// 3040 to one that takes it
}

// A SYN says that its sender takes segments of 1460 bytes, which do not fit through a link
// with an MTU of 1400.
func ExampleClampMSS() {
	f := tcp(0x02, []byte{2, 4, 1460 >> 8, 1460 & 0xff}, nil)
	fmt.Println(packet.ClampMSS(f, packet.TUN, 1400))
	fmt.Println(binary.BigEndian.Uint16(f.Packet()[42:]))
	fmt.Println(packet.ClampMSS(f, packet.TUN, 1400))
	// Output:
	// true
	// 1360
	// false
}

// A peer must not be able to change an address after it was checked: the header of
// this frame tells the receiver to write a checksum over the source.
func ExampleCheck() {
	f := tcp(0x10, nil, []byte("hello"))
	fmt.Println(packet.Check(f, packet.TUN, 1500))

	binary.LittleEndian.PutUint16(f.Data[6:], 0)
	binary.LittleEndian.PutUint16(f.Data[8:], 12)
	err := packet.Check(f, packet.TUN, 1500)
	fmt.Println(err, errors.Is(err, packet.ErrPartial))
	// Output:
	// <nil>
	// packet: partial checksum in a place where there is none true
}

func ExampleOffload() {
	o := packet.OffloadChecksum | packet.OffloadTSO4
	fmt.Println(o, packet.Offload(0))
	// Output: checksum+tso4 none
}
