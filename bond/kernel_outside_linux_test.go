package bond_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
)

// TestKernelDeletedOutside deletes the bond under a running Kernel.
func TestKernelDeletedOutside(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		taps := h.taps()
		h.must(taps[0].SetCarrier(true))
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6, kernelV4}, MTU: 1400}
		y, stop := h.run(k)
		for range 3 {
			h.want(y, "link-up tap0", "switched >tap0")
			y.clear()
			h.must(netlink.LinkDel(h.link("bond0")))
			h.want(y, "member-removed tap0", "bond-deleted", "restored")
			h.want(y, "bond-deleted", "link-up tap0", "switched >tap0")
			h.wantAddress("bond0", kernelV6, true)
			h.wantAddress("bond0", kernelV4, true)
			h.wantMaster("tap1", "bond0")
			if got := h.link("bond0").Attrs().MTU; got != 1400 {
				t.Errorf("MTU %d", got)
			}
		}
		h.must(k.Ready())
		// Renamed is gone as well: the address is where it is not wanted.
		h.must(netlink.LinkSetDown(h.link("bond0")))
		h.must(netlink.LinkSetName(h.link("bond0"), "elsewhere"))
		h.want(y, "bond-deleted", "failed")
		if !strings.Contains(y.reasons(), "renamed to elsewhere") || !strings.Contains(y.reasons(), "ip link set dev tap0 nomaster") {
			t.Errorf("reasons:\n%s", y.reasons())
		}
		if k.Ready() == nil || !strings.Contains(k.Status().Problem, "tap0 has another master") {
			t.Errorf("status: %+v", k.Status())
		}
		h.must(netlink.LinkDel(h.link("elsewhere")))
		h.until("all is well again", func() bool { return k.Ready() == nil })
		h.wantMaster("tap0", "bond0")
		h.must(stop())
		h.wantGone("bond0")
	})
}

// TestKernelMemberOutside takes members away in each way that there is.
func TestKernelMemberOutside(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		taps := h.taps()
		h.must(taps[0].SetCarrier(true))
		h.must(taps[1].SetCarrier(true))
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6}}
		y, _ := h.run(k)
		h.want(y, "switched >tap0", "link-up tap1")
		y.clear()
		h.must(netlink.LinkSetNoMaster(h.link("tap0")))
		h.want(y, "member-removed tap0", "restored")
		h.want(y, "member-removed tap0", "link-up tap0")
		h.until("the primary is back", func() bool { active, _ := k.Active(); return active == "tap0" })
		h.wantMaster("tap0", "bond0")
		if b := h.bond("bond0"); b.Primary != h.link("tap0").Attrs().Index {
			t.Errorf("primary: %d", b.Primary)
		}
		y.clear()

		// The interface itself goes, and comes again.
		h.must(taps[0].Close())
		h.want(y, "member-removed tap0", "failed")
		h.until("tap1 takes over", func() bool { active, _ := k.Active(); return active == "tap1" })
		if err := k.Ready(); err == nil || !strings.Contains(err.Error(), "there is no interface tap0") {
			t.Errorf("ready: %v", err)
		}
		if got := k.Status(); len(got.Members) != 1 || got.Members[0].Name != "tap1" || got.Problem == "" {
			t.Errorf("status: %+v", got)
		}
		again := h.tap("tap0")
		h.want(y, "member-removed tap0", "failed", "restored")
		h.must(again.SetCarrier(true))
		h.want(y, "failed", "link-up tap0", "switched tap1>tap0")
		h.must(k.Ready())
	})
}

// TestKernelPutBack changes everything else that can be changed.
func TestKernelPutBack(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		h.taps()
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6, kernelV4}, MTU: 1400, PeerNotifications: 7}
		y, _ := h.run(k)
		modify := func(change func(b *netlink.Bond)) func() error {
			return func() error {
				b := netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0", TxQLen: -1})
				change(b)
				return netlink.LinkModify(b)
			}
		}
		without := func(p netip.Prefix) func() error {
			return func() error {
				a, err := netlink.ParseAddr(p.String())
				h.must(err)
				return netlink.AddrDel(h.link("bond0"), a)
			}
		}
		for _, c := range []struct {
			done   string
			change func() error
		}{
			{"address fd8f:6d53:b97a:1::b:0/96 added", without(kernelV6)},
			{"address 192.168.123.7/24 added", without(kernelV4)},
			{"up, address fd8f:6d53:b97a:1::b:0/96 added", func() error { return netlink.LinkSetDown(h.link("bond0")) }},
			{"MTU 1400", func() error { return netlink.LinkSetMTU(h.link("bond0"), 1500) }},
			{"miimon 100", modify(func(b *netlink.Bond) { b.Miimon = 200 })},
			{"num_peer_notif 7", modify(func(b *netlink.Bond) { b.NumPeerNotif = 1 })},
			{"primary_reselect always", modify(func(b *netlink.Bond) { b.PrimaryReselect = netlink.BOND_PRIMARY_RESELECT_FAILURE })},
			{"primary tap0", modify(func(b *netlink.Bond) { b.Primary = h.link("tap1").Attrs().Index })},
			// Either monitor ends the other.
			{"miimon 100", modify(func(b *netlink.Bond) { b.ArpInterval = 1000 })},
		} {
			y.clear()
			h.must(c.change())
			h.until(c.done, func() bool {
				reasons := y.reasons()
				for _, step := range strings.Split(c.done, ", ") {
					if !strings.Contains(reasons, step) {
						return false
					}
				}
				return strings.Contains(reasons, "restored: ")
			})
			h.until("all is well", func() bool { return k.Ready() == nil })
			h.wantAddress("bond0", kernelV6, true)
			h.wantAddress("bond0", kernelV4, true)
		}
		b := h.bond("bond0")
		if b.Miimon != 100 || b.ArpInterval != 0 || b.NumPeerNotif != 7 || b.Primary != h.link("tap0").Attrs().Index {
			t.Errorf("options: %+v", b)
		}
		if got := h.link("tap1").Attrs().MTU; got != 1400 {
			t.Errorf("MTU of tap1: %d", got)
		}
	})
}
