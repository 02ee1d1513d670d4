package entrypoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// piecesConn yields some bytes in pieces, and then EOF.
type piecesConn struct {
	captureConn
	rest []byte
	size int
}

func (p *piecesConn) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(p.size, len(b))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// reference is what a server of crypto/tls sees.
func reference(hello []byte) (found *tls.ClientHelloInfo) {
	_ = tls.Server(&piecesConn{rest: hello, size: 1 << 20}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			found = i
			return nil, errHelloRead
		},
	}).Handshake()
	return found
}

func FuzzReadHello(f *testing.F) {
	for _, c := range []*tls.Config{
		{ServerName: nameA}, {ServerName: strings.ToUpper(nameB), NextProtos: []string{"h2", "http/1.1"}}, {InsecureSkipVerify: true},
		{ServerName: nameA, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, {ServerName: nameA, MaxVersion: tls.VersionTLS12},
		{ServerName: nameA, NextProtos: manyProtocols(3 << 10), CurvePreferences: []tls.CurveID{tls.X25519}},
	} {
		h := helloOf(f, c)
		msg := payload(h)
		f.Add([]byte(h), uint16(0))
		f.Add([]byte(h[:len(h)/2]), uint16(3))
		f.Add([]byte(h+h), uint16(1<<15))
		f.Add([]byte(records(msg, 1)), uint16(9))
		f.Add([]byte(records(msg, 100)), uint16(700))
		f.Add([]byte(records(extended(msg, extensionECH, []byte{1}), 1<<14)), uint16(40))
		f.Add([]byte(records(extended(msg, extensionECH, make([]byte, 50)), 1<<14)), uint16(40))
	}
	for _, s := range []string{"", "\x16", "\x16\x03\x01", "\x16\x03\x01\x00\x00", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x04\x01\x00\x00\x00"} {
		f.Add([]byte(s), uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		c := &piecesConn{rest: bytes.Clone(b), size: int(size) + 1}
		first := make([]byte, 2<<10)
		n, err := c.Read(first)
		if err != nil {
			return // nothing has been sent
		}
		found, all, err := readHello(c, first[:n], new(atomic.Int64))
		if (found == nil) == (err == nil) {
			t.Fatalf("%v %v", found, err)
		}
		if !bytes.Equal(append(bytes.Clone(all), c.rest...), b) {
			t.Fatalf("%d bytes were read and %d are left, of %d others", len(all), len(c.rest), len(b))
		}
		if c.Len() > 0 {
			t.Fatalf("%x was written", c.Bytes())
		}
		want := reference(b)
		switch {
		case want == nil && found == nil:
		case want == nil && !bytes.Contains(b, []byte{0xfe, 0x0d}): // an ECH that it has not got past
			t.Fatalf("found %+v where crypto/tls finds none", found)
		case found == nil && !errors.Is(err, errHelloTooLarge):
			t.Fatalf("%v, where crypto/tls finds %q", err, want.ServerName)
		case found == nil || want == nil:
		case found.serverName != lower(want.ServerName), !slices.Equal(found.alpn, want.SupportedProtos[:min(maxALPN, len(want.SupportedProtos))]):
			t.Fatalf("found %+v, crypto/tls finds %q %q", found, want.ServerName, want.SupportedProtos)
		}
	})
}

// pieces is the Router's end of a connection that reads in pieces, from an
// address.
type pieces struct {
	*tunneltest.Conn
	from net.Addr
	size int
}

func (p *pieces) RemoteAddr() net.Addr        { return p.from }
func (p *pieces) Read(b []byte) (int, error)  { return p.Conn.Read(b[:min(p.size, len(b))]) }
func (p *pieces) Write(b []byte) (int, error) { return p.Conn.Write(b) }

// queue is a listener of connections that are given to it.
type queue struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	select {
	case <-q.closed:
	default:
		close(q.closed)
	}
	return nil
}

func (q *queue) Addr() net.Addr { return tcpAddr("203.0.113.1:443") }

// arrived is what a backend has got.
type arrived struct {
	info *Info
	data []byte
	err  error
}

// FuzzDoor has a client, or a client behind a load balancer, send anything to any
// door and half-close. It is served or refused, and counted as the one or the
// other. If it is served, then the backend gets exactly what is behind the head.
func FuzzDoor(f *testing.F) {
	var (
		outer = wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))
		inner = wire(proxyHeader("[2001:db8::1]:1000", "[2001:db8::2]:443"))
		text  = v1("192.0.2.7:1000", "203.0.113.1:443")
		tls   = hello(f, nameA)
		head  = "CONNECT x:1 HTTP/1.1\r\nHost: x\r\nReversed-VPN: k\r\n\r\n"
	)
	for door := range byte(4) {
		for _, say := range []string{
			"", outer, text, local, tls, head, inner + "data", head + "data", tls + "data", "\r\n" + head + "data",
			outer + inner + "data", outer + inner + outer, text + tls, text + head + "data", local + head, inner + outer, outer + "PROXY UNKNOWN\r\nx",
			records(payload(tls), 7), strings.Replace(head, "k", "other", 1), strings.Replace(head, "1.1", "1.0", 1), "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
			"\x16\x03\x01\x00\x00", "\r\n\r\n\x00\r\nQUIT\n", "PROXY ", "P", "\x16", "SSH-2.0-x\r\n",
		} {
			f.Add(door, false, uint16(2000), []byte(say))
			f.Add(door, true, uint16(0), []byte(say))
		}
	}

	got := make(chan arrived, 1)
	router := &Router{Name: "fuzz"}
	handler := scripted(func(_ context.Context, in *Incoming) error {
		c, err := in.Accept()
		if err != nil {
			_ = c.Close()
			return err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		got <- arrived{in.Info, b, err}
		return nil
	})
	if err := router.SetRoutes([]*Route{{
		Name: "all", Default: true, HeaderValues: []string{"k"}, Destinations: []Destination{dest("0.0.0.0/0"), dest("::/0")}, Handler: handler,
	}}); err != nil {
		f.Fatal(err)
	}
	var doors []*queue
	for _, by := range []By{BySNI, ByDestination, ByHeader, BySNI | ByDestination | ByHeader} {
		rules := []proxyproto.Rule{{From: prefix(balancer + "/32"), Policy: proxyproto.Accept}}
		if by&ByDestination != 0 {
			rules[0].Policy = proxyproto.Require
		}
		q := &queue{make(chan net.Conn), make(chan struct{})}
		doors = append(doors, q)
		go func() { _ = router.Serve(q, &Door{By: by, Proxy: rules, Unknown: Unknown(by % 2)}) }()
	}
	f.Cleanup(func() { router.Close() })
	counted := func() (n uint64) {
		s := router.Stats()
		for _, r := range s.Refused {
			n += r
		}
		return n + s.Routes[0].Total
	}

	f.Fuzz(func(t *testing.T, door byte, trusted bool, size uint16, say []byte) {
		if len(say) > 200<<10 {
			return // more than a buffer holds, and than any head
		}
		before := counted()
		a, b := tunneltest.Pipe()
		defer a.Close()
		from := "198.51.100.1:1000"
		if trusted {
			from = balancer + ":1000"
		}
		doors[int(door)%len(doors)].conns <- &pieces{b.(*tunneltest.Conn), tcpAddr(from), int(size) + 1}
		_, _ = a.Write(say)
		_ = a.(*tunneltest.Conn).CloseWrite()
		_ = a.SetDeadline(time.Now().Add(30 * time.Second))
		answer, err := io.ReadAll(a)
		if isTimeout(err) {
			t.Fatalf("no end of it\n%+v", router.Stats())
		}
		if n := counted(); n != before+1 {
			t.Errorf("counted %d times\n%+v", n-before, router.Stats())
		}
		select {
		case in := <-got:
			if err := in.check(say); err != nil {
				t.Errorf("by %v: %v\nsent %q\nthe backend got %q, %v", in.info.By, err, say, in.data, in.err)
			}
		default:
			if bytes.HasPrefix(answer, []byte("HTTP/1.1 2")) {
				t.Errorf("not served, and told %q", answer)
			}
		}
	})
}

// check compares what a backend has got with what was sent.
func (a arrived) check(sent []byte) error {
	r := bytes.NewReader(sent)
	if a.info.Proxy != nil {
		h, err := proxyproto.ReadHeader(r)
		if err != nil {
			return err
		}
		if !h.Local && a.info.Client != addrPort(h.Source) {
			return fmt.Errorf("the client is %v", a.info.Client)
		}
	} else if host := a.info.Client.Addr().String(); host != "198.51.100.1" && host != balancer {
		return fmt.Errorf("the client is %v", a.info.Client)
	}
	if a.info.By == ByDestination {
		h, err := proxyproto.ReadHeader(r)
		if err != nil {
			return err
		}
		if a.info.Destination != addrPort(h.Destination) {
			return fmt.Errorf("destination %v", a.info.Destination)
		}
	}
	want, _ := io.ReadAll(r)
	if a.info.By == ByHeader {
		rest, _ := bytes.CutPrefix(want, []byte("\r\n"))
		_, behind, ok := bytes.Cut(rest, []byte("\r\n\r\n"))
		if !ok || a.info.HeaderValue != "k" {
			return errors.New("there was no head")
		}
		want = behind
	}
	if a.err != nil || !bytes.Equal(a.data, want) {
		return fmt.Errorf("want %q", want)
	}
	return nil
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range []string{
		"240.0.0.1:443", "240.0.0.1", "240.0.0.0/24", "240.0.0.0/24:443", "[fd00::1]:443", "fd00::1", "fd00::/64", "[fd00::/64]:443",
		"0.0.0.0/0", "::/0", "", ":", "[]:1", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4/24", "::ffff:1.2.3.4", "[::ffff:1.2.3.4]:1", "fe80::1%eth0",
		"[1.2.3.4]:1", "fd00::1:443", "1.2.3.4:1:2", "[fd00::1]", "1.2.3.4/33", "1.2.3.4:+1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDestination(s)
		if err != nil {
			if d != (Destination{}) {
				t.Errorf("%q: %v and %v", s, d, err)
			}
			return
		}
		again, err := ParseDestination(d.String())
		if err != nil || again != d {
			t.Errorf("%q is %q, which is %v, %v", s, d, again, err)
		}
		table, err := newTable([]*Route{{Name: "x", Destinations: []Destination{d}, Handler: &Forward{Backends: []string{"x:1"}}}})
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		a, port := d.Prefix.Addr(), max(d.Port, 1)
		if table.byDestination(netip.AddrPortFrom(a, port)) == nil || table.byDestination(netip.AddrPortFrom(netip.AddrFrom16(a.As16()), port)) == nil {
			t.Errorf("%q: its address is not found", s)
		}
		if d.Port != 0 && table.byDestination(netip.AddrPortFrom(a, d.Port^1)) != nil {
			t.Errorf("%q: another port is found", s)
		}
		if before := a.Prev(); before.IsValid() && table.byDestination(netip.AddrPortFrom(before, port)) != nil {
			t.Errorf("%q: another address is found", s)
		}
	})
}
