package proxyproto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// pieces are how the bytes of a peer may come.
var pieces = []int{1, 2, 7, 15, 16, 17, 28, 64, 100, 4096}

func eachPiece(t *testing.T, f func(t *testing.T, piece int)) {
	for _, n := range pieces {
		t.Run(fmt.Sprint(n), func(t *testing.T) { f(t, n) })
	}
}

// TestStackedHeaders has a trusted and an untrusted peer send one header and
// two, on a port where the inner one is the key to the route.
func TestStackedHeaders(t *testing.T) {
	trusted := &Options{Rules: []Rule{{prefix("10.0.0.0/8"), Require}}, Inner: Require}
	maybe := &Options{Rules: []Rule{{prefix("10.0.0.0/8"), Accept}}, Inner: Accept}
	untrusted := &Options{Rules: []Rule{{prefix("172.16.0.0/12"), Require}}, Inner: Require}
	either := &Options{Inner: Accept}
	data := strings.Repeat("data ", 300)
	for _, tc := range []struct {
		name         string
		o            *Options
		in           []byte
		outer, inner *Header
		err          error
		data         string
	}{
		{"trusted, both", trusted, wire(t, outerHeader, innerHeader, data), outerHeader, innerHeader, nil, data},
		{"trusted, only the client", trusted, wire(t, outerHeader, data), outerHeader, nil, ErrNoHeader, ""},
		{"untrusted, only the key", untrusted, wire(t, innerHeader, data), nil, innerHeader, nil, data},
		{"untrusted, both", untrusted, wire(t, outerHeader, innerHeader, data), nil, outerHeader, nil, string(wire(t, innerHeader, data))},

		{"trusted, none", trusted, wire(t, data), nil, nil, ErrNoHeader, ""},
		{"untrusted, none", untrusted, wire(t, data), nil, nil, ErrNoHeader, ""},
		{"a third header is data", trusted, wire(t, outerHeader, innerHeader, outerHeader, data), outerHeader, innerHeader, nil, string(wire(t, outerHeader, data))},
		{"maybe, both", maybe, wire(t, outerHeader, innerHeader, data), outerHeader, innerHeader, nil, data},
		{"maybe, the first is the client's", maybe, wire(t, innerHeader, data), innerHeader, nil, nil, data},
		{"maybe, none", maybe, wire(t, data), nil, nil, nil, data},
		{"either, the key", either, wire(t, innerHeader, data), nil, innerHeader, nil, data},
		{"either, both", either, wire(t, outerHeader, innerHeader, data), nil, outerHeader, nil, string(wire(t, innerHeader, data))},
		{"either, none", either, wire(t, data), nil, nil, nil, data},
		{"not looked for", &Options{Default: Require}, wire(t, outerHeader, innerHeader, data), outerHeader, nil, nil, string(wire(t, innerHeader, data))},
		{"v1 around v2", trusted, wire(t, &Header{Version: 1, Source: client, Destination: front}, innerHeader, data),
			&Header{Version: 1, Source: client, Destination: front}, innerHeader, nil, data},
		{"no data", trusted, wire(t, outerHeader, innerHeader), outerHeader, innerHeader, nil, ""},
		{"part of a third header", untrusted, wire(t, innerHeader, "PROX"), nil, innerHeader, nil, "PROX"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachPiece(t, func(t *testing.T, piece int) {
				raw := &scripted{data: bytes.Clone(tc.in), piece: piece}
				c := NewConn(raw, tc.o)
				var wantRemote, wantLocal net.Addr = raw.RemoteAddr(), raw.LocalAddr()
				if tc.outer != nil {
					wantRemote, wantLocal = tc.outer.Source, tc.outer.Destination
				}
				if c.RemoteAddr().String() != wantRemote.String() || c.LocalAddr().String() != wantLocal.String() {
					t.Errorf("addresses %v, %v; want %v, %v", c.RemoteAddr(), c.LocalAddr(), wantRemote, wantLocal)
				}
				got, err := io.ReadAll(c)
				if tc.err == nil {
					if err != nil {
						t.Fatal(err)
					}
				} else {
					wantHeaderError(t, err, tc.err)
					if again := c.ReadHeader(); again != err {
						t.Errorf("ReadHeader: %v, Read: %v", again, err)
					}
					if n, again := c.Read(make([]byte, 9)); n != 0 || again != err {
						t.Errorf("Read again: %d, %v", n, again)
					}
				}
				if tc.err != ErrRefused && string(got) != tc.data {
					t.Errorf("data %.60q, want %.60q", got, tc.data)
				}
				if diff := cmp.Diff(tc.outer, c.Header(), cmpopts.EquateEmpty()); diff != "" {
					t.Error("Header:", diff)
				}
				if diff := cmp.Diff(withoutTLVs(tc.inner), c.Inner()); diff != "" {
					t.Error("Inner:", diff)
				}
				if c.RemoteAddr().String() != wantRemote.String() || c.LocalAddr().String() != wantLocal.String() {
					t.Error("addresses have changed")
				}
			})
		})
	}
}

// withoutTLVs is what an inner header becomes.
func withoutTLVs(h *Header) *Header {
	if h == nil {
		return nil
	}
	return &Header{Version: h.Version, Local: h.Local, Source: h.Source, Destination: h.Destination}
}

// TestUntrustedPeerHeaderRejected sends headers from where nobody may.
func TestUntrustedPeerHeaderRejected(t *testing.T) {
	rules := []Rule{{prefix("172.16.0.0/12"), Require}, {prefix("10.0.0.0/30"), Accept}}
	for name, o := range map[string]*Options{"nil": nil, "rules": {Rules: rules}, "invalid policy": {Default: 9, Inner: -1}} {
		for _, in := range []string{
			string(wire(t, outerHeader, "data")),
			string(wire(t, &Header{Version: 1, Source: client, Destination: front}, "data")),
			string(wire(t, &Header{Version: 1, Local: true}, "data")),
			string(wire(t, &Header{Local: true})),
			"PROXY nonsense",
			signatureV2 + "\x00",
		} {
			eachPiece(t, func(t *testing.T, piece int) {
				raw := &scripted{data: []byte(in), piece: piece, remote: tcp("[::ffff:10.0.0.9]:9")}
				c := NewConn(raw, o)
				if c.ReadHeader() != nil || c.Header() != nil || c.Inner() != nil || len(raw.data) != len(in) {
					t.Error("read something before a Read")
				}
				if c.RemoteAddr() != raw.RemoteAddr() || c.LocalAddr() != front {
					t.Errorf("%s: addresses %v, %v", name, c.RemoteAddr(), c.LocalAddr())
				}
				got, err := io.ReadAll(c)
				wantHeaderError(t, err, ErrRefused)
				if sig := signatureV1; !strings.HasPrefix(sig, string(got)) && !strings.HasPrefix(signatureV2, string(got)) {
					t.Errorf("got %q of the header", got)
				} else if piece >= len(signatureV2) && len(got) > 0 {
					t.Errorf("got %q of a header in one piece", got)
				}
				if again := c.ReadHeader(); again != err {
					t.Errorf("ReadHeader: %v", again)
				}
				if c.RemoteAddr() != raw.RemoteAddr() || c.Header() != nil || c.Inner() != nil {
					t.Error("believes it afterwards")
				}
				if n, err := c.WriteTo(io.Discard); n != 0 || !errors.Is(err, ErrRefused) {
					t.Errorf("WriteTo: %d, %v", n, err)
				}
			})
		}
	}
}

// TestRefuseLetsDataThrough sends what only begins like a header.
func TestRefuseLetsDataThrough(t *testing.T) {
	for _, in := range []string{"", "P", "PRO", "PROXY", "PROXY\t", "PROPFIND / HTTP/1.1", "\r\n\r\nGET", "\r\n\r\n\x00\r\nQUIT", "GET / HTTP/1.1\r\n\r\n",
		"\x16\x03\x01", "xPROXY TCP4 ", "\r\n\r\n\x00\r\nQUITPROXY ", strings.Repeat("\r\n\r\n\x00", 500)} {
		eachPiece(t, func(t *testing.T, piece int) {
			for _, room := range []int{1, 5, 11, 12, 512, 4096} {
				c := NewConn(&scripted{data: []byte(in), piece: piece}, nil)
				if n, err := c.Read(nil); n != 0 || err != nil && len(in) > 0 {
					t.Fatal(n, err)
				}
				var got []byte
				b := make([]byte, room)
				for {
					n, err := c.Read(b)
					got = append(got, b[:n]...)
					if err == io.EOF {
						break
					} else if err != nil {
						t.Fatal(err)
					}
				}
				if string(got) != in {
					t.Errorf("got %q, want %q", got, in)
				}
			}
			var out bytes.Buffer
			c := NewConn(&scripted{data: []byte(in), piece: piece}, nil)
			if n, err := io.Copy(&out, c); n != int64(len(in)) || err != nil || out.String() != in {
				t.Errorf("Copy = %d, %v, %q; want %q", n, err, &out, in)
			}
		})
	}
}

func TestConnHeaders(t *testing.T) {
	six := tcp("[2001:db8::7]:1")
	for _, tc := range []struct {
		name          string
		h             *Header
		remote, local string
	}{
		{"v1", &Header{Version: 1, Source: client, Destination: front}, "192.0.2.7:4711", "203.0.113.9:443"},
		{"v2", outerHeader, "192.0.2.7:4711", "203.0.113.9:443"},
		{"mapped", &Header{Version: 2, Source: client, Destination: six}, "192.0.2.7:4711", "[2001:db8::7]:1"},
		{"UNIX", &Header{Version: 2, Source: unixStream("@a"), Destination: unixStream("/s")}, "@a", "/s"},
		{"local", &Header{Version: 2, Local: true}, "10.0.0.1:999", "203.0.113.9:443"},
		{"unknown", &Header{Version: 1, Local: true}, "10.0.0.1:999", "203.0.113.9:443"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, p := range []Policy{Require, Accept} {
				c := NewConn(&scripted{data: wire(t, tc.h, "data"), piece: 3}, &Options{Default: p})
				if err := c.ReadHeader(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.h, c.Header(), cmpopts.EquateEmpty()); diff != "" {
					t.Error(diff)
				}
				if r, l := c.RemoteAddr().String(), c.LocalAddr().String(); r != tc.remote || l != tc.local {
					t.Errorf("addresses %s, %s; want %s, %s", r, l, tc.remote, tc.local)
				}
				if r := c.NetConn().RemoteAddr().String(); r != "10.0.0.1:999" {
					t.Errorf("peer %s", r)
				}
				mustRead(t, c, "data")
				mustEOF(t, c)
			}
		})
	}
}

func TestConnBadHeaders(t *testing.T) {
	gram := &net.UnixAddr{Name: "/a", Net: "unixgram"}
	for _, tc := range []struct {
		name, in string
		want     []error
	}{
		{"nothing", "", []error{ErrNoHeader, io.EOF}},
		{"a part", "PRO", []error{ErrNoHeader, io.ErrUnexpectedEOF}},
		{"truncated", "PROXY TCP4 1.1.1.1", []error{ErrMalformed, io.ErrUnexpectedEOF}},
		{"truncated v2", string(wire(t, outerHeader)[:20]), []error{ErrMalformed, io.ErrUnexpectedEOF}},
		{"garbage", "\x00\x01\x02\x03", []error{ErrNoHeader}},
		{"too long", "PROXY UNKNOWN " + strings.Repeat("x", 200), []error{ErrMalformed}},
		{"UDP", string(wire(t, &Header{Source: (*net.UDPAddr)(client), Destination: (*net.UDPAddr)(front)})), []error{ErrMalformed}},
		{"UNIX datagrams", string(wire(t, &Header{Source: gram, Destination: gram})), []error{ErrMalformed}},
		{"TLVs", v2(1, 0x11, addr4+"x"), []error{ErrMalformed}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachPiece(t, func(t *testing.T, piece int) {
				raw := &scripted{data: []byte(tc.in), piece: piece}
				c := NewConn(raw, &Options{Default: Require})
				err := c.ReadHeader()
				wantHeaderError(t, err, tc.want...)
				if e := new(HeaderError); !errors.As(err, &e) || e.Inner || e.Peer != c.peer || e.Timeout() || e.Temporary() {
					t.Errorf("%+v", e)
				}
				if !strings.HasPrefix(err.Error(), "proxyproto: from 10.0.0.1:999: ") {
					t.Error(err)
				}
				if n, again := c.Read(make([]byte, 9)); n != 0 || again != err {
					t.Errorf("Read = %d, %v", n, again)
				}
				if c.Header() != nil || c.Inner() != nil || c.RemoteAddr().String() != "10.0.0.1:999" {
					t.Error("something was read")
				}
				// The same as an inner header, from anyone.
				c = NewConn(&scripted{data: []byte(tc.in), piece: piece, remote: unixStream("")}, &Options{Inner: Require})
				err = c.ReadHeader()
				wantHeaderError(t, err, tc.want...)
				if e := new(HeaderError); !errors.As(err, &e) || !e.Inner || !strings.HasPrefix(err.Error(), "proxyproto: inner header: ") {
					t.Errorf("%+v", e)
				}
			})
		})
	}
	// An error of the connection is not taken for an end.
	for _, p := range []Policy{Require, Accept} {
		c := NewConn(faulty{&scripted{}}, &Options{Default: p})
		wantHeaderError(t, c.ReadHeader(), syscall.ECONNRESET)
		wantHeaderError(t, c.ReadHeader(), syscall.ECONNRESET)
	}
	c := NewConn(noDeadlines{&scripted{}}, &Options{Default: Require})
	wantHeaderError(t, c.ReadHeader(), os.ErrNoDeadline)
}

type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { return 0, syscall.ECONNRESET }

type noDeadlines struct{ net.Conn }

func (noDeadlines) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// TestAcceptShort ends before it is clear that there is no header.
func TestAcceptShort(t *testing.T) {
	for _, in := range []string{"", "P", "PROXY", "\r\n\r\n\x00\r\nQUIT"} {
		c := NewConn(&scripted{data: []byte(in), piece: 2}, &Options{Default: Accept, Inner: Accept})
		if err := c.ReadHeader(); err != nil {
			t.Errorf("%q: %v", in, err)
		}
		got, err := io.ReadAll(c)
		if string(got) != in || err != nil {
			t.Errorf("read %q, %v; want %q", got, err, in)
		}
	}
}

// TestConcurrentUse calls everything at once while the header comes slowly.
func TestConcurrentUse(t *testing.T) {
	a, b := tcpPair(t)
	limit(a)
	c := NewConn(b, &Options{Default: Require, Inner: Require})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if got := c.RemoteAddr(); got.String() != client.String() {
				t.Errorf("RemoteAddr %v", got)
			}
		})
		wg.Go(func() {
			if got := c.LocalAddr(); got.String() != front.String() {
				t.Errorf("LocalAddr %v", got)
			}
		})
		wg.Go(func() {
			if err := c.ReadHeader(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if h := c.Inner(); h == nil || h.Destination.String() != key.String() {
				t.Errorf("Inner %+v", h)
			}
		})
		wg.Go(func() { c.SetDeadline(time.Now().Add(patience)) })
		wg.Go(func() {
			if n, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Errorf("read %d, %v", n, err)
			}
		})
	}
	for _, x := range wire(t, outerHeader, innerHeader, strings.Repeat("x", 300)) {
		mustWrite(t, a, string([]byte{x}))
	}
	wg.Wait()
	mustCloseWrite(t, a)
	mustEOF(t, c)
}

// TestCloseUnblocksHeader closes and resets while others wait for a header.
func TestCloseUnblocksHeader(t *testing.T) {
	for name, end := range map[string]func(*Conn) error{"Close": (*Conn).Close, "Reset": (*Conn).Reset} {
		for _, pair := range []func(testing.TB) (net.Conn, net.Conn){tcpPair, unixPair, memoryPair} {
			_, b := pair(t)
			c := NewConn(b, &Options{Default: Require, Timeout: -1})
			errs := make(chan error, 4)
			for range 2 {
				go func() { errs <- c.ReadHeader() }()
				go func() { _, err := c.Read(make([]byte, 1)); errs <- err }()
			}
			if err := end(c); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for range 4 {
				wantHeaderError(t, <-errs, net.ErrClosed)
			}
		}
	}
}

// TestSocketDeadlines does with the timers of the kernel what time_test.go does
// exactly: one deadline is the caller's, and the other one is final.
func TestSocketDeadlines(t *testing.T) {
	for _, pair := range []func(testing.TB) (net.Conn, net.Conn){tcpPair, unixPair} {
		a, b := pair(t)
		c := NewConn(b, &Options{Default: Require, Timeout: patience})
		for range 5 {
			if err := c.SetDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			_, err := c.Read(make([]byte, 1))
			if e := new(HeaderError); !errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &e) {
				t.Fatalf("%v (%T), want the caller's timeout", err, err)
			}
		}
		c.SetDeadline(time.Time{})
		mustWrite(t, a, string(wire(t, outerHeader, "data")))
		mustRead(t, c, "data")

		_, b = pair(t)
		c = NewConn(b, &Options{Default: Require, Timeout: 5 * time.Millisecond})
		c.SetDeadline(time.Now().Add(patience))
		err := c.ReadHeader()
		wantHeaderError(t, err, os.ErrDeadlineExceeded)
		if _, again := c.Read(make([]byte, 1)); again != err {
			t.Error(again)
		}
		c.Close()
		if err := c.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
}

// TestUnreadAfterClose must not yield what was read too early.
func TestUnreadAfterClose(t *testing.T) {
	a, b := tcpPair(t)
	c := NewConn(b, &Options{Default: Require})
	mustWrite(t, a, string(wire(t, outerHeader, "data")))
	mustRead(t, c, "d")
	c.SetReadDeadline(time.Now().Add(-time.Second))
	var ne net.Error
	if n, err := c.Read(make([]byte, 9)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("Read = %d, %v; want a timeout", n, err)
	}
	if n, err := c.WriteTo(io.Discard); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WriteTo = %d, %v; want a timeout", n, err)
	}
	c.SetReadDeadline(time.Time{})
	mustRead(t, c, "a")
	c.Close()
	if n, err := c.Read(make([]byte, 9)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %d, %v; want net.ErrClosed", n, err)
	}
}
