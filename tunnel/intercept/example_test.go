package intercept_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/intercept"
)

// A connection arrives at the entrypoint behind a PROXY header that names its
// destination.
func ExampleInterceptor() {
	entrypoint, _ := net.Listen("tcp", "127.0.0.1:0")
	node, _ := net.Listen("tcp", "127.0.0.1:0") // of 240.0.10.1:443, with a LocalAddr

	i := &intercept.Interceptor{
		Entrypoint:  entrypoint.Addr().String(),
		Destination: netip.MustParseAddrPort("240.0.10.1:443"),
	}
	served := make(chan error, 1)
	go func() { served <- i.Serve(node) }()

	pod, _ := net.Dial("tcp", node.Addr().String())
	conn, _ := entrypoint.Accept()
	header, err := proxyproto.ReadHeader(conn)
	fmt.Println(header.Destination, header.Source.String() == pod.LocalAddr().String(), err)

	fmt.Fprint(pod, "hello")
	pod.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(conn)
	fmt.Fprintf(conn, "%s to you", b)
	conn.Close()
	b, _ = io.ReadAll(pod)
	fmt.Printf("%s\n", b)

	fmt.Println(i.Shutdown(context.Background()), <-served)
	// Output:
	// 240.0.10.1:443 true <nil>
	// hello to you
	// <nil> intercept: closed
}

// The newer dialect says the destination in a header of a CONNECT.
func ExampleInterceptor_connect() {
	entrypoint, _ := net.Listen("tcp", "127.0.0.1:0")
	node, _ := net.Listen("tcp", "127.0.0.1:0")

	i := &intercept.Interceptor{
		Entrypoint: entrypoint.Addr().String(),
		Dialect:    intercept.Connect,
		Header: http.Header{
			"X-Gardener-Destination": {"outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"},
		},
	}
	served := make(chan error, 1)
	go func() { served <- i.Serve(node) }()

	pod, _ := net.Dial("tcp", node.Addr().String())
	conn, _ := entrypoint.Accept()
	request, _ := connect.ReadRequest(conn, nil)
	fmt.Println(request.Header.Get("X-Gardener-Destination"))

	// This one is refused: the client sees a reset, and the reason is counted.
	connect.WriteError(conn, "entrypoint", connect.ErrDenied)
	_, err := pod.Read(make([]byte, 1))
	fmt.Println(err != nil && err != io.EOF)
	i.Close()
	<-served
	fmt.Println(i.Stats().Failed)
	// Output:
	// outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local
	// true
	// map[http_request_denied:1]
}

// Up says what stands in the way and what to do about it.
func ExampleLocalAddr() {
	addr := &intercept.LocalAddr{Addr: netip.MustParseAddr("127.0.0.1")}
	err := addr.Up()
	var inUse *intercept.InUseError
	switch {
	case errors.As(err, &inUse):
		fmt.Println(inUse.Remedy)
	case errors.Is(err, intercept.ErrNoDummy):
		fmt.Println("name an interface")
	case err != nil:
		fmt.Println(err)
	default:
		defer addr.Close() // or addr.Run, which does it at its end
	}
	// Output:
	// intercept: cannot own 127.0.0.1, which is a loopback address
}
