package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A client asks, finishes its half, and gets an answer that comes after that.
func ExampleRelay() {
	client, front := tunneltest.Pipe()
	back, target := tunneltest.Pipe()

	done := make(chan error, 1)
	go func() { done <- relay.Relay(context.Background(), front, back, nil) }()

	go func() {
		question, _ := io.ReadAll(target) // until the client has finished
		fmt.Fprintf(target, "you asked %q", question)
		target.Close()
	}()

	io.WriteString(client, "what is a rhizome?")
	relay.CloseWrite(client)
	answer, err := io.ReadAll(client)
	fmt.Printf("%s, %v\n", answer, err)
	fmt.Println("relay:", <-done)
	client.Close()
	// Output:
	// you asked "what is a rhizome?", <nil>
	// relay: <nil>
}

// A relay that carries nothing for too long is reset, and the error says so.
func ExampleOptions() {
	client, front := tunneltest.Pipe()
	back, target := tunneltest.Pipe()
	defer client.Close()
	defer target.Close()

	err := relay.Relay(context.Background(), front, back, &relay.Options{IdleTimeout: 10 * time.Millisecond})
	fmt.Println(err)
	fmt.Println(errors.Is(err, relay.ErrIdle))
	// Output:
	// relay: idle: no byte went either way for the whole idle timeout
	// true
}

// The error names the leg, so that the right one is blamed.
func ExampleError() {
	client, front := tunneltest.Pipe()
	back, target := tunneltest.Pipe()
	defer client.Close()

	relay.Reset(target)
	err := relay.Relay(context.Background(), front, back, nil)

	var e *relay.Error
	if errors.As(err, &e) {
		fmt.Println(e.Op, "of leg", e.Leg)
	}
	_, err = client.Read(make([]byte, 1))
	fmt.Println(err)
	// Output:
	// read of leg b
	// read tcp 192.0.2.1:49152->192.0.2.2:443: read: connection reset by peer
}

// The counter can be read while the relay runs.
func ExampleCounter() {
	client, front := tunneltest.Pipe()
	back, target := tunneltest.Pipe()

	var bytes relay.Counter
	done := make(chan error, 1)
	go func() {
		done <- relay.Relay(context.Background(), front, back, &relay.Options{Counter: &bytes})
	}()

	io.WriteString(client, "question")
	io.ReadFull(target, make([]byte, 8))
	io.WriteString(target, "longer answer")
	client.(relay.CloseWriter).CloseWrite()
	target.(relay.CloseWriter).CloseWrite()
	<-done
	fmt.Println(bytes.Bytes())
	client.Close()
	target.Close()
	// Output: 8 13
}

// Whoever read too much to find out what to do gives it back.
func ExamplePrefixed() {
	client, server := tunneltest.Pipe()
	io.WriteString(client, "SSH-2.0-OpenSSH_9.2\r\n")
	client.Close()

	sniffed := make([]byte, 4)
	io.ReadFull(server, sniffed)
	fmt.Printf("sniffed %q\n", sniffed)

	var c net.Conn = relay.NewPrefixed(server, sniffed)
	all, _ := io.ReadAll(c)
	fmt.Printf("read %q\n", all)
	c.Close()
	// Output:
	// sniffed "SSH-"
	// read "SSH-2.0-OpenSSH_9.2\r\n"
}

// CloseWrite finds the method that half-closes, also below a wrapper.
func ExampleCloseWrite() {
	client, server := tunneltest.Pipe()
	io.WriteString(client, "that is all")
	fmt.Println(relay.CloseWrite(client))

	got, _ := io.ReadAll(server)
	fmt.Printf("%s\n", got)

	a, _ := net.Pipe() // has no half-close
	fmt.Println(relay.CloseWrite(a))
	client.Close()
	server.Close()
	// Output:
	// <nil>
	// that is all
	// unsupported operation
}

// Reset makes the peer see that something went wrong.
func ExampleReset() {
	client, server := tunneltest.Pipe()
	relay.Reset(client)
	_, err := server.Read(make([]byte, 1))
	fmt.Println(err)
	server.Close()
	// Output: read tcp 192.0.2.2:443->192.0.2.1:49152: read: connection reset by peer
}
