package proxyproto

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// A frame is the bytes of one header.
//
//	v1   PROXY TCP4 192.0.2.1 203.0.113.1 56324 443 CR LF       ≤ 107 bytes
//
//	v2   signature  ver,cmd  family  length │ addresses      TLVs …
//	     12 bytes   1        1       2      │ 0,12,36,216    ≤ 4096 in all
//
// This file finds where it ends, which the codec cannot tell of bytes that
// come one at a time, and where its TLVs are.
const (
	signatureV1 = "PROXY "
	signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"

	minV1      = len("PROXY UNKNOWN\r\n")
	minV1TCP4  = len("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n")
	maxV1      = 107
	fixedV2    = 16
	maxPayload = 4096
	maxTLVs    = 64
)

// match is what the first bytes of a connection look like.
type match int

const (
	matchNone match = iota // no header begins so
	matchSome              // too few to tell
	matchV1
	matchV2
)

// signature looks at the first bytes. Of none it says matchSome.
func signature(b []byte) match {
	has := func(sig string) bool { return len(b) >= len(sig) && string(b[:len(sig)]) == sig }
	switch {
	case has(signatureV1):
		return matchV1
	case has(signatureV2):
		return matchV2
	case len(b) < len(signatureV2) &&
		(strings.HasPrefix(signatureV1, string(b)) || strings.HasPrefix(signatureV2, string(b))):
		return matchSome
	}
	return matchNone
}

// frameLen says how long the frame is that b begins with, or 0 if b is too
// short to tell. Then more says how many bytes it lacks at least: so many can
// be read without reading past the frame. The error is ErrNoHeader or
// ErrMalformed.
func frameLen(b []byte) (n, more int, err error) {
	switch signature(b) {
	case matchSome:
		return 0, minV1 - len(b), nil
	case matchV1:
		return frameLenV1(b)
	case matchV2:
		return frameLenV2(b)
	}
	return 0, 0, ErrNoHeader
}

func frameLenV1(b []byte) (n, more int, err error) {
	line := b[:min(len(b), maxV1)]
	if lf := bytes.IndexByte(line, '\n'); lf >= 0 {
		if line[lf-1] != '\r' {
			return 0, 0, fmt.Errorf("%w: line does not end with CR LF", ErrMalformed)
		}
		return lf + 1, 0, nil
	}
	// Both bytes of the end are still to come, unless the first one is there.
	more = 2
	if line[len(line)-1] == '\r' {
		more = 1
	}
	if len(line)+more > maxV1 {
		return 0, 0, fmt.Errorf("%w: line of more than %d bytes", ErrMalformed, maxV1)
	}
	shortest := minV1
	if bytes.HasPrefix(line, []byte("PROXY TCP4 ")) {
		shortest = minV1TCP4
	}
	return 0, max(more, shortest-len(line)), nil
}

func frameLenV2(b []byte) (n, more int, err error) {
	if len(b) > 12 && b[12]>>4 != 2 {
		return 0, 0, fmt.Errorf("%w: version %d", ErrMalformed, b[12]>>4)
	}
	if len(b) < fixedV2 {
		return 0, fixedV2 - len(b), nil
	}
	payload := int(binary.BigEndian.Uint16(b[14:]))
	if payload > maxPayload {
		return 0, 0, fmt.Errorf("%w: %d bytes behind the fixed part, more than %d", ErrMalformed, payload, maxPayload)
	}
	if n = fixedV2 + payload; len(b) < n {
		return 0, n - len(b), nil
	}
	return n, 0, nil
}

// tlvsAt returns where in a frame of version 2 the TLVs begin, which is behind
// its end if it is LOCAL and has no room for addresses.
func tlvsAt(frame []byte) int {
	switch frame[13] >> 4 {
	case 1:
		return fixedV2 + 12
	case 2:
		return fixedV2 + 36
	case 3:
		return fixedV2 + 2*unixPath
	}
	return fixedV2
}

// countTLVs counts the TLVs of a frame of version 2.
func countTLVs(frame []byte) (n int) {
	for i := tlvsAt(frame); i+3 <= len(frame); n++ {
		i += 3 + int(binary.BigEndian.Uint16(frame[i+1:]))
	}
	return n
}
