package proxyproto

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addSeeds(t testing.TB, add func(b []byte)) {
	s, err := (&SSL{Client: SSLConnected, TLVs: []TLV{{TypeSSLVersion, []byte("TLSv1.3")}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*Header{
		outerHeader,
		innerHeader,
		{Version: 1, Source: client, Destination: front},
		{Version: 1, Source: tcp("[2001:db8::1]:1"), Destination: front},
		{Version: 1, Local: true},
		{Local: true, TLVs: []TLV{{TypeCRC32C, nil}}},
		{Source: tcp("[2001:db8::1]:1"), Destination: tcp("[::1]:65535"), TLVs: []TLV{{TypeNoop, nil}, {TypeCRC32C, nil}, s}},
		{Source: unixStream("/a"), Destination: unixStream("@b"), TLVs: []TLV{{TypeCRC32C, nil}}},
	} {
		add(wire(t, h, "data"))
		add(wire(t, outerHeader, h, "data"))
	}
	add([]byte("PROXY UNKNOWN ffff::1 x\r\n"))
	add([]byte(v2(0, 0x11, "")))
	add([]byte(v2(1, 0x12, addr4)))
	add([]byte(v2(1, 0x11, addr4+tlv(TypeCRC32C, "abcd"))))
	add([]byte(v2(1, 0x11, addr4+strings.Repeat(tlv(0xE0, ""), 64))))
	add([]byte(v2(1, 0x11, addr4+strings.Repeat(tlv(TypeNoop, ""), 65))))
	add([]byte(signatureV2 + "\x21\x11\xff\xff"))
	add([]byte("PRO"))
	add([]byte("GET / HTTP/1.1\r\n\r\n"))
}

// FuzzReadHeader checks that the answer does not depend on how the bytes come,
// that none is read behind the header, and that what was read can be written
// and read again.
func FuzzReadHeader(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, in []byte) {
		src := bytes.NewReader(in)
		h, err := ReadHeader(struct{ io.Reader }{src})
		taken := in[:len(in)-src.Len()]
		slow, err2 := ReadHeader(iotest.OneByteReader(bytes.NewReader(in)))
		if (err == nil) != (err2 == nil) {
			t.Fatalf("at once %v, byte by byte %v", err, err2)
		}
		if err != nil {
			var e *HeaderError
			if !errors.As(err, &e) || errors.Is(err, ErrNoHeader) == errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v (%T)", err, err)
			}
			return
		}
		if diff := cmp.Diff(h, slow); diff != "" {
			t.Fatal(diff)
		}
		if n, _, err := frameLen(in); n != len(taken) || err != nil {
			t.Fatalf("took %d bytes of a header of %d, %v", len(taken), n, err)
		}
		for n := range taken {
			if m, more, err := frameLen(taken[:n]); m != 0 || more < 1 || n+more > len(taken) || err != nil {
				t.Fatalf("of %d bytes frameLen says %d, %d, %v; the header has %d", n, m, more, err, len(taken))
			}
		}
		if h.Local != (h.Source == nil) || h.Local != (h.Destination == nil) || h.Version != 1 && h.Version != 2 || h.Version == 1 && h.TLVs != nil {
			t.Fatalf("read %+v", h)
		}
		if _, err := h.SSL(); err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteHeader(&b, h); err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
		again, err := ReadHeader(&b)
		if err != nil || b.Len() > 0 {
			t.Fatalf("%v, %d bytes left", err, b.Len())
		}
		// The checksum is that of other bytes: padding is gone, for one.
		ignore := cmpopts.IgnoreSliceElements(func(tlv TLV) bool { return tlv.Type == TypeCRC32C })
		if diff := cmp.Diff(h, again, ignore, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzConn checks with every policy that a Conn takes headers only from whom it
// may, that the answer does not depend on how the bytes come, and that all of
// the rest arrives.
func FuzzConn(f *testing.F) {
	addSeeds(f, func(b []byte) {
		for policies := range 9 {
			f.Add(b, byte(policies), uint16(1), uint16(1))
			f.Add(b, byte(policies), uint16(9), uint16(512))
		}
	})
	f.Fuzz(func(t *testing.T, in []byte, policies byte, piece, room uint16) {
		o := &Options{Default: Policy(policies % 3), Inner: Policy(policies / 3 % 3)}
		whole, wholeErr := fuzzConn(t, o, in, len(in), len(in))
		parts, partsErr := fuzzConn(t, o, in, int(piece), int(room))
		if (wholeErr == nil) != (partsErr == nil) || wholeErr != nil && wholeErr.Error() != partsErr.Error() {
			t.Fatalf("whole %v, in pieces %v", wholeErr, partsErr)
		}
		if wholeErr == nil && !bytes.Equal(whole, parts) {
			t.Fatalf("whole %q, in pieces %q", whole, parts)
		}
	})
}

// fuzzPeer is in no rule.
var fuzzPeer = &net.TCPAddr{IP: net.IP{10, 0, 0, 9}, Port: 9}

// fuzzConn reads everything and returns the data.
func fuzzConn(t *testing.T, o *Options, in []byte, piece, room int) ([]byte, error) {
	raw := &scripted{data: bytes.Clone(in), piece: piece, remote: fuzzPeer}
	c := NewConn(raw, o)
	var data bytes.Buffer
	var err error
	if room == 0 {
		_, err = c.WriteTo(&data)
	} else {
		b := make([]byte, room)
		for err == nil {
			var n int
			n, err = c.Read(b)
			data.Write(b[:n])
		}
		if err == io.EOF {
			err = nil
		}
	}
	if failed := c.ReadHeader(); failed != err {
		t.Fatalf("ReadHeader %v, Read %v", failed, err)
	}
	outer, inner := c.Header(), c.Inner()
	switch {
	case o.Default == Refuse && outer != nil, o.Inner == Refuse && inner != nil:
		t.Fatalf("took a header it must not: %+v, %+v", outer, inner)
	case (outer == nil || outer.Local) && c.RemoteAddr() != raw.RemoteAddr():
		t.Fatalf("claims %v without a header", c.RemoteAddr())
	case err == nil && (o.Default == Require && outer == nil || o.Inner == Require && inner == nil):
		t.Fatalf("misses no header: %+v, %+v", outer, inner)
	}
	if err != nil {
		return nil, err
	}
	// What is left of the input behind the headers is the data.
	rest := in
	for _, h := range []*Header{outer, inner} {
		if h == nil {
			continue
		}
		n, _, err := frameLen(rest)
		if n == 0 || err != nil {
			t.Fatalf("%+v was read from %q", h, rest)
		}
		rest = rest[n:]
	}
	if !bytes.Equal(rest, data.Bytes()) {
		t.Fatalf("data %q, want %q", data.Bytes(), rest)
	}
	if s := signature(rest); o.Default == Refuse && inner == nil && (s == matchV1 || s == matchV2) {
		t.Fatalf("a refused header went through: %q", rest)
	}
	if strings.Contains(c.RemoteAddr().String(), "198.51.100") && outer == nil {
		t.Fatal("the inner source counts")
	}
	return data.Bytes(), nil
}
