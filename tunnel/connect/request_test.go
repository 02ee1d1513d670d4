package connect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// apiServer is what kube-apiserver writes, byte by byte (k8s.io/apiserver,
// pkg/server/egressselector).
const apiServer = "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

var ignoreHead = cmpopts.IgnoreUnexported(Request{})

// readBytes feeds ReadRequest with in, in pieces of the given size, 0 for one
// piece, and EOF behind it.
func readBytes(t testing.TB, in string, piece int, l *HeadLimits) (*Request, error) {
	t.Helper()
	c, peer := tunneltest.Pipe()
	defer c.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer peer.Close()
		feed(peer, in, piece)
		peer.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, peer)
	}()
	r, err := ReadRequest(c, l)
	c.Close()
	<-done
	return r, err
}

func feed(w io.Writer, in string, piece int) {
	for piece > 0 && len(in) > piece {
		if _, err := io.WriteString(w, in[:piece]); err != nil {
			return
		}
		in = in[piece:]
	}
	io.WriteString(w, in)
}

func TestAPIServerExactBytes(t *testing.T) {
	for _, piece := range []int{0, 1, 3} {
		r, err := readBytes(t, apiServer, piece, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := &Request{Method: "CONNECT", Target: "10.0.0.7:10250", Proto: "HTTP/1.1", Host: "127.0.0.1",
			Header: http.Header{}}
		if d := cmp.Diff(want, r, ignoreHead); d != "" {
			t.Errorf("pieces of %d (-want +got):\n%s", piece, d)
		}
	}
}

func TestReadRequest(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Request
	}{
		{"fields", "CONNECT a:1 HTTP/1.1\r\nhost:b\r\nx-y:\t 1 \r\nX-Y: 2\r\nempty:\r\n\r\n",
			Request{Method: "CONNECT", Target: "a:1", Proto: "HTTP/1.1", Host: "b",
				Header: http.Header{"X-Y": {"1", "2"}, "Empty": {""}}}},
		{"HTTP/1.0 without Host", "CONNECT a:1 HTTP/1.0\r\n\r\n",
			Request{Method: "CONNECT", Target: "a:1", Proto: "HTTP/1.0", Header: http.Header{}}},
		{"early bytes", apiServer + "\x16\x03\x01\r\n\r\n",
			Request{Method: "CONNECT", Target: "10.0.0.7:10250", Proto: "HTTP/1.1", Host: "127.0.0.1",
				Header: http.Header{}, Early: []byte("\x16\x03\x01\r\n\r\n")}},
		{"empty line first", "\r\n" + apiServer,
			Request{Method: "CONNECT", Target: "10.0.0.7:10250", Proto: "HTTP/1.1", Host: "127.0.0.1", Header: http.Header{}}},
		{"upgrade", "GET /v1/session HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: rhizome/1\r\n\r\n",
			Request{Method: "GET", Target: "/v1/session", Proto: "HTTP/1.1", Host: "s",
				Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"rhizome/1"}}}},
		{"absolute", "POST http://a/b?c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
			Request{Method: "POST", Target: "http://a/b?c", Proto: "HTTP/1.1", Host: "x",
				Header: http.Header{"Content-Length": {"3"}}, Early: []byte("abc")}},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
			Request{Method: "OPTIONS", Target: "*", Proto: "HTTP/1.1", Host: "x", Header: http.Header{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{0, 1, 7} {
				if piece > 0 && tt.want.Early != nil {
					continue
				}
				r, err := readBytes(t, tt.in, piece, nil)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(&tt.want, r, ignoreHead); d != "" {
					t.Errorf("pieces of %d (-want +got):\n%s", piece, d)
				}
			}
		})
	}
}

func TestReadRequestRefuses(t *testing.T) {
	many := strings.Repeat("a: b\r\n", maxFields+1)
	for _, tt := range []struct {
		name, in string
		status   int
		detail   string
	}{
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2 is not spoken here"},
		{"HTTP/1.2", "CONNECT a:1 HTTP/1.2\r\nHost: a\r\n\r\n", 505, "only HTTP/1.0 and HTTP/1.1"},
		{"HTTP/0.9", "GET /\r\n\r\n", 400, "request line"},
		{"version", "GET / HTTP/1.1.1\r\nHost: a\r\n\r\n", 400, "version"},
		{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400, "version"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "speaks TLS"},
		{"garbage", "\x05\x01\x00", 400, "not HTTP"},
		{"bare LF", "CONNECT a:1 HTTP/1.1\nHost: a\n\n", 400, "LF without CR"},
		{"bare LF in header", "CONNECT a:1 HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, "LF without CR"},
		{"bare CR", "CONNECT a:1 HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400, "CR without LF"},
		{"CR CR LF", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\r\n\r\n", 400, "CR without LF"},
		{"NUL", "CONNECT a:1 HTTP/1.1\r\nHost: a\x00\r\n\r\n", 400, "NUL"},
		{"control byte", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n", 400, "control byte"},
		{"folded", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400, "folded"},
		{"folded first", "CONNECT a:1 HTTP/1.1\r\n Host: a\r\n\r\n", 400, "folded"},
		{"two Host", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, "several Host"},
		{"no Host", "CONNECT a:1 HTTP/1.1\r\n\r\n", 400, "no Host"},
		{"Host with space", "CONNECT a:1 HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host"},
		{"space before colon", "CONNECT a:1 HTTP/1.1\r\nHost : a\r\n\r\n", 400, "space before the colon"},
		{"no colon", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n", 400, "without a colon"},
		{"no name", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400, "header name"},
		{"name", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nä: b\r\n\r\n", 400, "header name"},
		{"both framings", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "both"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400, "several Content-Length"},
		{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400, "Content-Length"},
		{"empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400, "Content-Length"},
		{"coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "transfer encoding"},
		{"no target", "CONNECT  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line"},
		{"two spaces", "CONNECT  a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line"},
		{"tab", "CONNECT\ta:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line"},
		{"space in target", "CONNECT a :1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line"},
		{"method", "CON(NECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request line"},
		{"CONNECT path", "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "has no port"},
		{"CONNECT zone", "CONNECT [fe80::1%25eth0]:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "zone"},
		{"CONNECT port", "CONNECT a:65536 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "port from 1 to 65535"},
		{"GET authority", "GET a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request target"},
		{"GET bad URL", "GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "missing ']'"},
		{"only empty lines", "\r\n\r\n", 400, "request line"},
		{"cut", "CONNECT a:1 HTTP/1.1\r\nHost", 400, "end of input"},
		{"many fields", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + many + "\r\n", 431, "512 fields"},
		{"huge", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431, "above 65536 bytes"},
		{"huge line", strings.Repeat("A", 65<<10), 431, "above 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{0, 5} {
				_, err := readBytes(t, tt.in, piece, nil)
				var e *Error
				if !errors.As(err, &e) || e.Response("").Status != tt.status || !strings.Contains(err.Error(), tt.detail) {
					t.Errorf("pieces of %d: %v, want status %d and %q", piece, err, tt.status, tt.detail)
				}
				if err != nil && strings.ContainsAny(err.Error(), "\r\n\x00\x1b") {
					t.Errorf("the error is not clean: %q", err)
				}
			}
		})
	}
}

// TestReadRequestAtOnce shows that a peer which speaks another protocol is told
// so at its first bytes, and does not wait for a timeout.
func TestReadRequestAtOnce(t *testing.T) {
	for _, in := range []string{"\x16", "\x16\x03\x01", "\x00\x00", "CONNECT a:1 HTTP/1.1\n"} {
		tunneltest.Bubble(t, func(t *testing.T) {
			c, peer := tunneltest.Pipe()
			defer c.Close()
			defer peer.Close()
			start := time.Now()
			io.WriteString(peer, in)
			if _, err := ReadRequest(c, nil); err == nil {
				t.Errorf("%q was taken", in)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("%q: after %v", in, d)
			}
		})
	}
}

func TestReadRequestLimit(t *testing.T) {
	head := "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, max := range []int{len(head), len(head) + 1, 1 << 20} {
		if _, err := readBytes(t, head+"early", 0, &HeadLimits{MaxBytes: max}); err != nil {
			t.Errorf("%d bytes with a limit of %d: %v", len(head), max, err)
		}
	}
	_, err := readBytes(t, head, 0, &HeadLimits{MaxBytes: len(head) - 1})
	if e := Classify(err); e == nil || e.Status != 431 {
		t.Errorf("%d bytes with a limit of %d: %v", len(head), len(head)-1, err)
	}
}

func TestReadRequestEOF(t *testing.T) {
	if _, err := readBytes(t, "", 0, nil); err != io.EOF {
		t.Errorf("an empty conn gives %v", err)
	}
}

func TestReadRequestReset(t *testing.T) {
	c, peer := tunneltest.Pipe()
	defer c.Close()
	io.WriteString(peer, "CONNECT a:1 HT")
	peer.(interface{ Reset() error }).Reset()
	if _, err := ReadRequest(c, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset gives %v", err)
	}
	if _, err := ReadRequest(c, nil); err == nil {
		t.Error("and then nothing")
	}
	c.Close()
	if _, err := ReadRequest(c, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed conn gives %v", err)
	}
}

func TestSlowloris(t *testing.T) {
	for _, tt := range []struct {
		limits *HeadLimits
		want   time.Duration
	}{{nil, 10 * time.Second}, {&HeadLimits{Timeout: 3 * time.Second}, 3 * time.Second}} {
		tunneltest.Bubble(t, func(t *testing.T) {
			c, peer := tunneltest.Pipe()
			start := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := 0; ; i++ { // one byte per second, for ever
					if _, err := peer.Write([]byte{apiServer[i%20]}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
			_, err := ReadRequest(c, tt.limits)
			if d := time.Since(start); d != tt.want {
				t.Errorf("ended after %v, want %v", d, tt.want)
			}
			var e *Error
			if !errors.As(err, &e) || e.Status != 408 || !e.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v, want 408 and a timeout", err)
			}
			// The deadline is gone: the answer of a slower peer can be read.
			time.Sleep(time.Hour)
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("the deadline stayed: %v", err)
			}
			c.Close()
			<-done
			peer.Close()
		})
	}
}

func TestNoHeadTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		c, peer := tunneltest.Pipe()
		defer c.Close()
		defer peer.Close()
		c.SetReadDeadline(time.Now().Add(time.Hour))
		_, err := ReadRequest(c, &HeadLimits{Timeout: -1})
		if e := Classify(err); e == nil || e.Status != 408 {
			t.Errorf("the caller's own deadline gives %v", err)
		}
	})
}

func TestReplay(t *testing.T) {
	in := "POST http://a/b HTTP/1.1\r\nHost: a\r\nX-CASE: 1\r\nContent-Length: 5\r\n\r\nab"
	c, peer := tunneltest.Pipe()
	defer peer.Close()
	io.WriteString(peer, in)
	r, err := ReadRequest(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	replay := r.Replay(c)
	defer replay.Close()
	io.WriteString(peer, "cde")
	peer.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(replay)
	if err != nil || string(b) != in+"cde" {
		t.Errorf("replayed %q, %v", b, err)
	}
	made := (&Request{Method: "GET", Target: "http://a/", Early: []byte("e")}).Replay(c)
	want := "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\ne"
	b = make([]byte, len(want))
	if _, err := io.ReadFull(made, b); err != nil || string(b) != want {
		t.Errorf("a request made by hand replays %q, %v", b, err)
	}
}

func TestRequestWrite(t *testing.T) {
	for _, tt := range []struct {
		r    Request
		want string
	}{
		{Request{Method: "CONNECT", Target: "10.0.0.7:10250", Host: "127.0.0.1"}, apiServer},
		{Request{Method: "CONNECT", Target: "a:1", Header: http.Header{"B": {"2", "3"}, "A": {"1"}}},
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nA: 1\r\nB: 2\r\nB: 3\r\n\r\n"},
		{Request{Method: "GET", Target: "/", Proto: "HTTP/1.0", Header: http.Header{"Host": {"h"}}}, "GET / HTTP/1.0\r\nHost: h\r\n\r\n"},
		{Request{Method: "GET", Target: "http://u/x"}, "GET http://u/x HTTP/1.1\r\nHost: u\r\n\r\n"},
	} {
		var b bytes.Buffer
		if err := tt.r.Write(&b); err != nil || b.String() != tt.want {
			t.Errorf("wrote %q, %v, want %q", b.String(), err, tt.want)
		}
	}
}

func TestRequestWriteRefuses(t *testing.T) {
	ok := Request{Method: "CONNECT", Target: "a:1"}
	for name, spoil := range map[string]func(*Request){
		"method":       func(r *Request) { r.Method = "GET /x HTTP/1.1\r\n" },
		"no method":    func(r *Request) { r.Method = "" },
		"target":       func(r *Request) { r.Target = "a:1 HTTP/1.1\r\nX: y\r\n" },
		"no target":    func(r *Request) { r.Target = "" },
		"version":      func(r *Request) { r.Proto = "HTTP/2.0" },
		"host":         func(r *Request) { r.Host = "a\r\nX: y" },
		"header name":  func(r *Request) { r.Header = http.Header{"X: y\r\nZ": {"1"}} },
		"header value": func(r *Request) { r.Header = http.Header{"Secret": {"s3cret\r\nZ: 1"}} },
	} {
		r := ok
		spoil(&r)
		var b bytes.Buffer
		err := r.Write(&b)
		if e := Classify(err); e == nil || e.Reason != ErrRequest || b.Len() > 0 {
			t.Errorf("%s: wrote %q, %v", name, b.String(), err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error shows a value: %v", name, err)
		}
	}
}

func TestAddress(t *testing.T) {
	for _, tt := range []struct {
		method, target, want string
		status               int
	}{
		{"CONNECT", "a:1", "a:1", 0},
		{"CONNECT", "[fd00::1]:1", "[fd00::1]:1", 0},
		{"GET", "http://a/", "a:80", 0},
		{"GET", "http://a:8080?x", "a:8080", 0},
		{"GET", "http://[fd00::1]/", "[fd00::1]:80", 0},
		{"CONNECT", "a", "", 400},
		{"GET", "/", "", 404},
		{"OPTIONS", "*", "", 404},
		{"GET", "https://a/", "", 400},
		{"GET", "ftp://a/", "", 400},
		{"GET", "http://u:p@a/", "", 400},
		{"GET", "http://[fe80::1%25eth0]/", "", 400},
		{"GET", "http://a:0/", "", 400},
		{"GET", "http:///x", "", 404},
	} {
		got, err := (&Request{Method: tt.method, Target: tt.target}).Address()
		if got != tt.want || (err == nil) != (tt.status == 0) {
			t.Errorf("%s %s: %q, %v", tt.method, tt.target, got, err)
		}
		if err != nil && Classify(err).Response("").Status != tt.status {
			t.Errorf("%s %s: %v, want %d", tt.method, tt.target, err, tt.status)
		}
	}
}

func ExampleRequest_Write() {
	var b bytes.Buffer
	r := &Request{Method: "CONNECT", Target: "10.0.0.7:10250", Host: "127.0.0.1"}
	if err := r.Write(&b); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%q\n", b.String())
	// Output: "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
}
