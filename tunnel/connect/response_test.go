package connect

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// answered feeds ReadResponse with in and EOF behind it.
func answered(in string, piece int, l *HeadLimits) (*Response, error) {
	c, peer := tunneltest.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer peer.Close()
		feed(peer, in, piece)
		peer.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, peer)
	}()
	r, err := ReadResponse(c, l)
	c.Close()
	<-done
	return r, err
}

func TestReadResponse(t *testing.T) {
	interim := strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim-1)
	for _, tt := range []struct {
		in   string
		want Response
	}{
		{"HTTP/1.1 200 OK\r\n\r\n", Response{Status: 200, Phrase: "OK"}},
		{"HTTP/1.0 200 Connection established\r\nVia: squid\r\n\r\n",
			Response{Status: 200, Phrase: "Connection established", Header: http.Header{"Via": {"squid"}}}},
		{"HTTP/1.1 200\r\n\r\n", Response{Status: 200}},
		{"HTTP/1.1 200 \n\n", Response{Status: 200}},
		{"HTTP/1.1 204 x\nA: b\n\r\n", Response{Status: 204, Phrase: "x", Header: http.Header{"A": {"b"}}}},
		{interim + "HTTP/1.1 200 OK\r\n\r\n", Response{Status: 200, Phrase: "OK"}},
		{"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 S\r\n\r\n", Response{Status: 101, Phrase: "S"}},
		{"HTTP/1.1 502 a\tb  c\r\n\r\n", Response{Status: 502, Phrase: "a b c"}},
		{"HTTP/1.1 502 \xc3\xa4\r\n\r\n", Response{Status: 502, Phrase: "?"}},
	} {
		if tt.want.Header == nil {
			tt.want.Header = http.Header{}
		}
		for _, piece := range []int{0, 1, 7} {
			r, err := answered(tt.in, piece, nil)
			if err != nil {
				t.Errorf("%q: %v", tt.in, err)
				continue
			}
			if d := cmp.Diff(&tt.want, r); d != "" {
				t.Errorf("%q (-want +got):\n%s", tt.in, d)
			}
		}
	}
	r, err := answered("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n\r\n", 0, nil)
	if err != nil || string(r.Early) != "SSH-2.0-x\r\n\r\n" {
		t.Errorf("early bytes: %+v, %v", r, err)
	}
}

func TestReadResponseRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		reason   Reason
		detail   string
	}{
		{"nothing", "", ErrTerminated, "closed before"},
		{"cut", "HTTP/1.1 200 OK\r\nA:", ErrTerminated, "closed before"},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", ErrProtocol, "speaks TLS: use https://"},
		{"HTTP/2 SETTINGS", "\x00\x00\x12\x04\x00\x00\x00\x00\x00", ErrProtocol, "speaks HTTP/2"},
		{"HTTP/2 text", "HTTP/2 200\r\n\r\n", ErrProtocol, "another version"},
		{"SSH", "SSH-2.0-OpenSSH_9.9\r\n", ErrProtocol, `"SSH-2.0-`},
		{"SOCKS", "\x05\xff", ErrProtocol, `"\x05`},
		{"version", "HTTP/1.7 200 OK\r\n\r\n", ErrProtocol, "status line"},
		{"short status", "HTTP/1.1 20 OK\r\n\r\n", ErrProtocol, "status line"},
		{"low status", "HTTP/1.1 099 OK\r\n\r\n", ErrProtocol, "status line"},
		{"high status", "HTTP/1.1 600 OK\r\n\r\n", ErrProtocol, "status line"},
		{"signed status", "HTTP/1.1 +20 OK\r\n\r\n", ErrProtocol, "status line"},
		{"no status", "HTTP/1.1\r\n\r\n", ErrProtocol, "status line"},
		{"bare CR", "HTTP/1.1 200 OK\rA: b\r\n\r\n", ErrProtocol, "CR without LF"},
		{"NUL", "HTTP/1.1 200 OK\x00\r\n\r\n", ErrProtocol, "NUL"},
		{"no colon", "HTTP/1.1 200 OK\r\nabc\r\n\r\n", ErrProtocol, "without a colon"},
		{"interim", strings.Repeat("HTTP/1.1 100 C\r\n\r\n", maxInterim), ErrProtocol, "interim"},
	} {
		for _, piece := range []int{0, 1} {
			_, err := answered(tt.in, piece, nil)
			if e := Classify(err); e == nil || e.Reason != tt.reason || piece == 0 && !strings.Contains(err.Error(), tt.detail) {
				t.Errorf("%s in pieces of %d: %v, want %v and %q", tt.name, piece, err, tt.reason, tt.detail)
			}
		}
	}
}

// endless is a peer whose head has no end.
func endless(t testing.TB, start string) (c net.Conn, written func() int64) {
	c, peer := tunneltest.Pipe()
	var n int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.WriteString(peer, start)
		line := []byte("X-Padding: " + strings.Repeat("x", 1000) + "\r\n")
		for {
			m, err := peer.Write(line)
			n += int64(m)
			if err != nil {
				return
			}
		}
	}()
	return c, func() int64 { c.Close(); <-done; peer.Close(); return n }
}

func TestHugeResponseHead(t *testing.T) {
	for _, start := range []string{"HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Hints\r\n"} {
		c, written := endless(t, start)
		_, err := ReadResponse(c, nil)
		if e := Classify(err); e == nil || e.Reason != ErrProtocol || !strings.Contains(err.Error(), "above 65536 bytes") {
			t.Errorf("%q: got %v", start, err)
		}
		if n := written(); n > 64<<10+300<<10 { // the limit and the conn's buffer
			t.Errorf("%q: took %d bytes", start, n)
		}
	}
}

func TestResponseTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		c, peer := tunneltest.Pipe()
		defer c.Close()
		defer peer.Close()
		io.WriteString(peer, "HTTP/1.1 200 OK\r\n")
		start := time.Now()
		_, err := ReadResponse(c, &HeadLimits{Timeout: time.Minute})
		if d := time.Since(start); d != time.Minute {
			t.Errorf("after %v", d)
		}
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) || !Classify(err).Timeout() {
			t.Errorf("got %v", err)
		}
		c.Close()
		if _, err := ReadResponse(c, nil); !errors.Is(err, net.ErrClosed) || !errors.Is(err, ErrTerminated) {
			t.Errorf("on a closed conn: %v", err)
		}
	})
}

func TestResponseReset(t *testing.T) {
	c, peer := tunneltest.Pipe()
	defer c.Close()
	peer.(interface{ Reset() error }).Reset()
	_, err := ReadResponse(c, nil)
	if !errors.Is(err, ErrTerminated) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

func TestResponseWrite(t *testing.T) {
	var b bytes.Buffer
	r := &Response{Status: 200, Header: http.Header{"B": {"1"}, "A": {"2"}}, Early: []byte("x")}
	if err := r.Write(&b); err != nil || b.String() != "HTTP/1.1 200 OK\r\nA: 2\r\nB: 1\r\n\r\nx" {
		t.Errorf("wrote %q, %v", b.String(), err)
	}
	for name, r := range map[string]Response{
		"phrase": {Status: 200, Phrase: "OK\r\nX: y"},
		"status": {Status: 99},
		"name":   {Status: 200, Header: http.Header{"A b": {"1"}}},
		"value":  {Status: 200, Header: http.Header{"A": {"1\n2"}}},
	} {
		b.Reset()
		if err := r.Write(&b); !errors.Is(err, ErrRequest) || b.Len() > 0 {
			t.Errorf("%s: wrote %q, %v", name, b.String(), err)
		}
	}
}

func TestErrorResponse(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 10250},
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tt := range []struct {
		name  string
		err   *Error
		proxy string
		want  Response
	}{
		{"refused", Classify(refused), "",
			Response{Status: 502, Phrase: "connection_refused: dial tcp 10.0.0.7:10250: connect: connection refused",
				Header: http.Header{"Proxy-Status": {`rhizome; error=connection_refused; details="dial tcp 10.0.0.7:10250: connect: connection refused"`}}}},
		{"retry", &Error{Reason: ErrUnavailable, Detail: "no agent", RetryAfter: 1500 * time.Millisecond}, "seed-1",
			Response{Status: 503, Phrase: "destination_unavailable: no agent", Header: http.Header{"Retry-After": {"2"},
				"Proxy-Status": {`seed-1; error=destination_unavailable; details="no agent"`}}}},
		{"injection", &Error{Reason: ErrDenied, Detail: "a\r\nX: \"y\\z\"\x00ä"}, "my proxy\r\n",
			Response{Status: 403, Phrase: `http_request_denied: a X: "y\z"??`, Header: http.Header{
				"Proxy-Status": {`"my proxy"; error=http_request_denied; details="a X: \"y\\z\"??"`}}}},
		{"long", &Error{Reason: ErrInternal, Detail: strings.Repeat("x", 1000)}, "",
			Response{Status: 500, Phrase: ("proxy_internal_error: " + strings.Repeat("x", 1000))[:200], Header: http.Header{
				"Proxy-Status": {`rhizome; error=proxy_internal_error; details="` + strings.Repeat("x", 512) + `"`}}}},
		{"zero", &Error{}, "", Response{Status: 500, Phrase: "proxy_internal_error",
			Header: http.Header{"Proxy-Status": {"rhizome; error=proxy_internal_error"}}}},
		{"credentials wanted", &Error{Reason: ErrAuth, Header: http.Header{"proxy-authenticate": {"Basic"}}}, "",
			Response{Status: 407, Phrase: "proxy_authentication_required", Header: http.Header{"Proxy-Authenticate": {"Basic"},
				"Proxy-Status": {"rhizome; error=http_request_error"}}}},
		{"other proxy's refusal", &Error{Reason: ErrRefused, Status: 599, Detail: "d", Proxy: "http://p", Header: http.Header{"A": {"b"}}}, "",
			Response{Status: 502, Phrase: "connection_refused: d",
				Header: http.Header{"Proxy-Status": {`rhizome; error=connection_refused; details="d"`}}}},
		{"other proxy's 407", &Error{Reason: ErrAuth, Status: 407, Proxy: "http://p", Header: http.Header{}}, "",
			Response{Status: 500, Phrase: "proxy_configuration_error",
				Header: http.Header{"Proxy-Status": {"rhizome; error=proxy_configuration_error"}}}},
		{"status that is none", &Error{Reason: ErrRefused, Status: 200}, "", Response{Status: 500, Phrase: "connection_refused",
			Header: http.Header{"Proxy-Status": {"rhizome; error=connection_refused"}}}},
		{"reason that is none", &Error{Reason: "x y"}, "", Response{Status: 502, Phrase: "x y",
			Header: http.Header{"Proxy-Status": {"rhizome; error=http_request_error"}}}},
	} {
		got := tt.err.Response(tt.proxy)
		if got.Header.Get("Connection") != "close" || string(got.Early) != got.Phrase+"\n" {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if err := got.Write(io.Discard); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		for _, name := range []string{"Connection", "Content-Type", "Content-Length"} {
			got.Header.Del(name)
		}
		got.Early = nil
		if d := cmp.Diff(&tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// TestWriteError shows that a peer who is still sending gets the whole answer
// over TCP, where a close with bytes unread would reset the conn under it.
func TestWriteError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = WriteError(c, "p", ErrLimit)
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 429 connection_limit_reached\r\n") {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPlainToTLS is how a program that accepts by itself answers a client that
// forgot TLS.
func TestPlainToTLS(t *testing.T) {
	l := listenTCP(t)
	accept(t, tls.NewListener(l, serverTLS()), func(c net.Conn) {
		_, err := ReadRequest(c, nil)
		WriteError(c, "", err)
	})
	_, err := (&Dialer{Address: l.Addr().String()}).Dial("tcp", "a:1")
	if e := Classify(err); e == nil || e.Status != 400 || !strings.Contains(err.Error(), "use https://") {
		t.Errorf("got %v", err)
	}
}

func TestWriteErrorBounds(t *testing.T) {
	for _, tt := range []struct {
		name string
		fill int
		want time.Duration
	}{{"peer stays", 0, guard.LingerTimeout}, {"peer does not read", 1 << 20, answerTimeout}} {
		tunneltest.Bubble(t, func(t *testing.T) {
			c, peer := tunneltest.Pipe()
			defer peer.Close()
			c.SetWriteDeadline(time.Now())
			if tt.fill > 0 {
				c.SetWriteDeadline(time.Now().Add(time.Nanosecond))
				c.Write(make([]byte, tt.fill))
			}
			start := time.Now()
			err := WriteError(c, "", nil)
			if d := time.Since(start); d != tt.want || (err != nil) != (tt.fill > 0) {
				t.Errorf("%s: %v after %v, want %v", tt.name, err, d, tt.want)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: not closed: %v", tt.name, err)
			}
		})
	}
}
