package packet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hello4 is an IPv4 packet without a payload from one address to another.
func hello4(from, to string) packet.Frame {
	data := make([]byte, packet.HeaderLen+20)
	ip := data[packet.HeaderLen:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 20, 64, 253
	copy(ip[12:], netip.MustParseAddr(from).AsSlice())
	copy(ip[16:], netip.MustParseAddr(to).AsSlice())
	return packet.Frame{Data: data}
}

// Two processes make a link of a connection, and a packet goes over it.
func ExampleHandshake() {
	here, there := tunneltest.Pipe()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { // the other process
		c, err := packet.Handshake(context.Background(), there, packet.Hello{Name: "there", MTU: 1400}, nil)
		if err != nil {
			return
		}
		defer c.Close()
		work.Go(func() { _ = c.Run(context.Background()) })
		var b packet.Batch
		for c.ReadBatch(&b) == nil {
			_ = c.WriteBatch(&b) // back to where it came from
		}
	})

	c, err := packet.Handshake(context.Background(), here, packet.Hello{Name: "here"}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	work.Go(func() { _ = c.Run(context.Background()) })
	fmt.Println(c.Remote().Name, c.MTU())

	var b packet.Batch
	b.Append(hello4("10.0.0.1", "10.0.0.2"))
	_ = c.WriteBatch(&b)
	_ = c.ReadBatch(&b)
	for f := range b.Frames() {
		fmt.Println(len(f.Packet()), "bytes are back")
	}
	// Output:
	// there 1400
	// 20 bytes are back
}

// A link that is ended says why, at both ends.
func ExampleConn_Bye() {
	here, there := tunneltest.Pipe()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { // a server
		c, err := packet.Handshake(context.Background(), there, packet.Hello{}, nil)
		if err != nil {
			return
		}
		work.Go(func() {
			var b packet.Batch
			for c.ReadBatch(&b) == nil {
			}
		})
		_ = c.Bye(packet.ByeReplaced, "another process has this address")
	})

	c, err := packet.Handshake(context.Background(), here, packet.Hello{}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	var b packet.Batch
	err = c.ReadBatch(&b)
	var said *packet.ByeError
	if errors.As(err, &said) {
		fmt.Println(said.Code, "-", said.Reason)
	}
	// Output: replaced - another process has this address
}

// A server and a client of it, which come together over HTTP. There is no
// certificate here: never do this outside of a test.
func ExampleServer() {
	var network tunneltest.Network
	listener, err := network.Listen("tcp", "vpn-server:80")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &packet.Server{
		Auth: func(p *packet.Peer) (packet.Identity, error) {
			return packet.Identity{Cluster: "test", Name: p.Request.Header.Get("X-Name")}, nil
		},
		Hello: packet.Hello{Mode: packet.TUN, MTU: 1450, Name: "vpn-server"},
		Admit: func(_ context.Context, id packet.Identity, remote packet.Hello) (packet.ServeFunc, error) {
			return func(ctx context.Context, c *packet.Conn) error {
				return &packet.ByeError{Code: packet.ByeShutdown, Reason: "farewell, " + id.Name}
			}, nil
		},
	}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) })

	ctx, cancel := context.WithCancel(context.Background())
	client := &packet.Client{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return network.Host("client").Dial(ctx, "tcp", "vpn-server:80")
		},
		Header: map[string][]string{"X-Name": {"client-0"}},
		Hello:  packet.Hello{Mode: packet.TUN},
		Serve: func(ctx context.Context, c *packet.Conn) error { // a Pump, as a rule
			defer cancel()
			fmt.Println("connected to", c.Remote().Name)
			var b packet.Batch
			err := c.ReadBatch(&b)
			fmt.Println(err)
			return err
		},
	}
	_ = client.Run(ctx)
	_ = server.Shutdown(context.Background())
	work.Wait()
	// Output:
	// connected to vpn-server
	// packet: the peer ended the link: shutdown: farewell, client-0
}
