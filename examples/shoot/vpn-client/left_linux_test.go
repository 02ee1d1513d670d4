package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// TestMemberMTU: the device keeps to what another member can take, as long as it is
// there, whoever bonds.
func TestMemberMTU(t *testing.T) {
	for name, tc := range map[string]struct {
		mode   packet.Mode
		device string
		args   []string
	}{
		"tap":        {packet.TAP, "bond0", nil},
		"tap kernel": {packet.TAP, "bond0", []string{"--bond", "kernel"}},
		"tun":        {packet.TUN, "tun0", []string{"--mode", "tun"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.mode, 2)
			a, b := w.host("seed"), w.host("shoot")
			one, err := w.try(a, append(tc.args, "--address", seedAddress+"/96", "--firewall=false")...)
			if errors.Is(err, bond.ErrUnsupported) {
				t.Skip(`this kernel has no bonding: run it with go test -exec "$PWD/.ci/run-in-kernel"`)
			}
			must(t, err)
			w.ready(one, 1)
			has := func(want int) {
				t.Helper()
				clitest.Eventually(t, func() error {
					if got := linkOf(t, a, tc.device).Attrs().MTU; got != want {
						return fmt.Errorf("the MTU is %d, want %d", got, want)
					}
					return nil
				})
			}
			has(1500)
			two := w.start(b, append(tc.args, "--address", shootAddress+"/96", "--firewall=false", "--mtu", "1400")...)
			w.ready(one, 2)
			has(1400)
			must(t, two.stop())
			has(1500)
		})
	}
}

// TestLeftRoutes: routes of a killed process go at the next start, also if that has
// none. Those of a path-controller that runs stay, and those of others.
func TestLeftRoutes(t *testing.T) {
	w := newWorld(t, packet.TAP, 1)
	h := w.host("seed")
	must(t, h.Bridge("bridge", netip.MustParsePrefix("10.9.0.1/24")))
	to := netip.MustParsePrefix("10.250.0.0/16")
	controller := &pathcontrol.NetlinkRouter{
		Networks: []netip.Prefix{to},
		Hops:     map[string]pathcontrol.NextHop{"a": {Interface: "bridge"}},
	}
	must(t, h.Do(func() error { return controller.Use(t.Context(), "a") }))
	t.Cleanup(func() { must(t, controller.Close()) })
	dst, err := netlink.ParseIPNet(to.String())
	must(t, err)
	must(t, h.Do(func() error {
		for _, left := range []netlink.Route{{Protocol: 215, Priority: 70}, {Protocol: 215, Priority: 75}, {Protocol: 4, Priority: 80}} {
			left.Dst, left.LinkIndex = dst, linkOf(t, h, "bridge").Attrs().Index
			must(t, netlink.RouteAdd(&left))
		}
		return nil
	}))
	must(t, w.start(h, "--address", seedAddress+"/96", "--firewall=false").stop())
	var metrics []int
	must(t, h.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		for _, r := range routes {
			metrics = append(metrics, r.Priority)
		}
		return err
	}))
	if slices.Sort(metrics); !slices.Equal(metrics, []int{pathcontrol.DefaultRouteMetric, 80}) {
		t.Errorf("routes with the metrics %v", metrics)
	}
}

// TestLeftBond: the bond of a killed process with --bond kernel makes room for the
// device of one without.
func TestLeftBond(t *testing.T) {
	w := newWorld(t, packet.TAP, 1)
	h := w.host("seed")
	err := h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "bond0"
		if err := netlink.LinkAdd(netlink.NewLinkBond(attrs)); err != nil {
			return err
		}
		return netlink.LinkSetAlias(linkOf(t, h, "bond0"), "made by rhizome bond")
	})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip(`this kernel has no bonding: run it with go test -exec "$PWD/.ci/run-in-kernel"`)
	}
	must(t, err)
	c := w.start(h, "--address", seedAddress+"/96", "--firewall=false")
	w.ready(c, 1)
	must(t, c.stop())
}
