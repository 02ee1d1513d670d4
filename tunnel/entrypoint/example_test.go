package entrypoint_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// greet answers each connection of a listener with a line.
func greet(l net.Listener, greeting func(net.Conn) string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprintln(c, greeting(c))
		}()
	}
}

func readLine(r io.Reader) string {
	s, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(s)
}

// Two API servers share a port: TLS goes through to the one whose name the client
// asks for. An in-memory network stands in for the real one.
func ExampleRouter() {
	var network tunneltest.Network
	ca, err := tunneltest.NewCA("example")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"api.a.example.com", "api.b.example.com"} {
		cert, _ := ca.Issue(tunneltest.CertOptions{DNS: []string{name}, Server: true})
		l, _ := network.Listen("tcp", name+":443")
		defer l.Close()
		go greet(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert.TLS}}), func(net.Conn) string { return "this is " + name })
	}

	router := &entrypoint.Router{DrainTimeout: time.Second}
	err = router.SetRoutes([]*entrypoint.Route{
		{Name: "a", SNI: []string{"api.a.example.com"}, Handler: &entrypoint.Forward{Backends: []string{"api.a.example.com:443"}, Dial: network.Dial}},
		{Name: "b", SNI: []string{"api.b.example.com"}, Handler: &entrypoint.Forward{Backends: []string{"api.b.example.com:443"}, Dial: network.Dial}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	l, _ := network.Listen("tcp", "loadbalancer:443")
	go router.Serve(l, nil)
	defer router.Close()

	for _, name := range []string{"api.a.example.com", "api.b.example.com", "api.c.example.com"} {
		c, err := network.Dial(context.Background(), "tcp", "loadbalancer:443")
		if err != nil {
			fmt.Println(err)
			return
		}
		t := tls.Client(c, &tls.Config{RootCAs: ca.Pool(), ServerName: name})
		fmt.Println(readLine(t))
		t.Close()
	}
	fmt.Println("refused:", router.Stats().Refused)

	// Output:
	// this is api.a.example.com
	// this is api.b.example.com
	// remote error: tls: unrecognized name
	// refused: map[unknown:1]
}

// One of the backends is down, which the client does not notice, and the other
// one learns of the client by a PROXY header.
func ExampleForward() {
	var network tunneltest.Network
	backend, err := network.Listen("tcp", "backend-2:443")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer backend.Close()
	go greet(&proxyproto.Listener{Listener: backend, Options: proxyproto.Options{Default: proxyproto.Require}}, func(c net.Conn) string {
		return "hello " + c.RemoteAddr().(*net.TCPAddr).IP.String()
	})

	forward := &entrypoint.Forward{
		Backends:  []string{"backend-1:443", "backend-2:443"},
		Dial:      network.Dial,
		SendProxy: 2,
	}
	network.SetHost("backend-1", "10.0.0.1") // nothing listens there
	router := new(entrypoint.Router)
	if err := router.SetRoutes([]*entrypoint.Route{{Name: "a", HeaderValues: []string{"a"}, Handler: forward}}); err != nil {
		fmt.Println(err)
		return
	}
	l, _ := network.Listen("tcp", "loadbalancer:8132")
	go router.Serve(l, &entrypoint.Door{By: entrypoint.ByHeader})
	defer router.Close()

	network.SetHost("client", "192.0.2.7")
	c, _ := network.Host("client").Dial(context.Background(), "tcp", "loadbalancer:8132")
	defer c.Close()
	fmt.Fprint(c, "CONNECT ignored:443 HTTP/1.1\r\nHost: ignored:443\r\nReversed-VPN: a\r\n\r\n")
	fmt.Println(readLine(oneByte{c}))
	readLine(oneByte{c}) // the empty line behind the head
	fmt.Println(readLine(c))

	// Output:
	// HTTP/1.1 200 Connection established
	// hello 192.0.2.7
}

// oneByte reads byte by byte, so that a bufio.Reader takes no more than it needs.
type oneByte struct{ io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.Reader.Read(b[:1]) }

// A cluster can be reached by three ways, and a set of routes is taken as a whole
// or not at all.
func ExampleRoute() {
	kubernetes, err := entrypoint.ParseDestination("240.0.10.1:443")
	if err != nil {
		fmt.Println(err)
		return
	}
	apiserver := &entrypoint.Route{
		Name:         "shoot--dev--a/kube-apiserver",
		SNI:          []string{"api.a.dev.example.com"},
		Destinations: []entrypoint.Destination{kubernetes},
		HeaderValues: []string{"outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"},
		Deny:         []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Handler:      &entrypoint.Forward{Backends: []string{"10.0.0.1:443", "10.0.0.2:443"}},
	}
	ingress := &entrypoint.Route{
		Name:    "shoot--dev--a/ingress",
		SNI:     []string{"*.a.dev.example.com"}, // all but that of the API server
		Handler: &entrypoint.Forward{Backends: []string{"10.0.0.3:443"}},
	}
	copied := &entrypoint.Route{
		Name:    "shoot--dev--b/ingress",
		SNI:     []string{"*.a.dev.example.com"},
		Handler: ingress.Handler,
	}
	router := new(entrypoint.Router)
	fmt.Println(router.SetRoutes([]*entrypoint.Route{apiserver, ingress}))
	fmt.Println(router.SetRoutes([]*entrypoint.Route{apiserver, ingress, copied}))
	for _, r := range router.Stats().Routes {
		fmt.Println(r.Name)
	}

	// Output:
	// <nil>
	// entrypoint: route "shoot--dev--b/ingress": server name *.a.dev.example.com is route "shoot--dev--a/ingress"'s already
	// shoot--dev--a/ingress
	// shoot--dev--a/kube-apiserver
}

func ExampleParseDestination() {
	for _, s := range []string{"240.0.10.1:443", "fd00::/64", "[fd00::/64]:443", "240.0.10.1/8", "kubernetes.default:443"} {
		d, err := entrypoint.ParseDestination(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(d, d.Prefix.Bits(), d.Port)
	}

	// Output:
	// 240.0.10.1:443 32 443
	// fd00::/64 64 0
	// [fd00::/64]:443 64 443
	// destination "240.0.10.1/8": there are bits behind the prefix, want 240.0.0.0/8
	// destination "kubernetes.default:443": want IP, IP:port or prefix
}

// asleep is a Handler for clusters that are switched off: it answers some clients
// itself, and has the Router refuse the others.
type asleep struct{}

func (asleep) ServeConn(_ context.Context, c *entrypoint.Incoming) error {
	if c.Info.Client.Addr() != netip.MustParseAddr("192.0.2.7") {
		// The client gets the status that the error stands for.
		return &connect.Error{Reason: connect.ErrUnavailable, Detail: "the cluster is asleep", Err: errors.New("hibernated")}
	}
	conn, err := c.Accept() // 200
	if err == nil {
		_, err = fmt.Fprintf(conn, "%s wakes up\n", c.Info.Route)
	}
	conn.Close()
	return err
}

func ExampleHandler() {
	var network tunneltest.Network
	l, err := network.Listen("tcp", "loadbalancer:8132")
	if err != nil {
		fmt.Println(err)
		return
	}
	router := new(entrypoint.Router)
	if err := router.SetRoutes([]*entrypoint.Route{{Name: "cluster a", HeaderValues: []string{"a"}, Handler: asleep{}}}); err != nil {
		fmt.Println(err)
		return
	}
	go router.Serve(l, &entrypoint.Door{By: entrypoint.ByHeader})
	defer router.Close()

	network.SetHost("owner", "192.0.2.7")
	for _, host := range []string{"owner", "stranger"} {
		c, err := network.Host(host).Dial(context.Background(), "tcp", "loadbalancer:8132")
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprint(c, "CONNECT ignored:443 HTTP/1.1\r\nHost: ignored:443\r\nReversed-VPN: a\r\n\r\n")
		fmt.Println(readLine(oneByte{c}))
		if host == "owner" {
			readLine(oneByte{c}) // the empty line behind the head
			fmt.Println(readLine(c))
		}
		c.Close()
	}

	// Output:
	// HTTP/1.1 200 Connection established
	// cluster a wakes up
	// HTTP/1.1 503 destination_unavailable: the cluster is asleep
}
