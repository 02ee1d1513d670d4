// Package bond uses several links as one, so that the loss of a server, or of the way
// to it, does not end a connection that goes over it.
//
// A [Bond] does it in this process, over links of package packet:
//
//	b := &bond.Bond{Device: tap, Mode: packet.TAP, Primary: "server0"}
//	go b.Run(ctx)                                     // what the kernel sends
//	for name, client := range clients {               // a packet.Client for each server
//		client.Serve = func(ctx context.Context, c *packet.Conn) error { return b.Serve(ctx, name, c) }
//		go client.Run(ctx)
//	}
//
// A [Kernel] is a bond of the Linux bonding driver, whose members are TAPs; an
// [Election] tells it by their carriers which of them it may use:
//
//	k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Primary: "tap0", Addresses: addrs}
//	e := &bond.Election{Primary: "tap0", SetCarrier: func(link string, up bool) error { return taps[link].SetCarrier(up) }}
//	client.Serve = func(ctx context.Context, c *packet.Conn) error {
//		return e.Serve(ctx, "tap0", c, func(ctx context.Context) error {
//			return packet.Pump(ctx, taps["tap0"], c, &packet.PumpOptions{NoCarrier: true})
//		})
//	}
//
// Both solve the same problem: of the four legs here each may be lost alone, and one end of
// it at first knows nothing of what the other end has lost.
//
//	        ┌── leg ── server 0 ── leg ──┐
//	member ─┤                            ├─ member
//	        └── leg ── server 1 ── leg ──┘
//
// Each server tells each of its links whom it has links to. So who sends knows which
// servers have a way to the receiver, and not only which he has a way to himself.
//
// # Which one to take
//
// A Bond chooses for each peer, and each member for itself: what comes is taken over
// whichever link. A leg that is lost moves those who need it and nobody else. It
// needs nothing of the kernel but a device, can send over all links at once
// ([Redundant]), and numbers what goes over several. The driver of the kernel knows one link for
// all, and drops what comes over another: all members have to use the same
// server. An Election sees to that. When no server reaches all it takes the one that
// joins most of those who have something to say to each other, one with networks
// behind it and one without; those who cannot meet there lose each other until a server
// reaches all. All members of a network use the same kind.
//
// Servers are believed in what they say: one that lies about whom it reaches takes
// traffic and loses it, as one does that drops packets.
//
// # Outages
//
// A link that ends with an error moves its traffic at once. A link that falls silent
// is given up by package packet after 2.5 s, and an Election adds 0.1 s to settle and up
// to 0.1 s until the driver looks at the carriers. In mode [Redundant] nothing is lost
// unless the last link is. Packets that wait for a link that is lost are lost
// with it.
//
// A Bond keeps the order of what goes to a peer over one link. When it moves to another, what is
// on its way over the first may come behind what is sent over the second; after a
// failure there is nothing on its way. In mode Redundant the order is kept, but for what
// the queue of one link had no room for and another brings later.
//
// # Taking a link again
//
// A link that is back is not what it was: it may go again. A Bond takes the primary for a
// peer when it has been there for 1 s, an Election any link when it has reached as
// many members as any other for 1 s; twice that each time that it is lost again
// within a minute, and 30 s at most. See [Bond].Hold, [Reselect], and [Election].
//
// # Where members are
//
// A switch that has never seen a frame from a MAC floods what is sent to it, at a rate that
// nobody can live with. As members send over one server only, a Bond in mode TAP announces its
// addresses over every link, when it comes up and each minute. The driver of
// the kernel announces itself when it changes to another member.
//
// # Numbers
//
// What goes over several links has a number, and is given to the device once: see
// packet.Frame. A receiver keeps a window of the last 4032 numbers for each sender
// and process of it, where the sender is who the server vouches for: the source
// MAC, or in mode TUN the member that the source address belongs to. A server drops
// what is numbered with another member's ID. So with numbers nobody harms others, except
// in mode TUN those which may use the same networks. What is numbered is not left to be
// segmented by the receiver, which makes bulk traffic in mode Redundant several times dearer.
//
// # Kernel
//
// [Kernel.Up] makes the bond or adopts one, with the options that its fields say and
// Gardener's as defaults; [Kernel.Run] tells what happens, puts back what others
// take away, and removes it in the end.
//
// # Goroutines
//
// Whoever blocks owns them:
//
//	Bond.Run        none beside its own
//	Bond.Serve      one that reads the link, one that writes it, one in its Run
//	Election.Serve  one in pump
//	Kernel.Run      see there
//
// All of them are gone when the method has returned. Events are told by whichever of these
// methods has one to tell, one at a time and with no lock held.
//
// # What it does not do
//
// It does not connect: packet.Client does. It does not choose among shoot clients:
// package pathcontrol does. It does not spread the packets of one peer over several links for
// more throughput, but for a Kernel in mode balance-rr. It sets no routes.
package bond
