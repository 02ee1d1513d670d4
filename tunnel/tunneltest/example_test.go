package tunneltest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func ExampleNetwork() {
	var n tunneltest.Network
	l, err := n.Listen("tcp", "server:443")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()

	ctx := context.Background()
	c, err := n.Host("agent").Dial(ctx, "tcp", "server:443")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	s, _ := l.Accept()
	defer s.Close()
	fmt.Println(s.LocalAddr(), "<-", s.RemoteAddr())

	_, err = n.Dial(ctx, "tcp", "server:80")
	fmt.Println(err)

	n.Cut("agent")
	_, err = s.Read(make([]byte, 1))
	fmt.Println(errors.Is(err, syscall.ECONNRESET))
	// Output:
	// 10.0.0.1:443 <- 10.0.0.2:49152
	// dial tcp 10.0.0.1:80: connect: connection refused
	// true
}

// A frozen host neither answers nor fails; a context is what ends the wait.
func ExampleNetwork_Freeze() {
	var n tunneltest.Network
	l, _ := n.Listen("tcp", "server:443")
	defer l.Close()
	n.Freeze("server")

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := n.Dial(ctx, "tcp", "server:443")
	fmt.Println(err)
	// Output: dial tcp 10.0.0.1:443: i/o timeout
}

// Names resolve to what the test says, and may do so differently later.
func ExampleNetwork_SetHost() {
	var n tunneltest.Network
	n.SetHost("proxy.example", "192.0.2.1", "2001:db8::1")
	fmt.Println(n.LookupNetIP(context.Background(), "ip", "proxy.example"))
	n.SetHost("proxy.example")
	fmt.Println(n.LookupNetIP(context.Background(), "ip", "proxy.example"))
	// Output:
	// [192.0.2.1 2001:db8::1] <nil>
	// [] lookup proxy.example: no such host
}

func ExamplePipe() {
	a, b := tunneltest.Pipe()
	defer a.Close()
	defer b.Close()

	// The bytes are buffered, so one goroutine can do both sides.
	io.WriteString(a, "request")
	a.(*tunneltest.Conn).CloseWrite()
	got, err := io.ReadAll(b)
	fmt.Printf("%s, %v\n", got, err)

	// The other direction is still open.
	io.WriteString(b, "answer")
	b.(*tunneltest.Conn).CloseWrite()
	got, err = io.ReadAll(a)
	fmt.Printf("%s, %v\n", got, err)
	// Output:
	// request, <nil>
	// answer, <nil>
}

func ExampleConn_Freeze() {
	a, b := tunneltest.Pipe()
	defer a.Close()
	defer b.Close()

	a.(*tunneltest.Conn).Freeze()
	io.WriteString(a, "late") // into the buffer
	b.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := b.Read(make([]byte, 4))
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded))

	a.(*tunneltest.Conn).Thaw()
	b.SetReadDeadline(time.Time{})
	buf := make([]byte, 4)
	n, err := b.Read(buf)
	fmt.Printf("%s, %v\n", buf[:n], err)
	// Output:
	// true
	// late, <nil>
}

func ExampleCA() {
	ca, err := tunneltest.NewCA("example CA")
	if err != nil {
		fmt.Println(err)
		return
	}
	server, _ := ca.Issue(tunneltest.CertOptions{DNS: []string{"server.example"}, Server: true})
	agent, _ := ca.Issue(tunneltest.CertOptions{Cluster: "shoot--dev--a", Client: true})

	a, b := tunneltest.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{
		ServerName:   "server.example",
		RootCAs:      ca.Pool(),
		Certificates: []tls.Certificate{agent.TLS},
	}).Handshake()

	c := tls.Server(b, &tls.Config{
		Certificates: []tls.Certificate{server.TLS},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    ca.Pool(),
	})
	if err := c.Handshake(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.ConnectionState().PeerCertificates[0].URIs[0])
	// Output: rhizome://cluster/shoot--dev--a
}

// In a test: ten minutes pass at once.
func ExampleBubble() {
	TestSlowAnswer := func(t *testing.T) {
		tunneltest.Bubble(t, func(t *testing.T) {
			a, b := tunneltest.Pipe() // wrapped into what is tested
			defer a.Close()
			defer b.Close()
			if err := tunneltest.SlowAnswerAfterHalfClose(a, b, 10*time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
	_ = TestSlowAnswer // go test runs it
}
