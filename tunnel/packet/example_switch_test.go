package packet_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

// Two members of a network, and a switch between them which knows from their credentials
// who has which address. One tries to speak for the other.
func ExampleSwitch() {
	s := &packet.Switch{Mode: packet.TAP}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	join := func(id uint64, name, address string) *packettest.Port {
		near, far := packettest.Pair() // a packet.Conn, in earnest
		addr := netip.MustParseAddr(address)
		work.Go(func() {
			_ = s.Serve(ctx, far, packet.PortOptions{
				Member:    packet.Member{ID: id, Name: name, Addresses: []netip.Addr{addr}},
				Addresses: []netip.Prefix{netip.PrefixFrom(addr, 128)}, // the rule for name
			})
		})
		return near
	}
	seed := join(1, "seed", "fd8f:6d53:b97a:1::a:1")
	shoot := join(2, "shoot", "fd8f:6d53:b97a:1::b:0")
	for len(s.Members()) < 2 {
		time.Sleep(time.Millisecond)
	}

	from, to := netip.MustParseAddr("fd8f:6d53:b97a:1::a:1"), netip.MustParseAddr("fd8f:6d53:b97a:1::b:0")
	send := func(src netip.Addr, text string) {
		datagram := packettest.UDP(netip.AddrPortFrom(src, 53), netip.AddrPortFrom(to, 53), []byte(text))
		_ = seed.Send(packettest.Frame(packettest.Ethernet(packet.MAC(to, 0), packet.MAC(from, 0), packettest.TypeIPv6, datagram)))
	}
	send(to, "I am you")
	send(from, "hello")
	f, err := shoot.Receive(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	p := f.Packet()
	fmt.Printf("heard: %s\n", p[len(p)-5:])
	fmt.Println("dropped:", s.Stats().Drops)
	// Output:
	// heard: hello
	// dropped: map[source:1]
}
