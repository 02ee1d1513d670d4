package connect

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// fuzzRequest reads a request from bytes, without a conn.
func fuzzRequest(r io.Reader) (*Request, error) {
	h := &head{strict: true, max: defaultHeadBytes}
	b, err := h.read(r, checkRequest)
	if err != nil {
		return nil, headError(err, nil)
	}
	q, err := parseRequest(b)
	if err != nil {
		return nil, headError(err, nil)
	}
	q.Early = h.rest()
	return q, nil
}

// FuzzReadRequest checks that what is accepted is read alike by net/http, byte
// by byte, and when it is written again; and that what is not can be answered.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(apiServer))
	f.Add([]byte(apiServer + "\x16\x03\x01"))
	f.Add([]byte("\r\nGET http://a/b HTTP/1.0\r\nX-y: \t1 \r\n\r\n"))
	f.Add([]byte("POST /v1/session HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Add([]byte("CONNECT [fd00::1]:1 HTTP/1.1\r\nHost : a\r\n b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		source := bytes.NewReader(in)
		r, err := fuzzRequest(source)
		taken := in[:len(in)-source.Len()] // the rest stays in the conn
		slow, err2 := fuzzRequest(iotest.OneByteReader(bytes.NewReader(in)))
		if (err == nil) != (err2 == nil) {
			t.Fatalf("at once %v, byte by byte %v", err, err2)
		}
		if err != nil {
			if err == io.EOF {
				return
			}
			var b bytes.Buffer
			if err := Classify(err).Response("").Write(&b); err != nil {
				t.Fatal(err)
			}
			if a, err := http.ReadResponse(bufio.NewReader(&b), nil); err != nil || a.StatusCode < 400 || a.StatusCode > 505 {
				t.Fatal(a, err)
			}
			return
		}
		if !bytes.HasSuffix(taken, r.Early) || len(r.head)+len(r.Early)+2 < len(taken) {
			t.Fatalf("lost bytes: %q, early %q", taken, r.Early)
		}
		slow.Early, r.Early = nil, nil
		if !reflect.DeepEqual(r, slow) {
			t.Fatalf("at once %+v, byte by byte %+v", r, slow)
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(r.head)))
		if err != nil || std.Method != r.Method || std.RequestURI != r.Target || std.Proto != r.Proto {
			t.Fatalf("net/http reads %+v, %v", std, err)
		}
		if r.Host == "" {
			return
		}
		var b bytes.Buffer
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		again, err := fuzzRequest(&b)
		if err != nil {
			t.Fatal(err)
		}
		r.head, again.head = nil, nil
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v was written as %+v", r, again)
		}
	})
}

// FuzzReadResponse checks that an answer is read alike at once and byte by
// byte, and, if it is accepted, by net/http.
func FuzzReadResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 407 No\nProxy-Authenticate: Basic\n\nx"))
	f.Add([]byte("HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 S\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 502 connection_refused: x\r\nProxy-Status: a;error=connection_refused\r\nRetry-After: 5\r\n\r\n"))
	f.Add([]byte("\x15\x03\x01\x00\x02\x02\x46"))
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(r io.Reader) (*Response, *head, error) {
			h := &head{max: defaultHeadBytes}
			b, err := h.read(r, checkResponse)
			if err != nil {
				return nil, h, responseError(err, nil)
			}
			a, err := parseResponse(b)
			return a, h, err
		}
		source := bytes.NewReader(in)
		r, h, err := read(source)
		taken := in[:len(in)-source.Len()] // the rest stays in the conn
		slow, _, err2 := read(iotest.OneByteReader(bytes.NewReader(in)))
		if (err == nil) != (err2 == nil) || !reflect.DeepEqual(r, slow) {
			t.Fatalf("at once %+v, %v, byte by byte %+v, %v", r, err, slow, err2)
		}
		if err != nil {
			return
		}
		if !bytes.HasSuffix(taken, h.rest()) {
			t.Fatalf("early %q", h.rest())
		}
		e := r.Refusal("http://p", "a:1")
		if strings.ContainsAny(e.Error(), "\r\n\x00\x1b") {
			t.Fatalf("not clean: %q", e.Error())
		}
		if err := e.Response("").Write(io.Discard); err != nil {
			t.Fatal(err)
		}
		if err := r.Write(io.Discard); err != nil {
			t.Fatal(err)
		}
		head := bytes.TrimSuffix(taken, h.rest())
		if r.Header["Transfer-Encoding"] != nil || r.Header["Content-Length"] != nil {
			return // net/http has an opinion about bodies, which we do not read
		}
		if std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil); err != nil || std.StatusCode != r.Status {
			t.Fatalf("net/http reads %+v, %v", std, err)
		}
	})
}

// FuzzProxyStatus checks that parsing ends, and that what is found survives
// being written by us.
func FuzzProxyStatus(f *testing.F) {
	f.Add(`rhizome; error=connection_refused; details="dial: \"x\\y\""`)
	f.Add(`(a "b";c=1 2);error=y, b;error=dns_error;rcode=-1.5;x=:YQ==:;t=?1`)
	f.Add("a;error=x, ")
	f.Fuzz(func(t *testing.T, in string) {
		reason, details, ok := parseProxyStatus([]string{in})
		if !ok {
			if reason != "" || details != "" {
				t.Fatalf("not ok, but %q, %q", reason, details)
			}
			return
		}
		if !isSFToken(string(reason)) {
			return // RFC 9209 wants a token; others are shown and not passed on
		}
		again, details2, ok := parseProxyStatus([]string{formatProxyStatus(in, reason, details)})
		want := reason
		if reason == ErrAuth {
			want = ErrRequest
		}
		if !ok || again != want || details2 != details {
			t.Fatalf("%q, %q became %q, %q, %v", reason, details, again, details2, ok)
		}
	})
}

// FuzzTarget checks that an accepted target is read back alike, and stands in
// a request line without effect on it.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"10.0.0.7:10250", "[fd00::7]:443", "a.b-c_d.:65535", "a:0", "[fe80::1%eth0]:1", "a b:1", "::1:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		host, port, err := ParseTarget(in)
		if err != nil {
			if s := err.Error(); strings.ContainsAny(s, "\r\n\x00\x1b") {
				t.Fatalf("not clean: %q", s)
			}
			return
		}
		if again := joinTarget(host, port); again != in {
			t.Fatalf("%q became %q", in, again)
		}
		r, err := fuzzRequest(strings.NewReader("CONNECT " + in + " HTTP/1.1\r\nHost: a\r\n\r\n"))
		if err != nil || r.Target != in {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}
