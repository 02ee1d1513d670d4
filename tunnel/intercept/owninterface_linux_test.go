package intercept

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// noDummy is why a test that needs the driver is skipped, and what to do.
const noDummy = `this kernel has no dummy interfaces: run it with go test -exec "$PWD/.ci/run-in-kernel"`

// needDummy skips the test if the kernel has no driver.
func needDummy(t *testing.T) {
	t.Helper()
	probe := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "probe"}}
	err := netlink.LinkAdd(probe)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip(noDummy)
	}
	must(t, err)
	must(t, netlink.LinkDel(probe))
}

func TestOwnInterface(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		needDummy(t)
		var logs bytes.Buffer
		a := &LocalAddr{Addr: addr, Logger: slog.New(slog.NewTextHandler(&logs, nil))}
		if a.Ready() == nil {
			t.Error("ready before Up")
		}
		must(t, a.Up())
		must(t, a.Up()) // does nothing
		wantOn(t, addr, DefaultInterface)
		must(t, a.Ready())
		talk(t, addr)
		must(t, a.Close())
		must(t, a.Close()) // does nothing
		wantOn(t, addr, "")
		if _, err := netlink.LinkByName(DefaultInterface); err == nil {
			t.Error("the interface is left behind")
		}
		for _, want := range []string{"interface made, interface set up, address added", "address removed"} {
			if !strings.Contains(logs.String(), want) {
				t.Errorf("no %q in the log:\n%s", want, &logs)
			}
		}
	})
}

// TestOwnInterfaceKept takes away the address, the state and the interface.
func TestOwnInterfaceKept(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		needDummy(t)
		a := &LocalAddr{Addr: addr, CheckInterval: -1}
		stop := running(t, a)
		l := linkOf(t, DefaultInterface)
		back := func() {
			t.Helper()
			eventually(t, "address back", func() bool {
				_, on := find(t, addr)
				l, err := netlink.LinkByName(DefaultInterface)
				return on == DefaultInterface && err == nil && l.Attrs().Flags&net.FlagUp != 0 && a.Ready() == nil
			})
			wantOn(t, addr, DefaultInterface)
			talk(t, addr)
		}
		for range 3 {
			must(t, netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
			back()
		}
		must(t, netlink.LinkSetDown(l))
		back()
		must(t, netlink.LinkDel(l))
		back()
		must(t, stop())
		wantOn(t, addr, "")
	})
}

// TestOwnInterfaceLeftover finds what killed processes have left: the address
// itself, one that nobody wants any more, and one that is in use.
func TestOwnInterfaceLeftover(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		needDummy(t)
		mine, dead, used := netip.MustParseAddr("240.0.0.1"), families["IPv6"], netip.MustParseAddr("240.0.0.3")
		other := &LocalAddr{Addr: used}
		must(t, other.Up())
		for _, addr := range []netip.Addr{mine, dead} {
			a := &LocalAddr{Addr: addr}
			must(t, a.Up())
			crash(a)
			wantOn(t, addr, DefaultInterface)
		}
		index := linkOf(t, DefaultInterface).Attrs().Index
		a := &LocalAddr{Addr: mine}
		must(t, a.Up())
		if linkOf(t, DefaultInterface).Attrs().Index != index {
			t.Error("the interface was made anew")
		}
		wantOn(t, mine, DefaultInterface)
		wantOn(t, dead, "")
		wantOn(t, used, DefaultInterface)
		must(t, a.Close())
		wantOn(t, mine, "")
		wantOn(t, used, DefaultInterface) // and so the interface stays
		must(t, other.Close())
		if _, err := netlink.LinkByName(DefaultInterface); err == nil {
			t.Error("the interface is left behind")
		}
	})
}

// TestOwnInterfaceHalfMade finds the interface of a process that was killed before
// it could mark it.
func TestOwnInterfaceHalfMade(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		needDummy(t)
		must(t, netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: DefaultInterface}}))
		a := &LocalAddr{Addr: families["IPv4"]}
		must(t, a.Up())
		wantOn(t, families["IPv4"], DefaultInterface)
		must(t, a.Close())
		if _, err := netlink.LinkByName(DefaultInterface); err == nil {
			t.Error("the interface is left behind")
		}
	})
}

// TestOwnInterfaceForeign has interfaces of our name that are not ours.
func TestOwnInterfaceForeign(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		a := &LocalAddr{Addr: families["IPv4"]}
		refused := func() {
			t.Helper()
			var inUse *InUseError
			err := a.Up()
			if !errors.As(err, &inUse) || inUse.Interface != DefaultInterface || !strings.Contains(err.Error(), "ip link delete") {
				t.Errorf("got %v", err)
			}
			must(t, netlink.LinkDel(linkOf(t, DefaultInterface)))
		}
		veth(t, DefaultInterface, "e1")
		refused()
		needDummy(t)
		foreign := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: DefaultInterface}}
		must(t, netlink.LinkAdd(foreign))
		must(t, netlink.LinkSetUp(linkOf(t, DefaultInterface)))
		refused()
		must(t, netlink.LinkAdd(foreign))
		give(t, linkOf(t, DefaultInterface), "10.0.0.1/24")
		refused()
		must(t, netlink.LinkAdd(foreign))
		must(t, netlink.LinkSetAlias(linkOf(t, DefaultInterface), "mine"))
		refused()
		// Close leaves alone what somebody has put in the place of ours.
		must(t, a.Up())
		must(t, netlink.LinkDel(linkOf(t, DefaultInterface)))
		veth(t, DefaultInterface, "e1")
		must(t, a.Close())
		linkOf(t, DefaultInterface)
	})
}

// TestNoDummy is what a kernel without the driver says.
func TestNoDummy(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		a := &LocalAddr{Addr: families["IPv4"]}
		err := a.Up()
		if err == nil {
			must(t, a.Close())
			return // TestOwnInterface tests the rest
		}
		if !errors.Is(err, ErrNoDummy) || !strings.Contains(err.Error(), "modprobe dummy, or name an existing interface") {
			t.Errorf("got %v", err)
		}
		wantOn(t, families["IPv4"], "")
	})
}
