package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// prefixedPipe makes pairs whose second end is a Prefixed over the given pair.
// With a prefix, the first bytes of what the test sends come by that way.
func prefixedPipe(mk func(t testing.TB) (net.Conn, net.Conn)) func(t *testing.T) func() (net.Conn, net.Conn, func(), error) {
	return func(t *testing.T) func() (net.Conn, net.Conn, func(), error) {
		return func() (net.Conn, net.Conn, func(), error) {
			c, s := mk(t)
			return c, NewPrefixed(s, nil), func() { c.Close(); s.Close() }, nil
		}
	}
}

func TestPrefixedConn(t *testing.T) {
	for _, k := range kinds() {
		switch k.name {
		case "tcp", "unix", "memory", "tlsServer":
			t.Run(k.name, func(t *testing.T) { tunneltest.TestConn(t, prefixedPipe(k.pair)(t)) })
		}
	}
}

// TestPrefixedConnFull runs the suite with a real prefix, which is the head of
// what the first end sends.
func TestPrefixedConnFull(t *testing.T) {
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c, s := tcpPair(t)
		p := NewPrefixed(s, []byte("0123456789"))
		head := make([]byte, 10)
		if _, err := io.ReadFull(p, head); err != nil || string(head) != "0123456789" {
			t.Errorf("prefix: %q, %v", head, err)
		}
		return c, p, func() { c.Close(); p.Close() }, nil
	})
}

func TestPrefixedReads(t *testing.T) {
	c, s := tcpPair(t)
	limit(c)
	p := NewPrefixed(s, []byte("prefix"))
	mustWrite(t, c, "+rest")
	b := make([]byte, 4)
	for _, want := range []string{"pref", "ix", "+res", "t"} {
		if n, err := p.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("Read = %q, %v; want %q", b[:n], err, want)
		}
	}
	if p.NetConn() != s || p.LocalAddr() != s.LocalAddr() || p.RemoteAddr() != s.RemoteAddr() {
		t.Error("not the connection below")
	}
	mustCloseWrite(t, p)
	mustEOF(t, c)
	if err := p.Reset(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		_, err = c.Write([]byte("x"))
		if err == nil {
			t.Error("not reset")
		}
	}
}

// TestPrefixedDeadline checks that what forbids reading the socket forbids
// reading the prefix.
func TestPrefixedDeadline(t *testing.T) {
	_, s := tcpPair(t)
	p := NewPrefixed(s, []byte("prefix"))
	past := time.Now().Add(-time.Second)
	for _, set := range []func(time.Time) error{p.SetDeadline, p.SetReadDeadline} {
		if err := set(past); err != nil {
			t.Fatal(err)
		}
		var ne net.Error
		if n, err := p.Read(make([]byte, 9)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) ||
			!errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("Read = %d, %v; want a timeout", n, err)
		}
		if n, err := p.WriteTo(io.Discard); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("WriteTo = %d, %v; want a timeout", n, err)
		}
		if err := set(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write: %v, want a timeout", err)
	}
	mustRead(t, p, "pre")
	p.Close()
	if n, err := p.Read(make([]byte, 9)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close = %d, %v; want net.ErrClosed", n, err)
	}
}

func TestPrefixedCopy(t *testing.T) {
	c, s := tcpPair(t)
	limit(c, s)
	p := NewPrefixed(s, []byte("prefix"))
	mustWrite(t, c, "+rest")
	mustCloseWrite(t, c)
	var out bytes.Buffer
	if n, err := io.Copy(&out, p); n != 11 || err != nil || out.String() != "prefix+rest" {
		t.Errorf("Copy = %d, %v, %q", n, err, &out)
	}
	if n, err := io.Copy(p, struct{ io.Reader }{strings.NewReader("answer")}); n != 6 || err != nil {
		t.Errorf("Copy = %d, %v", n, err)
	}
	mustRead(t, c, "answer")

	p = NewPrefixed(s, []byte("prefix"))
	boom := errors.New("boom")
	if n, err := p.WriteTo(faulty{Conn: s, write: boom}); n != 1 || err != boom {
		t.Errorf("WriteTo = %d, %v; want 1, boom", n, err)
	}
}

// TestRelayPrefixed nests prefixes on both legs, and shows that Relay gets at the
// sockets below them.
func TestRelayPrefixed(t *testing.T) {
	pa, a := tcpPair(t)
	pb, b := tcpPair(t)
	limit(pa, pb)
	na := NewPrefixed(NewPrefixed(a, []byte("two,")), []byte("one,"))
	if got := string(readN(t, na, 1)); got != "o" {
		t.Fatalf("read %q", got)
	}
	r := newRelay(na, NewPrefixed(b, []byte("head")), nil)
	if r.a.data != a || r.b.data != b {
		t.Error("Relay did not find the sockets")
	}
	done := make(chan error, 1)
	go func() { done <- r.run(t.Context()) }()
	mustRead(t, pb, "ne,two,")
	mustRead(t, pa, "head")
	mustWrite(t, pa, "three")
	mustRead(t, pb, "three")
	mustCloseWrite(t, pa)
	mustCloseWrite(t, pb)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if ab, ba := r.opt.Counter.Bytes(); ab != 12 || ba != 4 {
		t.Errorf("Bytes = %d, %d; want 12, 4", ab, ba)
	}
}

// TestRelayPrefixedWriteError loses the leg before the prefix is through.
func TestRelayPrefixedWriteError(t *testing.T) {
	pa, a := tcpPair(t)
	_, b := tcpPair(t)
	limit(pa)
	boom := errors.New("boom")
	start(t.Context(), t, NewPrefixed(a, []byte("head")), faulty{Conn: b, write: boom}, 0, nil).wantError(OpWrite, "b", boom)
	mustReset(t, pa)
}

func readN(t *testing.T, r io.Reader, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}
