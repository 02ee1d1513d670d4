package proxyproto

import (
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"

	codec "github.com/pires/go-proxyproto"
)

// WriteHeader writes h to w with one call of Write, so that it travels in one
// packet, as receivers are allowed to expect.
//
// An IPv4 and an IPv6 address are written as two IPv6 ones. Version 1 has no
// words for UNIX and UDP addresses and says UNKNOWN, as the specification has
// it. A TLV of TypeCRC32C gets its value here, whatever Value is.
//
// What cannot be expressed is an [ErrInvalid], and nothing is written: TLVs in
// version 1, another version, addresses that are missing, of two kinds or of a
// kind of their own, UNIX names above 108 bytes; and what ReadHeader refuses too,
// more than 64 TLVs, or 4096 bytes behind the first 16. An error of w is returned
// as it is.
func WriteHeader(w io.Writer, h *Header) error {
	b, err := h.frame()
	if err != nil {
		return fmt.Errorf("proxyproto: %w", err)
	}
	return writeFrame(w, b)
}

func writeFrame(w io.Writer, b []byte) error {
	n, err := w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// frame renders the header.
func (h *Header) frame() ([]byte, error) {
	version := h.Version
	switch {
	case version == 0:
		version = 2
	case version != 1 && version != 2:
		return nil, fmt.Errorf("%w: version %d", ErrInvalid, version)
	case version == 1 && len(h.TLVs) > 0:
		return nil, fmt.Errorf("%w: TLVs in version 1", ErrInvalid)
	}
	if len(h.TLVs) > maxTLVs {
		return nil, fmt.Errorf("%w: %d TLVs, more than %d", ErrInvalid, len(h.TLVs), maxTLVs)
	}
	raw, err := h.encoder(byte(version))
	if err != nil {
		return nil, err
	}
	tlvs := toCodec(h.TLVs)
	for i := range tlvs {
		if TLVType(tlvs[i].Type) == TypeCRC32C {
			tlvs[i].Value = make([]byte, crc32.Size)
		}
	}
	if err := raw.SetTLVs(tlvs); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	b, err := raw.Format()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if version == 2 {
		if len(b) > fixedV2+maxPayload {
			return nil, fmt.Errorf("%w: %d bytes behind the fixed part, more than %d", ErrInvalid, len(b)-fixedV2, maxPayload)
		}
		if err := setChecksum(b); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return b, nil
}

// encoder returns the codec's header without the TLVs.
func (h *Header) encoder(version byte) (*codec.Header, error) {
	if h.Local {
		return &codec.Header{Version: version, Command: codec.LOCAL, TransportProtocol: codec.UNSPEC}, nil
	}
	var wire [2]net.Addr
	for i, a := range []net.Addr{h.Source, h.Destination} {
		var err error
		if wire[i], err = wireAddr(a); err != nil {
			return nil, err
		}
	}
	raw := codec.HeaderProxyFromAddrs(version, wire[0], wire[1])
	if raw.Command.IsLocal() {
		return nil, fmt.Errorf("%w: addresses %v and %v are of two kinds", ErrInvalid, h.Source, h.Destination)
	}
	return raw, nil
}

// wireAddr checks one address by itself.
func wireAddr(a net.Addr) (net.Addr, error) {
	var ip net.IP
	var port int
	switch a := a.(type) {
	case *net.TCPAddr:
		if a != nil {
			ip, port = a.IP, a.Port
		}
	case *net.UDPAddr:
		if a != nil {
			ip, port = a.IP, a.Port
		}
	case *net.UnixAddr:
		if a != nil && slices.Contains([]string{"unix", "unixgram"}, a.Net) {
			return wireUnix(a)
		}
	}
	if ip.To16() == nil || port < 0 || port > 0xFFFF {
		return nil, fmt.Errorf("%w: address %v", ErrInvalid, a)
	}
	return a, nil
}
