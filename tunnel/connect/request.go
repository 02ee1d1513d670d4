package connect

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// A Request is the head of an HTTP/1 request and what came behind it.
type Request struct {
	// Method is CONNECT or any other token, as it was sent.
	Method string
	// Target is the request target as it was sent: host:port for CONNECT,
	// checked by [ParseTarget], an absolute URL, a path or "*" otherwise. It
	// comes from the request line and never from the Host field.
	Target string
	// Proto is "HTTP/1.1" or "HTTP/1.0". Write takes "" for HTTP/1.1.
	Proto string
	// Host is the Host field. Write takes "" for the host of Target.
	Host string
	// Header holds the other fields under their canonical names.
	Header http.Header
	// Early holds the bytes that came in the same reads as the head, or nil.
	// They belong to whatever follows the head. Write ignores it.
	Early []byte

	head []byte // as it was read
}

// ReadRequest reads one request head from c and not more than came with it:
// it keeps no buffer, so that c stays usable as it is, and what came behind
// the head stands in Early. A nil l means the defaults.
//
// Every line ends in CR LF, and anything that two parsers could read in two
// ways is refused: bare CR or LF, NUL and other control bytes, folded lines,
// space before a colon, no Host or several, Content-Length together with
// Transfer-Encoding, and a CONNECT target that [ParseTarget] refuses.
//
// A head that is unacceptable, too large or too slow gives an *Error that can
// be answered as it is: status 400, 408, 431 or, for a version other than
// HTTP/1.0 and HTTP/1.1, 505. If c ends before the first byte the error is
// io.EOF; errors of c other than a timeout come as they are.
//
// The read deadline of c is set during the call and cleared before it
// returns, unless l.Timeout is negative.
func ReadRequest(c net.Conn, l *HeadLimits) (*Request, error) {
	stop, err := l.deadline(c)
	if err != nil {
		return nil, err
	}
	defer stop()
	h := &head{strict: true, max: l.maxBytes()}
	b, err := h.read(c, checkRequest)
	if err != nil {
		return nil, headError(err, l)
	}
	r, err := parseRequest(b)
	if err != nil {
		return nil, headError(err, l)
	}
	r.Early = h.rest()
	return r, nil
}

// checkRequest tells from the first byte that a peer does not speak HTTP/1,
// because such a peer waits for our answer and would never end its "line".
func checkRequest(b []byte) error {
	switch {
	case len(b) == 0 || b[0] == '\r' || isTokenByte(b[0]):
		return nil
	case b[0] == 0x16 && (len(b) == 1 || b[1] == 3):
		return badHead("the client speaks TLS to a plain HTTP port")
	}
	return badHead("not HTTP: " + quote(string(b)))
}

// parseRequest parses a whole head that head.read cut off.
func parseRequest(b []byte) (*Request, error) {
	lines := splitLines(b)
	if len(lines) == 0 {
		return nil, badHead("no request line")
	}
	r := &Request{head: b}
	parts := strings.Split(lines[0], " ")
	if len(parts) != 3 || !isToken(parts[0]) || !visible(parts[1]) {
		return nil, badHead("request line " + quote(lines[0]))
	}
	r.Method, r.Target, r.Proto = parts[0], parts[1], parts[2]
	if err := checkProto(r.Proto); err != nil {
		return nil, err
	}
	var err error
	if r.Header, err = parseFields(lines[1:]); err != nil {
		return nil, err
	}
	switch hosts := r.Header["Host"]; {
	case len(hosts) > 1:
		return nil, badHead("several Host fields")
	case len(hosts) == 1:
		r.Host = hosts[0]
		if r.Host != "" && !visible(r.Host) {
			return nil, badHead("Host " + quote(r.Host))
		}
		delete(r.Header, "Host")
	case r.Proto == "HTTP/1.1":
		return nil, badHead("no Host field")
	}
	if err := checkFraming(r.Header); err != nil {
		return nil, err
	}
	switch {
	case r.Method == http.MethodConnect:
		if _, _, err := ParseTarget(r.Target); err != nil {
			return nil, err
		}
	case r.Target[0] != '/' && r.Target != "*" && !strings.Contains(r.Target, "://"):
		return nil, badHead("request target " + quote(r.Target))
	}
	// What is accepted here must mean the same to everyone behind: net/http
	// is the second opinion.
	if _, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b))); err != nil {
		return nil, badHead(err.Error())
	}
	return r, nil
}

func checkProto(p string) error {
	if p == "HTTP/1.1" || p == "HTTP/1.0" {
		return nil
	}
	if major, minor, ok := http.ParseHTTPVersion(p); ok {
		detail := "only HTTP/1.0 and HTTP/1.1 are spoken here"
		if major == 2 && minor == 0 {
			detail = "HTTP/2 is not spoken here; offer only http/1.1 in ALPN"
		}
		return &Error{Reason: ErrRequest, Status: http.StatusHTTPVersionNotSupported, Detail: detail}
	}
	return badHead("version " + quote(p))
}

// checkFraming refuses what request smuggling lives on, RFC 9112 §6.3.
func checkFraming(h http.Header) error {
	length, coding := h["Content-Length"], h["Transfer-Encoding"]
	switch {
	case len(length) > 0 && len(coding) > 0:
		return badHead("both Content-Length and Transfer-Encoding")
	case len(length) > 1:
		return badHead("several Content-Length fields")
	case len(length) == 1 && strings.Trim(length[0], "0123456789") != "", len(length) == 1 && length[0] == "":
		return badHead("Content-Length " + quote(length[0]))
	}
	return nil
}

// hasBody reports whether the head announces a body.
func (r *Request) hasBody() bool {
	length := r.Header.Get("Content-Length")
	return strings.Trim(length, "0") != "" || r.Header.Get("Transfer-Encoding") != ""
}

// Address returns the host:port that the request wants to reach: the target of
// a CONNECT request, or what an absolute http:// target names, with port 80 as
// the default. For every other request the error is an *Error that can be
// answered as it is and tells the client what to write instead.
func (r *Request) Address() (string, error) {
	if r.Method == http.MethodConnect {
		host, port, err := ParseTarget(r.Target)
		if err != nil {
			return "", err
		}
		return joinTarget(host, port), nil
	}
	u, err := url.Parse(r.Target)
	switch {
	case err != nil || u.Scheme == "" || u.Host == "":
		return "", &Error{Reason: ErrRequest, Status: http.StatusNotFound,
			Detail: "this is a proxy: it serves CONNECT host:port and absolute http:// targets"}
	case u.Scheme == "https":
		return "", &Error{Reason: ErrRequest, Detail: "https targets are reached with CONNECT host:port"}
	case u.Scheme != "http":
		return "", &Error{Reason: ErrRequest, Detail: "scheme " + quote(u.Scheme) + " is not proxied"}
	case u.User != nil:
		return "", &Error{Reason: ErrRequest, Detail: "user information in the request target"}
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	host, n, err := ParseTarget(net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return "", err
	}
	return joinTarget(host, n), nil
}

// Replay returns c with the head and Early put back in front, for code that
// wants to read the request itself, such as net/http. It owns c from then on.
func (r *Request) Replay(c net.Conn) net.Conn {
	head := r.head
	if head == nil {
		var b bytes.Buffer
		if r.Write(&b) == nil {
			head = b.Bytes()
		}
	}
	return relay.NewPrefixed(c, slices.Concat(head, r.Early))
}

// Write writes the head to w with a single Write call. It writes nothing and
// returns an *Error with ErrRequest if any part could be read as more than
// that part: a space, CR, LF or another control byte where none may stand.
func (r *Request) Write(w io.Writer) error {
	proto, host := r.Proto, r.Host
	if proto == "" {
		proto = "HTTP/1.1"
	}
	if host == "" {
		host = r.Header.Get("Host")
	}
	if host == "" && r.Method == http.MethodConnect {
		host = r.Target
	}
	if host == "" {
		if u, err := url.Parse(r.Target); err == nil {
			host = u.Host
		}
	}
	switch {
	case !isToken(r.Method):
		return &Error{Reason: ErrRequest, Detail: "method " + quote(r.Method)}
	case !visible(r.Target):
		return &Error{Reason: ErrRequest, Detail: "request target " + quote(r.Target)}
	case proto != "HTTP/1.1" && proto != "HTTP/1.0":
		return &Error{Reason: ErrRequest, Detail: "version " + quote(proto)}
	case host != "" && !visible(host):
		return &Error{Reason: ErrRequest, Detail: "Host " + quote(host)}
	}
	var b bytes.Buffer
	b.WriteString(r.Method + " " + r.Target + " " + proto + "\r\n")
	b.WriteString("Host: " + host + "\r\n")
	if err := writeFields(&b, r.Header); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// writeFields writes the header in the order of the names, without Host, and
// the empty line.
func writeFields(b *bytes.Buffer, h http.Header) error {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if !isToken(name) {
			return &Error{Reason: ErrRequest, Detail: "header name " + quote(name)}
		}
		if strings.EqualFold(name, "Host") {
			continue
		}
		for _, value := range h[name] {
			// The value may be a credential: the error does not show it.
			if !validValue(value) {
				return &Error{Reason: ErrRequest, Detail: "control byte in the value of header " + quote(name)}
			}
			b.WriteString(name + ": " + value + "\r\n")
		}
	}
	b.WriteString("\r\n")
	return nil
}
