package proxyproto

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// findChecksum returns where in a frame of version 2 the value of the CRC32C
// TLV is, or 0 if there is none. The TLVs are known to be whole.
func findChecksum(frame []byte) (at int, err error) {
	for i := tlvsAt(frame); i+3 <= len(frame); {
		length := int(binary.BigEndian.Uint16(frame[i+1:]))
		if TLVType(frame[i]) == TypeCRC32C {
			if at > 0 || length != crc32.Size {
				return 0, fmt.Errorf("CRC32C of %d bytes, or a second one", length)
			}
			at = i + 3
		}
		i += 3 + length
	}
	return at, nil
}

// checksum computes the CRC of a frame whose CRC32C value is at that place:
// over all of it, with zeros for the value.
func checksum(frame []byte, at int) uint32 {
	sum := crc32.Update(0, castagnoli, frame[:at])
	sum = crc32.Update(sum, castagnoli, make([]byte, crc32.Size))
	return crc32.Update(sum, castagnoli, frame[at+crc32.Size:])
}

// verifyChecksum checks the CRC32C of a frame that has one (§2.2.3).
func verifyChecksum(frame []byte) error {
	at, err := findChecksum(frame)
	if at == 0 || err != nil {
		return err
	}
	if got, want := checksum(frame, at), binary.BigEndian.Uint32(frame[at:]); got != want {
		return fmt.Errorf("CRC32C is %08x, the header says %08x", got, want)
	}
	return nil
}

// setChecksum fills in the CRC32C of a frame that has room for one.
func setChecksum(frame []byte) error {
	at, err := findChecksum(frame)
	if at == 0 || err != nil {
		return err
	}
	binary.BigEndian.PutUint32(frame[at:], checksum(frame, at))
	return nil
}
