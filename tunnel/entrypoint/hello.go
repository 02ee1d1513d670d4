package entrypoint

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
)

// maxHelloBytes bounds what is read until a ClientHello is complete: the 64 KiB
// that crypto/tls takes, and as much again for the headers of records, of which
// a hello may have one per byte.
const maxHelloBytes = 128 << 10

var (
	errHelloRead     = errors.New("the ClientHello has been read")
	errHelloTooLarge = errors.New("ClientHello too large")
)

// clientHello is what is read from a ClientHello.
type clientHello struct {
	serverName string // lower case
	alpn       []string
}

// readHello reads a ClientHello from c, whose first bytes are in read already.
// It returns all bytes that have been read, which are the hello and perhaps some
// behind it, also with an error.
//
// crypto/tls parses it: it gets the bytes as a server would, and is stopped
// before it answers. It asks for the keys of encrypted ClientHellos before it
// looks into one, so that a name is found whatever stands there, be it GREASE
// (RFC 8701, RFC 9849 §6.2) or garbage, and it is always the outer one.
func readHello(c net.Conn, read []byte) (*clientHello, []byte, error) {
	h := &helloConn{Conn: c, read: read}
	found := (*clientHello)(nil)
	take := func(i *tls.ClientHelloInfo) error {
		found = &clientHello{serverName: strings.ToLower(i.ServerName), alpn: slices.Clone(i.SupportedProtos)}
		return errHelloRead
	}
	err := tls.Server(h, &tls.Config{
		MinVersion: tls.VersionTLS10, // the backend decides
		GetEncryptedClientHelloKeys: func(i *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
			return nil, take(i)
		},
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) { return nil, take(i) },
	}).Handshake()
	if found != nil {
		return found, h.read, nil
	}
	if h.err != nil {
		return nil, h.read, h.err
	}
	return nil, h.read, badHello{err}
}

// badHello is a verdict of crypto/tls, as opposed to an error of the connection.
type badHello struct{ error }

// helloConn keeps what is read, and writes nothing: the alert with which
// crypto/tls ends is not for the client. It yields the bytes that were read
// before first.
type helloConn struct {
	net.Conn
	read []byte
	next int   // of read, what crypto/tls has not seen
	err  error // of the connection, which crypto/tls wraps or replaces
}

func (h *helloConn) Read(b []byte) (int, error) {
	if h.next == len(h.read) {
		if err := h.more(len(b)); err != nil {
			h.err = err
			return 0, err
		}
	}
	n := copy(b, h.read[h.next:])
	h.next += n
	return n, nil
}

// more reads some bytes from the connection, at most n.
func (h *helloConn) more(n int) error {
	room := maxHelloBytes - len(h.read)
	if room <= 0 {
		return errHelloTooLarge
	}
	// crypto/tls offers room for what it still wants, or a little more.
	h.read = slices.Grow(h.read, min(n, room))
	n, err := h.Conn.Read(h.read[len(h.read) : len(h.read)+min(n, room)])
	h.read = h.read[:len(h.read)+n]
	switch {
	case n > 0:
		return nil // an error comes again
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

func (h *helloConn) Write(b []byte) (int, error) { return len(b), nil }
