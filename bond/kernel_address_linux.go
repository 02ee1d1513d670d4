package bond

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(a *netlink.Addr) netip.Prefix {
	addr, _ := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// ensureAddresses adds what is missing.
func (d *driver) ensureAddresses(did func(string, ...any)) error {
	list, err := d.kernel.addressList(d.index)
	if err != nil {
		return err
	}
	have := make(map[netip.Addr]*netlink.Addr)
	for i := range list {
		have[prefixOf(&list[i]).Addr()] = &list[i]
	}
	var errs []error
	for _, p := range d.plan.addresses {
		there := have[p.Addr()]
		// One that the kernel has not found to be unique is of no use.
		if there != nil && prefixOf(there) == p && there.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			continue
		}
		if err := d.putAddress(p, there); err != nil {
			errs = append(errs, fmt.Errorf("address %v: %w", p, err))
			continue
		}
		did("address %v added", p)
	}
	return errors.Join(errs...)
}

// putAddress adds an address, in place of the one that is there if it is not nil.
func (d *driver) putAddress(p netip.Prefix, there *netlink.Addr) error {
	if there != nil {
		if prefixOf(there) != p && !d.made {
			return fmt.Errorf("it is there as %v: ip address delete %v dev %s", there.IPNet, there.IPNet, d.plan.name)
		}
		if err := d.kernel.addressDel(d.index, there); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return refused(err)
		}
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	err := d.kernel.addressAdd(d.index, a)
	switch {
	case errors.Is(err, unix.EACCES) && p.Addr().Is6():
		return fmt.Errorf("IPv6 is off there: sysctl net.ipv6.conf.%s.disable_ipv6=0: %w", d.plan.name, err)
	case err != nil:
		return refused(err)
	}
	d.added = append(d.added, p)
	d.settle(p.Addr())
	return nil
}

// settle waits until what is sent to the address ends up here. For IPv6 the kernel
// sees to that some time after it has taken the address, and until then sends it
// out of the interface. In vain is the wait where the address is routed in another
// way, such as by a VRF: that is left to its owner.
func (d *driver) settle(addr netip.Addr) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if d.kernel.local(addr) {
			return
		}
	}
}
