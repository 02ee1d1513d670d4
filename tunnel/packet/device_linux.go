package packet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// kernelDevice is the descriptor of a device. The sockets for its settings are opened
// together with it, so that they are in its network namespace.
type kernelDevice struct {
	file *os.File
	raw  syscall.RawConn

	mu      sync.Mutex // guards netlink
	netlink *netlink.Handle
	link    netlink.Link // has its index only

	reader reader
	writer writer
}

// openDevice makes the device, and takes it back if it cannot be set up.
func openDevice(mode Mode, o DeviceOptions) (*Device, error) {
	if err := checkOptions(mode, o); err != nil {
		return nil, fmt.Errorf("packet: %w", err)
	}
	fd, name, err := attach(mode, o.Name)
	if err != nil {
		return nil, err
	}
	d := &Device{name: name, mode: mode}
	if d.kernel, err = newKernelDevice(fd, mode); err == nil {
		if err = d.setUp(o); err != nil {
			_ = d.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("packet: device %s: %w", name, err)
	}
	return d, nil
}

// newKernelDevice takes over a descriptor that does not block.
func newKernelDevice(fd int, mode Mode) (*kernelDevice, error) {
	k := &kernelDevice{file: os.NewFile(uintptr(fd), tunPath)}
	var err error
	if k.raw, err = k.file.SyscallConn(); err != nil {
		_ = k.file.Close()
		return nil, err
	}
	k.reader.step = k.reader.drain
	k.writer.mode, k.writer.step = mode, k.writer.write
	return k, nil
}

// checkOptions finds what the kernel would take for something else.
func checkOptions(mode Mode, o DeviceOptions) error {
	switch {
	case len(o.Name) >= unix.IFNAMSIZ:
		return fmt.Errorf("device name %q has more than %d bytes", o.Name, unix.IFNAMSIZ-1)
	case o.MTU < 0:
		return fmt.Errorf("negative MTU %d", o.MTU)
	case o.QueueLen < 0:
		return fmt.Errorf("negative queue length %d", o.QueueLen)
	case o.MAC != nil && mode == TUN:
		return errors.New("a TUN device has no MAC address")
	case o.MAC != nil && len(o.MAC) != 6:
		return fmt.Errorf("MAC address %v has %d bytes, not 6", o.MAC, len(o.MAC))
	}
	for _, a := range o.Addresses {
		if !a.IsValid() {
			return fmt.Errorf("address %v is not valid", a)
		}
	}
	return nil
}

// attach opens a descriptor and makes the interface behind it. The order matters:
// before TUNSETIFF the descriptor cannot be waited for, and os.NewFile only tries
// that once, for a descriptor that does not block.
func attach(mode Mode, name string) (fd int, got string, err error) {
	fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", refusedOpen(err)
	}
	got, err = setInterface(fd, mode, name)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, "", err
	}
	return fd, got, nil
}

// refusedOpen explains why there is no descriptor.
func refusedOpen(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: there is no %s: modprobe tun, and in a container: mkdir -p /dev/net && mknod %s c 10 200, or give it the device: %w", ErrUnsupported, tunPath, tunPath, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: this kernel has no TUN driver: modprobe tun: %w", ErrUnsupported, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: no right to open %s: run as root, or let the process write it: %w", ErrUnsupported, tunPath, err)
	}
	return fmt.Errorf("packet: %s: %w", tunPath, err)
}

// setInterface makes the interface and returns its name.
func setInterface(fd int, mode Mode, name string) (string, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return "", fmt.Errorf("packet: device name %q: %w", name, err)
	}
	kind := uint16(unix.IFF_TUN)
	if mode == TAP {
		kind = unix.IFF_TAP
	}
	// EXCL: without it an interface that somebody made to stay would be taken over.
	request.SetUint16(kind | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); {
	case err == nil:
		return request.Name(), nil
	case errors.Is(err, unix.EPERM):
		return "", fmt.Errorf("%w: no right to make an interface: it needs CAP_NET_ADMIN in the network namespace: %w", ErrUnsupported, err)
	case errors.Is(err, unix.EBUSY):
		return "", fmt.Errorf("packet: there is an interface %s already: end the process that has it, or if it was made to stay: ip link delete dev %s, or take another name: %w", name, name, err)
	default:
		return "", fmt.Errorf("packet: device %q cannot be made: %w", name, err)
	}
}

// setUp gives the interface its looks.
func (d *Device) setUp(o DeviceOptions) (err error) {
	k := d.kernel
	if err := k.setHeader(); err != nil {
		return err
	}
	if !o.NoOffload {
		d.offload = k.probeOffload()
	}
	if d.mode == TAP {
		if err := k.setCarrier(false); err != nil {
			return err
		}
	}
	if k.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	link, err := k.netlink.LinkByName(d.name)
	if err != nil {
		return err
	}
	d.index = link.Attrs().Index
	k.link = &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.index}}
	return k.dress(d.mode, o)
}

// setHeader fixes the form of the virtio-net header, which otherwise follows the byte
// order of the machine.
func (k *kernelDevice) setHeader() error {
	return k.ioctl(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
			return fmt.Errorf("header of %d bytes: %w", HeaderLen, err)
		}
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
			return fmt.Errorf("header in little endian: %w", err)
		}
		return nil
	})
}

// dress sets what netlink sets, and the interface up.
func (k *kernelDevice) dress(mode Mode, o DeviceOptions) error {
	if o.MAC != nil {
		if err := k.netlink.LinkSetHardwareAddr(k.link, o.MAC); err != nil {
			return fmt.Errorf("MAC address %v: %w", o.MAC, err)
		}
	}
	if err := k.setMTU(o.MTU); err != nil {
		return err
	}
	if err := k.netlink.LinkSetTxQLen(k.link, o.QueueLen); err != nil {
		return fmt.Errorf("queue of %d packets: %w", o.QueueLen, err)
	}
	if mode == TUN {
		// Else the kernel makes itself a link-local address and asks the far end for
		// routers, from a source that no credential names. Older kernels and those
		// without IPv6 refuse, and may go on.
		_ = k.netlink.LinkSetIP6AddrGenMode(k.link, nl6AddrGenModeNone)
	}
	if err := k.netlink.LinkSetUp(k.link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for _, a := range o.Addresses {
		if err := k.addAddress(a); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	for _, a := range o.Addresses {
		k.settle(a.Addr())
	}
	return nil
}

// nl6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE, for which package unix has no name.
const nl6AddrGenModeNone = 1

func (k *kernelDevice) addAddress(p netip.Prefix) error {
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Flags: unix.IFA_F_NODAD,
	}
	err := k.netlink.AddrAdd(k.link, a)
	if p.Addr().Is6() && errors.Is(err, unix.EOPNOTSUPP) {
		// Where IPv6 is a module, the first socket loads it.
		if fd, none := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); none == nil {
			_ = unix.Close(fd)
			err = k.netlink.AddrAdd(k.link, a)
		}
	}
	if p.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		return fmt.Errorf("no IPv6 there: it needs the module ipv6, an MTU of 1280 and sysctl net.ipv6.conf.default.disable_ipv6=0: %w", err)
	}
	return err
}

// settle waits until packets to the address end up here. For IPv6 the kernel sees to that
// some time after it has taken the address, and until then has no use for them. In vain is
// the wait where rules route the address in another way: that is left to their owner.
func (k *kernelDevice) settle(a netip.Addr) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := k.netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

// ioctl runs f while the descriptor is open.
func (k *kernelDevice) ioctl(f func(fd int) error) error {
	var err error
	if closed := k.raw.Control(func(fd uintptr) { err = f(int(fd)) }); closed != nil {
		return closed
	}
	if errors.Is(err, unix.EBADFD) {
		return ErrGone
	}
	return err
}

// probeOffload finds what this kernel knows, and leaves everything off.
func (k *kernelDevice) probeOffload() Offload {
	for _, o := range []Offload{OffloadAll, OffloadAll &^ OffloadUSO} {
		if k.tellOffload(o) == nil && k.tellOffload(0) == nil {
			return o
		}
	}
	return 0
}

func (k *kernelDevice) setOffload(o Offload) error {
	if err := k.tellOffload(o); err != nil {
		return fmt.Errorf("offload %v: %w", o, err)
	}
	return nil
}

func (k *kernelDevice) tellOffload(o Offload) error {
	flags := 0
	for _, f := range []struct {
		bit   Offload
		flags int
	}{
		{OffloadChecksum, unix.TUN_F_CSUM},
		{OffloadTSO4, unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN},
		{OffloadTSO6, unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN},
		{OffloadUSO, unix.TUN_F_USO4 | unix.TUN_F_USO6},
	} {
		if o&f.bit != 0 {
			flags |= f.flags
		}
	}
	return k.ioctl(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) })
}

func (k *kernelDevice) setCarrier(up bool) error {
	value := 0
	if up {
		value = 1
	}
	err := k.ioctl(func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TUNSETCARRIER, value) })
	if err != nil {
		return fmt.Errorf("carrier: %w", err)
	}
	return nil
}

func (k *kernelDevice) setMTU(n int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.netlink == nil {
		return net.ErrClosed
	}
	if err := k.netlink.LinkSetMTU(k.link, n); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return ErrGone
		}
		return fmt.Errorf("MTU %d: %w", n, err)
	}
	return nil
}

// gone reports whether the interface was deleted. The kernel answers
// only when a deletion that is under way is done.
func (k *kernelDevice) gone() bool {
	request, _ := unix.NewIfreq("")
	return errors.Is(k.ioctl(func(fd int) error { return unix.IoctlIfreq(fd, unix.TUNGETIFF, request) }), ErrGone)
}

func (k *kernelDevice) close() error {
	err := k.file.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.netlink != nil {
		k.netlink.Close()
		k.netlink = nil
	}
	return err
}
