package connect

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

const (
	// maxPhrase bounds a reason phrase, which a person reads on one line.
	maxPhrase = 200
	// answerTimeout bounds the writing of an answer to a peer that does not read.
	answerTimeout = 10 * time.Second
)

// A Response is the head of an HTTP/1 response and what came behind it.
type Response struct {
	// Status is the status code, 100 to 599.
	Status int
	// Phrase is the reason phrase. Write takes "" for that of the status code.
	Phrase string
	// Header holds the fields under their canonical names; it is not nil
	// after ReadResponse.
	Header http.Header
	// Early holds the bytes that came in the same reads as the head, or nil;
	// Write writes them behind the head.
	Early []byte
}

// ReadResponse reads one response head from c, with the limits of l and, like
// [ReadRequest], without a buffer of its own. Heads with a 1xx status other
// than 101 are skipped, at most 16 of them.
//
// Lines may end in LF alone, as RFC 9112 §2.2 lets a recipient accept. An
// answer that is not HTTP/1 gives an *Error with ErrProtocol that says what it
// looks like (TLS, HTTP/2, or its first bytes), a slow one ErrTimeout, a conn
// that ends ErrTerminated; other errors of c stand in Err.
//
// The read deadline of c is set during the call and cleared before it
// returns, unless l.Timeout is negative.
func ReadResponse(c net.Conn, l *HeadLimits) (*Response, error) {
	stop, err := l.deadline(c)
	if err != nil {
		return nil, Classify(err)
	}
	defer stop()
	h := &head{max: l.maxBytes()}
	for range maxInterim {
		b, err := h.read(c, checkResponse)
		if err != nil {
			return nil, responseError(err, l)
		}
		r, err := parseResponse(b)
		if err != nil {
			return nil, responseError(err, l)
		}
		if r.Status >= 200 || r.Status == http.StatusSwitchingProtocols {
			r.Early = h.rest()
			return r, nil
		}
	}
	return nil, &Error{Reason: ErrProtocol, Detail: "more than " + strconv.Itoa(maxInterim) + " interim answers"}
}

// responseError is headError for the client side: what is wrong is the peer's
// answer and not the request.
func responseError(err error, l *HeadLimits) error {
	var bad badHead
	switch {
	case errors.As(err, &bad):
		return &Error{Reason: ErrProtocol, Detail: string(bad)}
	case err == errHeadTooLarge:
		return &Error{Reason: ErrProtocol, Detail: "response head above " + strconv.Itoa(l.maxBytes()) + " bytes"}
	case err == io.EOF, err == errHeadEnd:
		return &Error{Reason: ErrTerminated, Detail: "closed before its answer was complete", Err: io.ErrUnexpectedEOF}
	case isTimeout(err):
		e := &Error{Reason: ErrTimeout, Detail: "no complete answer", Err: os.ErrDeadlineExceeded}
		if d := l.timeout(); d > 0 {
			e.Detail += " within " + d.String()
		}
		return e
	}
	return Classify(err)
}

// checkResponse gives a verdict on the first bytes, for peers that do not
// speak HTTP/1 and will not send what would end a head.
func checkResponse(b []byte) error {
	const want = "HTTP/1."
	n := min(len(b), len(want))
	switch {
	case string(b[:n]) == want[:n]:
		return nil
	case (b[0] == 0x15 || b[0] == 0x16) && (n == 1 || b[1] == 3):
		return badHead("the proxy speaks TLS: use https://")
	case b[0] == 0 && (n < 4 || b[3] == 4): // a SETTINGS frame, RFC 9113 §3.4
		return badHead("the proxy speaks HTTP/2: offer it only http/1.1")
	case strings.HasPrefix(string(b), "HTTP/"):
		return badHead("the proxy answers with another version than HTTP/1: " + quote(string(b)))
	}
	return badHead("not HTTP: " + quote(string(b)))
}

func parseResponse(b []byte) (*Response, error) {
	lines := splitLines(b)
	if len(lines) == 0 {
		return nil, badHead("no status line")
	}
	proto, rest, _ := strings.Cut(lines[0], " ")
	code, phrase, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if proto != "HTTP/1.1" && proto != "HTTP/1.0" || err != nil || len(code) != 3 || status < 100 || status > 599 {
		return nil, badHead("status line " + quote(lines[0]))
	}
	h, err := parseFields(lines[1:])
	if err != nil {
		return nil, err
	}
	return &Response{Status: status, Phrase: oneLine(phrase, maxPhrase), Header: h}, nil
}

// Write writes the head and Early to w with a single Write call. It writes
// nothing and returns an *Error with ErrRequest if any part could be read as
// more than that part.
func (r *Response) Write(w io.Writer) error {
	phrase := r.Phrase
	if phrase == "" {
		phrase = http.StatusText(r.Status)
	}
	if r.Status < 100 || r.Status > 599 || !validValue(phrase) {
		return &Error{Reason: ErrRequest, Detail: "status line " + quote(strconv.Itoa(r.Status)+" "+phrase)}
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + strconv.Itoa(r.Status) + " " + phrase + "\r\n")
	if err := writeFields(&b, r.Header); err != nil {
		return err
	}
	b.Write(r.Early)
	_, err := w.Write(b.Bytes())
	return err
}

// Response returns the answer for e, from a proxy of the given name ("" means
// "rhizome"). The reason phrase repeats the error of Proxy-Status, because
// many clients, kube-apiserver among them, show their user the status line
// and nothing else; it is cleaned to one line of at most 200 bytes of ASCII.
// The answer ends the conn.
//
// Where e is the answer of another proxy to a [Dialer], that proxy's header
// stays behind, and a refusal of our own credentials becomes 500
// proxy_configuration_error, for the client has other credentials.
func (e *Error) Response(name string) *Response {
	out := *e
	if e.Proxy != "" {
		out.Header, out.Status = nil, 0
		if out.Reason == ErrAuth {
			out.Reason = ErrConfig
		}
	}
	phrase := oneLine(out.phrase(), maxPhrase)
	r := &Response{Status: out.status(), Phrase: phrase, Header: http.Header{}, Early: []byte(phrase + "\n")}
	if r.Status < 400 || r.Status > 599 {
		r.Status = http.StatusInternalServerError
	}
	for name, values := range out.Header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	r.Header.Set("Proxy-Status", formatProxyStatus(name, out.Reason, out.detail()))
	if out.RetryAfter > 0 {
		r.Header.Set("Retry-After", strconv.FormatInt(int64((out.RetryAfter-1)/time.Second)+1, 10))
	}
	r.Header.Set("Content-Type", "text/plain; charset=us-ascii")
	r.Header.Set("Content-Length", strconv.Itoa(len(r.Early)))
	r.Header.Set("Connection", "close")
	return r
}

// WriteError answers c with err, as [Classify] sees it, and closes c: it
// writes the answer of a proxy of the given name, half-closes c and reads away
// what the peer still sends, for at most a second, because a close with bytes
// unread would reset the conn under the answer. It takes at most 11 s. The
// result is nil if the answer was written.
//
// A client that speaks plain HTTP to a TLS port, which is an error of
// [ReadRequest], is answered in plain HTTP.
func WriteError(c net.Conn, name string, err error) error {
	defer c.Close()
	if plain := plainConn(err); plain != nil {
		c = plain
		defer c.Close()
	}
	e := Classify(err)
	if e == nil {
		e = &Error{}
	}
	c.SetDeadline(time.Now().Add(answerTimeout))
	if err := e.Response(name).Write(c); err != nil {
		return err
	}
	guard.Linger(c)
	return nil
}

// oneLine makes text of unknown origin fit for a status line, a log or a
// terminal: visible ASCII and single spaces, at most limit bytes.
func oneLine(s string, limit int) string {
	b := make([]byte, 0, min(len(s), limit))
	space := false
	for _, r := range s {
		switch {
		case r == ' ' || r == '\t' || r == '\r' || r == '\n':
			space = len(b) > 0
			continue
		case r < ' ' || r >= 0x7f:
			r = '?'
		}
		if space {
			b, space = append(b, ' '), false
		}
		if b = append(b, byte(r)); len(b) >= limit {
			return string(b[:limit])
		}
	}
	return string(b)
}
