package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// bubble runs f with an in-memory network in which h listens at proxy:8080 and
// an echo server at target:80. Without Dial, h dials in that network.
func bubble(t *testing.T, h *Handler, f func(t *testing.T, n *tunneltest.Network)) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		h := *h
		if h.Dial == nil {
			h.Dial = n.Dial
		}
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		serve(t, &h, listen(t, n.Listen, "tcp", "proxy:8080"))
		f(t, &n)
	})
}

// dialProxy opens a conn to the proxy of a bubble and writes first.
func dialProxy(t *testing.T, n *tunneltest.Network, first string) net.Conn {
	t.Helper()
	c, err := n.Dial(t.Context(), "tcp", "proxy:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, first); err != nil {
		t.Fatal(err)
	}
	return c
}

const connectTarget = "CONNECT target:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

func TestHalfClose(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		// The target answers an hour after the end of the question.
		accept(t, listen(t, n.Listen, "tcp", "slow:80"), func(c net.Conn) {
			b, _ := io.ReadAll(c)
			time.Sleep(time.Hour)
			fmt.Fprintf(c, "%d bytes", len(b))
		})
		d := &Dialer{Address: "proxy:8080", Forward: n.Dial}
		c, err := d.DialContext(t.Context(), "tcp", "slow:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(make([]byte, 1<<20))
		if err := relay.CloseWrite(c); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		b, err := io.ReadAll(c)
		if string(b) != "1048576 bytes" || err != nil || time.Since(start) != time.Hour {
			t.Errorf("%q, %v after %v", b, err, time.Since(start))
		}
	})
}

// TestAPIServerConnect is kube-apiserver's view: 200, and not one byte behind
// the head before the target speaks.
func TestAPIServerConnect(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		c := dialProxy(t, n, connectTarget)
		synctest.Wait()
		b := make([]byte, 1<<10)
		m, err := c.Read(b)
		if want := "HTTP/1.1 200 Connection established\r\n\r\n"; string(b[:m]) != want || err != nil {
			t.Errorf("read %q, %v, want %q", b[:m], err, want)
		}
		if err := roundTrip(c, "hello"); err != nil {
			t.Error(err)
		}
	})
}

func TestRefusals(t *testing.T) {
	opError := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	dial := func(err error) DialFunc {
		return func(context.Context, string, string) (net.Conn, error) { return nil, err }
	}
	allow := func(err error) func(context.Context, *Request, string) error {
		return func(context.Context, *Request, string) error { return err }
	}
	for _, tt := range []struct {
		name, head string
		h          Handler
		status     int
		error      string
	}{
		{"refused", connectTarget, Handler{Dial: dial(opError(os.NewSyscallError("connect", syscall.ECONNREFUSED)))}, 502, "connection_refused"},
		{"no name", connectTarget, Handler{Dial: dial(opError(&net.DNSError{Err: "no such host", Name: "target", IsNotFound: true}))}, 502, "dns_error"},
		{"DNS timeout", connectTarget, Handler{Dial: dial(&net.DNSError{IsTimeout: true})}, 504, "dns_timeout"},
		{"timeout", connectTarget, Handler{Dial: dial(opError(os.ErrDeadlineExceeded))}, 504, "connection_timeout"},
		{"no route", connectTarget, Handler{Dial: dial(opError(os.NewSyscallError("connect", syscall.EHOSTUNREACH)))}, 502, "destination_ip_unroutable"},
		{"no agent", connectTarget, Handler{Dial: dial(&Error{Reason: ErrUnavailable, RetryAfter: 5 * time.Second})}, 503, "destination_unavailable"},
		{"quota", connectTarget, Handler{Dial: dial(fmt.Errorf("x: %w", ErrLimit))}, 429, "connection_limit_reached"},
		{"unknown", connectTarget, Handler{Dial: dial(errors.New("?"))}, 500, "proxy_internal_error"},
		{"denied", connectTarget, Handler{Allow: allow(errors.New("rule 7"))}, 403, "http_request_denied"},
		{"prohibited", connectTarget, Handler{Allow: allow(ErrProhibited)}, 403, "destination_ip_prohibited"},
		{"credentials", connectTarget, Handler{Allow: allow(&Error{Reason: ErrAuth, Header: http.Header{"Proxy-Authenticate": {"Basic"}}})}, 407, "http_request_error"},
		{"body", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", Handler{}, 400, "http_request_error"},
		{"chunked", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Handler{}, 400, "http_request_error"},
		{"port", "CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", Handler{}, 400, "http_request_error"},
		{"origin form", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Handler{}, 404, "http_request_error"},
		{"https", "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Handler{}, 400, "http_request_error"},
		{"huge", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", Handler{}, 431, "http_request_error"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Handler{}, 505, "http_request_error"},
		{"TLS", "\x16\x03\x01\x02\x00", Handler{}, 400, "http_request_error"},
		{"slow", "CONNECT a", Handler{Limits: HeadLimits{Timeout: 3 * time.Second}}, 408, "http_request_error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log lines
			tt.h.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			tt.h.Name = "p1"
			bubble(t, &tt.h, func(t *testing.T, n *tunneltest.Network) {
				c := dialProxy(t, n, tt.head)
				r, err := ReadResponse(c, nil)
				if err != nil {
					t.Fatal(err)
				}
				reason, details, ok := parseProxyStatus(r.Header["Proxy-Status"])
				if r.Status != tt.status || string(reason) != tt.error || !ok || !strings.HasPrefix(r.Header.Get("Proxy-Status"), "p1; ") {
					t.Errorf("%d %q, %q", r.Status, r.Phrase, r.Header)
				}
				if tt.status != 407 && (!strings.HasPrefix(r.Phrase, tt.error) || !strings.Contains(r.Phrase, details)) {
					t.Errorf("the phrase %q does not repeat %q", r.Phrase, r.Header["Proxy-Status"])
				}
				if (r.Header.Get("Retry-After") == "5") != (tt.name == "no agent") || (r.Header.Get("Proxy-Authenticate") != "") != (tt.status == 407) {
					t.Errorf("header %q", r.Header)
				}
				if _, err := io.ReadAll(c); err != nil {
					t.Errorf("the answer does not end in order: %v", err)
				}
			})
			if l := log.list(); len(l) != 1 || !strings.Contains(l[0], "outcome=") {
				t.Errorf("logged %q", l)
			}
		})
	}
}

func TestDialTimeout(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{{0, 20 * time.Second}, {time.Minute, time.Minute}, {-1, 127 * time.Second}} {
		bubble(t, &Handler{DialTimeout: tt.set}, func(t *testing.T, n *tunneltest.Network) {
			n.Host("frozen")
			n.Freeze("frozen")
			start := time.Now()
			d := &Dialer{Address: "proxy:8080", Forward: n.Dial, Timeout: -1}
			_, err := d.Dial("tcp", "frozen:1")
			if d := time.Since(start); d != tt.want || !errors.Is(err, ErrTimeout) || Classify(err).Status != 504 {
				t.Errorf("%v after %v, want %v", err, d, tt.want)
			}
			if tt.set >= 0 && !strings.Contains(err.Error(), "no connection within "+tt.want.String()) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestContextEnds shows that the end of the context resets conns in each state
// and that nothing is left.
func TestContextEnds(t *testing.T) {
	hang := func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	for _, tt := range []struct {
		name, head string
		dial       DialFunc
		read       string
	}{
		{"no head", "", nil, ""},
		{"half a head", "CONNECT a", nil, ""},
		{"dial", connectTarget, hang, ""},
		{"tunnel", connectTarget, nil, "HTTP/1.1 200"},
		{"http dial", "GET http://target/ HTTP/1.1\r\nHost: a\r\n\r\n", hang, ""},
		{"http", "POST http://target/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", nil, ""},
		{"http idle", "GET http://target/ HTTP/1.1\r\nHost: a\r\n\r\n",
			func(context.Context, string, string) (net.Conn, error) { return nil, ErrDNS }, "HTTP/1.1 502"},
		{"refused", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", nil, "HTTP/1.1 404"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				var n tunneltest.Network
				h := &Handler{Dial: tt.dial}
				if h.Dial == nil {
					h.Dial = n.Dial
				}
				accept(t, listen(t, n.Listen, "tcp", "target:80"), func(c net.Conn) { io.Copy(io.Discard, c) })
				stop := serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
				c := dialProxy(t, &n, tt.head)
				if tt.read != "" {
					b := make([]byte, len(tt.read))
					if _, err := io.ReadFull(c, b); err != nil || string(b) != tt.read {
						t.Errorf("read %q, %v", b, err)
					}
				}
				synctest.Wait()
				start := time.Now()
				if err := stop(); err != nil || time.Since(start) != 0 {
					t.Errorf("Serve ended with %v after %v", err, time.Since(start))
				}
				if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client sees %v, want a reset", err)
				}
				synctest.Wait()
				c.Close()
				if left := n.Conns(); len(left) > 0 {
					t.Errorf("%d conns are left", len(left))
				}
			})
		})
	}
}

func TestObserveAndLog(t *testing.T) {
	var log lines
	var tunnel *Tunnel
	outcome := make(chan error, 1)
	h := &Handler{
		Logger:  slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Observe: func(t *Tunnel) func(error) { tunnel = t; return func(err error) { outcome <- err } },
	}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		outcome = make(chan error, 1)
		start := time.Now()
		c := dialProxy(t, n, connectTarget)
		time.Sleep(time.Minute)
		io.WriteString(c, "12345")
		synctest.Wait()
		if up, down := tunnel.Bytes(); up != 5 || down != 5 {
			t.Errorf("live bytes: %d, %d", up, down)
		}
		relay.CloseWrite(c)
		io.Copy(io.Discard, c)
		if err := <-outcome; err != nil {
			t.Errorf("outcome %v", err)
		}
		if tunnel.Target != "target:80" || !tunnel.Start.Equal(start) || tunnel.Request.Host != "127.0.0.1" || tunnel.Client.String() != c.LocalAddr().String() {
			t.Errorf("tunnel %+v", tunnel)
		}
		want := "level=DEBUG msg=connect method=CONNECT target=target:80 outcome=closed up=5 down=5 duration=1m0s client="
		if l := log.list(); len(l) != 1 || !strings.Contains(l[0], want) {
			t.Errorf("logged %q, want %s", l, want)
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	bubble(t, &Handler{IdleTimeout: time.Minute}, func(t *testing.T, n *tunneltest.Network) {
		c := dialProxy(t, n, connectTarget)
		start := time.Now()
		_, err := io.Copy(io.Discard, c)
		if d := time.Since(start); !errors.Is(err, syscall.ECONNRESET) || d < time.Minute || d > 2*time.Minute {
			t.Errorf("%v after %v", err, d)
		}
	})
}

// TestResetPassesThrough resets one side and looks at the other.
func TestResetPassesThrough(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		target := make(chan net.Conn, 1)
		accept(t, listen(t, n.Listen, "tcp", "t:1"), func(c net.Conn) { target <- c; <-t.Context().Done() })
		dial := func() (net.Conn, net.Conn) {
			c, err := (&Dialer{Address: "proxy:8080", Forward: n.Dial}).Dial("tcp", "t:1")
			if err != nil {
				t.Fatal(err)
			}
			return c, <-target
		}
		for i := range 2 {
			a, b := dial()
			if i == 1 {
				a, b = b, a
			}
			relay.Reset(a)
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d: the other side sees %v", i, err)
			}
		}
	})
}

// TestSlowReaderOf200 is a client who asks and does not read the answer.
func TestSlowReaderOf200(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		n := tunneltest.Network{Buffer: 8}
		var ended time.Duration
		done := make(chan error, 1)
		start := time.Now()
		h := &Handler{Dial: n.Dial, Observe: func(*Tunnel) func(error) {
			return func(err error) { ended = time.Since(start); done <- err }
		}}
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
		dialProxy(t, &n, connectTarget)
		if err := <-done; !errors.Is(err, errClientGone) || ended < answerTimeout || ended > 2*answerTimeout {
			t.Errorf("%v after %v", err, ended)
		}
	})
}

func TestEmptyConn(t *testing.T) {
	var log lines
	h := &Handler{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		dialProxy(t, n, "").Close()
		synctest.Wait()
	})
	if l := log.list(); len(l) != 1 || l[0] != "" {
		t.Errorf("a health check is logged: %q", l)
	}
}

// TestHandshakeTimeout connects to a TLS door and says nothing, or plain HTTP.
func TestHandshakeTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		serve(t, &Handler{}, tls.NewListener(listen(t, n.Listen, "tcp", "proxy:8080"), serverTLS()))
		start := time.Now()
		c := dialProxy(t, &n, "")
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c = dialProxy(t, &n, connectTarget)
		r, err := ReadResponse(c, nil)
		if err != nil || r.Status != 400 || r.Phrase != "http_request_error: the client speaks plain HTTP to a TLS port: use https://" {
			t.Errorf("plain HTTP: %+v, %v", r, err)
		}
		c = dialProxy(t, &n, "SSH-2.0-x\r\n")
		if r, err := ReadResponse(c, nil); err != nil || r.Status != 400 {
			t.Errorf("SSH: %+v, %v", r, err)
		}
		c = dialProxy(t, &n, "\x05\x01\x00\x05\x01\x00")
		if r, err := ReadResponse(c, nil); err == nil {
			t.Errorf("SOCKS: %+v", r)
		}
	})
}

// failing is a listener whose Accept fails for a while.
type failing struct {
	net.Listener
	errs []error
}

func (l *failing) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, err
	}
	return l.Listener.Accept()
}

func TestServeAcceptErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		temporary := &Error{Reason: ErrUnavailable}
		l := &failing{listen(t, n.Listen, "tcp", "proxy:8080"), []error{temporary, temporary, temporary}}
		serve(t, &Handler{Dial: n.Dial}, l)
		start := time.Now()
		c, err := (&Dialer{Address: "proxy:8080", Forward: n.Dial}).Dial("tcp", "target:80")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if d := time.Since(start); d != 35*time.Millisecond {
			t.Errorf("served after %v", d)
		}
		broken := errors.New("broken")
		l = &failing{listen(t, n.Listen, "tcp", "proxy:2"), []error{broken}}
		if err := (&Handler{}).Serve(t.Context(), l); err != broken {
			t.Errorf("Serve ended with %v", err)
		}
		closed := listen(t, n.Listen, "tcp", "proxy:3")
		closed.Close()
		if err := (&Handler{}).Serve(t.Context(), closed); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve ended with %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		l = &failing{listen(t, n.Listen, "tcp", "proxy:4"), []error{temporary, temporary, temporary}}
		time.AfterFunc(6*time.Millisecond, cancel)
		if err := (&Handler{}).Serve(ctx, l); err != nil {
			t.Errorf("Serve ended with %v", err)
		}
	})
}

// TestLongError has an error that a peer made long: it is cut in the log.
func TestLongError(t *testing.T) {
	var log lines
	long := errors.New(strings.Repeat("é", 400) + "the end")
	h := &Handler{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Dial:   func(context.Context, string, string) (net.Conn, error) { return nil, long },
	}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		io.ReadAll(dialProxy(t, n, connectTarget))
	})
	l := log.list()
	if len(l) != 1 || strings.Contains(l[0], "the end") || !strings.Contains(l[0], "é…") {
		t.Errorf("logged %q", l)
	}
	if got := logged(long); len(got) > maxLogged || len(got) < maxLogged-8 || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if short := errors.New("short"); logged(short) != "short" {
		t.Error(logged(short))
	}
}
