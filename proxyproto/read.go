package proxyproto

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"

	codec "github.com/pires/go-proxyproto"
)

// ReadHeader reads one header from r and not one byte more, in whatever pieces
// it comes. What follows is read from r as ever.
//
// It takes no deadline and knows no trust: set the one on the connection, and
// keep what it returns away from access control unless the peer is trusted. A
// [Conn] does both, reads with fewer system calls, and copes with the absence of
// a header. Here the bytes that were no header, up to 15 of them, are lost.
//
// The error is a *HeaderError; that of r is in there.
func ReadHeader(r io.Reader) (*Header, error) {
	b := make([]byte, 0, maxV1)
	for {
		n, more, err := frameLen(b)
		if err != nil {
			return nil, &HeaderError{Err: err}
		}
		if n > 0 {
			h, err := parse(b)
			if err != nil {
				return nil, &HeaderError{Err: err}
			}
			return h, nil
		}
		b = grow(b, more)
		m, err := r.Read(b[len(b) : len(b)+more])
		b = b[:len(b)+m]
		if err != nil && m < more {
			return nil, &HeaderError{Err: endError(b, err)}
		}
	}
}

// grow makes room for n more bytes.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	return append(make([]byte, 0, len(b)+n), b...)
}

// endError says what it means that reading ended after the bytes b.
func endError(b []byte, err error) error {
	switch {
	case !errors.Is(err, io.EOF):
		return err
	case len(b) == 0:
		return fmt.Errorf("%w: %w", ErrNoHeader, io.EOF)
	case signature(b) == matchSome:
		return fmt.Errorf("%w: %w", ErrNoHeader, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, io.ErrUnexpectedEOF)
}

// parse has the codec parse exactly one frame.
func parse(frame []byte) (*Header, error) {
	r := bufio.NewReaderSize(bytes.NewReader(frame), len(frame))
	raw, err := codec.Read(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := r.Peek(1); err == nil {
		return nil, fmt.Errorf("%w: it ends before its frame does", ErrMalformed)
	}
	h := &Header{Version: int(raw.Version), Local: raw.Command.IsLocal()}
	h.TLVs, err = parseTLVs(raw, frame)
	if h.Local {
		// What a LOCAL header holds is to be skipped, whatever it is (§2.2).
		// It is kept where it makes sense, because some senders tell there
		// what the health check is of.
		return h, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	h.Source, h.Destination = unmap(raw.SourceAddr), unmap(raw.DestinationAddr)
	if raw.TransportProtocol.IsUnix() {
		h.Source = unixAddr(h.Source, frame[fixedV2:fixedV2+unixPath])
		h.Destination = unixAddr(h.Destination, frame[fixedV2+unixPath:fixedV2+2*unixPath])
	}
	return h, nil
}

// parseTLVs returns the TLVs of a frame, or none and an error. They are counted
// first: an empty one has 3 bytes on the wire and more than ten times that in
// memory.
func parseTLVs(raw *codec.Header, frame []byte) ([]TLV, error) {
	if raw.Version != 2 {
		return nil, nil
	}
	if n := countTLVs(frame); n > maxTLVs {
		return nil, fmt.Errorf("%d TLVs, more than %d", n, maxTLVs)
	}
	tlvs, err := raw.TLVs()
	if err == nil {
		err = verifyChecksum(frame)
	}
	if err != nil {
		return nil, err
	}
	return fromCodec(tlvs), nil
}

// unmap turns an IPv4 address within an IPv6 one into the former, so that there
// is one way to write it in a rule or a table.
func unmap(a net.Addr) net.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		if ip := a.IP.To4(); ip != nil {
			a.IP = ip
		}
	case *net.UDPAddr:
		if ip := a.IP.To4(); ip != nil {
			a.IP = ip
		}
	}
	return a
}
