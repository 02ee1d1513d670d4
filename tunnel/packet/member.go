package packet

import (
	"net"
	"net/netip"
)

// Member is one process that has a link to a server, as the server tells it to
// the others: behind the server, it can be reached.
type Member struct {
	// ID is drawn at random by the process, and the same at all its servers.
	ID uint64 `json:"id,string"`
	// Name is what the credential says.
	Name string `json:"name,omitempty"`
	// Addresses are its own on the tunnel's network.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Networks are what it forwards to.
	Networks []netip.Prefix `json:"networks,omitempty"`
	// MTU is that of these networks, see Hello.MTU: no longer packet gets there. Zero
	// means that it is not known.
	MTU int `json:"mtu,omitempty"`
}

// MAC is the Ethernet address that goes with an address on the tunnel's network:
//
//	02 | leg | the last four bytes of the address
//
// so that a switch can tell from the credential, which names addresses, whether a
// peer may use it, a restarted peer is found where it was, and a capture
// can be read. It is locally administered (IEEE 802, §8.2). The leg, 0 to 255, tells the
// devices of one member apart: in a bond of the kernel, each link has one.
// Two addresses of a network whose last four bytes are the same cannot be told
// apart: keep a tunnel's network within a /96, or an IPv4 network.
func MAC(addr netip.Addr, leg int) net.HardwareAddr {
	b := addr.Unmap().AsSlice()
	m := net.HardwareAddr{0x02, byte(leg), 0, 0, 0, 0}
	if len(b) >= 4 {
		copy(m[2:], b[len(b)-4:])
	}
	return m
}
