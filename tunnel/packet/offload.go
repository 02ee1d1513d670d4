package packet

import "strings"

// Offload is a set of what the sender of a packet may leave to its receiver.
// Kernels leave it to the hardware; here it is left to the far kernel, because one
// packet of 64 KiB travels at the price of one of 1.5 KiB. The zero value is
// nothing: every packet is whole, fits into the MTU and has its checksums.
type Offload uint8

const (
	// OffloadChecksum leaves the checksum of the transport header to the receiver. The
	// others need it too, since every segment has one of its own.
	OffloadChecksum Offload = 1 << iota
	OffloadTSO4             // segmentation of TCP over IPv4
	OffloadTSO6             // segmentation of TCP over IPv6
	OffloadUSO              // segmentation of UDP over both; linux 6.2 and newer
)

// OffloadAll is everything that this package knows.
const OffloadAll = OffloadChecksum | OffloadTSO4 | OffloadTSO6 | OffloadUSO

// String names the members: "checksum+tso4", or "none". Bits that it does not
// know are left out.
func (o Offload) String() string {
	var names []string
	for _, n := range []struct {
		bit  Offload
		name string
	}{{OffloadChecksum, "checksum"}, {OffloadTSO4, "tso4"}, {OffloadTSO6, "tso6"}, {OffloadUSO, "uso"}} {
		if o&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, "+")
}

// usable drops what means nothing: unknown bits, and segmentation without
// checksums.
func (o Offload) usable() Offload {
	if o&OffloadChecksum == 0 {
		return 0
	}
	return o & OffloadAll
}
