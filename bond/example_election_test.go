package bond_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// discard reads what comes, as a link needs it.
func discard(c *packet.Conn) {
	var b packet.Batch
	for c.ReadBatch(&b) == nil {
		continue
	}
}

func tick() <-chan time.Time { return time.After(time.Millisecond) }

// The devices tap0 and tap1 are members of a bond of the kernel. A peer loses its link to
// the first server, and the device that goes with it loses its carrier.
func ExampleElection() {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	servers := []*packet.Switch{{Mode: packet.TAP}, {Mode: packet.TAP}}

	events := make(chan bond.Event, 16)
	e := &bond.Election{
		Primary:    "tap0",
		SetCarrier: func(link string, up bool) error { return nil }, // packet.Device.SetCarrier in a program
		OnEvent: func(e bond.Event) {
			if e.Kind == bond.CarrierUp || e.Kind == bond.CarrierDown {
				events <- e
			}
		},
	}
	peers := make(map[string]*packet.Conn)
	for i, name := range []string{"tap0", "tap1"} {
		peer := connect(ctx, &work, servers[i], 2, "10.0.0.2")
		peers[name] = peer
		work.Go(func() { _ = peer.Run(ctx) })
		work.Go(func() { discard(peer) })
		link := connect(ctx, &work, servers[i], 1, "10.0.0.1")
		work.Go(func() {
			_ = e.Serve(ctx, name, link, func(ctx context.Context) error { // packet.Pump in a program
				work.Go(func() { discard(link) })
				return link.Run(ctx)
			})
		})
		first := <-events
		fmt.Println(first.Kind, first.Link)
	}
	for e.Status()[0].Members < 2 || e.Status()[1].Members < 2 {
		<-tick()
	}

	peers["tap0"].Close()
	last := <-events
	fmt.Printf("%s %s: %s\n", last.Kind, last.Link, last.Reason)
	cancel()
	// Output:
	// carrier-up tap0
	// carrier-up tap1
	// carrier-down tap0: its server reaches 1 members, another 2
}
