package pathcontrol

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nowhere is a destination that no route has.
var nowhere = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 255, 255, 255}), 32)

// What package unix has no names for.
const (
	sizeofNlmsg    = unix.SizeofNlMsghdr
	ruleToTable    = 1 // FR_ACT_TO_TBL
	ruleInverted   = 2 // FIB_RULE_INVERT
	fraPriority    = 6
	fraMark        = 10
	fraTable       = 15
	fraMask        = 16
	fraProtocol    = 21
	scopeNowhere   = 255
	compatTable    = 252    // in the byte for a table whose number is larger
	attributeTypes = 0x3fff // without the flags nested and big endian
)

var native = binary.NativeEndian

// beginMessage begins a request of a type with its fixed part. finishMessage
// completes the header.
func beginMessage(kind uint16, flags uint16, fixed ...byte) []byte {
	m := make([]byte, sizeofNlmsg, 128)
	native.PutUint16(m[4:], kind)
	native.PutUint16(m[6:], flags)
	return append(m, fixed...)
}

func finishMessage(m []byte, flags uint16, seq uint32) []byte {
	native.PutUint32(m, uint32(len(m)))
	native.PutUint16(m[6:], native.Uint16(m[6:])|flags)
	native.PutUint32(m[8:], seq)
	return m
}

// attribute appends an attribute.
func attribute(m []byte, kind uint16, value ...byte) []byte {
	m = native.AppendUint16(m, uint16(4+len(value)))
	m = native.AppendUint16(m, kind)
	m = append(m, value...)
	for len(m)%4 != 0 {
		m = append(m, 0)
	}
	return m
}

func attribute32(m []byte, kind uint16, value uint32) []byte {
	return attribute(m, kind, native.AppendUint32(nil, value)...)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func tableByte(table uint32) uint8 {
	if table > math.MaxUint8 {
		return compatTable
	}
	return uint8(table)
}

// routeMessage is the request for a change.
func routeMessage(c routeChange) []byte {
	e := c.route
	kind, flags, scope := uint16(unix.RTM_NEWROUTE), uint16(0), uint8(unix.RT_SCOPE_UNIVERSE)
	switch c.verb {
	case verbAdd:
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	case verbReplace:
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	case verbAppend:
		flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	case verbRemove:
		kind, scope = unix.RTM_DELROUTE, scopeNowhere
	}
	if c.verb != verbRemove && e.kind == kindUnicast && e.direct() {
		scope = unix.RT_SCOPE_LINK
	}
	var routeFlags uint32
	if len(e.hops) == 1 && e.hops[0].onLink {
		routeFlags = unix.RTNH_F_ONLINK
	}
	fixed := []byte{familyOf(e.to.Addr()), uint8(e.to.Bits()), 0, 0, tableByte(e.table), e.protocol, scope, e.kind}
	m := beginMessage(kind, flags, native.AppendUint32(fixed, routeFlags)...)
	m = attribute(m, unix.RTA_DST, e.to.Addr().AsSlice()...)
	m = attribute32(m, unix.RTA_TABLE, e.table)
	m = attribute32(m, unix.RTA_PRIORITY, e.metric)
	if len(e.hops) == 1 { // of more, all go
		if hop := e.hops[0]; hop.via.IsValid() {
			if hop.via.Is4() == e.to.Addr().Is4() {
				m = attribute(m, unix.RTA_GATEWAY, hop.via.AsSlice()...)
			} else {
				m = attribute(m, unix.RTA_VIA, append(native.AppendUint16(nil, uint16(familyOf(hop.via))), hop.via.AsSlice()...)...)
			}
		}
		if link := e.hops[0].link; link != 0 {
			m = attribute32(m, unix.RTA_OIF, uint32(link))
		}
	}
	if e.source.IsValid() {
		m = attribute(m, unix.RTA_PREFSRC, e.source.AsSlice()...)
	}
	return m
}

func listRoutesMessage(family uint8, table uint32, protocol uint8) []byte {
	m := beginMessage(unix.RTM_GETROUTE, 0, family, 0, 0, 0, tableByte(table), protocol, 0, 0, 0, 0, 0, 0)
	if table != 0 {
		m = attribute32(m, unix.RTA_TABLE, table)
	}
	return m
}

// ruleMessage is the request to add or to remove a rule.
func ruleMessage(e ruleEntry, add bool) []byte {
	kind, flags, family := uint16(unix.RTM_DELRULE), uint16(0), uint8(unix.AF_INET)
	if add {
		kind, flags = unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL
	}
	if e.v6 {
		family = unix.AF_INET6
	}
	m := beginMessage(kind, flags, family, 0, 0, 0, tableByte(e.table), 0, 0, ruleToTable, 0, 0, 0, 0)
	m = attribute32(m, fraTable, e.table)
	m = attribute32(m, fraPriority, e.priority)
	m = attribute32(m, fraMark, e.mark)
	m = attribute32(m, fraMask, e.mask)
	if !e.anonymous {
		m = attribute(m, fraProtocol, e.protocol)
	}
	return m
}

func listRulesMessage(family uint8) []byte {
	return beginMessage(unix.RTM_GETRULE, 0, family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

func getLinkMessage(name string) []byte {
	m := beginMessage(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg)...)
	return attribute(m, unix.IFLA_IFNAME, append([]byte(name), 0)...)
}

// attributes calls f with each attribute. What is cut short ends it.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(native.Uint16(b[2:])&attributeTypes, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func value32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

// parseRoute reads a route of the kernel. It is not ok if it is no route that ours
// could be in the way of: a cached one, one for a source or a type of service.
func parseRoute(b []byte) (e routeEntry, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return e, false
	}
	family, bits, flags := b[0], int(b[1]), native.Uint32(b[8:])
	if b[2] != 0 || b[3] != 0 || flags&unix.RTM_F_CLONED != 0 {
		return e, false
	}
	e.table, e.protocol, e.kind = uint32(b[4]), b[5], b[7]
	to := netip.IPv4Unspecified()
	switch family {
	case unix.AF_INET6:
		to = netip.IPv6Unspecified()
	case unix.AF_INET:
	default:
		return e, false
	}
	hop, several := routeHop{onLink: flags&unix.RTNH_F_ONLINK != 0}, false
	attributes(b[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(value)
		case unix.RTA_TABLE:
			e.table = value32(value)
		case unix.RTA_PRIORITY:
			e.metric = value32(value)
		case unix.RTA_PREFSRC:
			e.source, _ = netip.AddrFromSlice(value)
		case unix.RTA_MULTIPATH:
			several, e.hops = true, parseHops(value)
		default:
			hop.read(kind, value)
		}
	})
	if to.BitLen() != 32 && family == unix.AF_INET || to.BitLen() != 128 && family == unix.AF_INET6 {
		return e, false
	}
	e.to = netip.PrefixFrom(to, bits)
	if !several && (hop.link != 0 || hop.via.IsValid()) && e.kind == kindUnicast {
		e.hops = []routeHop{hop}
	}
	return e, e.to.IsValid()
}

// read takes an attribute of a next hop.
func (h *routeHop) read(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_OIF:
		h.link = int(value32(value))
	case unix.RTA_GATEWAY:
		h.via, _ = netip.AddrFromSlice(value)
	case unix.RTA_VIA:
		if len(value) > 2 {
			h.via, _ = netip.AddrFromSlice(value[2:])
		}
	}
}

// parseHops reads several next hops.
func parseHops(b []byte) (hops []routeHop) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return hops
		}
		hop := routeHop{link: int(native.Uint32(b[4:])), onLink: b[2]&unix.RTNH_F_ONLINK != 0}
		attributes(b[unix.SizeofRtNexthop:n], hop.read)
		hops = append(hops, hop)
		b = b[min((n+3)&^3, len(b)):]
	}
	return hops
}

// parseRule reads a rule of the kernel.
func parseRule(b []byte) (e ruleEntry, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return e, false
	}
	e.v6, e.table, e.anonymous = b[0] == unix.AF_INET6, uint32(b[4]), true
	e.elaborate = b[1] != 0 || b[2] != 0 || b[3] != 0 || b[7] != ruleToTable || native.Uint32(b[8:])&ruleInverted != 0
	attributes(b[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case fraPriority:
			e.priority = value32(value)
		case fraMark:
			e.mark = value32(value)
		case fraMask:
			e.mask = value32(value)
		case fraTable:
			e.table = value32(value)
		case fraProtocol:
			e.anonymous = false
			if len(value) == 1 {
				e.protocol = value[0]
			}
		case unix.FRA_PAD:
		case unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP, unix.FRA_FLOW:
			e.elaborate = e.elaborate || kind != unix.FRA_FLOW && value32(value) != math.MaxUint32
		default: // interfaces, addresses, ports, users
			e.elaborate = true
		}
	})
	return e, true
}

// parseLink reads the number, name and flags of an interface.
func parseLink(b []byte) (index int, name string, flags uint32, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return 0, "", 0, false
	}
	attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		if kind == unix.IFLA_IFNAME {
			name = strings.TrimRight(string(value), "\x00")
		}
	})
	return int(native.Uint32(b[4:])), name, native.Uint32(b[8:]), true
}

// parseAnswer reads the end of an answer: nil for yes.
func parseAnswer(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil
	}
	errno := syscall.Errno(-int32(native.Uint32(m.Data)))
	if errno == 0 {
		return nil
	}
	words := ""
	if m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 {
		rest := m.Data[4:]
		if m.Header.Type == unix.NLMSG_ERROR { // the request's header follows, or all of it
			n := sizeofNlmsg
			if m.Header.Flags&unix.NLM_F_CAPPED == 0 && len(rest) >= 4 {
				n = int(native.Uint32(rest)+3) &^ 3
			}
			rest = rest[min(n, len(rest)):]
		}
		attributes(rest, func(kind uint16, value []byte) {
			if kind == unix.NLMSGERR_ATTR_MSG {
				words = strings.TrimRight(string(value), "\x00")
			}
		})
	}
	return newRefusal(errno, words)
}
