package pathcontrol

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// listen serves connections with f until the test ends, and returns its
// address.
func listen(t *testing.T, f func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// closedPort is an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTCP(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	open, closed := listen(t, func(net.Conn) {}), closedPort(t)
	p := &TCP{Addr: open}
	if rtt, err := p.Probe(ctx); err != nil || rtt <= 0 || p.String() != "tcp "+open {
		t.Errorf("%v: %v, %v", p, rtt, err)
	}
	p = &TCP{Addr: open, Through: Through{Source: netip.MustParseAddr("127.0.0.1")}}
	if _, err := p.Probe(ctx); err != nil {
		t.Error(err)
	}
	p = &TCP{Addr: closed}
	if _, err := p.Probe(ctx); !errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), closed) {
		t.Errorf("%v", err)
	}
	p.Refused = true
	if rtt, err := p.Probe(ctx); err != nil || rtt <= 0 {
		t.Errorf("%v, %v", rtt, err)
	}

	blackhole := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	}
	p = &TCP{Addr: closed, Dial: blackhole, Refused: true}
	short, cancelShort := context.WithTimeout(ctx, time.Millisecond)
	defer cancelShort()
	if _, err := p.Probe(short); err != context.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	p.Dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, fmt.Errorf("the proxy: %w", os.ErrDeadlineExceeded)
	}
	if _, err := p.Probe(ctx); err != os.ErrDeadlineExceeded {
		t.Errorf("%v", err)
	}
}

func TestTCPValidate(t *testing.T) {
	dial := new(net.Dialer).DialContext
	for _, row := range []struct {
		p    *TCP
		want string
	}{
		{&TCP{}, "missing port"},
		{&TCP{Addr: "10.0.0.1:"}, "has no port"},
		{&TCP{Addr: "10.0.0.1:0"}, "has no port"},
		{&TCP{Addr: "10.0.0.1:80", Dial: dial, Through: Through{Mark: 1}}, "Through has no effect with Dial"},
	} {
		if err := row.p.Validate(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.p, err, row.want)
		}
	}
	err := (&TCP{Addr: "10.0.0.1:80", Through: Through{Interface: "eth0", Mark: 1}}).Validate()
	if (err == nil) != (runtime.GOOS == "linux") {
		t.Errorf("%v on %s", err, runtime.GOOS)
	}
}

func httpProbe(t *testing.T, p *HTTP) (time.Duration, error) {
	t.Helper()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.Probe(ctx)
}

// answers serves one text for each request, whose head it hands over.
func answers(t *testing.T, text string, heads chan<- *http.Request) string {
	return listen(t, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if heads != nil {
			heads <- r
		}
		io.WriteString(c, text)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	})
}

func TestHTTP(t *testing.T) {
	for name, row := range map[string]struct {
		answer string
		p      HTTP
		want   string // of the error, "" for none
	}{
		"ok":               {answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		"no content":       {answer: "HTTP/1.1 204 No Content\r\n\r\n"},
		"HTTP/1.0":         {answer: "HTTP/1.0 200 OK\r\n\r\nuntil the end"},
		"chunked":          {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		"redirect":         {answer: "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n"},
		"interim":          {answer: "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"},
		"interim for ever": {answer: strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20), want: "status 103 Early Hints"},
		"unauthorized":     {answer: "HTTP/1.1 401 Unauthorized\r\n\r\n", want: "status 401 Unauthorized"},
		"odd status":       {answer: "HTTP/1.1 777 Odd\r\n\r\n", want: "status 777"},
		"any will do":      {answer: "HTTP/1.1 401 Unauthorized\r\n\r\n", p: HTTP{Accept: func(status int) bool { return status > 0 }}},
		"none will do": {answer: "HTTP/1.1 200 OK\r\n\r\n", p: HTTP{Accept: func(int) bool { return false }},
			want: "status 200 OK"},
		"cut short":   {answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", want: "the body of the answer: unexpected EOF"},
		"nothing":     {answer: "", want: "unexpected EOF"},
		"no HTTP":     {answer: "SSH-2.0-OpenSSH_9.2\r\n", want: "malformed HTTP"},
		"endless":     {answer: "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 1<<20)},
		"at most":     {answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", p: HTTP{MaxBody: 2}},
		"without":     {answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", p: HTTP{MaxBody: -1}},
		"huge header": {answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), want: "the head of the answer is longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			p := row.p
			p.URL = "http://" + answers(t, row.answer, nil) + "/healthz?secret"
			rtt, err := httpProbe(t, &p)
			if row.want == "" && (err != nil || rtt <= 0) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, %v, want %q", rtt, err, row.want)
			}
			if s := p.String(); !strings.HasSuffix(s, "/healthz") {
				t.Error(s)
			}
		})
	}
}

// Each probe has a connection of its own, and the request says so.
func TestHTTPRequest(t *testing.T) {
	heads := make(chan *http.Request, 2)
	addr := answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", heads)
	p := &HTTP{URL: "http://user:word@" + addr + "/x", Header: http.Header{"Host": {"shoot"}, "X-Probe": {"1"}}}
	ports := make(map[string]bool)
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			ports[c.LocalAddr().String()] = true
		}
		return c, err
	}
	for range 2 {
		if _, err := httpProbe(t, p); err != nil {
			t.Fatal(err)
		}
		r := <-heads
		if r.Host != "shoot" || r.Header.Get("X-Probe") != "1" || !r.Close || r.URL.Path != "/x" {
			t.Errorf("%+v", r)
		}
	}
	if len(ports) != 2 {
		t.Errorf("connections from %v, want two", ports)
	}
	if p.String() != "http://"+addr+"/x" {
		t.Error(p.String())
	}
}

// A server that accepts and says nothing is told from one that is not there.
func TestHTTPSilent(t *testing.T) {
	gone := make(chan struct{})
	addr := listen(t, func(c net.Conn) { io.Copy(io.Discard, c); close(gone) })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := (&HTTP{URL: "http://" + addr}).Probe(ctx)
	if err == nil || err.Error() != "connected, but no answer in time" || !errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err) {
		t.Errorf("%v", err)
	}
	<-gone
	if _, err := httpProbe(t, &HTTP{URL: "http://" + closedPort(t)}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v", err)
	}
}

func TestHTTPS(t *testing.T) {
	ca, err := tunneltest.NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}, DNS: []string{"shoot"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert.TLS}, NextProtos: []string{"h2", "http/1.1"}}
	addr := listen(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if _, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
			io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for _, name := range []string{"", "shoot"} {
		p := &HTTP{URL: "https://" + addr, TLS: &tls.Config{RootCAs: ca.Pool(), ServerName: name}}
		if rtt, err := httpProbe(t, p); err != nil || rtt <= 0 {
			t.Errorf("%v, %v", rtt, err)
		}
	}
	var unknown *tls.CertificateVerificationError
	if _, err := httpProbe(t, &HTTP{URL: "https://" + addr}); !errors.As(err, &unknown) {
		t.Errorf("%v", err)
	}
}

func TestHTTPValidate(t *testing.T) {
	for _, row := range []struct {
		p    *HTTP
		want string
	}{
		{&HTTP{}, "is not http://HOST or https://HOST"},
		{&HTTP{URL: "ftp://host"}, "is not http://HOST"},
		{&HTTP{URL: "http:///x"}, "is not http://HOST"},
		{&HTTP{URL: "http://\x00"}, "invalid control character"},
		{&HTTP{URL: "http://host", Dial: new(net.Dialer).DialContext, Through: Through{Mark: 1}}, "Through has no effect with Dial"},
	} {
		if err := row.p.Validate(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.p, err, row.want)
		}
	}
	if s := (&HTTP{URL: "\x00"}).String(); s != "http" {
		t.Error(s)
	}
	if _, err := (&HTTP{URL: "\x00"}).Probe(context.Background()); err == nil {
		t.Error("probed no URL")
	}
	for raw, want := range map[string]string{
		"http://host": "host:80", "https://host": "host:443", "http://[::1]:81/x": "[::1]:81",
	} {
		r, err := http.NewRequest("GET", raw, nil)
		if err != nil || hostPort(r.URL) != want {
			t.Errorf("%s: %s, %v", raw, hostPort(r.URL), err)
		}
	}
}

func TestProberName(t *testing.T) {
	f := ProberFunc(func(context.Context) (time.Duration, error) { return time.Second, errCut })
	if got := proberName(f, 1); got != "prober 2" {
		t.Error(got)
	}
	n := Named{"link", f}
	if rtt, err := n.Probe(context.Background()); proberName(n, 0) != "link" || rtt != time.Second || err != errCut || n.Validate() != nil {
		t.Error(proberName(n, 0), rtt, err)
	}
	if got := proberName(&ICMP{Addr: netip.MustParseAddr("fe80::1%eth0")}, 0); got != "icmp fe80::1%eth0" {
		t.Error(got)
	}
}

// What says that the time is over is a timeout for package net, too.
func TestErrors(t *testing.T) {
	for _, err := range []error{errNoAnswer{time.Second}, silentError{}} {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v is no timeout", err)
		}
	}
	if !errors.Is(ErrICMPClosed, net.ErrClosed) || ErrICMPClosed.Error() != "pathcontrol: ICMP prober closed" {
		t.Error(ErrICMPClosed)
	}
	here := &UnreachableError{Err: syscall.EHOSTUNREACH}
	there := &UnreachableError{From: netip.MustParseAddr("10.0.0.1"), Err: syscall.EHOSTUNREACH}
	if got, want := there.Error(), here.Error()+", says 10.0.0.1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
