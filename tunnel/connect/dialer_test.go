package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

const ok200 = "HTTP/1.1 200 OK\r\n\r\n"

func TestDialerRequest(t *testing.T) {
	p := &canned{answer: ok200}
	l := listenTCP(t)
	accept(t, l, p.serve)
	addr := l.Addr().String()
	for _, tt := range []struct {
		name string
		d    Dialer
		want string
	}{
		{"plain", Dialer{}, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"},
		{"header", Dialer{Header: http.Header{"x-route": {"1", "2"}, "Host": {"front"}}},
			"CONNECT a:1 HTTP/1.1\r\nHost: front\r\nX-Route: 1\r\nX-Route: 2\r\n\r\n"},
		{"GetHeader", Dialer{Header: http.Header{"A": {"1"}, "B": {"1"}},
			GetHeader: func(_ context.Context, target string) (http.Header, error) { return http.Header{"a": {target}}, nil }},
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nA: a:1\r\nB: 1\r\n\r\n"},
		{"Basic", Dialer{User: url.UserPassword("u", "p:w")},
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Basic dTpwOnc=\r\n\r\n"},
		{"Bearer", Dialer{Bearer: func(context.Context) (string, error) { return "tok\n", nil }},
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Bearer tok\r\n\r\n"},
		{"own credentials", Dialer{User: url.User("u"), Header: http.Header{"Proxy-Authorization": {"X y"}}},
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: X y\r\n\r\n"},
	} {
		tt.d.Address = addr
		c, err := tt.d.Dial("tcp", "a:1")
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if err := roundTrip(c, "hello"); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := p.last(t); got != tt.want {
			t.Errorf("%s: sent %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDialerTransports(t *testing.T) {
	for _, tt := range []struct {
		name string
		l    net.Listener
		tls  bool
		url  string
	}{
		{"tcp", listenTCP(t), false, "http://"},
		{"unix", listenUnix(t), false, "http+unix://"},
		{"TLS", listenTCP(t), true, "https://"},
		{"TLS over unix", listenUnix(t), true, "https+unix://"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Dialer{Network: tt.l.Addr().Network(), Address: tt.l.Addr().String()}
			l := tt.l
			if tt.tls {
				c := serverTLS()
				c.NextProtos = []string{"h2", "http/1.1"} // as a server that prefers h2
				c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca().Pool()
				l = tls.NewListener(l, c)
				d.TLS = clientTLS()
				d.TLS.NextProtos = []string{"h2", "http/1.1"} // as a Transport leaves it
				d.TLS.Certificates = []tls.Certificate{cert()}
				if d.Network == "unix" {
					d.TLS.ServerName = "proxy"
				}
			}
			p := &canned{answer: ok200}
			accept(t, l, p.serve)
			c, err := d.DialContext(t.Context(), "tcp", "target:80")
			if err != nil {
				t.Fatal(err)
			}
			if s, ok := c.(*tls.Conn); ok != tt.tls || ok && s.ConnectionState().NegotiatedProtocol != "http/1.1" {
				t.Errorf("the conn is a %T", c)
			}
			if err := roundTrip(c, "hello"); err != nil {
				t.Error(err)
			}
			if tt.tls && len(d.TLS.NextProtos) != 2 {
				t.Error("the caller's TLS configuration was changed")
			}
			p.answer = "HTTP/1.1 502 Bad Gateway\r\n\r\n"
			if _, err = d.Dial("tcp", "target:80"); err == nil || !strings.Contains(err.Error(), "proxy "+tt.url+d.Address+" refused target:80: 502") {
				t.Errorf("refused with %v", err)
			}
		})
	}
}

func TestDialerEarlyBytes(t *testing.T) {
	p := &canned{answer: "HTTP/1.0 299 fine\r\nContent-Length: 4\r\n\r\nSSH-2.0-x\r\n"}
	l := listenTCP(t)
	accept(t, l, p.serve)
	c, err := (&Dialer{Address: l.Addr().String()}).Dial("tcp", "a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hi")
	if err := relay.CloseWrite(c); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "SSH-2.0-x\r\nhi" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestDialerErrors(t *testing.T) {
	secret := errors.New("vault is sealed")
	p := &canned{}
	l := listenTCP(t)
	accept(t, l, p.serve)
	plain := l.Addr().String()
	lt := listenTCP(t)
	accept(t, tls.NewListener(lt, serverTLS()), p.serve)
	secure := lt.Addr().String()
	alert := listenTCP(t)
	accept(t, alert, func(c net.Conn) {
		io.ReadFull(c, make([]byte, len("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")))
		io.WriteString(c, "\x15\x03\x03\x00\x02\x02\x46")
	})
	gone := listenTCP(t)
	gone.Close()
	h2 := serverTLS()
	h2.NextProtos = []string{"other"}
	lh2 := listenTCP(t)
	accept(t, tls.NewListener(lh2, h2), func(c net.Conn) { c.(*tls.Conn).Handshake() })

	creds := url.UserPassword("user", "s3cret")
	for _, tt := range []struct {
		name, network, target, answer string
		d                             Dialer
		reason                        Reason
		status                        int
		text                          string
		is                            error
	}{
		{"refused", "tcp", "10.0.0.7:10250", "HTTP/1.1 502 x\r\nProxy-Status: s;error=connection_refused;details=\"d\"\r\n\r\n",
			Dialer{Address: plain, User: creds}, ErrRefused, 502, " refused 10.0.0.7:10250: 502 connection_refused: d", syscall.ECONNREFUSED},
		{"timeout", "tcp4", "a:1", "HTTP/1.1 504 Gateway Timeout\r\n\r\n", Dialer{Address: plain}, ErrTimeout, 504, "504 connection_timeout", os.ErrDeadlineExceeded},
		{"407", "tcp6", "a:1", "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", Dialer{Address: plain, User: creds}, ErrAuth, 407, "407 proxy_authentication_required: No", nil},
		{"proxy is down", "tcp", "a:1", "", Dialer{Address: gone.Addr().String()}, ErrRefused, 0,
			"connect: a:1 through proxy http://" + gone.Addr().String() + ": connection_refused: dial tcp", syscall.ECONNREFUSED},
		{"no file", "tcp", "a:1", "", Dialer{Network: "unix", Address: "/nonexistent/s"}, ErrUnavailable, 0, "http+unix:///nonexistent/s", os.ErrNotExist},
		{"proxy hangs up", "tcp", "a:1", "", Dialer{Address: plain}, ErrTerminated, 0, "closed before its answer", io.ErrUnexpectedEOF},
		{"plain to TLS", "tcp", "a:1", "", Dialer{Address: alert.Addr().String()}, ErrProtocol, 0, "speaks TLS: use https://", nil},
		{"untrusted", "tcp", "a:1", "", Dialer{Address: secure, TLS: &tls.Config{}}, ErrTLS, 0, "unknown authority", nil},
		{"wrong name", "tcp", "a:1", "", Dialer{Address: secure, TLS: &tls.Config{RootCAs: ca().Pool(), ServerName: "other"}}, ErrTLS, 0, "not other", nil},
		{"h2 only", "tcp", "a:1", "", Dialer{Address: lh2.Addr().String(), TLS: clientTLS()}, ErrTLS, 0, "no application protocol", nil},
		{"target", "tcp", "a", "", Dialer{Address: plain}, ErrRequest, 0, "has no port", nil},
		{"network", "udp", "a:1", "", Dialer{Address: plain}, ErrRequest, 0, "unknown network udp", net.UnknownNetworkError("udp")},
		{"GetHeader", "tcp", "a:1", "", Dialer{Address: plain, GetHeader: func(context.Context, string) (http.Header, error) { return nil, secret }},
			ErrConfig, 0, "GetHeader: vault is sealed", secret},
		{"Bearer", "tcp", "a:1", "", Dialer{Address: plain, Bearer: func(context.Context) (string, error) { return "", secret }},
			ErrConfig, 0, "Bearer: vault is sealed", secret},
		{"injection", "tcp", "a:1", "", Dialer{Address: plain, Bearer: func(context.Context) (string, error) { return "s3cret\r\nX: y", nil }},
			ErrRequest, 0, "control byte", nil},
		{"both", "tcp", "a:1", "", Dialer{Address: plain, User: creds, Bearer: func(context.Context) (string, error) { return "s3cret", nil }},
			ErrConfig, 0, "both User and Bearer", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.answer = tt.answer
			if tt.answer == "" {
				p.answer = ""
				if tt.name == "proxy hangs up" {
					l := listenTCP(t)
					accept(t, l, func(c net.Conn) { ReadRequest(c, nil) })
					tt.d.Address = l.Addr().String()
				}
			}
			c, err := tt.d.DialContext(t.Context(), tt.network, tt.target)
			if err == nil {
				c.Close()
				t.Fatal("no error")
			}
			var e *Error
			if !errors.As(err, &e) || e.Reason != tt.reason || e.Status != tt.status || e.Answered() != (tt.status != 0) || e.Target != tt.target {
				t.Errorf("%#v, want %v and %d", e, tt.reason, tt.status)
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v, want %q", err, tt.text)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
		})
	}
}

// TestPlainProxyBehindTLSDial shows the hint for https:// where http:// is meant.
func TestPlainProxyBehindTLSDial(t *testing.T) {
	l := listenTCP(t)
	accept(t, l, func(c net.Conn) { WriteError(c, "", ErrRequest) })
	_, err := (&Dialer{Address: l.Addr().String(), TLS: clientTLS()}).Dial("tcp", "a:1")
	if err == nil || !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), "speaks plain HTTP: use http://") {
		t.Errorf("got %v", err)
	}
}

// TestDialerContext ends the context while the dial is at each of its stages.
func TestDialerContext(t *testing.T) {
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	halfHead := func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n"); io.Copy(io.Discard, c) }
	for _, stage := range []struct {
		name   string
		server func(net.Conn)
		tls    bool
		frozen bool
	}{
		{"TCP", silent, false, true}, {"TLS", silent, true, false}, {"answer", silent, false, false}, {"half an answer", halfHead, false, false},
	} {
		for _, end := range []struct {
			name    string
			ctx     func() (context.Context, context.CancelFunc)
			timeout time.Duration
			is      []error
			want    time.Duration
		}{
			{"cancel", func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(context.Background())
				time.AfterFunc(3*time.Second, func() { cancel(errClientGone) })
				return ctx, func() { cancel(nil) }
			}, 0, []error{context.Canceled, ErrTerminated, errClientGone}, 3 * time.Second},
			{"deadline", func() (context.Context, context.CancelFunc) {
				return context.WithTimeout(context.Background(), 4*time.Second)
			}, -1, []error{context.DeadlineExceeded, ErrTimeout, os.ErrDeadlineExceeded}, 4 * time.Second},
			{"Timeout", func() (context.Context, context.CancelFunc) { return context.Background(), func() {} },
				5 * time.Second, []error{ErrTimeout, os.ErrDeadlineExceeded}, 5 * time.Second},
			{"default Timeout", func() (context.Context, context.CancelFunc) { return context.Background(), func() {} },
				0, []error{ErrTimeout, os.ErrDeadlineExceeded}, 30 * time.Second},
		} {
			t.Run(stage.name+"/"+end.name, func(t *testing.T) {
				tunneltest.Bubble(t, func(t *testing.T) {
					var n tunneltest.Network
					l := listen(t, n.Listen, "tcp", "proxy:8080")
					accept(t, l, stage.server)
					if stage.frozen {
						n.Freeze("proxy")
					}
					d := &Dialer{Address: "proxy:8080", Forward: n.Dial, Timeout: end.timeout}
					if stage.tls {
						d.TLS = clientTLS()
					}
					ctx, cancel := end.ctx()
					defer cancel()
					start := time.Now()
					c, err := d.DialContext(ctx, "tcp", "a:1")
					if d := time.Since(start); c != nil || d != end.want {
						t.Errorf("%v after %v, want %v", c, d, end.want)
					}
					for _, is := range end.is {
						if !errors.Is(err, is) {
							t.Errorf("%v is not %v", err, is)
						}
					}
					var ne net.Error
					if timeout := end.name != "cancel"; !errors.As(err, &ne) || ne.Timeout() != timeout {
						t.Errorf("%v: Timeout() is not %v", err, timeout)
					}
					synctest.Wait()
					if !stage.frozen && len(n.Conns()) > 0 {
						t.Errorf("%d half-made conns are left", len(n.Conns()))
					}
				})
			})
		}
	}
}

// TestContextGovernsOnlyTheDial ends the context after the dial.
func TestContextGovernsOnlyTheDial(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		accept(t, tls.NewListener(listen(t, n.Listen, "tcp", "proxy:8080"), serverTLS()), (&canned{answer: ok200}).serve)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		d := &Dialer{Address: "proxy:8080", Forward: n.Dial, TLS: clientTLS()}
		c, err := d.DialContext(ctx, "tcp", "a:1")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(time.Hour)
		if err := roundTrip(c, "hello"); err != nil {
			t.Error(err)
		}
	})
}

// TestChain goes through two proxies: plain, and in that one TLS over a Unix
// socket, and the other way round.
func TestChain(t *testing.T) {
	target := listenTCP(t)
	accept(t, target, echo)
	unix := listenUnix(t)
	serve(t, &Handler{Name: "far"}, tls.NewListener(unix, serverTLS()))
	tcp := listenTCP(t)
	serve(t, &Handler{Name: "near", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		// What the near proxy calls far:1 is behind its Unix socket.
		if address == "far:1" {
			return (&net.Dialer{}).DialContext(ctx, "unix", unix.Addr().String())
		}
		return directDial(ctx, network, address)
	}}, tcp)
	near := &Dialer{Address: tcp.Addr().String()}
	far := &Dialer{Address: "far:1", TLS: clientTLS(), Forward: near.DialContext}
	far.TLS.ServerName = "proxy"

	c, err := far.DialContext(t.Context(), "tcp", target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(c, strings.Repeat("hello", 10000)); err != nil {
		t.Error(err)
	}

	target.Close()
	_, err = far.DialContext(t.Context(), "tcp", target.Addr().String())
	want := fmt.Sprintf("connect: proxy https://far:1 refused %s: 502 connection_refused: ", target.Addr())
	if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want %s", err, want)
	}
	far.Address = "127.0.0.1:1"
	_, err = far.DialContext(t.Context(), "tcp", "a:1")
	e := Classify(err)
	if e == nil || e.Answered() || e.Reason != ErrRefused || e.Status != 0 || !strings.Contains(err.Error(), "connection_refused: proxy http://"+near.Address+" refused 127.0.0.1:1: 502 ") {
		t.Errorf("a proxy that its proxy cannot reach: %v", err)
	}
	var inner *Error
	if !errors.As(e.Err, &inner) || !inner.Answered() || inner.Status != 502 {
		t.Errorf("the answer of the near proxy is lost: %v", e.Err)
	}
}
