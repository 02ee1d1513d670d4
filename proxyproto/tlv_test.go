package proxyproto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func roundTrip(t *testing.T, h *Header) *Header {
	t.Helper()
	var b bytes.Buffer
	if err := WriteHeader(&b, h); err != nil {
		t.Fatal(err)
	}
	got, err := ReadHeader(&b)
	if err != nil || b.Len() > 0 {
		t.Fatal(err, b.Len())
	}
	return got
}

func TestTLVs(t *testing.T) {
	h := &Header{Version: 2, Source: client, Destination: front, TLVs: []TLV{
		{TypeALPN, []byte("h2")},
		{TypeAuthority, []byte("api.example.com")},
		{TypeUniqueID, []byte{1, 2, 3}},
		{TypeNetNS, []byte("blue")},
		{TypeCustomMin, []byte("first")},
		{TypeCustomMin, []byte("second")},
		{TypeCustomMax, []byte{}},
	}}
	got := roundTrip(t, h)
	if diff := cmp.Diff(h, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if got.ALPN() != "h2" || got.Authority() != "api.example.com" || string(got.UniqueID()) != "\x01\x02\x03" {
		t.Errorf("ALPN %q, authority %q, id %x", got.ALPN(), got.Authority(), got.UniqueID())
	}
	if v, ok := got.TLV(TypeCustomMin); string(v) != "first" || !ok {
		t.Errorf("custom %q, %v", v, ok)
	}
	if _, ok := got.TLV(TypeCustomMax); !ok {
		t.Error("lost an empty TLV")
	}
	none := &Header{Local: true}
	if none.ALPN() != "" || none.Authority() != "" || none.UniqueID() != nil {
		t.Error("TLVs from nowhere")
	}
	if s, err := none.SSL(); s != nil || err != nil {
		t.Error(s, err)
	}
}

// TestTLVMemory has a header of as many TLVs as may be, and of as many bytes:
// what is kept of it is one array for the values and one for the rest, both of
// the size that it takes.
func TestTLVMemory(t *testing.T) {
	for _, size := range []int{0, 1, (4096-12)/64 - 3} {
		h := &Header{Version: 2, Source: client, Destination: front}
		for i := range 64 {
			h.TLVs = append(h.TLVs, TLV{TypeCustomMin, bytes.Repeat([]byte{byte(i)}, size)})
		}
		got := roundTrip(t, h)
		if diff := cmp.Diff(h, got); diff != "" {
			t.Error(diff)
		}
		if len(got.TLVs) != 64 || cap(got.TLVs) != 64 {
			t.Fatalf("%d TLVs in room for %d", len(got.TLVs), cap(got.TLVs))
		}
		first := reflect.ValueOf(got.TLVs[0].Value).Pointer()
		for i, v := range got.TLVs {
			if at := reflect.ValueOf(v.Value).Pointer(); len(v.Value) != size || cap(v.Value) != size || at != first+uintptr(i*size) {
				t.Errorf("value %d has %d bytes in room for %d, %d behind the first", i, len(v.Value), cap(v.Value), at-first)
			}
		}
	}
}

// TestChecksum takes a checksum that was computed elsewhere, bit by bit, and
// finds every single bit that is flipped on the way.
func TestChecksum(t *testing.T) {
	const summed = "0d0a0d0a000d0a515549540a2111001cc0000207cb007109126701bb" +
		"0100026832030004ca8e4939e0000178"
	frame, err := hex.DecodeString(summed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadHeader(bytes.NewReader(frame)); err != nil {
		t.Error(err)
	}
	crc := TLV{Type: TypeCRC32C}
	h := &Header{Source: client, Destination: front, TLVs: []TLV{{TypeALPN, []byte("h2")}, crc, {TypeCustomMin, []byte("x")}}}
	if got := hex.EncodeToString(wire(t, h)); got != summed {
		t.Errorf("wrote %s", got)
	}

	for _, src := range []*Header{
		{Source: client, Destination: front},
		{Source: client, Destination: tcp("[::1]:1")},
		{Source: unixStream("/a"), Destination: unixStream("/b")},
	} {
		src.TLVs = []TLV{{TypeALPN, []byte("h2")}, {Type: TypeCRC32C, Value: []byte("whatever")}, {TypeCustomMin, []byte("x")}}
		frame := wire(t, src)
		for i := range frame {
			for bit := range 8 {
				bad := bytes.Clone(frame)
				bad[i] ^= 1 << bit
				h, err := ReadHeader(bytes.NewReader(bad))
				if err != nil || h.Local {
					continue
				}
				// A wrong length or type may take the checksum itself away.
				if _, summed := h.TLV(TypeCRC32C); summed {
					t.Fatalf("bit %d of byte %d was flipped, and nobody noticed", bit, i)
				}
			}
		}
		got := roundTrip(t, src)
		if v, _ := got.TLV(TypeCRC32C); len(v) != 4 {
			t.Errorf("CRC32C %x", v)
		}
	}
	kept := &Header{Source: client, Destination: front, TLVs: []TLV{{TypeCRC32C, []byte("keep")}}}
	wire(t, kept)
	if v := kept.TLVs[0].Value; string(v) != "keep" {
		t.Errorf("WriteHeader changed the caller's TLV to %q", v)
	}
}

func TestSSL(t *testing.T) {
	s := &SSL{Client: SSLConnected | SSLCertOfSess, TLVs: []TLV{
		{TypeSSLVersion, []byte("TLSv1.3")},
		{TypeSSLCommonName, []byte("kläger")},
		{TypeSSLCipher, []byte("TLS_AES_128_GCM_SHA256")},
	}}
	tlv, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	h := roundTrip(t, &Header{Version: 2, Source: client, Destination: front, TLVs: []TLV{tlv}})
	got, err := h.SSL()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Error(diff)
	}
	if got.Version() != "TLSv1.3" || got.CommonName() != "kläger" || !got.Verified() {
		t.Errorf("%q, %q, %v", got.Version(), got.CommonName(), got.Verified())
	}
	if (&SSL{Client: SSLConnected}).Verified() || (&SSL{Client: SSLCertOfConn, Verify: 1}).Verified() {
		t.Error("verified without a good certificate")
	}
	if tlv, err = (&SSL{}).Encode(); err != nil || len(tlv.Value) != 5 {
		t.Errorf("no TLS: %+v, %v", tlv, err)
	}
	for _, bad := range []*SSL{
		{Client: SSLConnected},
		{TLVs: []TLV{{TypeSSLCipher, make([]byte, 65536)}}},
	} {
		if _, err := bad.Encode(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	}
	for _, v := range []string{"", "\x01\x00\x00\x00", "\x01\x00\x00\x00\x00", "\x00\x00\x00\x00\x00\x21\x00\x09x",
		"\x01\x00\x00\x00\x00\x21\x00\x01\xff", strings.Repeat("\x22\x00\x00", 9)} {
		h := roundTrip(t, &Header{Local: true, TLVs: []TLV{{TypeSSL, []byte(v)}}})
		if _, err := h.SSL(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v, want ErrMalformed", v, err)
		}
	}
}
