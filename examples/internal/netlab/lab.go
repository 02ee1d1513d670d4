//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Lab is a set of hosts. It is safe for concurrent use but for New and Close.
type Lab struct {
	home   netns.NsHandle
	hosts  []*Host
	router *Host

	mu   sync.Mutex
	cuts map[cut]bool
}

// New makes a lab without hosts. Its error says what to do if the process may
// not make network namespaces.
func New() (*Lab, error) {
	home, err := netns.Get()
	if err != nil {
		return nil, err
	}
	l := &Lab{home: home, cuts: make(map[cut]bool)}
	l.router, err = l.Host("internet")
	if errors.Is(err, syscall.EPERM) {
		err = fmt.Errorf("%w: network namespaces need CAP_SYS_ADMIN: run it as root", err)
	}
	if err != nil {
		home.Close()
		return nil, err
	}
	if err := l.router.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close ends what was started on the hosts and removes them.
func (l *Lab) Close() error {
	var errs []error
	for _, h := range l.hosts {
		h.killAll()
		errs = append(errs, h.ns.Close())
	}
	l.hosts = nil
	return errors.Join(append(errs, l.home.Close())...)
}

// Host is a network namespace.
type Host struct {
	// Name is that of New or Lab.Host.
	Name string
	// Addr is its address on the router, after Lab.Internet.
	Addr netip.Addr

	lab  *Lab
	ns   netns.NsHandle
	mu   sync.Mutex
	runs []*run
}

// Host adds a host whose loopback is up and that has no other interface.
func (l *Lab) Host(name string) (*Host, error) {
	h := &Host{Name: name, lab: l, ns: -1}
	err := onThread(l.home, func() (err error) {
		h.ns, err = netns.New() // enters it
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	l.hosts = append(l.hosts, h)
	return h, h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// onThread runs f on a thread of its own for the time, which is in the namespace
// home before and after.
func onThread(home netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := f()
		if back := netns.Set(home); back != nil {
			// The thread must not serve others: it ends with this goroutine.
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Do runs f in the host. Sockets and devices that f itself opens are the host's
// and can be used anywhere; what f starts as a goroutine is outside.
func (h *Host) Do(f func() error) error {
	return onThread(h.lab.home, func() error {
		if err := netns.Set(h.ns); err != nil {
			return err
		}
		return f()
	})
}

// Sysctl sets a variable below /proc/sys that belongs to the namespace.
func (h *Host) Sysctl(name, value string) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

// Cable joins two hosts by a pair of interfaces with the given names and, where
// they are valid, addresses.
func (l *Lab) Cable(a *Host, aName string, aAddr netip.Prefix, b *Host, bName string, bAddr netip.Prefix) error {
	err := a.Do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.ns)}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return setUp(aName, aAddr)
	})
	if err == nil {
		err = b.Do(func() error { return setUp(bName, bAddr) })
	}
	if err != nil {
		return fmt.Errorf("cable %s %s - %s %s: %w", a.Name, aName, b.Name, bName, err)
	}
	return nil
}

func setUp(name string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if addr.IsValid() {
		a := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			a.Flags = syscall.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Bridge makes a switch in h of interfaces that h has, with an address of h's
// own on it.
func (h *Host) Bridge(name string, addr netip.Prefix, members ...string) error {
	return h.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		for _, m := range members {
			link, err := netlink.LinkByName(m)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				return err
			}
		}
		return setUp(name, addr)
	})
}

// Route adds a route to h. The zero prefix is the default route.
func (h *Host) Route(to netip.Prefix, via netip.Addr) error {
	return h.Do(func() error {
		r := &netlink.Route{Gw: via.AsSlice()}
		if to.IsValid() {
			r.Dst = ipNet(to)
		}
		return netlink.RouteAdd(r)
	})
}

// Internet puts a router between hosts: each has an interface eth0 with an
// address of its own, and a default route. Routes of the router are to these
// addresses only.
func (l *Lab) Internet(hosts ...*Host) error {
	for _, h := range hosts {
		n := byte(l.indexOf(h))
		h.Addr = netip.AddrFrom4([4]byte{10, 9, n, 2})
		gateway := netip.AddrFrom4([4]byte{10, 9, n, 1})
		if err := l.Cable(l.router, h.Name, netip.PrefixFrom(gateway, 30), h, "eth0", netip.PrefixFrom(h.Addr, 30)); err != nil {
			return err
		}
		if err := h.Route(netip.Prefix{}, gateway); err != nil {
			return fmt.Errorf("default route of %s: %w", h.Name, err)
		}
	}
	return nil
}

func (l *Lab) indexOf(h *Host) int {
	for i, other := range l.hosts {
		if other == h {
			return i
		}
	}
	return 0
}
