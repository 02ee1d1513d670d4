package connect

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	defaultHeadTimeout = 10 * time.Second
	defaultHeadBytes   = 64 << 10
	// maxFields bounds what a head of many tiny fields costs once parsed.
	maxFields = 512
	// maxInterim bounds the 1xx answers that are skipped before the final one.
	maxInterim = 16
	// firstRead is what one conn costs while nothing has come yet.
	firstRead = 1 << 10
)

// HeadLimits bounds the reading of one request or response head. The zero
// value and nil give the defaults.
type HeadLimits struct {
	// Timeout bounds the whole head from the call to its last byte, so that a
	// peer who sends one byte per second gains nothing. 0 means 10 s.
	// Negative means no bound of its own, anywhere that a HeadLimits is asked
	// for: then the read deadline of the conn is left alone, and only what the
	// caller sets there, or the end of its context, ends a peer that says
	// nothing.
	Timeout time.Duration
	// MaxBytes bounds the head with its final empty line, for a response all
	// 1xx heads before it as well. 0 and negative both mean 64 KiB: a head
	// without a bound is not offered.
	MaxBytes int
}

func (l *HeadLimits) timeout() time.Duration {
	if l == nil || l.Timeout == 0 {
		return defaultHeadTimeout
	}
	return l.Timeout
}

func (l *HeadLimits) maxBytes() int {
	if l == nil || l.MaxBytes <= 0 {
		return defaultHeadBytes
	}
	return l.MaxBytes
}

// deadline starts the clock of one head on c; the returned function stops it.
func (l *HeadLimits) deadline(c net.Conn) (stop func(), err error) {
	d := l.timeout()
	if d < 0 {
		return func() {}, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return nil, err
	}
	return func() { c.SetReadDeadline(time.Time{}) }, nil
}

// A head is the state of reading heads from one conn: what has been read, and
// how far it has been looked at. Bytes are looked at once, so that a head that
// comes byte by byte costs no more than one that comes at once.
type head struct {
	buf    []byte
	start  int // of the head, behind an empty line that RFC 9112 §2.2 lets pass
	pos    int // everything before it has been looked at
	line   int // start of the line that pos is in
	strict bool
	max    int
}

var (
	errHeadTooLarge = errors.New("head too large")
	errHeadEnd      = errors.New("end of input within the head")
)

// badHead is a defect that makes a head unacceptable, in words.
type badHead string

func (b badHead) Error() string { return string(b) }

// read reads from r until one whole head is there and returns its bytes, the
// empty line included. check sees all that came so far, for an early verdict
// about peers that will never send a line end.
func (h *head) read(r io.Reader, check func([]byte) error) ([]byte, error) {
	for {
		if err := check(h.buf[h.start:]); err != nil {
			return nil, err
		}
		end, err := h.scan()
		if err != nil {
			return nil, err
		}
		if end > 0 {
			b := h.buf[h.start:end:end]
			h.start, h.pos, h.line = end, end, end
			return b, nil
		}
		if len(h.buf) >= h.max {
			return nil, errHeadTooLarge
		}
		h.grow()
		n, err := r.Read(h.buf[len(h.buf):cap(h.buf)])
		h.buf = h.buf[:len(h.buf)+n]
		if n > 0 {
			continue // an error with data comes again without
		}
		switch {
		case err == io.EOF && len(h.buf) > h.start:
			return nil, errHeadEnd
		case err != nil:
			return nil, err
		}
	}
}

// grow makes room for at least one byte, within the bound.
func (h *head) grow() {
	if len(h.buf) < cap(h.buf) {
		return
	}
	b := make([]byte, len(h.buf), min(max(2*cap(h.buf), firstRead), h.max))
	copy(b, h.buf)
	h.buf = b
}

// scan looks at the bytes that it has not seen and returns the end of the head
// or 0. Strict means that lines end in CR LF and nothing else.
func (h *head) scan() (end int, err error) {
	for ; h.pos < len(h.buf); h.pos++ {
		c := h.buf[h.pos]
		afterCR := h.pos > h.line && h.buf[h.pos-1] == '\r'
		switch {
		case c == 0:
			return 0, badHead("NUL byte in the head")
		case afterCR && c != '\n':
			return 0, badHead("CR without LF in the head")
		case c != '\n':
			continue
		case !afterCR && h.strict:
			return 0, badHead("LF without CR in the head")
		}
		empty := h.pos-h.line == 0 || h.pos-h.line == 1 && afterCR
		h.line = h.pos + 1
		switch {
		case !empty:
		case h.strict && h.pos+1 == 2 && h.start == 0:
			h.start = h.line // one empty line before the request line
		default:
			h.pos++
			return h.pos, nil
		}
	}
	return 0, nil
}

// rest returns what came behind the head that was read last, or nil.
func (h *head) rest() []byte {
	if h.start == len(h.buf) {
		return nil
	}
	return h.buf[h.start:]
}

// splitLines cuts a head into its lines without their ends and without the
// empty one at the end.
func splitLines(b []byte) []string {
	lines := strings.Split(string(b), "\n")
	lines = lines[:len(lines)-2] // the empty line, and what Split sees behind it
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\r")
	}
	return lines
}

// parseFields reads field lines as RFC 9112 §5 wants them: no space before the
// colon, no folding, no control bytes. Its errors show no values, which may be
// credentials.
func parseFields(lines []string) (http.Header, error) {
	if len(lines) > maxFields {
		return nil, errHeadTooLarge
	}
	h := make(http.Header, len(lines))
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		switch {
		case line[0] == ' ' || line[0] == '\t':
			return nil, badHead("folded header line")
		case !ok:
			return nil, badHead("header line without a colon")
		case strings.TrimRight(name, " \t") != name:
			return nil, badHead("space before the colon of header " + quote(name))
		case !isToken(name):
			return nil, badHead("header name " + quote(name))
		}
		value = strings.Trim(value, " \t")
		if !validValue(value) {
			return nil, badHead("control byte in the header " + quote(name))
		}
		h.Add(name, value)
	}
	return h, nil
}

// headError turns what head.read and the parsers found into what a caller can
// answer with. Errors of the conn itself pass as they are.
func headError(err error, limit *HeadLimits) error {
	var bad badHead
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case plainConn(err) != nil:
		return &Error{Reason: ErrRequest, Detail: "the client speaks plain HTTP to a TLS port: use https://", Err: err}
	case errors.As(err, &bad):
		return &Error{Reason: ErrRequest, Detail: string(bad)}
	case err == errHeadTooLarge:
		return &Error{Reason: ErrRequest, Status: http.StatusRequestHeaderFieldsTooLarge,
			Detail: "head above " + strconv.Itoa(limit.maxBytes()) + " bytes or " + strconv.Itoa(maxFields) + " fields"}
	case err == errHeadEnd:
		return &Error{Reason: ErrRequest, Detail: err.Error(), Err: io.ErrUnexpectedEOF}
	case isTimeout(err):
		return &Error{Reason: ErrRequest, Status: http.StatusRequestTimeout,
			Detail: "no complete head within " + limit.timeout().String(), Err: os.ErrDeadlineExceeded}
	}
	return err
}

// plainConn returns the conn below a TLS one whose handshake found that the
// client speaks HTTP without TLS, which can be answered there; else nil.
func plainConn(err error) net.Conn {
	var record tls.RecordHeaderError
	if !errors.As(err, &record) || !isToken(string(record.RecordHeader[:3])) {
		return nil
	}
	return record.Conn
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isToken reports whether s is a token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// validValue reports whether s can stand in a field value, RFC 9110 §5.5.
func validValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// visible reports whether s is not empty and of visible ASCII only, which is
// what may stand between the spaces of a request line.
func visible(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// quote shows bytes of a peer in an error or a log, on one line and not at
// length.
func quote(s string) string {
	if len(s) > 64 {
		return strconv.QuoteToASCII(s[:64]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
