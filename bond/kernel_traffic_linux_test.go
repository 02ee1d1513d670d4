package bond_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/rhizome-tunnel/rhizome/bond"
)

// TestKernelTraffic has two bonds back to back over two cables, and pulls one after
// the other under traffic. What is sent while nobody knows yet is lost; what comes
// later is not, because the new active member says whose address it is.
func TestKernelTraffic(t *testing.T) {
	inBondingKernel(t, func(near *kernelHost) {
		for _, name := range []string{"e0", "e1"} {
			near.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "far"}))
		}
		here := netip.MustParsePrefix("fd00::1/64")
		there := netip.MustParsePrefix("fd00::2/64")
		var server *net.UDPConn
		var far *bond.Kernel
		var pull func(name string, down bool)
		home, err := netns.Get()
		near.must(err)
		defer home.Close()
		inBondingKernel(t, func(h *kernelHost) {
			own, err := netns.Get()
			h.must(err)
			defer own.Close()
			outside, err := netlink.NewHandleAt(home)
			h.must(err)
			defer outside.Close()
			for _, name := range []string{"e0far", "e1far"} {
				l, err := outside.LinkByName(name)
				h.must(err)
				h.must(outside.LinkSetNsFd(l, int(own)))
			}
			far = &bond.Kernel{Members: []string{"e0far", "e1far"}, Addresses: []netip.Prefix{there}}
			h.must(far.Up())
			server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(there.Addr(), 7)))
			h.must(err)
			inside, err := netlink.NewHandle()
			h.must(err)
			h.Cleanup(func() { inside.Close() })
			pull = func(name string, down bool) {
				l, err := inside.LinkByName(name)
				h.must(err)
				set := inside.LinkSetUp
				if down {
					set = inside.LinkSetDown
				}
				h.must(set(l))
			}
		})
		defer far.Close()
		var work sync.WaitGroup
		work.Go(func() { echoPackets(server) })
		defer work.Wait()
		defer server.Close()

		k := &bond.Kernel{Members: []string{"e0", "e1"}, Addresses: []netip.Prefix{here}}
		y, _ := near.run(k)
		client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(there.Addr(), 7)))
		near.must(err)
		defer client.Close()
		near.want(y, "switched >e0", "link-up e1")
		near.until("both ends use e0", func() bool { active, _ := far.Active(); return active == "e0far" })
		near.answers(client)
		for range 2 {
			y.clear()
			pull("e0far", true)
			near.want(y, "link-down e0", "switched e0>e1")
			near.answers(client)
			pull("e0far", false)
			near.want(y, "link-up e0", "switched e1>e0")
			near.answers(client)
			pull("e1far", true)
			near.want(y, "link-down e1")
			near.answers(client)
			pull("e1far", false)
			near.want(y, "link-down e1", "link-up e1")
		}
		near.answers(client)
		if active, _ := far.Active(); active != "e0far" {
			t.Errorf("the far end uses %s", active)
		}
	})
}

func echoPackets(c *net.UDPConn) {
	b := make([]byte, 100)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(b[:n], from)
	}
}

// answers asks until twenty questions in a row are answered.
func (h *kernelHost) answers(c *net.UDPConn) {
	h.Helper()
	b, row, number := make([]byte, 100), 0, byte(0)
	h.until("twenty answers in a row", func() bool {
		number++
		_, err := c.Write([]byte{number})
		row++
		if err != nil {
			row = 0
			return false
		}
		h.must(c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)))
		for {
			n, err := c.Read(b)
			if err != nil {
				row = 0
				return false
			}
			if n == 1 && b[0] == number { // else it is late
				return row >= 20
			}
		}
	})
}
