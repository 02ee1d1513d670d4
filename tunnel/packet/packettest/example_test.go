package packettest_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

func ExamplePair() {
	a, b := packettest.Pair()
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if err := a.Send(packettest.Frame(packettest.Echo(src, dst, false, 1, 1, []byte("ping")))); err != nil {
		fmt.Println(err)
	}
	f, err := b.Receive(context.Background())
	fmt.Println(len(f.Packet()), "bytes,", err)

	a.Fail(errors.New("the device is gone"))
	fmt.Println(a.ReadBatch(new(packet.Batch)))
	fmt.Println(b.ReadBatch(new(packet.Batch)))
	// Output:
	// 32 bytes, <nil>
	// the device is gone
	// use of closed network connection
}

func ExampleRecorder() {
	var r packettest.Recorder
	r.Give(packettest.Frame([]byte("a packet, or so")))

	b := new(packet.Batch) // what the code under test would do
	if r.ReadBatch(b) == nil {
		_ = r.WriteBatch(b)
		_ = r.SendReach([]packet.Member{{ID: 1, Name: "shoot"}})
	}

	for _, f := range r.Written() {
		fmt.Printf("%s\n", f.Packet())
	}
	fmt.Println(r.Reaches()[0][0].Name)
	// Output:
	// a packet, or so
	// shoot
}

func ExampleUDP() {
	src, dst := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	fmt.Printf("%x\n", packettest.UDP(src, dst, []byte("hi")))
	// Output: 4500001e000040004011b6cbc0000201c000020200350035000a13036869
}
