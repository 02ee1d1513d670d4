package upgrade

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

var proto = Protocol{Path: "/v1/test", Token: "test/1", For: "tests"}

func request(change func(*connect.Request)) *connect.Request {
	r := &connect.Request{Method: http.MethodGet, Target: "/v1/test", Proto: "HTTP/1.1", Host: "x", Header: http.Header{
		"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"other/2", "TEST/1"},
	}}
	change(r)
	return r
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*connect.Request)
		want   int
	}{
		{"good", func(*connect.Request) {}, 0},
		{"query", func(r *connect.Request) { r.Target += "?x=1" }, 0},
		{"path", func(r *connect.Request) { r.Target = "/v1/tests" }, 404},
		{"no Connection", func(r *connect.Request) { r.Header.Del("Connection") }, 426},
		{"another protocol", func(r *connect.Request) { r.Header.Set("Upgrade", "test/2") }, 426},
		{"HTTP/1.0", func(r *connect.Request) { r.Proto = "HTTP/1.0" }, 505},
	} {
		err := proto.Check(request(tt.change))
		var e *connect.Error
		if got := 0; errors.As(err, &e) && e.Status != tt.want || err == nil && got != tt.want {
			t.Errorf("%s: %v, want status %d", tt.name, err, tt.want)
		}
		if tt.want == 426 && e.Header.Get("Upgrade") != "test/1" {
			t.Errorf("%s: the answer does not say what is spoken: %v", tt.name, e.Header)
		}
	}
	if !Is(request(func(*connect.Request) {})) || Is(&connect.Request{Method: http.MethodGet, Target: "http://x/"}) || Is(&connect.Request{Method: http.MethodConnect, Target: "x:1"}) {
		t.Error("Is")
	}
}

// What answers a request, and what Request makes of it.
func TestRequest(t *testing.T) {
	for _, tt := range []struct {
		answer, want, early string
	}{
		{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test/1\r\n\r\nhello", "", "hello"},
		{"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test/2\r\n\r\n", "no rhizome server: it answered 101", ""},
		{"HTTP/1.1 200 OK\r\n\r\n", "no rhizome server: it answered 200", ""},
		{"HTTP/1.1 403 Forbidden\r\n\r\n", "403", ""},
		{"garbage\r\n\r\n", "http_protocol_error", ""},
	} {
		a, b := tunneltest.Pipe()
		go func(c net.Conn) {
			defer c.Close()
			if _, err := connect.ReadRequest(c, nil); err == nil {
				_, _ = c.Write([]byte(tt.answer))
			}
		}(b)
		early, err := proto.Request(a, &connect.Request{Host: "server"}, nil)
		if tt.want == "" && (err != nil || string(early) != tt.early) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: %q, %v", tt.answer, early, err)
		}
		a.Close()
	}
	a, b := tunneltest.Pipe()
	b.Close()
	a.Close()
	if _, err := proto.Request(a, &connect.Request{Host: "server"}, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed connection: %v", err)
	}
}
