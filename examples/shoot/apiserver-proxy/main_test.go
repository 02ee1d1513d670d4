package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/intercept"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// asProgram makes this test binary the program itself, for tests that want it in
// a process of its own.
const asProgram = "APISERVER_PROXY_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main() // and exits
	}
	tunneltest.VerifyNoLeaks(m)
}

const header = "outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"

// entrypoint hears a PROXY header or a CONNECT, and then serves TLS if there is a
// certificate, and plain otherwise: it greets, and answers what was asked together
// with where it wanted to go. It serves until the end of the test.
func entrypoint(t *testing.T, cert *tunneltest.Cert) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				to, err := destination(c)
				if err != nil {
					return
				}
				if cert != nil {
					c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert.TLS}})
				}
				_, _ = io.WriteString(c, greeting)
				if asked, err := io.ReadAll(c); err == nil {
					fmt.Fprintf(c, "%s to %s", asked, to)
				}
				c.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().String()
}

// destination reads either head. A CONNECT without the header is refused.
func destination(c net.Conn) (string, error) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return "", err
	}
	c = relay.NewPrefixed(c, first)
	if first[0] != 'C' {
		h, err := proxyproto.ReadHeader(c)
		if err != nil {
			return "", err
		}
		return h.Destination.String(), nil
	}
	r, err := connect.ReadRequest(c, nil)
	if err != nil {
		return "", err
	}
	to := r.Header.Get("X-Gardener-Destination")
	if to != header {
		return "", errors.Join(connect.ErrDenied, connect.WriteError(c, "entrypoint", connect.ErrDenied))
	}
	return to, (&connect.Response{Status: 200}).Write(c)
}

const greeting = "hi "

// greeted reads the greeting: the conn has come through to the entrypoint.
func greeted(t *testing.T, c net.Conn) {
	t.Helper()
	b := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, b); string(b) != greeting || err != nil {
		t.Fatalf("the greeting is %q, %v", b, err)
	}
}

// ask asks over a conn, half-closes, and returns the answer.
func ask(c net.Conn, what string) (string, error) {
	defer c.Close()
	_, err := io.WriteString(c, what)
	if err == nil {
		err = c.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		args []string
	}{
		"proxy":   {"hello to 240.0.10.1:443", []string{"--destination", "240.0.10.1:443"}},
		"connect": {"hello to " + header, []string{"--dialect", "connect", "--header", "X-Gardener-Destination: " + header}},
	} {
		t.Run(name, func(t *testing.T) {
			ca := clitest.NewCA(t)
			p := clitest.Start(t, run, append(c.args, "--listen-address", "127.0.0.1:0", "--interface", "none", "--admin-listen", "127.0.0.1:0",
				"--entrypoint", entrypoint(t, ca.Issue(tunneltest.CertOptions{DNS: []string{"kubernetes.default.svc"}})))...)
			// The certificate is the API server's: TLS goes from end to end.
			conn, err := tls.Dial("tcp", p.Addr("clients"), &tls.Config{RootCAs: ca.Pool(), ServerName: "kubernetes.default.svc"})
			must(t, err)
			greeted(t, conn)
			if got, err := ask(conn, "hello"); got != c.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
			admin := clitest.Client(t, &http.Transport{})
			for _, path := range []string{"/healthz", "/readyz"} {
				if status, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+path); status != 200 || body != "ok\n" {
					t.Errorf("%s: %d %q", path, status, body)
				}
			}
			clitest.Eventually(t, func() error {
				_, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+"/stats")
				var s intercept.Stats
				if err := json.Unmarshal([]byte(body), &s); err != nil || s.Open != 0 || s.Accepted != 1 || s.ToEntrypoint == 0 {
					return fmt.Errorf("/stats: %s %v", body, err)
				}
				return nil
			})
			if err := p.Stop(); err != nil {
				t.Errorf("drain: %v", err)
			}
		})
	}
}

// TestDrain has a connection that goes on for a while after SIGTERM.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, run, "--listen-address", "127.0.0.1:0", "--interface", "none", "--destination", "240.0.10.1:443", "--entrypoint", entrypoint(t, nil))
	c, err := net.Dial("tcp", p.Addr("clients"))
	must(t, err)
	greeted(t, c)
	p.Drain()
	p.Find("draining")
	clitest.Eventually(t, func() error {
		if c, err := net.Dial("tcp", p.Addr("clients")); err == nil {
			c.Close()
			return errors.New("the port is still open")
		}
		return nil
	})
	if got, err := ask(c, "hello"); got != "hello to 240.0.10.1:443" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, p.Wait())
}

// TestAbort has a connection that does not end, and a second SIGTERM.
func TestAbort(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, run, "--listen-address", "127.0.0.1:0", "--interface", "none", "--entrypoint", entrypoint(t, nil), "--drain-timeout", "-1s")
	c, err := net.Dial("tcp", p.Addr("clients"))
	must(t, err)
	defer c.Close()
	greeted(t, c)
	p.Drain()
	p.Find("draining")
	p.Abort()
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "the rest was cut off") {
		t.Errorf("got %v", err)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v, want a reset", err)
	}
}

// TestNoDrain has a connection that does not end, and no time for it to.
func TestNoDrain(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, run, "--listen-address", "127.0.0.1:0", "--interface", "none", "--destination", "240.0.10.1:443",
		"--entrypoint", entrypoint(t, nil), "--drain-timeout", "0")
	c, err := net.Dial("tcp", p.Addr("clients"))
	must(t, err)
	defer c.Close()
	greeted(t, c)
	p.Drain()
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "1 connections did not end by themselves") {
		t.Errorf("got %v", err)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v, want a reset", err)
	}
}

// TestRefused has an entrypoint that refuses; the reason is in the log and counted.
func TestRefused(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, run, "--listen-address", "127.0.0.1:0", "--interface", "none", "--admin-listen", "127.0.0.1:0",
		"--dialect", "connect", "--header", "X-Gardener-Destination: another", "--entrypoint", entrypoint(t, nil))
	c, err := net.Dial("tcp", p.Addr("clients"))
	if err == nil { // else the reset was faster
		defer c.Close()
		_, err = io.Copy(io.Discard, c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
	p.Find("client not forwarded", "reason", "http_request_denied")
	admin := clitest.Client(t, &http.Transport{})
	if _, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+"/stats"); !strings.Contains(body, `"http_request_denied": 1`) {
		t.Errorf("/stats: %s", body)
	}
}

// TestPortInUse has the address removed again when nothing can come of it.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	for flag, args := range map[string][]string{
		"--listen-address": {"--listen-address", l.Addr().String()},
		"--admin-listen":   {"--listen-address", "127.0.0.1:0", "--admin-listen", l.Addr().String()},
	} {
		p := clitest.Start(t, run, append(args, "--interface", "none", "--entrypoint", "h:1")...)
		if err := p.Wait(); err == nil || !strings.HasPrefix(err.Error(), flag+": ") {
			t.Errorf("got %v", err)
		}
	}
}

func TestAddressRefused(t *testing.T) {
	t.Parallel()
	p := clitest.Start(t, run, "--listen-address", "127.0.0.1", "--entrypoint", "h:1")
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "cannot own 127.0.0.1") {
		t.Errorf("got %v", err)
	}
}
