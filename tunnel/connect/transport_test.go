package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// h2Target is an https server that speaks HTTP/2 and says what was spoken.
func h2Target(t *testing.T) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto)
	}))
	s.EnableHTTP2 = true
	s.TLS = serverTLS()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// TestTransportForceHTTP2 goes through an https proxy with a Transport that
// attempts HTTP/2: CONNECT must go out as HTTP/1.1, the request inside as h2.
func TestTransportForceHTTP2(t *testing.T) {
	target := h2Target(t)
	var connects atomic.Int32
	config := serverTLS()
	config.NextProtos = []string{"h2", "http/1.1"} // a trap: an h2 that nobody serves
	l := listenTCP(t)
	h := &Handler{Observe: func(*Tunnel) func(error) { connects.Add(1); return nil }}
	serve(t, h, tls.NewListener(l, config))
	l2 := listenTCP(t) // Transport.Proxy itself takes h2 where it is offered
	serve(t, h, tls.NewListener(l2, serverTLS()))

	d := &Dialer{Address: l.Addr().String(), TLS: clientTLS()}
	d.TLS.NextProtos = []string{"h2"}
	for _, tt := range []struct {
		name string
		tr   *http.Transport
	}{
		{"DialContext", &http.Transport{DialContext: d.DialContext}},
		{"DialTLSContext", &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			config := clientTLS()
			config.ServerName, config.NextProtos = "127.0.0.1", []string{"h2"}
			tc := tls.Client(c, config)
			return tc, tc.HandshakeContext(ctx)
		}}},
		{"Proxy", &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "https", Host: l2.Addr().String()})}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			connects.Store(0)
			tt.tr.ForceAttemptHTTP2, tt.tr.TLSClientConfig = true, clientTLS()
			defer tt.tr.CloseIdleConnections()
			for range 2 {
				r, err := (&http.Client{Transport: tt.tr}).Get(target.URL)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if string(b) != "HTTP/2.0" {
					t.Errorf("the target was spoken to in %s", b)
				}
			}
			if n := connects.Load(); n != 1 {
				t.Errorf("%d CONNECTs", n)
			}
		})
	}
}

// TestTransportProxy is what Prometheus does: Go's client with a proxy, for
// http and https targets, and the error that its user reads.
func TestTransportProxy(t *testing.T) {
	secure := h2Target(t)
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "plain") }))
	defer plain.Close()
	l := listenTCP(t)
	serve(t, &Handler{Allow: func(_ context.Context, _ *Request, target string) error {
		if strings.HasPrefix(target, "denied") {
			return errors.New("rule 7")
		}
		return nil
	}}, l)
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: l.Addr().String()}), TLSClientConfig: clientTLS()}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	get := func(url string) string {
		r, err := client.Get(url)
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", string(b))
	}
	for url, want := range map[string]string{
		secure.URL: "200 HTTP/1.1", plain.URL: "200 plain",
		"http://denied/":  "403 http_request_denied: rule 7\n",
		"https://denied/": `Get "https://denied/": http_request_denied: rule 7`,
	} {
		if got := get(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

// TestConn runs the conn suite over pairs made by Dialer and Handler.
func TestConn(t *testing.T) {
	for _, tt := range []struct {
		name          string
		proxyTLS, via bool
		targetTLS     bool
		unix          bool
	}{{name: "raw"}, {name: "TLS", proxyTLS: true}, {name: "raw over unix", unix: true}, {name: "through two", via: true},
		{name: "TLS inside", targetTLS: true}} {
		t.Run(tt.name, func(t *testing.T) {
			proxy := listenTCP(t)
			if tt.unix {
				proxy = listenUnix(t)
			}
			d := &Dialer{Network: proxy.Addr().Network(), Address: proxy.Addr().String()}
			l := proxy
			if tt.proxyTLS {
				l = tls.NewListener(proxy, serverTLS())
				d.TLS = clientTLS()
			}
			serve(t, &Handler{}, l)
			if tt.via {
				far := listenTCP(t)
				serve(t, &Handler{}, far)
				d = &Dialer{Address: far.Addr().String(), Forward: d.DialContext}
			}
			target := listenTCP(t)
			tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				type result struct {
					c   net.Conn
					err error
				}
				accepted := make(chan result, 1)
				go func() {
					c, err := target.Accept()
					accepted <- result{c, err}
				}()
				c1, err := d.Dial("tcp", target.Addr().String())
				if err != nil {
					return nil, nil, nil, err
				}
				r := <-accepted
				if r.err != nil {
					return nil, nil, nil, r.err
				}
				c2 := r.c
				if tt.targetTLS {
					config := clientTLS()
					config.ServerName = "target"
					c1, c2 = tls.Client(c1, config), tls.Server(c2, serverTLS())
				}
				// The other way round tls.Conn.Close waits 5 s for room to say
				// goodbye where a test has filled the tunnel.
				return c1, c2, func() { c2.Close(); c1.Close() }, nil
			})
		})
	}
}
