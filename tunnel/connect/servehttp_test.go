package connect

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestServeHTTP mounts a Handler in an http.Server.
func TestServeHTTP(t *testing.T) {
	var n tunneltest.Network
	accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
	web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	h := &Handler{Dial: n.Dial, Allow: func(_ context.Context, r *Request, _ string) error {
		if r.Header.Get("Proxy-Authorization") != "Bearer t" {
			return ErrDenied
		}
		return nil
	}}
	l := listenTCP(t)
	web(t, l, h.ServeHTTP)
	d := &Dialer{Address: l.Addr().String(), Bearer: func(context.Context) (string, error) { return "t", nil }}
	c, err := d.Dial("tcp", "target:80")
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(c, "hello"); err != nil {
		t.Error(err)
	}
	// The reason phrase is ours, for the conn is hijacked before the answer.
	d.Bearer = nil
	if _, err = d.Dial("tcp", "target:80"); !errors.Is(err, ErrDenied) || Classify(err).Status != 403 {
		t.Errorf("denied with %v", err)
	}
	raw := func(request string) net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, request)
		return c
	}
	c = raw("CONNECT target:80 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Bearer t\r\n\r\nearly")
	r, err := ReadResponse(c, nil)
	if err != nil || r.Status != 200 {
		t.Fatal(r, err)
	}
	relay.CloseWrite(c)
	if b, err := io.ReadAll(relay.NewPrefixed(c, r.Early)); string(b) != "early" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c = raw("CONNECT target:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if r, err := ReadResponse(c, nil); err != nil || r.Status != 400 {
		t.Errorf("a body: %+v, %v", r, err)
	}
	c = raw("GET http://a/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Bearer t\r\n\r\n")
	br := bufio.NewReader(c)
	if r, b := ask(t, c, br, ""); r.StatusCode != 200 || b != "a" {
		t.Errorf("%d %q", r.StatusCode, b)
	}
	if r, _ := ask(t, c, br, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); r.StatusCode != 404 {
		t.Errorf("%d", r.StatusCode)
	}
}

func TestServeHTTPLimits(t *testing.T) {
	h := &Handler{}
	r := httptest.NewRequest("CONNECT", "a:1", nil)
	w := httptest.NewRecorder() // no Hijacker
	h.ServeHTTP(w, r)
	if w.Code != 500 || !strings.Contains(w.Header().Get("Proxy-Status"), "error=proxy_internal_error") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	r.ProtoMajor, r.ProtoMinor, r.Proto = 2, 0, "HTTP/2.0"
	w = httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 505 || !strings.Contains(w.Body.String(), "offer only http/1.1") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// TestServeHTTPEnds shows how tunnels of an http.Server end: with BaseContext.
func TestServeHTTPEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		ctx, cancel := context.WithCancel(context.Background())
		srv := &http.Server{Handler: &Handler{Dial: n.Dial}, BaseContext: func(net.Listener) context.Context { return ctx }}
		l := listen(t, n.Listen, "tcp", "proxy:8080")
		go srv.Serve(l)
		c, err := (&Dialer{Address: "proxy:8080", Forward: n.Dial}).Dial("tcp", "target:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		srv.Close()
		cancel()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v", err)
		}
	})
}
