package entrypoint

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// By is what a connection is told apart by. Several may be or'ed together: one
// port can serve all three, because their first bytes differ.
type By uint8

// What a connection can be told apart by.
const (
	// BySNI: a TLS ClientHello, by its server name. TLS is not terminated.
	BySNI By = 1 << iota
	// ByDestination: a PROXY header, by its destination address.
	ByDestination
	// ByHeader: an HTTP CONNECT request, by the value of one header.
	ByHeader
)

// String returns "sni", "destination", "header", or several with "|" between.
func (b By) String() string {
	var names []string
	for i, name := range []string{"sni", "destination", "header"} {
		if b&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Info is what a [Router] knows of a connection before the first byte is
// forwarded. It is for reading only.
type Info struct {
	// Client is who connects: the source of the PROXY header of a trusted load
	// balancer, else the peer of the socket. Not valid where that is no IP
	// address.
	Client netip.AddrPort
	// Local is what the client connected to: the destination of that header,
	// else the address of the socket here.
	Local net.Addr
	// Peer is the other end of the socket, a load balancer as a rule.
	Peer net.Addr
	// Proxy is the PROXY header of a trusted load balancer, or nil.
	Proxy *proxyproto.Header
	// Start is when the connection was accepted.
	Start time.Time

	// By is what the connection was told apart by: one of the constants.
	By By
	// ServerName is the name in the ClientHello, in lower case, and ALPN what it
	// offers (BySNI). Where an encrypted ClientHello hides another name, this is
	// the outer one.
	ServerName string
	ALPN       []string
	// Destination is that of the PROXY header which anybody may send
	// (ByDestination). It is a key and no more; the source in the same header is
	// nobody's and is dropped.
	Destination netip.AddrPort
	// HeaderName and HeaderValue are the routing header of the request, and
	// Request is all of it, for Authorize only (ByHeader).
	HeaderName  string
	HeaderValue string
	Request     *connect.Request

	// Route is the name of the route, empty while it is not known.
	Route string
}

// Key is what the route is looked up by, for logs: the server name, the
// destination or the header value.
func (i *Info) Key() string {
	switch i.By {
	case BySNI:
		return i.ServerName
	case ByDestination:
		return i.Destination.String()
	case ByHeader:
		return i.HeaderValue
	}
	return ""
}

// addrPort is the IP address and port of a, not valid if it has none. Addresses
// are compared and listed as IPv4 where they are IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
