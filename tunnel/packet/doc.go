// Package packet carries packets between networks: devices that make them, links
// that take them through a connection, and a switch for a server that has many
// links. Any protocol, any port, pings, and sources that keep their address.
//
// A client joins its TAP device to a server:
//
//	tap, err := packet.OpenTAP(&packet.DeviceOptions{Name: "tap0", Addresses: addresses})
//	client := &packet.Client{
//		Dial: dial, TLS: config, Host: "vpn-server:443", // dial may go through an entrypoint
//		Hello: packet.Hello{ID: id, Mode: packet.TAP, MTU: 1450, Offload: tap.Offload(), Addresses: own},
//		Serve: func(ctx context.Context, c *packet.Conn) error { return packet.Pump(ctx, tap, c, nil) },
//	}
//	err = client.Run(ctx) // one link after the other, until ctx ends
//
// and the server switches between its clients:
//
//	sw := &packet.Switch{Mode: packet.TAP}
//	server := &packet.Server{TLS: config, Auth: packet.Auth("shoot--dev--a", pool, nil), Hello: hello, Admit: admit}
//	err := server.Serve(listener) // admit gives what calls sw.Serve
//
// # The parts
//
//	kernel ─ Device ═ Pump ═ Conn ── TLS ── Conn ═ Switch ═ Conn ── TLS ── Conn ═ Pump ═ Device ─ kernel
//	         a Port          a Port         Ports                         a Port        a Port
//
// A [Port] gives and takes packets in batches, because a system call for each would be
// most of the work. [Device] is one whose other side is a kernel, [Conn] one whose other
// side is a Conn in another process. [Pump] joins two ports, a [Switch] many: as a
// layer-2 switch for [TAP], as a router for [TUN]. Package bond joins a device with
// the links to several servers.
//
// Packets ride on a connection of their own, never in a session with streams: a
// packet that waits behind a stream's bytes is late, and a late packet is worse
// than none.
//
// # Unfinished packets
//
// Each packet has a virtio-net header in front, from device to device, which says
// what its kernel has left to do: to cut 64 KiB of TCP into segments, to complete a
// checksum. The far kernel does it, if it can, or never has to; one large
// packet costs hardly more than a small one. What the far end takes stands in its
// [Hello]; [Segment] finishes here what it does not take.
//
// # MTU
//
// Each side tells the MTU of the networks behind it. The lower one is the link's, a
// Pump sets its device to it, and lowers the MSS of TCP connections to fit, see
// [ClampMSS], also for who does not know of this device.
//
// # Trust
//
// Who a client is follows from its certificate or token, see [Auth], and never from
// what it says in HELLO. What it may send is the Switch's to judge: own
// addresses, MACs that are derived from them, networks behind it. Everything that
// comes over a link is checked before it reaches a device or another member, see
// [Check].
//
// # Errors
//
// ReadBatch, WriteBatch and Run of a link say why it ended:
//
//	errors.Is(err, packet.ErrDead)     // the peer was silent for 2.5 s; a timeout
//	errors.Is(err, packet.ErrStalled)  // it took nothing for 10 s; a timeout
//	errors.Is(err, packet.ErrProtocol) // it sent what is no frame
//	errors.Is(err, net.ErrClosed)      // Close was called here
//	errors.As(err, &byeError)          // one side said why: replaced, denied, shutdown …
//
// A packet that is wrong in itself ends nothing: it is dropped and counted.
//
// # Goroutines
//
//	Conn.Run         its caller's; a timer for silence
//	Pump             two beside its caller's: one for Run, one from the device to the link
//	Switch.Serve     four for each port: one that reads, one that writes, one that tells news, Run
//	Client.Run       its caller's, and what Serve has
//	Server.Serve     its caller's, one for each link, and what its ServeFunc has
//
// All of them are gone when the method that blocks has returned; those of a Server
// when Serve and Shutdown or Close have.
//
// # What it does not do
//
// It uses no UDP and no IPsec: a link is a TCP connection, so that it passes
// proxies and needs one open port at one end. It does not encrypt: TLS does. It
// answers no ARP and routes nothing between networks but what the kernel is told
// to. It does not merge small packets into large ones. Networks that overlap on the
// two sides cannot be told apart by their packets: stream mode (package tunnel) needs no
// addresses.
package packet
