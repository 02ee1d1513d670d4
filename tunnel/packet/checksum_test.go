package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestSum compares with the sum as RFC 1071 writes it, for all lengths that go through
// the loops in different ways.
func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for n := range 300 {
		for range 20 {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if r.IntN(4) == 0 {
				for i := range b {
					b[i] = 0xff // carries everywhere
				}
			}
			if got, want := sum(b), plainSum(b); got%0xffff != want%0xffff {
				t.Fatalf("%d bytes: %#x, want %#x", n, got, want)
			}
		}
	}
	if sum(nil) != 0 {
		t.Error("the sum of nothing is not zero")
	}
}

// TestExchangeChecksum changes words in what is summed: the checksum follows, without
// turning into the wrong one of the two zeros (RFC 1624, §4).
func TestExchangeChecksum(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 100000 {
		b := make([]byte, 8)
		binary.BigEndian.PutUint64(b, r.Uint64())
		if r.IntN(4) == 0 {
			binary.BigEndian.PutUint16(b, 0)
		}
		clear(b[6:])
		binary.BigEndian.PutUint16(b[6:], ^plainSum(b))
		old, new := binary.BigEndian.Uint16(b), uint16(r.Uint32())
		switch r.IntN(4) {
		case 0:
			new = ^binary.BigEndian.Uint16(b[2:])
		case 1:
			new = 0
		}
		binary.BigEndian.PutUint16(b, new)
		exchangeChecksum(b[6:], old, new)
		if s := plainSum(b); s != 0xffff {
			t.Fatalf("% x sums up to %#x", b, s)
		}
	}
}
