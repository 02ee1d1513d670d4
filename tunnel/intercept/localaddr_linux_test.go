package intercept

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestGivenInterface(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		l, _ := veth(t, "e0", "e1")
		a := &LocalAddr{Addr: addr, Interface: "e0", CheckInterval: -1}
		stop := running(t, a)
		wantOn(t, addr, "e0")
		talk(t, addr)
		for range 3 {
			must(t, netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
			eventually(t, "address back", func() bool { _, on := find(t, addr); return on == "e0" && a.Ready() == nil })
		}
		wantOn(t, addr, "e0")
		talk(t, addr)
		must(t, stop())
		wantOn(t, addr, "")
		linkOf(t, "e0")
		if a.Ready() == nil {
			t.Error("ready after Run")
		}
	})
}

// TestChecksAgain relies on the interval alone: the kernel's news are off.
func TestChecksAgain(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		addr := families["IPv4"]
		l, _ := veth(t, "e0", "e1")
		var logs logBuffer
		a := &LocalAddr{Addr: addr, Interface: "e0", CheckInterval: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logs, nil))}
		must(t, a.Up())
		a.holder.events.Close()
		stop := running(t, a)
		must(t, netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
		eventually(t, "address back", func() bool { _, on := find(t, addr); return on == "e0" })
		must(t, stop())
		if want := `level=WARN msg="address put back" address=240.1.2.3 interface=e0 done="address added"`; !strings.Contains(logs.String(), want) {
			t.Errorf("no %q in the log:\n%s", want, logs.String())
		}
	})
}

// TestGivenInterfaceGone takes the interface away and brings it back, and takes
// it down.
func TestGivenInterfaceGone(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		l, _ := veth(t, "e0", "e1")
		a := &LocalAddr{Addr: addr, Interface: "e0"}
		stop := running(t, a)
		must(t, netlink.LinkDel(l))
		eventually(t, "not ready", func() bool { return a.Ready() != nil })
		l, _ = veth(t, "e0", "e1")
		eventually(t, "ready", func() bool { return a.Ready() == nil })
		wantOn(t, addr, "e0")
		must(t, netlink.LinkSetDown(l))
		eventually(t, "not ready", func() bool {
			err := a.Ready()
			return err != nil && strings.Contains(err.Error(), "ip link set dev e0 up")
		})
		must(t, netlink.LinkSetUp(l))
		eventually(t, "ready", func() bool { return a.Ready() == nil })
		wantOn(t, addr, "e0")
		must(t, netlink.LinkDel(l))
		must(t, stop())
	})
}

// TestNotStolen has the address elsewhere, before and meanwhile.
func TestNotStolen(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		e0, _ := veth(t, "e0", "e1")
		f0, _ := veth(t, "f0", "f1")
		cidr := netip.PrefixFrom(addr, addr.BitLen()).String()
		refused := func(given, owner string) {
			t.Helper()
			err := (&LocalAddr{Addr: addr, Interface: given}).Up()
			var inUse *InUseError
			if !errors.As(err, &inUse) || inUse.Interface != owner || inUse.Addr != addr ||
				!strings.Contains(err.Error(), "ip address delete "+cidr+" dev "+owner) {
				t.Errorf("got %v, want that %s has it", err, owner)
			}
		}
		give(t, f0, cidr)
		refused("e0", "f0")
		refused("", "f0") // before an interface is made
		refused("f0", "f0")
		if _, err := netlink.LinkByName(DefaultInterface); err == nil {
			t.Error("an interface was made all the same")
		}
		must(t, netlink.AddrDel(f0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
		// An address with a network around it is nobody's leftover.
		wide := netip.PrefixFrom(addr, addr.BitLen()-8).String()
		give(t, f0, wide)
		err := (&LocalAddr{Addr: addr, Interface: "f0"}).Up()
		if err == nil || !strings.Contains(err.Error(), "ip address delete "+wide+" dev f0") {
			t.Errorf("got %v", err)
		}
		wideAddr, err := netlink.ParseAddr(wide)
		must(t, err)
		must(t, netlink.AddrDel(f0, wideAddr))

		var logs logBuffer
		a := &LocalAddr{Addr: addr, Interface: "e0", Logger: slog.New(slog.NewTextHandler(&logs, nil))}
		stop := running(t, a)
		give(t, f0, cidr)
		eventually(t, "not ready", func() bool { return a.Ready() != nil })
		if !strings.Contains(logs.String(), "is an address of interface f0 already") {
			t.Errorf("nothing in the log:\n%s", logs.String())
		}
		must(t, netlink.AddrDel(e0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
		must(t, netlink.AddrDel(f0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
		eventually(t, "ready", func() bool { return a.Ready() == nil })
		wantOn(t, addr, "e0")
		must(t, stop())
		wantOn(t, addr, "")
	})
}

// TestPutRight has somebody make the address one that the kernel may choose as a
// source. (Of IPv4 addresses the scope cannot be changed.)
func TestPutRight(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		addr := families["IPv6"]
		e0, _ := veth(t, "e0", "e1")
		a := &LocalAddr{Addr: addr, Interface: "e0"}
		stop := running(t, a)
		must(t, netlink.AddrReplace(e0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice()), ValidLft: forever, PreferedLft: forever}))
		eventually(t, "address right", func() bool {
			got, on := find(t, addr)
			return on == "e0" && (&holder{addr: addr}).looksOurs(&got) && a.Ready() == nil
		})
		must(t, stop())
	})
}

// TestManyChanges has more news from the kernel than the socket holds.
func TestManyChanges(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		addr := families["IPv4"]
		e0, _ := veth(t, "e0", "e1")
		a := &LocalAddr{Addr: addr, Interface: "e0", CheckInterval: -1}
		must(t, a.Up())
		for range 2000 { // nobody reads them yet
			must(t, netlink.LinkSetAlias(e0, "a"))
		}
		must(t, netlink.AddrDel(e0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))
		stop := running(t, a)
		eventually(t, "address back", func() bool { _, on := find(t, addr); return on == "e0" })
		must(t, stop())
	})
}

// TestNotAllowed has no CAP_NET_ADMIN.
func TestNotAllowed(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		veth(t, "e0", "e1")
		here, err := netns.Get()
		must(t, err)
		defer here.Close()
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // and the thread ends with this goroutine
			result <- func() error {
				if err := netns.Set(here); err != nil {
					return err
				}
				var none [2]unix.CapUserData
				if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
					return err
				}
				return (&LocalAddr{Addr: families["IPv4"], Interface: "e0"}).Up()
			}()
		}()
		err = <-result
		if !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "this needs CAP_NET_ADMIN, run it as root") {
			t.Errorf("got %v", err)
		}
	})
}

// TestOff has an interface without IPv6.
func TestOff(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		veth(t, "e0", "e1")
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/e0/disable_ipv6", []byte("1"), 0); err != nil {
			t.Skip("cannot switch IPv6 off:", err)
		}
		err := (&LocalAddr{Addr: families["IPv6"], Interface: "e0"}).Up()
		if err == nil || !strings.Contains(err.Error(), "sysctl net.ipv6.conf.e0.disable_ipv6=0") {
			t.Errorf("got %v", err)
		}
	})
}

// TestTwoProcesses has two that want the same address. Where an abstract socket
// counts, two of one process are as good as two processes.
func TestTwoProcesses(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		veth(t, "e0", "e1")
		first, second := &LocalAddr{Addr: addr, Interface: "e0"}, &LocalAddr{Addr: addr, Interface: "e0"}
		must(t, first.Up())
		err := second.Up()
		var inUse *InUseError
		if !errors.As(err, &inUse) || inUse.Interface != "" || !strings.Contains(err.Error(), "another process holds") {
			t.Errorf("got %v", err)
		}
		wantOn(t, addr, "e0")
		must(t, first.Close())
		must(t, second.Up())
		must(t, second.Close())
	})
}

// TestGivenInterfaceLeftover takes over what a killed process has left.
func TestGivenInterfaceLeftover(t *testing.T) {
	inHost(t, func(t *testing.T, addr netip.Addr) {
		veth(t, "e0", "e1")
		a := &LocalAddr{Addr: addr, Interface: "e0"}
		must(t, a.Up())
		crash(a)
		wantOn(t, addr, "e0")
		must(t, a.Up())
		wantOn(t, addr, "e0")
		must(t, a.Close())
		wantOn(t, addr, "")
	})
}

// TestNotASource asks the kernel for the source address of what goes elsewhere,
// where an address of usual looks on the same interface is the one it takes.
func TestNotASource(t *testing.T) {
	for name, c := range map[string]struct{ addr, own, elsewhere, viaGateway string }{
		"IPv4": {"240.1.2.3", "10.1.1.1/24", "192.0.2.1", "10.1.1.2"},
		"IPv6": {"fd00:1::2", "fd00:2::1/64", "fd00:1::99", "fd00:2::2"},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.InNetns(t, func(t *testing.T) {
				addr, own := netip.MustParseAddr(c.addr), netip.MustParsePrefix(c.own)
				e0, _ := veth(t, "e0", "e1")
				f0, _ := veth(t, "f0", "f1")
				give(t, f0, c.own)
				bits := addr.BitLen()
				route := func() { // it goes with the last address
					t.Helper()
					must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: e0.Attrs().Index,
						Dst: &net.IPNet{IP: net.ParseIP(c.elsewhere), Mask: net.CIDRMask(bits, bits)}}))
				}
				source := func(to string) netip.Addr {
					t.Helper()
					u, err := net.Dial("udp", net.JoinHostPort(to, "53"))
					must(t, err)
					defer u.Close()
					return u.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
				}
				usual := netip.PrefixFrom(addr, bits).String()
				give(t, e0, usual)
				route()
				if got := source(c.elsewhere); got != addr {
					t.Errorf("an address of usual looks is not taken, but %v: this test shows nothing", got)
				}
				must(t, netlink.AddrDel(e0, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())}))

				a := &LocalAddr{Addr: addr, Interface: "e0"}
				must(t, a.Up())
				defer a.Close()
				route()
				for _, to := range []string{c.elsewhere, c.viaGateway} {
					if got := source(to); got != own.Addr() {
						t.Errorf("to %s the source is %v, want %v", to, got, own.Addr())
					}
				}
				if got := source(c.addr); got != addr {
					t.Errorf("to the address itself the source is %v", got)
				}
			})
		})
	}
}

func TestGivenInterfaceUnknown(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		err := (&LocalAddr{Addr: families["IPv4"], Interface: "none0"}).Up()
		if err == nil || err.Error() != "intercept: 240.1.2.3 on none0: there is no such interface" {
			t.Errorf("got %v", err)
		}
		veth(t, "e0", "e1")
		must(t, netlink.LinkSetDown(linkOf(t, "e0")))
		err = (&LocalAddr{Addr: families["IPv4"], Interface: "e0"}).Up()
		if err == nil || !strings.Contains(err.Error(), "the interface is down: ip link set dev e0 up") {
			t.Errorf("got %v", err)
		}
	})
}
