package proxyproto

import "net"

// Header is one PROXY header: whose connection this is.
type Header struct {
	// Version is 1 for the line of text and 2 for the binary form, which alone
	// carries UNIX addresses and TLVs. 0 writes version 2; reading never
	// yields it.
	Version int
	// Local is LOCAL of version 2 and UNKNOWN of version 1: the sender speaks
	// for itself, or cannot say for whom, and the addresses of the connection
	// are the ones to use. Source and Destination are nil in a header that was
	// read, and not written.
	Local bool
	// Source and Destination are what the first sender saw: who connected, and
	// to where. Both are of one kind, *net.TCPAddr, *net.UDPAddr or
	// *net.UnixAddr. IPv4 addresses within IPv6 are read as IPv4. An abstract
	// UNIX name begins with @, as it does in package net.
	Source, Destination net.Addr
	// TLVs are the extensions of version 2, in their order, at most 64.
	TLVs []TLV
}

// HeaderOf returns a header that tells the next hop who c comes from: its
// source is c.RemoteAddr, its destination c.LocalAddr. Of a [Conn] these are the
// addresses claimed by a trusted peer, so that the client survives any number
// of hops. It is Local if the addresses are of a kind, or of two kinds, that
// no header can hold.
func HeaderOf(c net.Conn) *Header {
	h := &Header{Version: 2, Source: c.RemoteAddr(), Destination: c.LocalAddr()}
	if _, err := h.encoder(2); err != nil {
		return &Header{Version: 2, Local: true}
	}
	return h
}

// TLV returns the value of the first TLV of that type, and whether there is
// one. The value must not be changed.
func (h *Header) TLV(t TLVType) (value []byte, ok bool) {
	return find(h.TLVs, t)
}

// Authority returns the host name that the client asked for, which is the SNI
// of TLS mostly, or "" if it is not told.
func (h *Header) Authority() string { return h.text(TypeAuthority) }

// ALPN returns the protocol that was negotiated with the client, such as "h2",
// or "" if it is not told.
func (h *Header) ALPN() string { return h.text(TypeALPN) }

// UniqueID returns what the sender calls the connection, up to 128 bytes, or
// nil if it is not told. It must not be changed.
func (h *Header) UniqueID() []byte {
	id, _ := h.TLV(TypeUniqueID)
	return id
}

func (h *Header) text(t TLVType) string {
	v, _ := h.TLV(t)
	return string(v)
}
