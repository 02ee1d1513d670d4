package connect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// network is where the examples live: a proxy at proxy:3128 and a target at
// node:10250 that shouts back.
func network(h *connect.Handler) (n *tunneltest.Network, stop func()) {
	n = new(tunneltest.Network)
	target, _ := n.Listen("tcp", "node:10250")
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			io.WriteString(c, strings.ToUpper(string(b)))
			c.Close()
		}
	}()
	if h.Dial == nil {
		h.Dial = n.Dial
	}
	l, _ := n.Listen("tcp", "proxy:3128")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Serve(ctx, l) }()
	return n, func() { cancel(); <-done; target.Close() }
}

func ExampleDialer() {
	n, stop := network(&connect.Handler{})
	defer stop()

	d := &connect.Dialer{
		Address: "proxy:3128",
		Header:  http.Header{"X-Route": {"shoot--dev--a"}},
		Forward: n.Dial, // an in-memory network; leave it out for a real one
	}
	c, err := d.DialContext(context.Background(), "tcp", "node:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	io.WriteString(c, "hello")
	relay.CloseWrite(c) // half-close: the answer still comes
	b, _ := io.ReadAll(c)
	fmt.Printf("%s\n", b)
	// Output: HELLO
}

func ExampleHandler() {
	h := &connect.Handler{
		Name: "seed-1",
		Allow: func(_ context.Context, r *connect.Request, target string) error {
			if target != "node:10250" {
				return errors.New("only the kubelet")
			}
			return nil
		},
	}
	n, stop := network(h)
	defer stop()

	for _, target := range []string{"node:10250", "node:22"} {
		c, _ := n.Dial(context.Background(), "tcp", "proxy:3128")
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
		r, _ := connect.ReadResponse(c, nil)
		fmt.Println(r.Status, r.Phrase)
		fmt.Println(r.Header.Get("Proxy-Status"))
		c.Close()
	}
	// Output:
	// 200 Connection established
	//
	// 403 http_request_denied: only the kubelet
	// seed-1; error=http_request_denied; details="only the kubelet"
}

func ExampleError() {
	n, stop := network(&connect.Handler{
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &connect.Error{Reason: connect.ErrUnavailable, Detail: "no agent", RetryAfter: 5 * time.Second}
		},
	})
	defer stop()

	d := &connect.Dialer{Address: "proxy:3128", Forward: n.Dial, User: url.UserPassword("me", "secret")}
	_, err := d.Dial("tcp", "node:10250")
	fmt.Println(err)

	var e *connect.Error
	switch {
	case !errors.As(err, &e):
	case errors.Is(err, connect.ErrUnavailable):
		fmt.Println("again in", e.RetryAfter, "- the proxy itself answered:", e.Answered())
	case e.Timeout():
		fmt.Println("too slow")
	}
	// Output:
	// connect: proxy http://proxy:3128 refused node:10250: 503 destination_unavailable: no agent
	// again in 5s - the proxy itself answered: true
}

func ExampleClassify() {
	_, err := net.Dial("tcp", "127.0.0.1:70000")
	e := connect.Classify(err)
	fmt.Println(e.Reason, e.Reason.Status())
	fmt.Println(e.Response("seed-1").Phrase)
	// Output:
	// http_request_error 400
	// http_request_error: dial tcp: address 70000: invalid port
}

// memory is a forward dialer for the examples.
type memory struct{ *tunneltest.Network }

func (m memory) Dial(network, address string) (net.Conn, error) {
	return m.Network.Dial(context.Background(), network, address)
}

func (m memory) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return m.Network.Dial(ctx, network, address)
}

func ExampleFromURL() {
	n, stop := network(&connect.Handler{})
	defer stop()

	// Programs that use x/net/proxy learn HTTP proxies like this, once.
	proxy.RegisterDialerType("http", connect.FromURL)
	proxy.RegisterDialerType("https", connect.FromURL)
	proxy.RegisterDialerType("http+unix", connect.FromURL)

	u, _ := url.Parse("http://user:password@proxy:3128")
	d, err := proxy.FromURL(u, memory{n})
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := d.Dial("tcp", "node:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("connected")
	c.Close()
	// Output: connected
}

func ExampleFromEnvironment() {
	// HTTPS_PROXY and NO_PROXY decide; without them this is a direct dial.
	dial := connect.FromEnvironment(nil)
	_, err := dial(context.Background(), "tcp", "127.0.0.1:0")
	fmt.Println(err != nil)
	// Output: true
}

func ExampleFromConfig() {
	n, stop := network(&connect.Handler{})
	defer stop()

	dial := connect.FromConfig(&httpproxy.Config{
		HTTPSProxy: "http://proxy:3128",
		NoProxy:    ".corp.example",
	}, n.Dial)
	c, err := dial(context.Background(), "tcp", "node:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("through the proxy")
	c.Close()
	_, err = dial(context.Background(), "tcp", "git.corp.example:22")
	fmt.Println("directly:", err)
	// Output:
	// through the proxy
	// directly: dial tcp: lookup git.corp.example: no such host
}

func ExampleReadRequest() {
	c, peer := tunneltest.Pipe()
	defer c.Close()
	defer peer.Close()
	io.WriteString(peer, "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nearly")

	r, err := connect.ReadRequest(c, nil)
	if err != nil {
		connect.WriteError(c, "seed-1", err)
		return
	}
	fmt.Printf("%s %s, then %q\n", r.Method, r.Target, r.Early)
	// Output: CONNECT 10.0.0.7:10250, then "early"
}

func ExampleHandler_ServeHTTP() {
	h := &connect.Handler{}
	_, stop := network(h) // gives h a Dial
	defer stop()

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	// ServeMux has no place for CONNECT: the proxy goes before it.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect || r.URL.IsAbs() {
			h.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	defer srv.Close()

	d := &connect.Dialer{Address: srv.Listener.Addr().String()}
	c, err := d.Dial("tcp", "node:10250")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("connected")
	c.Close()
	// Output: connected
}
