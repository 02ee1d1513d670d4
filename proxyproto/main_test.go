package proxyproto

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// patience ends a test that hangs; no verdict depends on it otherwise.
const patience = 30 * time.Second

var (
	client = &net.TCPAddr{IP: net.IP{192, 0, 2, 7}, Port: 4711}
	front  = &net.TCPAddr{IP: net.IP{203, 0, 113, 9}, Port: 443}
	nobody = &net.TCPAddr{IP: net.IP{198, 51, 100, 1}, Port: 1}
	key    = &net.TCPAddr{IP: net.IP{240, 0, 10, 1}, Port: 443}

	outerHeader = &Header{Version: 2, Source: client, Destination: front}
	innerHeader = &Header{Version: 2, Source: nobody, Destination: key, TLVs: []TLV{{TypeAuthority, []byte("kubernetes")}}}
)

// wire renders headers and text one behind the other.
func wire(t testing.TB, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case *Header:
			if err := WriteHeader(&b, p); err != nil {
				t.Fatal(err)
			}
		case string:
			b.WriteString(p)
		}
	}
	return b.Bytes()
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// socketPair returns both ends of a connection, closed by the end of the test.
func socketPair(t testing.TB, network, addr string) (c, s net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if s, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

func tcpPair(t testing.TB) (c, s net.Conn) { return socketPair(t, "tcp", "127.0.0.1:0") }

func unixPair(t testing.TB) (c, s net.Conn) {
	return socketPair(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func memoryPair(t testing.TB) (c, s net.Conn) {
	c, s = tunneltest.Pipe()
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s
}

// limit ends what hangs.
func limit(cs ...net.Conn) {
	for _, c := range cs {
		c.SetDeadline(time.Now().Add(patience))
	}
}

func mustWrite(t testing.TB, c net.Conn, b string) {
	t.Helper()
	if _, err := io.WriteString(c, b); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

func mustEOF(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("Read = %d, %v; want EOF", n, err)
	}
}

func mustCloseWrite(t testing.TB, c net.Conn) {
	t.Helper()
	if err := relay.CloseWrite(c); err != nil {
		t.Fatal(err)
	}
}

// wantHeaderError checks the type and what is in it.
func wantHeaderError(t testing.TB, err error, want ...error) {
	t.Helper()
	var e *HeaderError
	if !errors.As(err, &e) {
		t.Fatalf("%v (%T), want a *HeaderError", err, err)
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%v, want %v in it", err, w)
		}
	}
	for _, other := range []error{ErrNoHeader, ErrRefused, ErrMalformed} {
		if len(want) > 0 && other != want[0] && errors.Is(err, other) {
			t.Errorf("%v is a %v too", err, other)
		}
	}
}

// scripted is a connection whose peer has sent everything already: Read yields
// it in pieces of the given size, and then EOF.
type scripted struct {
	net.Conn // not used
	data     []byte
	piece    int
	remote   net.Addr
	closed   bool
}

func (c *scripted) Read(b []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), max(c.piece, 1))], c.data)
	c.data = c.data[n:]
	return n, nil
}

func (c *scripted) Write(b []byte) (int, error) { return len(b), nil }
func (c *scripted) Close() error                { c.closed = true; return nil }
func (c *scripted) LocalAddr() net.Addr         { return front }
func (c *scripted) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return &net.TCPAddr{IP: net.IP{10, 0, 0, 1}, Port: 999}
}
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }
