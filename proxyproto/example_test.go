package proxyproto_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A load balancer forwards clients to a server that must know who they are.
func Example() {
	n := new(tunneltest.Network) // in memory; leave it out for a real one
	n.SetHost("balancer", "10.0.0.5")

	// The server believes the balancer.
	tcp, _ := n.Listen("tcp", "server:443")
	server := &proxyproto.Listener{Listener: tcp, Options: proxyproto.Options{
		Rules: []proxyproto.Rule{{From: netip.MustParsePrefix("10.0.0.5/32"), Policy: proxyproto.Require}},
	}}
	defer server.Close()

	// The balancer says who its client is.
	front, _ := n.Listen("tcp", "203.0.113.9:443")
	defer front.Close()
	go func() {
		client, err := front.Accept()
		if err != nil {
			return
		}
		d := &proxyproto.Dialer{
			Dial: n.Host("balancer").Dial,
			Header: func(context.Context, net.Conn) (*proxyproto.Header, error) {
				return proxyproto.HeaderOf(client), nil
			},
		}
		backend, err := d.DialContext(context.Background(), "tcp", "server:443")
		if err != nil {
			client.Close()
			return
		}
		relay.Relay(context.Background(), client, backend, nil)
	}()

	n.SetHost("client", "192.0.2.7")
	c, _ := n.Host("client").Dial(context.Background(), "tcp", "203.0.113.9:443")
	io.WriteString(c, "hello")
	relay.CloseWrite(c)

	s, _ := server.Accept()
	defer s.Close()
	b, _ := io.ReadAll(s)
	host, _, _ := net.SplitHostPort(s.RemoteAddr().String())
	fmt.Printf("%s says %q to %s\n", host, b, s.LocalAddr())
	s.Close()
	io.ReadAll(c)
	c.Close()
	// Output: 192.0.2.7 says "hello" to 203.0.113.9:443
}

// Whoever is not trusted cannot name a client.
func ExampleListener() {
	n := new(tunneltest.Network)
	tcp, _ := n.Listen("tcp", "server:443")
	l := &proxyproto.Listener{Listener: tcp} // refuses all headers
	defer l.Close()

	n.SetHost("stranger", "192.0.2.66")
	c, _ := n.Host("stranger").Dial(context.Background(), "tcp", "server:443")
	defer c.Close()
	io.WriteString(c, "PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\nGET /admin HTTP/1.1\r\n\r\n")

	s, _ := l.Accept()
	defer s.Close()
	host, _, _ := net.SplitHostPort(s.RemoteAddr().String())
	fmt.Println(host)
	_, err := s.Read(make([]byte, 100))
	fmt.Println(errors.Is(err, proxyproto.ErrRefused))
	// Output:
	// 192.0.2.66
	// true
}

// The outer header, of a load balancer, names the client. The inner one, of
// anybody, is a key to the route.
func ExampleConn() {
	near, far := tunneltest.Pipe()
	defer near.Close()
	proxyproto.WriteHeader(near, &proxyproto.Header{
		Source:      &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711},
		Destination: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 8443},
	})
	proxyproto.WriteHeader(near, &proxyproto.Header{
		Source:      &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, // a lie, maybe
		Destination: &net.TCPAddr{IP: net.IPv4(240, 0, 10, 1), Port: 443},
	})
	io.WriteString(near, "data")

	c := proxyproto.NewConn(far, &proxyproto.Options{Default: proxyproto.Require, Inner: proxyproto.Require})
	defer c.Close()
	if err := c.ReadHeader(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("client:", c.RemoteAddr())
	fmt.Println("route: ", c.Inner().Destination)
	b := make([]byte, 4)
	io.ReadFull(c, b)
	fmt.Println("data:  ", string(b))
	// Output:
	// client: 192.0.2.7:4711
	// route:  240.0.10.1:443
	// data:   data
}

func ExampleDialer() {
	n := new(tunneltest.Network)
	l, _ := n.Listen("tcp", "entrypoint:8443")
	defer l.Close()
	d := &proxyproto.Dialer{
		Dial: n.Dial,
		Header: func(_ context.Context, c net.Conn) (*proxyproto.Header, error) {
			return &proxyproto.Header{
				Version:     1,
				Source:      &net.TCPAddr{IP: net.IPv4(100, 64, 0, 9), Port: 33000},
				Destination: &net.TCPAddr{IP: net.IPv4(240, 0, 10, 1), Port: 443},
			}, nil
		},
	}
	c, err := d.DialContext(context.Background(), "tcp", "entrypoint:8443")
	if err != nil {
		fmt.Println(err)
		return
	}
	io.WriteString(c, "data")
	c.Close()

	s, _ := l.Accept()
	defer s.Close()
	b, _ := io.ReadAll(s)
	fmt.Printf("%q\n", b)
	// Output: "PROXY TCP4 100.64.0.9 240.0.10.1 33000 443\r\ndata"
}

func ExampleReadHeader() {
	r := strings.NewReader("PROXY TCP6 ::ffff:192.0.2.7 2001:db8::9 4711 443\r\ndata")
	h, err := proxyproto.ReadHeader(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	rest, _ := io.ReadAll(r)
	fmt.Println(h.Source, "to", h.Destination)
	fmt.Printf("%s\n", rest)
	// Output:
	// 192.0.2.7:4711 to [2001:db8::9]:443
	// data
}

func ExampleWriteHeader() {
	tls := &proxyproto.SSL{Client: proxyproto.SSLConnected, TLVs: []proxyproto.TLV{
		{Type: proxyproto.TypeSSLVersion, Value: []byte("TLSv1.3")},
	}}
	ssl, err := tls.Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	h := &proxyproto.Header{
		Source:      &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711},
		Destination: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 443},
		TLVs: []proxyproto.TLV{
			{Type: proxyproto.TypeCRC32C}, // filled in
			{Type: proxyproto.TypeAuthority, Value: []byte("api.example.com")},
			ssl,
			{Type: proxyproto.TypeCustomMin, Value: []byte("ours")},
		},
	}
	var wire bytes.Buffer
	if err := proxyproto.WriteHeader(&wire, h); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(wire.Len(), "bytes")

	got, _ := proxyproto.ReadHeader(&wire)
	details, _ := got.SSL()
	custom, _ := got.TLV(proxyproto.TypeCustomMin)
	fmt.Printf("%s, %s, %s\n", got.Authority(), details.Version(), custom)

	err = proxyproto.WriteHeader(&wire, &proxyproto.Header{Version: 1, Local: true, TLVs: h.TLVs})
	fmt.Println(err)
	// Output:
	// 78 bytes
	// api.example.com, TLSv1.3, ours
	// proxyproto: header cannot be expressed: TLVs in version 1
}

// A HeaderError tells apart what an operator wants to count apart.
func ExampleHeaderError() {
	for _, sent := range []string{"", "GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 localhost localhost 1 2\r\n"} {
		near, far := tunneltest.Pipe()
		io.WriteString(near, sent)
		near.Close()
		c := proxyproto.NewConn(far, &proxyproto.Options{Default: proxyproto.Require})
		err := c.ReadHeader()
		switch {
		case errors.Is(err, io.EOF):
			fmt.Println("nothing: a port scan or a health check")
		case errors.Is(err, proxyproto.ErrNoHeader):
			fmt.Println("no header: this peer is no load balancer")
		case errors.Is(err, proxyproto.ErrMalformed):
			fmt.Println("malformed")
		}
		c.Close()
	}
	// Output:
	// nothing: a port scan or a health check
	// no header: this peer is no load balancer
	// malformed
}
