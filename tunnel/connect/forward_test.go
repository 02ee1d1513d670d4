package connect

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// web serves f on l until the end of the test.
func web(t testing.TB, l net.Listener, f http.HandlerFunc) {
	srv := &http.Server{Handler: f, ErrorLog: silent}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

// ask writes a request to c and reads the response.
func ask(t *testing.T, c net.Conn, br *bufio.Reader, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(b)
}

// TestAbsoluteForm sends several requests on one conn: to two targets, one
// that is denied, one that does not resolve, a path, and a CONNECT at the end.
func TestAbsoluteForm(t *testing.T) {
	var log lines
	var outcomes []string
	var mu sync.Mutex
	h := &Handler{
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Allow: func(_ context.Context, r *Request, target string) error {
			if target == "secret:80" {
				return errors.New("rule 7")
			}
			return nil
		},
		Observe: func(tu *Tunnel) func(error) {
			return func(err error) {
				mu.Lock()
				defer mu.Unlock()
				up, down := tu.Bytes()
				outcomes = append(outcomes, fmt.Sprintf("%s %s %v %d %d", tu.Request.Method, tu.Target, err, up, down))
			}
		},
	}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		var conns atomic.Int32
		for _, host := range []string{"a", "b"} {
			l := listen(t, n.Listen, "tcp", host+":80")
			web(t, &countingListener{l, &conns}, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %s %s %s %s", host, r.Method, r.Host, r.RequestURI, b)
			})
		}
		c := dialProxy(t, n, "")
		br := bufio.NewReader(c)
		for _, tt := range []struct {
			request string
			status  int
			body    string
		}{
			{"GET http://a/x?y=1;z HTTP/1.1\r\nHost: other\r\n\r\n", 200, "a GET a /x?y=1;z "},
			{"GET http://a/%2f%20?%zz HTTP/1.1\r\nHost: a\r\n\r\n", 200, "a GET a /%2f%20?%zz "},
			{"POST http://b:80/x HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nbody", 200, "b POST b:80 /x body"},
			{"PUT http://a/x HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 200, "a PUT a /x body"},
			{"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", 200, ""},
			{"GET http://secret/ HTTP/1.1\r\nHost: secret\r\n\r\n", 403, "http_request_denied: rule 7\n"},
			{"GET http://missing/ HTTP/1.1\r\nHost: a\r\n\r\n", 502, "dns_error: dial tcp: lookup missing: no such host\n"},
			{"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 502, "connection_refused: dial tcp "},
			{"GET /path HTTP/1.1\r\nHost: a\r\n\r\n", 404, "http_request_error: this is a proxy"},
			{"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http_request_error: https targets are reached with CONNECT"},
			{"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http_request_error: user information"},
		} {
			r, body := ask(t, c, br, tt.request)
			if r.StatusCode != tt.status || !strings.HasPrefix(body, tt.body) {
				t.Errorf("%q: %d %q, want %d %q", tt.request, r.StatusCode, body, tt.status, tt.body)
			}
			if via := r.Header.Get("Via"); tt.status == 200 && via != "1.1 rhizome" {
				t.Errorf("%q: Via %q", tt.request, via)
			}
			if r.Close {
				t.Errorf("%q: closes the conn", tt.request)
			}
			if reason, _, ok := parseProxyStatus(r.Header["Proxy-Status"]); ok != (tt.status != 200) || !strings.HasPrefix(body, string(reason)) {
				t.Errorf("%q: %q", tt.request, r.Header)
			}
		}
		if got := conns.Load(); got > 3 {
			t.Errorf("%d conns to two targets", got)
		}
		io.WriteString(c, connectTarget+"early ")
		r, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
		if err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		io.WriteString(c, "bytes")
		relay.CloseWrite(c)
		if b, err := io.ReadAll(br); string(b) != "early bytes" || err != nil {
			t.Errorf("tunnel: %q, %v", b, err)
		}
	})
	want := []string{"GET a:80 <nil> 0 17", "GET a:80 <nil> 0 20", "POST b:80 <nil> 4 19", "PUT a:80 <nil> 4 15", "OPTIONS a:80 <nil> 0 0"}
	mu.Lock()
	defer mu.Unlock()
	if len(outcomes) != 9 || strings.Join(outcomes[:5], "\n") != strings.Join(want, "\n") || outcomes[8] != "CONNECT target:80 <nil> 11 11" {
		t.Errorf("outcomes:\n%s", strings.Join(outcomes, "\n"))
	}
	if l := log.list(); len(l) != 9 {
		t.Errorf("logged %d lines:\n%s", len(l), strings.Join(l, "\n"))
	}
}

type countingListener struct {
	net.Listener
	n *atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func TestForwardHeaders(t *testing.T) {
	bubble(t, &Handler{Name: "p 1"}, func(t *testing.T, n *tunneltest.Network) {
		got := make(chan http.Header, 1)
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {
			got <- r.Header
			w.Header().Set("Connection", "X-Hop2")
			w.Header().Set("X-Hop2", "1")
			w.Header().Set("Proxy-Authenticate", "Basic")
			w.Header().Set("Via", "1.1 other")
			w.Header().Set("X-End", "1")
		})
		c := dialProxy(t, n, "")
		r, _ := ask(t, c, bufio.NewReader(c), "GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop, Forwarded\r\nX-Hop: 1\r\n"+
			"Keep-Alive: 1\r\nTE: trailers\r\nProxy-Authorization: Basic s3cret\r\nProxy-Connection: keep-alive\r\nProxy-X: 1\r\n"+
			"Authorization: Bearer t\r\nX-End: 1\r\nVia: 1.0 first\r\nForwarded: for=1\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
		h := <-got
		for name, want := range map[string]string{"Authorization": "Bearer t", "X-End": "1", "X-Forwarded-For": "1.2.3.4", "Te": "trailers",
			"Via": "1.0 first, 1.1 rhizome", "User-Agent": "", "Accept-Encoding": "",
			"X-Hop": "", "Keep-Alive": "", "Proxy-Authorization": "", "Proxy-Connection": "", "Proxy-X": "", "Forwarded": "", "Connection": ""} {
			if got := strings.Join(h[name], ", "); got != want {
				t.Errorf("the target got %s: %q, want %q", name, got, want)
			}
		}
		for name, want := range map[string]string{"X-End": "1", "Via": "1.1 other, 1.1 rhizome", "X-Hop2": "", "Proxy-Authenticate": ""} {
			if got := strings.Join(r.Header[name], ", "); got != want {
				t.Errorf("the client got %s: %q, want %q", name, got, want)
			}
		}
	})
}

// TestForwardStreams sends 20 MiB both ways at once, much more than is held.
func TestForwardStreams(t *testing.T) {
	const size = 20 << 20
	target := listenTCP(t)
	web(t, target, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "end")
	})
	proxy := listenTCP(t)
	serve(t, &Handler{}, proxy)
	c, err := net.Dial("tcp", proxy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req, err := http.NewRequest("POST", "http://"+target.Addr().String(), io.LimitReader(rand.Reader, size))
	if err != nil {
		t.Fatal(err)
	}
	go req.WriteProxy(c)
	r, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	m, err := io.Copy(io.Discard, r.Body)
	if m != size || err != nil || r.Trailer.Get("X-Sum") != "end" {
		t.Errorf("%d bytes, %v, trailer %v", m, err, r.Trailer)
	}
}

// TestForwardFlush shows that what a target says arrives before it says more.
func TestForwardFlush(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "hello")
			http.NewResponseController(w).Flush()
			time.Sleep(time.Hour)
			io.WriteString(w, "world")
		})
		c := dialProxy(t, n, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
		start := time.Now()
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(r.Body, b); err != nil || time.Since(start) > time.Second {
			t.Errorf("%q, %v after %v", b, err, time.Since(start))
		}
		if b, err := io.ReadAll(r.Body); string(b) != "world" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
}

func TestForwardContinue(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/no" {
				w.WriteHeader(417)
				return
			}
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		})
		c := dialProxy(t, n, "POST http://a/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		br := bufio.NewReader(c)
		r, err := http.ReadResponse(br, nil)
		if err != nil || r.StatusCode != 100 {
			t.Fatal(r, err)
		}
		if r, b := ask(t, c, br, "body"); r.StatusCode != 200 || b != "body" {
			t.Errorf("%d %q", r.StatusCode, b)
		}
		if r, _ := ask(t, c, br, "POST http://a/no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"); r.StatusCode != 417 {
			t.Errorf("got %d", r.StatusCode)
		}
	})
}

// TestForwardPipelining writes three requests at once.
func TestForwardPipelining(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
		c := dialProxy(t, n, "")
		br := bufio.NewReader(c)
		get := func(i int) string { return fmt.Sprintf("GET http://a/%d HTTP/1.1\r\nHost: a\r\n\r\n", i) }
		io.WriteString(c, get(1)+get(2)+get(3))
		for i := 1; i <= 3; i++ {
			if r, b := ask(t, c, br, ""); r.StatusCode != 200 || b != fmt.Sprintf("/%d", i) {
				t.Errorf("%d %q", r.StatusCode, b)
			}
		}
	})
}

// TestForwardBadTargets shows what a client gets of targets that misbehave.
func TestForwardBadTargets(t *testing.T) {
	var mu sync.Mutex
	var outcome error
	h := &Handler{Observe: func(*Tunnel) func(error) {
		return func(err error) { mu.Lock(); defer mu.Unlock(); outcome = err }
	}}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		answers := map[string]string{"silent": "", "ssh": "SSH-2.0-x\r\n\r\n", "short": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
			"huge": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n"}
		for host, answer := range answers {
			accept(t, listen(t, n.Listen, "tcp", host+":80"), func(c net.Conn) {
				ReadRequest(c, nil)
				io.WriteString(c, answer)
			})
		}
		for host, want := range map[string]Reason{"silent": ErrTerminated, "ssh": ErrProtocol, "huge": ErrProtocol} {
			c := dialProxy(t, n, "")
			r, body := ask(t, c, bufio.NewReader(c), "GET http://"+host+"/ HTTP/1.1\r\nHost: a\r\n\r\n")
			if r.StatusCode != 502 || !strings.HasPrefix(body, string(want)) {
				t.Errorf("%s: %d %q, want %v", host, r.StatusCode, body, want)
			}
		}
		// A response that breaks in the middle must not look whole.
		c := dialProxy(t, n, "GET http://short/ HTTP/1.1\r\nHost: a\r\n\r\n")
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("half an answer is whole: %q", b)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if !errors.Is(outcome, ErrTerminated) {
			t.Errorf("outcome %v", outcome)
		}
	})
}

// TestForwardClientGone shows that a request whose client left ends its dial
// and its conn to the target.
func TestForwardClientGone(t *testing.T) {
	for _, stage := range []string{"dial", "answer"} {
		t.Run(stage, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				var n tunneltest.Network
				accept(t, listen(t, n.Listen, "tcp", "a:80"), func(c net.Conn) { io.Copy(io.Discard, c) })
				outcome := make(chan error, 1)
				h := &Handler{
					Observe: func(*Tunnel) func(error) { return func(err error) { outcome <- err } },
					Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
						if stage == "dial" {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						return n.Dial(ctx, network, address)
					},
				}
				serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
				c := dialProxy(t, &n, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
				synctest.Wait()
				start := time.Now()
				c.Close()
				if err := <-outcome; !errors.Is(err, ErrTerminated) || time.Since(start) != 0 {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				synctest.Wait()
				if left := n.Conns(); len(left) > 0 {
					t.Errorf("%d conns are left", len(left))
				}
			})
		})
	}
}

// TestForwardIdle shows how long a conn waits for its next request, and that
// nothing is left of it then, not even conns to targets.
func TestForwardIdle(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{{0, 2 * time.Minute}, {-1, 2 * time.Minute}, {time.Second, time.Second}} {
		bubble(t, &Handler{IdleTimeout: tt.set}, func(t *testing.T, n *tunneltest.Network) {
			web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {})
			c := dialProxy(t, n, "")
			br := bufio.NewReader(c)
			ask(t, c, br, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
			start := time.Now()
			if _, err := br.ReadByte(); err != io.EOF || time.Since(start) != tt.want {
				t.Errorf("%v after %v, want %v", err, time.Since(start), tt.want)
			}
			c.Close()
			synctest.Wait()
			if left := n.Conns(); len(left) > 0 {
				t.Errorf("%d conns are left", len(left))
			}
		})
	}
}

// TestForwardSlowloris sends the head of a second request byte by byte.
func TestForwardSlowloris(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {})
		c := dialProxy(t, n, "")
		br := bufio.NewReader(c)
		ask(t, c, br, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
		start := time.Now()
		for range 60 {
			if _, err := io.WriteString(c, "G"); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("took it for %v", d)
		}
	})
}

func TestDrain(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		drain := make(chan struct{})
		serve(t, &Handler{Dial: n.Dial, Drain: drain}, listen(t, n.Listen, "tcp", "proxy:8080"))
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		web(t, listen(t, n.Listen, "tcp", "a:80"), func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				time.Sleep(time.Minute)
			}
		})
		idle, busy := dialProxy(t, &n, ""), dialProxy(t, &n, "GET http://a/slow HTTP/1.1\r\nHost: a\r\n\r\n")
		br := bufio.NewReader(idle)
		ask(t, idle, br, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
		tunnel, err := (&Dialer{Address: "proxy:8080", Forward: n.Dial}).Dial("tcp", "target:80")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(drain)
		start := time.Now()
		if _, err := br.ReadByte(); err != io.EOF || time.Since(start) != 0 {
			t.Errorf("idle: %v after %v", err, time.Since(start))
		}
		r, err := http.ReadResponse(bufio.NewReader(busy), nil)
		if err != nil || r.StatusCode != 200 || !r.Close {
			t.Errorf("busy: %+v, %v", r, err)
		}
		if err := roundTrip(tunnel, "hello"); err != nil {
			t.Errorf("tunnel: %v", err)
		}
		late := dialProxy(t, &n, "")
		if r, _ := ask(t, late, bufio.NewReader(late), "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"); !r.Close {
			t.Error("a conn that begins while draining is kept")
		}
	})
}

// TestRequestFrom has several requests on one conn, and each meets its own head
// in Allow, in Dial, and in both contexts.
func TestRequestFrom(t *testing.T) {
	if r := RequestFrom(t.Context()); r != nil {
		t.Errorf("a request outside: %+v", r)
	}
	type call struct{ what, method, target, trace string }
	var mu sync.Mutex
	var calls []call
	note := func(what, target string, r *Request) {
		mu.Lock()
		defer mu.Unlock()
		if r == nil {
			r = &Request{Method: "no request"}
		}
		calls = append(calls, call{what, r.Method, target, r.Header.Get("Traceparent")})
	}
	bubbled := func(t *testing.T, n *tunneltest.Network) {
		for _, host := range []string{"a", "b"} {
			web(t, listen(t, n.Listen, "tcp", host+":80"), func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		}
		c := dialProxy(t, n, "")
		br := bufio.NewReader(c)
		for i, request := range []string{"GET http://a/ HTTP/1.1\r\nHost: a\r\n", "GET http://a/ HTTP/1.1\r\nHost: a\r\n",
			"POST http://b/ HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n", "GET http://denied/ HTTP/1.1\r\nHost: denied\r\n"} {
			ask(t, c, br, fmt.Sprintf("%sTraceparent: %d\r\nX-End: to end\r\nAuthorization: Bearer x\r\n\r\n", request, i))
		}
		io.WriteString(c, "CONNECT target:80 HTTP/1.1\r\nHost: x\r\nTraceparent: 4\r\nX-End: to end\r\nAuthorization: Bearer x\r\n\r\n")
		if r, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"}); err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		relay.CloseWrite(c)
		io.ReadAll(br)
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		h := &Handler{
			Allow: func(ctx context.Context, r *Request, target string) error {
				if RequestFrom(ctx) != r || r.Header.Get("X-End") != "to end" || r.Header.Get("Authorization") != "Bearer x" {
					t.Errorf("Allow: %+v, in the context %+v", r, RequestFrom(ctx))
				}
				note("allow", target, r)
				if target == "denied:80" {
					return ErrDenied
				}
				return nil
			},
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				note("dial", address, RequestFrom(ctx))
				return n.Dial(ctx, network, address)
			},
		}
		accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
		serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
		bubbled(t, &n)
	})
	want := []call{
		{"allow", "GET", "a:80", "0"}, {"dial", "GET", "a:80", "0"},
		{"allow", "GET", "a:80", "1"}, // over the conn that is there
		{"allow", "POST", "b:80", "2"}, {"dial", "POST", "b:80", "2"},
		{"allow", "GET", "denied:80", "3"},
		{"allow", "CONNECT", "target:80", "4"}, {"dial", "CONNECT", "target:80", "4"},
	}
	if !slices.Equal(calls, want) {
		t.Errorf("got  %v\nwant %v", calls, want)
	}
}
