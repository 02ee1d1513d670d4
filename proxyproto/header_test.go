package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func tcp(s string) *net.TCPAddr {
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		panic(err)
	}
	if ip := a.IP.To4(); ip != nil {
		a.IP = ip
	}
	return a
}

func unixStream(name string) *net.UnixAddr { return &net.UnixAddr{Name: name, Net: "unix"} }

// v2 makes a frame by hand.
func v2(command, family byte, payload string) string {
	b := []byte(signatureV2 + string([]byte{0x20 | command, family, 0, 0}))
	binary.BigEndian.PutUint16(b[14:], uint16(len(payload)))
	return string(b) + payload
}

func tlv(t TLVType, value string) string {
	return string([]byte{byte(t), byte(len(value) >> 8), byte(len(value))}) + value
}

const (
	addr4 = "\xc0\x00\x02\x07\xcb\x00\x71\x09\x12\x67\x01\xbb" // client, front
	any16 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

func pad(s string, n int) string { return s + strings.Repeat("\x00", n-len(s)) }

func TestReadHeader(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     *Header
	}{
		{"v1 TCP4", "PROXY TCP4 192.0.2.7 203.0.113.9 4711 443\r\n",
			&Header{Version: 1, Source: client, Destination: front}},
		{"v1 TCP4 shortest", "PROXY TCP4 0.0.0.0 1.1.1.1 0 0\r\n",
			&Header{Version: 1, Source: tcp("0.0.0.0:0"), Destination: tcp("1.1.1.1:0")}},
		{"v1 TCP6 shortest", "PROXY TCP6 :: ::1 0 0\r\n",
			&Header{Version: 1, Source: tcp("[::]:0"), Destination: tcp("[::1]:0")}},
		{"v1 TCP6 longest", "PROXY TCP6 2001:0db8:1111:2222:3333:4444:5555:6666 2001:0db8:1111:2222:3333:4444:5555:7777 65535 65534\r\n",
			&Header{Version: 1, Source: tcp("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"), Destination: tcp("[2001:db8:1111:2222:3333:4444:5555:7777]:65534")}},
		{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:cb00:7109 4711 443\r\n",
			&Header{Version: 1, Source: client, Destination: front}},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", &Header{Version: 1, Local: true}},
		{"v1 UNKNOWN with words", "PROXY UNKNOWN " + strings.Repeat("f", 91) + "\r\n", &Header{Version: 1, Local: true}},
		{"v2 TCP4", v2(1, 0x11, addr4), &Header{Version: 2, Source: client, Destination: front}},
		{"v2 TCP6 mapped source", v2(1, 0x21, any16[:10]+"\xff\xff\xc0\x00\x02\x07"+any16[:15]+"\x01\x12\x67\x01\xbb"),
			&Header{Version: 2, Source: client, Destination: tcp("[::1]:443")}},
		{"v2 UDP4", v2(1, 0x12, addr4),
			&Header{Version: 2, Source: (*net.UDPAddr)(client), Destination: (*net.UDPAddr)(front)}},
		{"v2 UDP6 mapped", v2(1, 0x22, any16[:10]+"\xff\xff\xc0\x00\x02\x07"+any16[:15]+"\x01\x12\x67\x01\xbb"),
			&Header{Version: 2, Source: (*net.UDPAddr)(client), Destination: (*net.UDPAddr)(tcp("[::1]:443"))}},
		{"v2 UNIX", v2(1, 0x31, pad("/run/a", 108)+pad("/run/b", 108)),
			&Header{Version: 2, Source: unixStream("/run/a"), Destination: unixStream("/run/b")}},
		{"v2 UNIX abstract and unnamed", v2(1, 0x31, pad("\x00a\x00b", 108)+pad("", 108)),
			&Header{Version: 2, Source: unixStream("@a\x00b"), Destination: unixStream("")}},
		{"v2 UNIX full, and @", v2(1, 0x31, strings.Repeat("x", 108)+pad("@", 108)),
			&Header{Version: 2, Source: unixStream(strings.Repeat("x", 108)), Destination: unixStream("")}},
		{"v2 UNIX datagram", v2(1, 0x32, pad("/run/a", 108)+pad("/run/b", 108)),
			&Header{Version: 2, Source: &net.UnixAddr{Name: "/run/a", Net: "unixgram"}, Destination: &net.UnixAddr{Name: "/run/b", Net: "unixgram"}}},
		{"v2 TLVs", v2(1, 0x11, addr4+tlv(TypeALPN, "h2")+tlv(TypeNoop, "   ")+tlv(0xE5, "")+tlv(TypeAuthority, "a.example")),
			&Header{Version: 2, Source: client, Destination: front, TLVs: []TLV{
				{TypeALPN, []byte("h2")}, {TypeNoop, nil}, {0xE5, nil}, {TypeAuthority, []byte("a.example")}}}},
		{"v2 as long as may be", v2(1, 0x11, addr4+tlv(0xE0, strings.Repeat("v", 4096-12-3))),
			&Header{Version: 2, Source: client, Destination: front, TLVs: []TLV{{0xE0, bytes.Repeat([]byte("v"), 4096-12-3)}}}},
		{"v2 LOCAL", v2(0, 0, ""), &Header{Version: 2, Local: true}},
		{"v2 LOCAL with addresses", v2(0, 0x11, addr4), &Header{Version: 2, Local: true}},
		{"v2 LOCAL of datagrams", v2(0, 0x12, addr4), &Header{Version: 2, Local: true}},
		{"v2 LOCAL TCP4 of no length", v2(0, 0x11, ""), &Header{Version: 2, Local: true}},
		{"v2 LOCAL TCP6 too short", v2(0, 0x21, addr4), &Header{Version: 2, Local: true}},
		{"v2 LOCAL of odd length", v2(0, 0, "\x01\x02\x03\x04\x05"), &Header{Version: 2, Local: true}},
		{"v2 LOCAL with a bad checksum", v2(0, 0, tlv(TypeCRC32C, "abcd")), &Header{Version: 2, Local: true}},
		{"v2 LOCAL with too many TLVs", v2(0, 0x11, addr4+strings.Repeat(tlv(0xE0, ""), 65)), &Header{Version: 2, Local: true}},
		{"v2 LOCAL with TLV", v2(0, 0, tlv(TypeAuthority, "health")),
			&Header{Version: 2, Local: true, TLVs: []TLV{{TypeAuthority, []byte("health")}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for piece, r := range map[string]func(io.Reader) io.Reader{
				"whole":       func(r io.Reader) io.Reader { return r },
				"bytes":       iotest.OneByteReader,
				"halves":      iotest.HalfReader,
				"err at data": iotest.DataErrReader,
			} {
				src := strings.NewReader(tc.in + "rest")
				got, err := ReadHeader(r(struct{ io.Reader }{src}))
				if err != nil {
					t.Fatal(piece, err)
				}
				if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Error(piece, diff)
				}
				if piece != "err at data" && src.Len() != 4 {
					t.Errorf("%s: %d bytes left, want 4", piece, src.Len())
				}
			}
			if _, err := ReadHeader(iotest.DataErrReader(strings.NewReader(tc.in))); err != nil {
				t.Errorf("with EOF behind: %v", err)
			}
			for n := 1; n < len(tc.in); n += 1 + n/50 {
				_, err := ReadHeader(strings.NewReader(tc.in[:n]))
				if n < 6 || n < 12 && tc.want.Version == 2 {
					wantHeaderError(t, err, ErrNoHeader, io.ErrUnexpectedEOF)
				} else {
					wantHeaderError(t, err, ErrMalformed, io.ErrUnexpectedEOF)
				}
			}
		})
	}
}

func TestReadHeaderMalformed(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     error
	}{
		{"nothing", "", ErrNoHeader},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ErrNoHeader},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n", ErrNoHeader},
		{"HTTP like", "PROPFIND / HTTP/1.1\r\n\r\n", ErrNoHeader},
		{"a tab", "PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n", ErrNoHeader},
		{"lower case", "proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", ErrNoHeader},
		{"CR LF", "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", ErrNoHeader},
		{"v1 LF", "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n     ", ErrMalformed},
		{"v1 only", "PROXY \n", ErrMalformed},
		{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", ErrMalformed},
		{"v1 endless", "PROXY UNKNOWN " + strings.Repeat("f", 1000), ErrMalformed},
		{"v1 CR at the end of what may be", "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r", ErrMalformed},
		{"v1 family", "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n", ErrMalformed},
		{"v1 UDP", "PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", ErrMalformed},
		{"v1 two spaces", "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n", ErrMalformed},
		{"v1 one word more", "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", ErrMalformed},
		{"v1 one less", "PROXY TCP4 111.111.111.111 2.2.2.2 1\r\n", ErrMalformed},
		{"v1 leading zero", "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", ErrMalformed},
		{"v1 port", "PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", ErrMalformed},
		{"v1 address", "PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", ErrMalformed},
		{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", ErrMalformed},
		{"v1 IPv6 in TCP4", "PROXY TCP4 ::1 ::2 1 2            \r\n", ErrMalformed},
		{"v1 IPv4 in TCP6", "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", ErrMalformed},
		{"v2 version 1", signatureV2 + "\x11\x11\x00\x0c" + addr4, ErrMalformed},
		{"v2 version 3", signatureV2 + "\x31", ErrMalformed},
		{"v2 command", v2(2, 0x11, addr4), ErrMalformed},
		{"v2 family", v2(1, 0x41, addr4), ErrMalformed},
		{"v2 transport", v2(1, 0x13, addr4), ErrMalformed},
		{"v2 LOCAL transport", v2(0, 0x13, addr4), ErrMalformed},
		{"v2 PROXY of nothing", v2(1, 0, ""), ErrMalformed},
		{"v2 TCP4 too short", v2(1, 0x11, addr4[:11]), ErrMalformed},
		{"v2 TCP6 too short", v2(1, 0x21, addr4), ErrMalformed},
		{"v2 UNIX too short", v2(1, 0x31, addr4), ErrMalformed},
		{"v2 too long", v2(1, 0x11, addr4+tlv(0xE0, strings.Repeat("v", 4097-12-3))), ErrMalformed},
		{"v2 LOCAL too long", v2(0, 0, strings.Repeat("v", 4097)), ErrMalformed},
		{"v2 longest", signatureV2 + "\x21\x11\xff\xff" + addr4, ErrMalformed},
		{"v2 TLV of one byte", v2(1, 0x11, addr4+"\xe0"), ErrMalformed},
		{"v2 TLV of two bytes", v2(1, 0x11, addr4+"\xe0\x00"), ErrMalformed},
		{"v2 TLV beyond the end", v2(1, 0x11, addr4+"\xe0\x00\x02v"), ErrMalformed},
		{"v2 CRC wrong", v2(1, 0x11, addr4+tlv(TypeCRC32C, "abcd")), ErrMalformed},
		{"v2 too many TLVs", v2(1, 0x11, addr4+strings.Repeat(tlv(0xE0, ""), 65)), ErrMalformed},
		{"v2 as many empty TLVs as fit", v2(1, 0x11, addr4+strings.Repeat(tlv(0xE0, ""), 1361)), ErrMalformed},
		{"v2 as much padding as fits", v2(1, 0x11, addr4+strings.Repeat(tlv(TypeNoop, ""), 1361)), ErrMalformed},
		{"v2 CRC short", v2(1, 0x11, addr4+tlv(TypeCRC32C, "abc")), ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tc.in), iotest.OneByteReader(strings.NewReader(tc.in))} {
				h, err := ReadHeader(r)
				if h != nil {
					t.Errorf("read %+v", h)
				}
				wantHeaderError(t, err, tc.want)
			}
		})
	}
	boom := errors.New("boom")
	_, err := ReadHeader(io.MultiReader(strings.NewReader("PRO"), iotest.ErrReader(boom)))
	wantHeaderError(t, err, boom)
}

func TestWriteHeader(t *testing.T) {
	six := tcp("[2001:db8::1]:80")
	for _, tc := range []struct {
		name string
		h    *Header
		want string
	}{
		{"v1", &Header{Version: 1, Source: client, Destination: front}, "PROXY TCP4 192.0.2.7 203.0.113.9 4711 443\r\n"},
		{"v1 mixed", &Header{Version: 1, Source: client, Destination: six}, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 4711 80\r\n"},
		{"v1 mapped", &Header{Version: 1, Source: &net.TCPAddr{IP: client.IP.To16(), Port: 4711}, Destination: front}, "PROXY TCP4 192.0.2.7 203.0.113.9 4711 443\r\n"},
		{"v1 zone", &Header{Version: 1, Source: &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, Destination: six}, "PROXY TCP6 fe80::1 2001:db8::1 0 80\r\n"},
		{"v1 local", &Header{Version: 1, Local: true}, "PROXY UNKNOWN\r\n"},
		{"v1 UNIX", &Header{Version: 1, Source: unixStream("/a"), Destination: unixStream("/b")}, "PROXY UNKNOWN\r\n"},
		{"v1 UDP", &Header{Version: 1, Source: (*net.UDPAddr)(client), Destination: (*net.UDPAddr)(front)}, "PROXY UNKNOWN\r\n"},
		{"v2", &Header{Source: client, Destination: front}, v2(1, 0x11, addr4)},
		{"v2 UDP", &Header{Source: (*net.UDPAddr)(client), Destination: (*net.UDPAddr)(front)}, v2(1, 0x12, addr4)},
		{"v2 mixed", &Header{Version: 2, Source: client, Destination: tcp("[::1]:443")},
			v2(1, 0x21, any16[:10]+"\xff\xff\xc0\x00\x02\x07"+any16[:15]+"\x01\x12\x67\x01\xbb")},
		{"v2 local", &Header{Local: true}, v2(0, 0, "")},
		{"v2 local with addresses", &Header{Local: true, Source: client, TLVs: []TLV{{0xE0, []byte("x")}}}, v2(0, 0, tlv(0xE0, "x"))},
		{"v2 UNIX", &Header{Source: unixStream("@a"), Destination: unixStream("@")}, v2(1, 0x31, pad("\x00a", 108)+pad("", 108))},
		{"v2 UNIX path", &Header{Source: unixStream(""), Destination: unixStream(strings.Repeat("x", 108))}, v2(1, 0x31, pad("", 108)+strings.Repeat("x", 108))},
		{"v2 TLV", &Header{Source: client, Destination: front, TLVs: []TLV{{TypeUniqueID, []byte("id")}}}, v2(1, 0x11, addr4+tlv(TypeUniqueID, "id"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &counted{}
			if err := WriteHeader(w, tc.h); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, w.String()); diff != "" {
				t.Error(diff)
			}
			if w.calls != 1 {
				t.Errorf("%d writes", w.calls)
			}
		})
	}
}

type counted struct {
	bytes.Buffer
	calls int
}

func (w *counted) Write(b []byte) (int, error) { w.calls++; return w.Buffer.Write(b) }

func TestWriteHeaderInvalid(t *testing.T) {
	for name, h := range map[string]*Header{
		"zero":               {},
		"version":            {Version: 3, Local: true},
		"negative version":   {Version: -1, Local: true},
		"v1 TLVs":            {Version: 1, Source: client, Destination: front, TLVs: []TLV{{TypeALPN, nil}}},
		"v1 local TLVs":      {Version: 1, Local: true, TLVs: []TLV{{TypeALPN, nil}}},
		"no source":          {Destination: front},
		"no destination":     {Source: client},
		"nil pointer":        {Source: (*net.TCPAddr)(nil), Destination: front},
		"nil UDP":            {Source: (*net.UDPAddr)(nil), Destination: (*net.UDPAddr)(nil)},
		"nil UNIX":           {Source: (*net.UnixAddr)(nil), Destination: unixStream("")},
		"no IP":              {Source: &net.TCPAddr{Port: 1}, Destination: front},
		"IP of 5 bytes":      {Source: &net.TCPAddr{IP: net.IP{1, 2, 3, 4, 5}}, Destination: front},
		"port":               {Source: &net.TCPAddr{IP: client.IP, Port: 65536}, Destination: front},
		"v1 port":            {Version: 1, Source: &net.TCPAddr{IP: client.IP, Port: -1}, Destination: front},
		"TCP and UDP":        {Source: client, Destination: (*net.UDPAddr)(front)},
		"TCP and UNIX":       {Source: client, Destination: unixStream("/a")},
		"UNIX stream, gram":  {Source: unixStream("/a"), Destination: &net.UnixAddr{Name: "/b", Net: "unixgram"}},
		"unixpacket":         {Source: &net.UnixAddr{Name: "/a", Net: "unixpacket"}, Destination: &net.UnixAddr{Name: "/b", Net: "unixpacket"}},
		"IPAddr":             {Source: &net.IPAddr{IP: client.IP}, Destination: &net.IPAddr{IP: front.IP}},
		"UNIX long":          {Source: unixStream(strings.Repeat("x", 109)), Destination: unixStream("/a")},
		"UNIX abstract long": {Source: unixStream("/a"), Destination: unixStream("@" + strings.Repeat("x", 108))},
		"UNIX NUL":           {Source: unixStream("/a\x00b"), Destination: unixStream("/a")},
		"UNIX NUL first":     {Source: unixStream("\x00b"), Destination: unixStream("/a")},
		"UNIX NUL at end":    {Source: unixStream("@b\x00"), Destination: unixStream("/a")},
		"two CRCs":           {Local: true, TLVs: []TLV{{TypeCRC32C, nil}, {TypeCRC32C, nil}}},
		"TLV of 64 KiB":      {Local: true, TLVs: []TLV{{0xE0, make([]byte, 65536)}}},
		"64 KiB of TLVs":     {Local: true, TLVs: []TLV{{0xE0, make([]byte, 40000)}, {0xE0, make([]byte, 40000)}}},
		"65 TLVs":            {Local: true, TLVs: make([]TLV, 65)},
		"more than 4096":     {Local: true, TLVs: []TLV{{0xE0, make([]byte, 4094)}}},
	} {
		var b bytes.Buffer
		if err := WriteHeader(&b, h); !errors.Is(err, ErrInvalid) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written; want ErrInvalid", name, err, b.Len())
		}
	}
	boom := errors.New("boom")
	if err := WriteHeader(badWriter{boom}, outerHeader); err != boom {
		t.Error(err)
	}
	if err := WriteHeader(badWriter{}, outerHeader); err != io.ErrShortWrite {
		t.Error(err)
	}
}

type badWriter struct{ err error }

func (w badWriter) Write(b []byte) (int, error) { return 1, w.err }

func TestHeaderOf(t *testing.T) {
	for _, tc := range []struct {
		name          string
		remote, local net.Addr
		want          *Header
	}{
		{"TCP", client, front, &Header{Version: 2, Source: client, Destination: front}},
		{"UNIX", unixStream("@"), unixStream("/s"), &Header{Version: 2, Source: unixStream("@"), Destination: unixStream("/s")}},
		{"two kinds", unixStream("@"), front, &Header{Version: 2, Local: true}},
		{"another kind", &net.IPAddr{}, &net.IPAddr{}, &Header{Version: 2, Local: true}},
		{"none", nil, nil, &Header{Version: 2, Local: true}},
	} {
		if diff := cmp.Diff(tc.want, HeaderOf(addressed{remote: tc.remote, local: tc.local})); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

type addressed struct {
	net.Conn
	remote, local net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.remote }
func (a addressed) LocalAddr() net.Addr  { return a.local }
