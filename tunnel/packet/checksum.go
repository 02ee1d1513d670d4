package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the complement of a sum in which carries
// come in again at the low end. The functions here deal in sums, not complements.

// sum returns the sum of b as 16-bit words in big endian; an odd byte at the end counts
// as if a zero followed.
func sum(b []byte) uint16 {
	// The sum does not depend on the order of bytes but for a swap of the result,
	// nor on the width of its words: the plainest loads are the fastest.
	var s, carry uint64
	for len(b) >= 32 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, binary.LittleEndian.Uint64(last[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	s += carry
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return bits.ReverseBytes16(uint16(s))
}

// add adds two sums.
func add(a, b uint16) uint16 {
	s, carry := uint32(a)+uint32(b), uint32(0)
	s, carry = s&0xffff, s>>16
	return uint16(s + carry)
}

// exchange returns the sum s after a word in what was summed went from old to new.
func exchange(s, old, new uint16) uint16 { return add(add(s, ^old), new) }

// exchangeChecksum does the same for the checksum at c (RFC 1624, equation 3).
func exchangeChecksum(c []byte, old, new uint16) {
	binary.BigEndian.PutUint16(c, ^exchange(^binary.BigEndian.Uint16(c), old, new))
}

// finishChecksum completes the partial checksum at offset behind the start of p,
// which holds the sum of a pseudo header: it adds what is there from the start on. Zero is
// written as its other form, 0xffff, as UDP asks for, where zero says that there is no
// checksum; others take both.
func finishChecksum(p []byte, offset int) {
	c := ^sum(p)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(p[offset:], c)
}
