package packet

import "encoding/binary"

// ClampMSS lowers the MSS that a TCP end tells its peer to what fits through a link, and
// reports whether it did. The rule:
//
//   - At most mtu - 40 in an IPv4 packet and mtu - 60 in an IPv6 packet: what an IP
//     header without options and a TCP header without options leave. Ends
//     that use options take them off themselves (RFC 6691).
//   - Only SYN and SYN-ACK have it. A first fragment counts, later ones do not. IPv6
//     extension headers are skipped, up to eight.
//   - It is lowered, never raised, and not added: without the option the MSS is 536 or
//     1220 (RFC 9293, §3.7.1), which fits. An mtu that leaves nothing clamps nothing.
//
// The checksum of TCP stays as right or wrong as it was. Nothing else is changed, and all
// other packets cost a look at a few bytes. A SYN inside another tunnel's packet is not
// looked for.
func ClampMSS(f Frame, m Mode, mtu int) bool {
	if len(f.Data) <= HeaderLen {
		return false
	}
	p := f.Packet()
	l, err := locate(p, m)
	if err != nil || l.version == 0 {
		return false
	}
	if l.findTransport(p) != nil || l.protocol != protoTCP || l.fragment == fragmentLater {
		return false
	}
	tcp := p[l.transport:]
	if len(tcp) < tcpLen || tcp[13]&tcpSYN == 0 {
		return false
	}
	limit := mtu - ipv4Len - tcpLen
	if l.version == 6 {
		limit = mtu - ipv6Len - tcpLen
	}
	at := findMSS(tcp)
	if at == 0 || limit <= 0 || int(binary.BigEndian.Uint16(tcp[at:])) <= limit {
		return false
	}
	h := readHeader(f.Data)
	// A partial checksum is the sum of the pseudo header alone, in which
	// options have no part: who finishes it will read the new value.
	partial := h.flags&flagPartial != 0 && int(h.start) == l.transport
	setWord(tcp, at, uint16(limit), !partial)
	return true
}

// findMSS returns where the value of the MSS option is in a TCP header, or 0.
func findMSS(tcp []byte) int {
	end := min(int(tcp[12]>>4)*4, len(tcp))
	for at := tcpLen; at < end; {
		switch tcp[at] {
		case 0: // end of the options
			return 0
		case 1: // filler
			at++
			continue
		}
		if at+1 >= end || tcp[at+1] < 2 {
			return 0
		}
		n := int(tcp[at+1])
		if tcp[at] == 2 {
			if n != 4 || at+n > end {
				return 0
			}
			return at + 2
		}
		at += n
	}
	return 0
}

// setWord changes the word at an offset, and the checksum with it if that is whole.
func setWord(tcp []byte, at int, to uint16, whole bool) {
	from := binary.BigEndian.Uint16(tcp[at:])
	binary.BigEndian.PutUint16(tcp[at:], to)
	if !whole {
		return
	}
	if at%2 != 0 {
		// It lies across two words of the sum: its bytes count in the other
		// places.
		from, to = from<<8|from>>8, to<<8|to>>8
	}
	exchangeChecksum(tcp[16:], from, to)
}
