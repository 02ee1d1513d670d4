package packet_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

var (
	aAddr6, aAddr4 = netip.MustParseAddr("fd00::a:1"), netip.MustParseAddr("192.0.2.1")
	bAddr6, bAddr4 = netip.MustParseAddr("fd00::b:1"), netip.MustParseAddr("192.0.2.2")
	aNet6, aNet4   = netip.MustParseAddr("2001:db8:a::7"), netip.MustParseAddr("10.1.0.7")
	far6, far4     = netip.MustParseAddr("2001:db8:f::7"), netip.MustParseAddr("10.2.0.7")

	aMAC, aMAC4 = packet.MAC(aAddr6, 0), packet.MAC(aAddr4, 3)
	bMAC        = packet.MAC(bAddr6, 0)
	aLocal      = packettest.LinkLocal(aMAC)
	bLocal      = packettest.LinkLocal(bMAC)
	noAddr      = netip.IPv6Unspecified()
)

// twoPeers is a, which has networks, and b.
func twoPeers(w *switchWorld) (a, b *switchPeer) {
	a = w.join("a", 1, []string{aAddr6.String(), aAddr4.String()}, "2001:db8:a::/48", "10.1.0.0/16", "::/8", "192.0.2.0/24", "fe80::/10")
	b = w.join("b", 2, []string{bAddr6.String(), bAddr4.String()})
	return a, b
}

// icmp6 makes an ICMPv6 message of a kind, with a body of zeros.
func icmp6(src, dst netip.Addr, kind byte, size int) []byte {
	return packettest.ICMPv6(src, dst, kind, 0, make([]byte, size))
}

// icmp4 makes an ICMP message of a kind, with a body of zeros; what is looked at is the
// kind.
func icmp4(kind byte, size int) []byte {
	return packettest.IPv4(aAddr4, bAddr4, packettest.ProtoICMP, append([]byte{kind, 0, 0, 0}, make([]byte, size)...))
}

// igmp makes a message of IGMP, which has number 2.
func igmp(kind byte) []byte {
	return packettest.IPv4(aAddr4, netip.MustParseAddr("224.0.0.1"), 2, append([]byte{kind}, make([]byte, 7)...))
}

// changed is b with one byte changed.
func changed(b []byte, at int, to byte) []byte {
	b = slices.Clone(b)
	b[at] = to
	return b
}

// extended is an IPv6 packet with headers between its own and the payload, each of which
// begins with the number of the next.
func extended(ip []byte, first byte, headers ...[]byte) []byte {
	all := slices.Concat(headers...)
	b := slices.Concat(ip[:40], all, ip[40:])
	b[6] = first
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// fragment6 is a fragment header; the offset is in bytes.
func fragment6(next byte, offset int, more bool) []byte {
	at := uint16(offset)
	if more {
		at |= 1
	}
	return []byte{next, 0, byte(at >> 8), byte(at), 1, 2, 3, 4}
}

// fragment4 makes a packet a fragment.
func fragment4(ip []byte, offset int, more bool) []byte {
	ip = slices.Clone(ip)
	at := uint16(offset / 8)
	if more {
		at |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], at)
	packettest.SetIPv4Checksum(ip)
	return ip
}

// options4 puts options into an IPv4 header.
func options4(ip []byte, options ...byte) []byte {
	b := slices.Concat(ip[:20], options, ip[20:])
	b[0] = 0x45 + byte(len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	packettest.SetIPv4Checksum(b)
	return b
}

// arp makes an ARP packet to b.
func arp(op uint16, sender net.HardwareAddr, senderIP netip.Addr, targetIP netip.Addr) []byte {
	return packettest.ARP(op, sender, senderIP, bMAC, targetIP)
}

func port(a netip.Addr, n uint16) netip.AddrPort { return netip.AddrPortFrom(a, n) }

// What a peer may say of itself passes, and what it says of others does not.
func TestSwitchChecks(t *testing.T) {
	all := packettest.Broadcast()
	nodes := netip.MustParseAddr("ff02::1")
	group := packettest.Multicast(nodes)
	const pass = packet.Drop(0)
	ping6 := packettest.Echo(aAddr6, bAddr6, false, 1, 2, []byte("ping"))
	ping4 := packettest.Echo(aAddr4, bAddr4, false, 1, 2, []byte("ping"))
	dns6, dns4 := udp(aAddr6, bAddr6), udp(aAddr4, bAddr4)
	solicit := packettest.Solicit(aAddr6, bAddr6, aMAC)
	advertise := packettest.Advertise(aAddr6, bAddr6, aAddr6, aMAC)
	router := []byte{0x3a, 0, 5, 2, 0, 0, 1, 0} // hop-by-hop with a router alert
	routing := []byte{packettest.ProtoUDP, 0, 4, 1, 0, 0, 0, 0}
	padding := []byte{packettest.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}

	tests := []struct {
		name  string
		frame []byte
		want  packet.Drop
	}{
		// Ethernet.
		{"UDP over IPv6", ether(bMAC, aMAC, dns6), pass},
		{"UDP over IPv4", ether(bMAC, aMAC, dns4), pass},
		{"the MAC of the other address", ether(bMAC, aMAC4, dns6), pass},
		{"another leg", ether(bMAC, packet.MAC(aAddr6, 255), dns6), pass},
		{"ping over IPv6", ether(bMAC, aMAC, ping6), pass},
		{"ping over IPv4", ether(bMAC, aMAC, ping4), pass},
		{"padded", append(ether(bMAC, aMAC, ping4), make([]byte, 20)...), pass},
		{"the MAC of another", ether(bMAC, bMAC, dns6), packet.DropMAC},
		{"a MAC of nobody", ether(bMAC, packet.MAC(far6, 0), dns6), packet.DropMAC},
		{"a MAC of another form", ether(bMAC, changed(aMAC, 0, 0x06), dns6), packet.DropMAC},
		{"a MAC of a group", ether(bMAC, changed(aMAC, 0, 0x03), dns6), packet.DropMAC},
		{"cut in the Ethernet header", ether(bMAC, aMAC, dns6)[:13], packet.DropMalformed},
		{"cut behind it", ether(bMAC, aMAC, dns6)[:14], packet.DropMalformed},
		{"a VLAN tag", packettest.Ethernet(bMAC, aMAC, packettest.TypeVLAN, slices.Concat([]byte{0, 1, 0x86, 0xdd}, dns6)), packet.DropType},
		{"LLDP", packettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, aMAC, 0x88cc, make([]byte, 50)), packet.DropControl},
		{"LLDP to all", packettest.Ethernet(all, aMAC, 0x88cc, make([]byte, 50)), packet.DropType},
		{"spanning tree", packettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, aMAC, 39, make([]byte, 50)), packet.DropControl},
		{"spanning tree to all", packettest.Ethernet(all, aMAC, 39, make([]byte, 50)), packet.DropType},
		{"pause", packettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}, aMAC, 0x8808, make([]byte, 50)), packet.DropControl},
		{"IPv6 that says it is IPv4", packettest.Ethernet(bMAC, aMAC, packettest.TypeIPv4, dns6), packet.DropMalformed},
		{"IPv4 that says it is IPv6", packettest.Ethernet(bMAC, aMAC, packettest.TypeIPv6, dns4), packet.DropMalformed},

		// Sources.
		{"from a network behind, IPv6", ether(bMAC, aMAC, udp(aNet6, bAddr6)), pass},
		{"from a network behind, IPv4", ether(bMAC, aMAC, udp(aNet4, bAddr4)), pass},
		{"from the own link-local address", ether(bMAC, aMAC, udp(aLocal, bLocal)), pass},
		{"from that of another leg", ether(bMAC, aMAC, udp(packettest.LinkLocal(packet.MAC(aAddr6, 1)), bLocal)), pass},
		{"from elsewhere, IPv6", ether(bMAC, aMAC, udp(far6, bAddr6)), packet.DropSource},
		{"from elsewhere, IPv4", ether(bMAC, aMAC, udp(far4, bAddr4)), packet.DropSource},
		{"from the other, IPv6", ether(bMAC, aMAC, udp(bAddr6, bAddr6)), packet.DropSource},
		{"from the other, IPv4, in a network behind", ether(bMAC, aMAC, udp(bAddr4, bAddr4)), packet.DropSource},
		{"from the other's link-local address", ether(bMAC, aMAC, udp(bLocal, bLocal)), packet.DropSource},
		{"from a link-local address of choice", ether(bMAC, aMAC, udp(netip.MustParseAddr("fe80::1"), bLocal)), packet.DropSource},
		{"from a link-local address in a subnet", ether(bMAC, aMAC, changed(udp(aLocal, bLocal), 14+1, 1)), packet.DropSource},
		{"from a link-local address of 64 bits", ether(bMAC, aMAC, changed(udp(aLocal, bLocal), 8+11, 0xfe)), packet.DropSource},
		{"from nobody, IPv6", ether(bMAC, aMAC, udp(noAddr, bAddr6)), packet.DropSource},
		{"from nobody, looking like a report", ether(bMAC, aMAC, packettest.UDP(port(noAddr, 143<<8), port(bAddr6, 1), nil)), packet.DropSource},
		{"from nobody, IPv4", ether(bMAC, aMAC, udp(netip.IPv4Unspecified(), bAddr4)), packet.DropSource},
		{"from loopback", ether(bMAC, aMAC, udp(netip.IPv6Loopback(), bAddr6)), packet.DropSource},
		{"from a group", ether(bMAC, aMAC, udp(nodes, bAddr6)), packet.DropSource},
		{"from a mapped address", ether(bMAC, aMAC, packettest.IPv6(netip.MustParseAddr("::ffff:10.1.0.7"), bAddr6, 59, nil)), packet.DropSource},
		{"to all, IPv4", ether(all, aMAC, udp(aAddr4, netip.MustParseAddr("192.0.2.255"))), pass},

		// ARP.
		{"ARP request", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(1, aMAC, aAddr4, bAddr4)), pass},
		{"ARP reply", packettest.Ethernet(bMAC, aMAC, packettest.TypeARP, arp(2, aMAC, aAddr4, bAddr4)), pass},
		{"gratuitous ARP", packettest.Ethernet(all, aMAC4, packettest.TypeARP, arp(2, aMAC4, aAddr4, aAddr4)), pass},
		{"ARP probe for the other's", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(1, aMAC, netip.IPv4Unspecified(), bAddr4)), packet.DropARP},
		{"ARP probe", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(1, aMAC, netip.IPv4Unspecified(), aAddr4)), pass},
		{"padded ARP", packettest.Ethernet(all, aMAC, packettest.TypeARP, append(arp(1, aMAC, aAddr4, bAddr4), make([]byte, 18)...)), pass},
		{"ARP reply for the other", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(2, aMAC, bAddr4, aAddr4)), packet.DropARP},
		{"ARP request of the other", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(1, aMAC, bAddr4, aAddr4)), packet.DropARP},
		{"ARP reply for a network behind", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(2, aMAC, aNet4, bAddr4)), packet.DropARP},
		{"ARP with another's MAC", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(2, bMAC, aAddr4, bAddr4)), packet.DropARP},
		{"ARP reply of nobody", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(2, aMAC, netip.IPv4Unspecified(), bAddr4)), packet.DropARP},
		{"reverse ARP", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(3, aMAC, aAddr4, bAddr4)), packet.DropARP},
		{"ARP of other hardware", packettest.Ethernet(all, aMAC, packettest.TypeARP, changed(arp(1, aMAC, aAddr4, bAddr4), 1, 6)), packet.DropARP},
		{"ARP cut short", packettest.Ethernet(all, aMAC, packettest.TypeARP, arp(1, aMAC, aAddr4, bAddr4)[:27]), packet.DropARP},

		// Neighbours.
		{"solicitation", ether(group, aMAC, solicit), pass},
		{"solicitation from a link-local address", ether(group, aMAC, packettest.Solicit(aLocal, bAddr6, aMAC)), pass},
		{"advertisement", ether(bMAC, aMAC, advertise), pass},
		{"advertisement to all", ether(group, aMAC, packettest.Advertise(aLocal, nodes, aLocal, aMAC)), pass},
		{"duplicate detection", ether(group, aMAC, packettest.Solicit(noAddr, aAddr6, nil)), pass},
		{"duplicate detection, link-local", ether(group, aMAC, packettest.Solicit(noAddr, aLocal, nil)), pass},
		{"duplicate detection of the other's", ether(group, aMAC, packettest.Solicit(noAddr, bAddr6, nil)), packet.DropNeighbor},
		{"duplicate detection with a MAC", ether(group, aMAC, packettest.Solicit(noAddr, aAddr6, aMAC)), packet.DropNeighbor},
		{"solicitation with another's MAC", ether(group, aMAC, packettest.Solicit(aAddr6, bAddr6, bMAC)), packet.DropNeighbor},
		{"solicitation with the MAC of another leg", ether(group, aMAC, packettest.Solicit(aAddr6, bAddr6, packet.MAC(aAddr6, 1))), packet.DropNeighbor},
		{"solicitation from the other", ether(group, aMAC, packettest.Solicit(bAddr6, aAddr6, aMAC)), packet.DropSource},
		{"solicitation from a network behind", ether(group, aMAC, packettest.Solicit(aNet6, bAddr6, aMAC)), packet.DropNeighbor},
		{"advertisement of the other's address", ether(bMAC, aMAC, packettest.Advertise(aAddr6, bAddr6, bAddr6, aMAC)), packet.DropNeighbor},
		{"advertisement of the other's link-local address", ether(bMAC, aMAC, packettest.Advertise(aLocal, bAddr6, bLocal, aMAC)), packet.DropNeighbor},
		{"advertisement of a network behind", ether(bMAC, aMAC, packettest.Advertise(aAddr6, bAddr6, aNet6, aMAC)), packet.DropNeighbor},
		{"advertisement from a network behind", ether(bMAC, aMAC, packettest.Advertise(aNet6, bAddr6, aAddr6, aMAC)), packet.DropNeighbor},
		{"advertisement with another's MAC", ether(bMAC, aMAC, packettest.Advertise(aAddr6, bAddr6, aAddr6, bMAC)), packet.DropNeighbor},
		{"advertisement from nobody", ether(bMAC, aMAC, packettest.Advertise(noAddr, bAddr6, aAddr6, aMAC)), packet.DropSource},
		{"advertisement from afar", ether(bMAC, aMAC, changed(advertise, 7, 254)), packet.DropNeighbor},
		{"advertisement with an option cut short", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, append(slices.Clone(advertise[44:64]), 2, 1, 2))), packet.DropNeighbor},
		{"advertisement with an option of no length", ether(bMAC, aMAC, changed(advertise, 65, 0)), packet.DropNeighbor},
		{"advertisement with a nonce of no length", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, slices.Concat(advertise[44:64], []byte{14, 0, 1, 2, 3, 4, 5, 6}))), packet.DropNeighbor},
		{"advertisement with a long MAC", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, slices.Concat(advertise[44:64], []byte{2, 2}, aMAC, make([]byte, 8)))), packet.DropNeighbor},
		{"advertisement with two MACs", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, slices.Concat(advertise[44:72], []byte{2, 1}, bMAC))), packet.DropNeighbor},
		{"advertisement with a nonce", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, slices.Concat(advertise[44:72], []byte{14, 1, 1, 2, 3, 4, 5, 6}))), pass},
		{"advertisement with a code", ether(bMAC, aMAC, changed(advertise, 41, 1)), packet.DropNeighbor},
		{"advertisement cut short", ether(bMAC, aMAC, packettest.ICMPv6(aAddr6, bAddr6, 136, 0, make([]byte, 10))), packet.DropNeighbor},
		{"inverse discovery", ether(bMAC, aMAC, icmp6(aAddr6, bAddr6, 141, 20)), packet.DropNeighbor},
		{"router advertisement", ether(group, aMAC, icmp6(aLocal, nodes, packettest.RouterAdvertise, 12)), packet.DropRouter},
		{"router solicitation", ether(group, aMAC, icmp6(aLocal, nodes, packettest.RouterSolicit, 4)), packet.DropRouter},
		{"redirect", ether(bMAC, aMAC, icmp6(aLocal, bAddr6, packettest.NeighborRedirect, 36)), packet.DropRouter},
		{"listener query", ether(group, aMAC, icmp6(aLocal, nodes, packettest.ListenerQuery, 24)), packet.DropRouter},
		{"listener report", ether(group, aMAC, extended(icmp6(aLocal, nodes, packettest.ListenerReport, 24), 0, router)), pass},
		{"listener report from nobody", ether(group, aMAC, extended(icmp6(noAddr, nodes, packettest.ListenerReport, 24), 0, router)), pass},
		{"multicast router, first", ether(group, aMAC, icmp6(aLocal, nodes, 151, 12)), packet.DropRouter},
		{"multicast router, last", ether(group, aMAC, icmp6(aLocal, nodes, 153, 12)), packet.DropRouter},
		{"router renumbering", ether(group, aMAC, icmp6(aAddr6, nodes, 138, 12)), packet.DropRouter},
		{"redirect, IPv4", ether(bMAC, aMAC, icmp4(5, 24)), packet.DropRouter},
		{"redirect in a first fragment", ether(bMAC, aMAC, fragment4(icmp4(5, 24), 0, true)), packet.DropRouter},
		{"redirect from a network behind", ether(bMAC, aMAC, packettest.IPv4(aNet4, bAddr4, packettest.ProtoICMP, changed(make([]byte, 8), 0, 5))), packet.DropRouter},
		{"router advertisement, IPv4", ether(bMAC, aMAC, icmp4(9, 12)), packet.DropRouter},
		{"router solicitation, IPv4", ether(bMAC, aMAC, icmp4(10, 4)), packet.DropRouter},
		{"question for an address mask", ether(bMAC, aMAC, icmp4(17, 8)), packet.DropRouter},
		{"address mask", ether(bMAC, aMAC, icmp4(18, 8)), packet.DropRouter},
		{"unreachable, IPv4", ether(bMAC, aMAC, icmp4(3, 32)), pass},
		{"ICMP without a type", ether(bMAC, aMAC, packettest.IPv4(aAddr4, bAddr4, packettest.ProtoICMP, nil)), packet.DropMalformed},
		{"IGMP query", ether(group, aMAC, igmp(0x11)), packet.DropRouter},
		{"IGMP report", ether(group, aMAC, igmp(0x22)), pass},
		{"what is behind these types", ether(group, aMAC, icmp6(aLocal, nodes, 154, 12)), pass},
		{"listener query behind a header", ether(group, aMAC, extended(icmp6(aLocal, nodes, packettest.ListenerQuery, 24), 0, router)), packet.DropRouter},
		{"ICMPv6 cut short", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 58, []byte{136, 0})), packet.DropMalformed},
		{"ping from nobody", ether(bMAC, aMAC, packettest.Echo(noAddr, bAddr6, false, 1, 1, nil)), packet.DropSource},

		// DHCP.
		{"DHCP answer", ether(all, aMAC, packettest.UDP(port(aAddr4, 67), port(bAddr4, 68), make([]byte, 240))), packet.DropDHCP},
		{"DHCP answer from another port", ether(all, aMAC, packettest.UDP(port(aAddr4, 1067), port(bAddr4, 68), make([]byte, 240))), packet.DropDHCP},
		{"DHCP answer to another port", ether(all, aMAC, packettest.UDP(port(aAddr4, 67), port(bAddr4, 1068), make([]byte, 240))), packet.DropDHCP},
		{"DHCPv6 answer", ether(bMAC, aMAC, packettest.UDP(port(aLocal, 547), port(bLocal, 546), make([]byte, 40))), packet.DropDHCP},
		{"DHCPv6 answer behind a header", ether(bMAC, aMAC, extended(packettest.UDP(port(aLocal, 547), port(bLocal, 546), make([]byte, 40)), 60, padding)), packet.DropDHCP},
		{"DHCP request", ether(bMAC, aMAC, packettest.UDP(port(aAddr4, 68), port(bAddr4, 67), make([]byte, 240))), pass},
		{"DHCP discovery", ether(all, aMAC, packettest.UDP(port(netip.IPv4Unspecified(), 68), port(netip.MustParseAddr("255.255.255.255"), 67), make([]byte, 240))), packet.DropSource},
		{"UDP cut short", ether(bMAC, aMAC, packettest.IPv4(aAddr4, bAddr4, 17, make([]byte, 7))), packet.DropMalformed},

		// Lengths.
		{"IPv4 cut short", ether(bMAC, aMAC, dns4[:19]), packet.DropMalformed},
		{"IPv4 longer than its frame", ether(bMAC, aMAC, dns4[:len(dns4)-1]), packet.DropMalformed},
		{"IPv4 shorter than its header", ether(bMAC, aMAC, changed(dns4, 3, 19)), packet.DropMalformed},
		{"IPv4 with a short header", ether(bMAC, aMAC, changed(dns4, 0, 0x44)), packet.DropMalformed},
		{"IPv4 with a header beyond its end", ether(bMAC, aMAC, changed(dns4, 0, 0x4f)), packet.DropMalformed},
		{"IPv6 cut short", ether(bMAC, aMAC, dns6[:39]), packet.DropMalformed},
		{"IPv6 longer than its frame", ether(bMAC, aMAC, dns6[:len(dns6)-1]), packet.DropMalformed},
		{"a jumbogram", ether(bMAC, aMAC, extended(dns6, 0, []byte{17, 0, 0xc2, 4, 0, 1, 0, 0})), packet.DropHeaders},

		// Headers and options.
		{"padding", ether(bMAC, aMAC, extended(dns6, 60, padding)), pass},
		{"padding of single bytes", ether(bMAC, aMAC, extended(dns6, 60, []byte{17, 0, 0, 0, 0, 0, 0, 0})), pass},
		{"authentication", ether(bMAC, aMAC, extended(dns6, 51, []byte{17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1})), pass},
		{"DHCPv6 answer behind authentication", ether(bMAC, aMAC, extended(packettest.UDP(port(aLocal, 547), port(bLocal, 546), make([]byte, 40)), 51, []byte{17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1})), packet.DropDHCP},
		{"authentication cut short", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 51, []byte{17, 9, 0, 0})), packet.DropHeaders},
		{"encrypted", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 50, make([]byte, 40))), pass},
		{"nothing", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 59, nil)), pass},
		{"eight headers", ether(bMAC, aMAC, extended(dns6, 60, slices.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 7), padding)), pass},
		{"nine headers", ether(bMAC, aMAC, extended(dns6, 60, slices.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 8), padding)), packet.DropHeaders},
		{"a header beyond the end", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 60, []byte{17, 1, 1, 4, 0, 0, 0, 0})), packet.DropHeaders},
		{"half a header", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 60, []byte{17, 0, 1, 4})), packet.DropHeaders},
		{"hop-by-hop in the wrong place", ether(bMAC, aMAC, extended(dns6, 60, []byte{0, 0, 1, 4, 0, 0, 0, 0}, padding)), packet.DropHeaders},
		{"an option beyond its header", ether(bMAC, aMAC, extended(dns6, 60, []byte{17, 0, 1, 5, 0, 0, 0, 0})), packet.DropHeaders},
		{"an option without a length", ether(bMAC, aMAC, extended(dns6, 60, []byte{17, 0, 1, 3, 0, 0, 0, 1})), packet.DropHeaders},
		{"a home address", ether(bMAC, aMAC, extended(dns6, 60, slices.Concat([]byte{17, 2, 1, 2, 0, 0, 0xc9, 16}, bAddr6.AsSlice()))), packet.DropHeaders},
		{"a route to go", ether(bMAC, aMAC, extended(dns6, 43, changed(routing, 3, 1))), packet.DropHeaders},
		{"a route that was gone", ether(bMAC, aMAC, extended(dns6, 43, changed(routing, 3, 0))), pass},
		{"a source route of IPv4", ether(bMAC, aMAC, options4(dns4, 131, 7, 4, 10, 0, 0, 1, 0)), packet.DropHeaders},
		{"a strict one behind others", ether(bMAC, aMAC, options4(dns4, 1, 137, 7, 4, 10, 0, 0, 1)), packet.DropHeaders},
		{"a record of the route", ether(bMAC, aMAC, options4(dns4, 7, 7, 4, 0, 0, 0, 0, 0)), pass},
		{"an IPv4 option beyond the header", ether(bMAC, aMAC, options4(dns4, 7, 9, 4, 0, 0, 0, 0, 0)), packet.DropHeaders},
		{"an IPv4 option of length 0", ether(bMAC, aMAC, options4(dns4, 7, 0, 0, 0)), packet.DropHeaders},
		{"an IPv4 option of length 1", ether(bMAC, aMAC, options4(dns4, 7, 1, 0, 0)), packet.DropHeaders},
		{"an IPv4 option without a length", ether(bMAC, aMAC, options4(dns4, 1, 1, 1, 7)), packet.DropHeaders},

		// Fragments.
		{"first fragment, IPv4", ether(bMAC, aMAC, fragment4(dns4, 0, true)), pass},
		{"later fragment, IPv4", ether(bMAC, aMAC, fragment4(dns4, 8, false)), pass},
		{"later fragment from elsewhere", ether(bMAC, aMAC, fragment4(udp(far4, bAddr4), 8, false)), packet.DropSource},
		{"tiny first fragment, IPv4", ether(bMAC, aMAC, fragment4(packettest.IPv4(aAddr4, bAddr4, 17, make([]byte, 4)), 0, true)), packet.DropFragment},
		{"DHCP answer in a fragment", ether(all, aMAC, fragment4(packettest.UDP(port(aAddr4, 67), port(bAddr4, 68), make([]byte, 24)), 0, true)), packet.DropDHCP},
		{"first fragment, IPv6", ether(bMAC, aMAC, extended(dns6, 44, fragment6(17, 0, true))), pass},
		{"later fragment, IPv6", ether(bMAC, aMAC, extended(dns6, 44, fragment6(17, 8, false))), pass},
		{"later fragment from elsewhere, IPv6", ether(bMAC, aMAC, extended(udp(far6, bAddr6), 44, fragment6(17, 8, false))), packet.DropSource},
		{"tiny first fragment, IPv6", ether(bMAC, aMAC, extended(packettest.IPv6(aAddr6, bAddr6, 17, make([]byte, 7)), 44, fragment6(17, 0, true))), packet.DropFragment},
		{"first fragment with half its headers", ether(bMAC, aMAC, extended(packettest.IPv6(aAddr6, bAddr6, 60, []byte{17, 1, 1, 4, 0, 0, 0, 0}), 44, fragment6(60, 0, true))), packet.DropFragment},
		{"advertisement in a fragment", ether(bMAC, aMAC, extended(advertise, 44, fragment6(58, 0, false))), packet.DropNeighbor},
		{"advertisement of the other in a first fragment", ether(bMAC, aMAC, extended(packettest.Advertise(aAddr6, bAddr6, bAddr6, aMAC), 44, fragment6(58, 0, true))), packet.DropNeighbor},
		{"advertisement behind headers in a fragment", ether(bMAC, aMAC, extended(advertise, 44, fragment6(60, 0, true), []byte{58, 0, 1, 4, 0, 0, 0, 0})), packet.DropNeighbor},
		{"router advertisement in a fragment", ether(group, aMAC, extended(icmp6(aLocal, nodes, packettest.RouterAdvertise, 12), 44, fragment6(58, 0, true))), packet.DropRouter},
		{"duplicate detection in a later fragment", ether(group, aMAC, extended(packettest.Solicit(noAddr, aAddr6, nil), 44, fragment6(58, 8, false))), packet.DropSource},
		{"a fragment of a fragment", ether(bMAC, aMAC, extended(dns6, 44, fragment6(44, 0, true), fragment6(17, 0, true))), packet.DropHeaders},
		{"fragment header cut short", ether(bMAC, aMAC, packettest.IPv6(aAddr6, bAddr6, 44, []byte{17, 0, 0, 1})), packet.DropHeaders},
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, tt := range tests {
			w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
			a, b := twoPeers(w)
			a.say(tt.frame)
			heard := b.Written()
			st := w.Stats().Ports[0]
			switch {
			case tt.want == pass && (len(heard) != 1 || !bytes.Equal(heard[0].Packet(), tt.frame) || w.total() != 0):
				t.Errorf("%s: heard %d, drops: %v", tt.name, len(heard), w.Stats().Drops)
			case tt.want != pass && (len(heard) != 0 || w.dropped(tt.want) != 1 || w.total() != 1):
				t.Errorf("%s: heard %d, want drop %v, got %v", tt.name, len(heard), tt.want, w.Stats().Drops)
			case tt.want != pass && (st.Drops[tt.want] != 1 || st.MACs != 0):
				t.Errorf("%s: port: %+v", tt.name, st)
			}
			a.end()
			b.end()
		}
	})
}

// What a trusted port says is not checked, and reaches all.
func TestSwitchTrusts(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, FloodRate: 1})
		device := w.add(packet.PortOptions{Trusted: true})
		a, b := twoPeers(w)
		lldp := packettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, net.HardwareAddr{0x52, 0, 0, 0, 0, 1}, 0x88cc, make([]byte, 50))
		router := ether(packettest.Broadcast(), net.HardwareAddr{0x52, 0, 0, 0, 0, 1}, icmp6(far6, bAddr6, packettest.RouterAdvertise, 12))
		device.say(lldp, router, lldp)
		a.hears(lldp, router, lldp)
		b.hears(lldp, router, lldp)
		device.say(lldp[:13])
		if w.dropped(packet.DropMalformed) != 1 || w.total() != 1 {
			t.Errorf("drops: %v", w.Stats().Drops)
		}
	})
}

// A virtio-net header that would have others change what was checked does not pass.
func TestSwitchOffload(t *testing.T) {
	tcp := ether(bMAC, aMAC, packettest.TCP(port(aAddr6, 1), port(bAddr6, 2), packettest.Segment{Flags: packettest.ACK, Payload: make([]byte, 5000)}))
	neighbor := ether(bMAC, aMAC, packettest.Advertise(aAddr6, bAddr6, aAddr6, aMAC))
	request := packettest.Ethernet(packettest.Broadcast(), aMAC, packettest.TypeARP, arp(1, aMAC, aAddr4, bAddr4))
	header := func(flags, gso byte, length, size, start, offset uint16) []byte {
		h := []byte{flags, gso}
		for _, n := range []uint16{length, size, start, offset} {
			h = binary.LittleEndian.AppendUint16(h, n)
		}
		return h
	}
	tests := []struct {
		name   string
		header []byte
		packet []byte
		pass   bool
	}{
		{"segmentation", header(1, 4, 74, 1400, 54, 16), tcp, true},
		{"partial checksum", header(1, 0, 0, 0, 54, 16), tcp, true},
		{"verified", header(2, 0, 0, 0, 0, 0), tcp, true},
		{"a checksum over the source MAC", header(1, 0, 0, 0, 0, 6), tcp, false},
		{"a checksum over the source address", header(1, 0, 0, 0, 14, 8), tcp, false},
		{"a checksum over the port", header(1, 0, 0, 0, 54, 0), tcp, false},
		{"a checksum over the target", header(1, 0, 0, 0, 54, 8), neighbor, false},
		{"a checksum over ARP", header(1, 0, 0, 0, 14, 14), request, false},
		{"unknown flags", header(0x80, 0, 0, 0, 0, 0), tcp, false},
		{"segmentation of another version", header(1, 1, 74, 1400, 54, 16), tcp, false},
		{"segmentation without a checksum", header(0, 4, 74, 1400, 0, 0), tcp, false},
		{"segmentation of size 0", header(1, 4, 74, 0, 54, 16), tcp, false},
		{"segmentation of size 1", header(1, 4, 74, 1, 54, 16), tcp, false},
		{"segmentation of ARP", header(1, 4, 74, 100, 54, 16), request, false},
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, tt := range tests {
			w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
			a, b := twoPeers(w)
			f := packet.Frame{Data: slices.Concat(tt.header, tt.packet)}
			a.Give(f)
			a.say()
			switch heard := b.Written(); {
			case tt.pass && (len(heard) != 1 || !bytes.Equal(heard[0].Data, f.Data)):
				t.Errorf("%s: heard %d, drops: %v", tt.name, len(heard), w.Stats().Drops)
			case !tt.pass && (len(heard) != 0 || w.dropped(packet.DropOffload) != 1):
				t.Errorf("%s: heard %d, drops: %v", tt.name, len(heard), w.Stats().Drops)
			}
			a.end()
			b.end()
		}
	})
}

// What is numbered keeps its number, and is numbered by the member itself.
func TestSwitchOrigin(t *testing.T) {
	for _, mode := range []packet.Mode{packet.TAP, packet.TUN} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newSwitchWorld(t, &packet.Switch{Mode: mode})
			a, b := twoPeers(w)
			f := packettest.Frame(udp(aAddr6, bAddr6))
			if mode == packet.TAP {
				f = packettest.Frame(a.frameTo(b))
			}
			f.Origin, f.Seq = 1, 77
			a.Give(f)
			a.say()
			if heard := b.Written(); len(heard) != 1 || heard[0].Origin != 1 || heard[0].Seq != 77 {
				t.Errorf("%v: heard %+v", mode, heard)
			}
			f.Origin = 2
			a.Give(f)
			a.say()
			if heard := b.Written(); len(heard) != 0 || w.dropped(packet.DropOrigin) != 1 {
				t.Errorf("%v: heard %+v", mode, heard)
			}
		})
	}
}
