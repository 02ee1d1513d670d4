package entrypoint

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
)

const (
	// maxHello bounds a ClientHello as crypto/tls does.
	maxHello = 64 << 10
	// maxHelloBytes bounds what is read until it is complete: as much again is
	// for the headers of records. At one record per byte, of which nobody has
	// more than fun, a hello may still have 21 KiB.
	maxHelloBytes = 2 * maxHello
	// maxALPN is how many protocols are kept of those that are offered. A hello
	// holds 32,000, which would stay in memory as long as the connection.
	maxALPN = 64

	// smallHello is what a hello may have in any case. Those of today's clients
	// have 2 KiB.
	smallHello = 8 << 10
	// maxLargeHellos bounds what all hellos of a Router together have beyond, while
	// they are not complete. crypto/tls holds as much again.
	maxLargeHellos = 32 << 20
)

var (
	errHelloRead      = errors.New("the ClientHello has been read")
	errHelloTooLarge  = errors.New("ClientHello too large")
	errHellosTooLarge = errors.New("too many large ClientHellos at once")
)

// clientHello is what is read from a ClientHello.
type clientHello struct {
	serverName string   // lower case
	alpn       []string // at most maxALPN
}

// readHello reads a ClientHello from c, whose first bytes are in read already.
// It returns all bytes that have been read, which are the hello and perhaps some
// behind it, also with an error.
//
// crypto/tls parses it: it gets the bytes as a server would, and is stopped
// before it answers. It asks for the keys of encrypted ClientHellos before it
// looks into one, so that a name is found whatever stands there, be it GREASE
// (RFC 8701, RFC 9849 §6.2) or garbage, and it is always the outer one.
//
// large counts the bytes of large hellos that are being read.
func readHello(c net.Conn, read []byte, large *atomic.Int64) (*clientHello, []byte, error) {
	h := &helloConn{Conn: c, read: read, large: large}
	defer func() { large.Add(-h.counted) }()
	found := (*clientHello)(nil)
	take := func(i *tls.ClientHelloInfo) error {
		found = &clientHello{serverName: lower(i.ServerName), alpn: slices.Clone(i.SupportedProtos[:min(len(i.SupportedProtos), maxALPN)])}
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
	if announced(h.read) > maxHello {
		return nil, h.read, errHelloTooLarge
	}
	return nil, h.read, badHello{err}
}

// announced is the length of the ClientHello that some records begin with, or 0
// where too little of one is there. It is for telling why crypto/tls has refused
// them.
func announced(records []byte) int {
	var head []byte // type, and three bytes of length
	for len(records) >= 5 && records[0] == recordHandshake && len(head) < 4 {
		end := min(5+int(records[3])<<8+int(records[4]), len(records))
		head = append(head, records[5:min(end, 9)]...)
		records = records[end:]
	}
	if len(head) < 4 || head[0] != handshakeClientHello {
		return 0
	}
	return int(head[1])<<16 | int(head[2])<<8 | int(head[3])
}

// lower is strings.ToLower for ASCII: a server name that has other letters is none
// that a client may send (RFC 6066 §3), and must not become one.
func lower(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
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

	large   *atomic.Int64
	counted int64 // of h in large
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
	if more := int64(len(h.read)+min(n, room)-smallHello) - h.counted; more > 0 {
		h.counted += more
		if h.large.Add(more) > maxLargeHellos {
			return errHellosTooLarge
		}
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
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// CloseWrite does nothing, as Write.
func (h *helloConn) CloseWrite() error { return nil }

func (h *helloConn) Write(b []byte) (int, error) { return len(b), nil }
