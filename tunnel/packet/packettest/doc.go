// Package packettest helps to test code that deals in packets: ports in memory, with the
// faults of real ones, and makers of valid Ethernet frames and IP packets.
//
//	a, b := packettest.Pair() // what is written to one is read from the other
//	go s.Serve(ctx, b, packet.PortOptions{…})
//	err := a.Send(packettest.Frame(packettest.Ethernet(to, from, packettest.TypeIPv6,
//		packettest.UDP(src, dst, []byte("hello")))))
//	f, err := a.Receive(ctx)
//
// A [Port] that stalls is a slow peer, and one that fails is a device which vanishes or
// a link that breaks. A [Recorder] keeps what it is given, frames as well as what a
// server tells its links.
//
// The makers compute lengths and checksums, so that what they make passes every check
// of a real receiver. A test that wants something invalid changes the bytes afterwards.
//
// # What it does not do
//
// Ports lose, reorder and delay nothing, and know nothing of what they carry. Nothing
// here parses packets or needs a privilege: for devices of the kernel see
// [github.com/rhizome-tunnel/rhizome/tunnel/tunneltest.InNetns].
package packettest
