package bond_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// connect makes a link between a member and a server. A program has a packet.Client
// and a packet.Server for it.
func connect(ctx context.Context, work *sync.WaitGroup, s *packet.Switch, id uint64, addr string) *packet.Conn {
	near, far := tunneltest.Pipe()
	a := netip.MustParseAddr(addr)
	hello := packet.Hello{ID: id, Mode: packet.TAP, Addresses: []netip.Addr{a}}
	work.Go(func() {
		c, err := packet.Handshake(ctx, far, packet.Hello{Mode: packet.TAP}, nil)
		if err == nil {
			member := packet.Member{ID: id, Name: fmt.Sprint("member", id), Addresses: []netip.Addr{a}}
			_ = s.Serve(ctx, c, packet.PortOptions{Member: member, Addresses: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}})
		}
	})
	c, err := packet.Handshake(ctx, near, hello, nil)
	if err != nil {
		panic(err)
	}
	return c
}

// A member with links to two servers. When one of them is lost, what goes to the peer
// goes over the other at once.
func ExampleBond() {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	servers := []*packet.Switch{{Mode: packet.TAP}, {Mode: packet.TAP}}

	device, kernel := packettest.Pair() // packet.OpenTAP in a program
	defer kernel.Close()
	events := make(chan bond.Event, 16)
	b := &bond.Bond{
		Device: device, Mode: packet.TAP, Primary: "server0",
		OnEvent: func(e bond.Event) {
			if e.Kind == bond.Switched {
				events <- e
			}
		},
	}
	work.Go(func() { _ = b.Run(ctx) })
	cut, end := context.WithCancel(ctx)
	defer end()
	first := connect(ctx, &work, servers[0], 1, "10.0.0.1")
	work.Go(func() { _ = b.Serve(cut, "server0", first) })
	second := connect(ctx, &work, servers[1], 1, "10.0.0.1")
	work.Go(func() { _ = b.Serve(ctx, "server1", second) })

	// The peer is reached over the primary first, as it is there first.
	peer := connect(ctx, &work, servers[0], 2, "10.0.0.2")
	work.Go(func() { _ = peer.Run(ctx) })
	work.Go(func() { discard(peer) })
	e := <-events
	fmt.Printf("%s: %q to %q, %s\n", e.Peer, e.From, e.To, e.Reason)
	other := connect(ctx, &work, servers[1], 2, "10.0.0.2")
	work.Go(func() { _ = other.Run(ctx) })
	work.Go(func() { discard(other) })
	for len(b.Status().Peers[0].Reachable) < 2 {
		<-tick()
	}

	end()
	e = <-events
	fmt.Printf("%s: %q to %q, %s\n", e.Peer, e.From, e.To, e.Reason)
	// Output:
	// member2/10.0.0.2: "" to "server0", it is reached
	// member2/10.0.0.2: "server0" to "server1", link server0 is down: it was ended here
}
