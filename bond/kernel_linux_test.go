package bond_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
)

var (
	kernelV6 = netip.MustParsePrefix("fd8f:6d53:b97a:1::b:0/96")
	kernelV4 = netip.MustParsePrefix("192.168.123.7/24")
)

// TestKernelDefaults has the options that Gardener's VPN has, and leaves nothing
// behind.
func TestKernelDefaults(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		h.taps()
		var logs bytes.Buffer
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6, kernelV4}, MTU: 1400,
			Logger: slog.New(slog.NewTextHandler(&logs, nil))}
		h.must(k.Up())
		h.bind(kernelV6.Addr()) // at once, and without a carrier
		h.bind(kernelV4.Addr())
		b := h.bond("bond0")
		if b.Mode != netlink.BOND_MODE_ACTIVE_BACKUP || b.Miimon != 100 || b.UseCarrier != 1 || b.UpDelay != 0 || b.DownDelay != 0 ||
			b.FailOverMac != netlink.BOND_FAIL_OVER_MAC_ACTIVE || b.Primary != h.link("tap0").Attrs().Index ||
			b.PrimaryReselect != netlink.BOND_PRIMARY_RESELECT_ALWAYS || b.NumPeerNotif != 5 || b.ArpInterval != 0 {
			t.Errorf("options: %+v", b)
		}
		for _, name := range []string{"bond0", "tap0", "tap1"} {
			if got := h.link(name).Attrs().MTU; got != 1400 {
				t.Errorf("MTU of %s: %d", name, got)
			}
		}
		h.wantMaster("tap0", "bond0")
		h.wantMaster("tap1", "bond0")
		logs.Reset()
		h.must(k.Up())
		if logs.Len() > 0 {
			t.Errorf("a second Up did something: %s", &logs)
		}
		want := bond.KernelStatus{Name: "bond0", Mode: "active-backup", Members: []bond.MemberStatus{{Name: "tap0"}, {Name: "tap1"}}}
		if got := k.Status(); got.Up || got.Active != "" || got.Adopted || got.Problem != "" || got.Name != want.Name || got.Mode != want.Mode ||
			!slices.Equal(got.Members, want.Members) {
			t.Errorf("status: %+v", got)
		}
		h.must(k.SetMTU(1350))
		if got := h.link("tap1").Attrs().MTU; got != 1350 {
			t.Errorf("MTU of tap1: %d", got)
		}
		h.must(k.Close())
		h.must(k.Close())
		h.wantGone("bond0")
		h.wantMaster("tap0", "")
		if _, err := k.Active(); err == nil || k.Ready() == nil || k.SetMTU(1400) == nil || k.Status().Problem == "" {
			t.Error("still up after Close")
		}
	})
}

// TestKernelFailover pulls the cables of TAPs.
func TestKernelFailover(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		taps := h.taps()
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6}}
		y, stop := h.run(k)
		active := func(want string) func() bool {
			return func() bool { got, err := k.Active(); return got == want && err == nil }
		}
		h.must(taps[1].SetCarrier(true))
		h.want(y, "link-up tap1", "switched >tap1")
		h.must(taps[0].SetCarrier(true))
		h.want(y, "link-up tap1", "switched >tap1", "link-up tap0", "switched tap1>tap0")
		h.until("tap0 is active", active("tap0"))
		y.clear()
		h.must(taps[0].SetCarrier(false))
		h.want(y, "link-down tap0", "switched tap0>tap1")
		h.must(taps[1].SetCarrier(false))
		h.want(y, "link-down tap0", "switched tap0>tap1", "link-down tap1", "switched tap1>")
		h.until("no member is active", active(""))
		if s := k.Status(); s.Up || s.Members[0].Failures != 1 {
			t.Errorf("status: %+v", s)
		}
		y.clear()
		h.must(taps[0].SetCarrier(true))
		h.want(y, "link-up tap0", "switched >tap0")
		h.until("the bond has a carrier", func() bool { return k.Status().Up })
		for _, want := range []string{"link-up: up again", "switched: the first member that is up"} {
			if !strings.Contains(y.reasons(), want) {
				t.Errorf("no %q among the reasons:\n%s", want, y.reasons())
			}
		}
		h.must(k.Ready())
		h.must(stop())
		h.wantGone("bond0")
	})
}
