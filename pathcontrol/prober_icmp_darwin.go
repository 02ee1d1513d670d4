package pathcontrol

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
)

// packetConn is the socket of package icmp. It tells nothing of ICMP errors, so
// that what is unreachable is found by time alone.
type packetConn struct {
	*icmp.PacketConn
	to *net.UDPAddr
}

func openEcho(addr netip.Addr, through Through) (echoConn, error) {
	network, local := "udp4", "0.0.0.0"
	if addr.Is6() {
		network, local = "udp6", "::"
	}
	if through.Source.IsValid() {
		local = through.Source.String()
	}
	c, err := icmp.ListenPacket(network, local)
	if err != nil {
		return nil, fmt.Errorf("pathcontrol: no ICMP socket: %w", err)
	}
	return packetConn{c, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))}, nil
}

func (p packetConn) id() int                           { return -1 }
func (p packetConn) close() error                      { return p.Close() }
func (p packetConn) setReadDeadline(t time.Time) error { return p.SetReadDeadline(t) }
func (p packetConn) failures() []failure               { return nil }

func (p packetConn) write(message []byte) error {
	_, err := p.WriteTo(message, p.to)
	return err
}

func (p packetConn) read(b []byte) (int, error) {
	n, _, err := p.ReadFrom(b)
	return n, err
}

func isTransient(error) bool { return false }
