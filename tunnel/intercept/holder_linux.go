package intercept

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// alias marks the dummy interface as ours.
const alias = "made by rhizome tunnel/intercept"

// forever is an infinite lifetime of an address, 0xffffffff; where int has only
// 32 bits, 68 years.
const forever = math.MaxUint32 & math.MaxInt

// The looks of our IPv6 addresses; package syscall has no names for them.
const (
	flagNoDAD      = 0x02
	flagDeprecated = 0x20
	flagPermanent  = 0x80
)

// holder holds one address in one network namespace. LocalAddr calls it under
// its lock, but for watch and unwatch.
type holder struct {
	addr   netip.Addr
	name   string // of the interface
	own    bool   // the interface is made by us
	taken  bool   // the address is ours: ensure has succeeded once
	lock   net.PacketConn
	kernel *netlink.Handle
	events *nl.NetlinkSocket
}

// newHolder takes the lock and opens the sockets.
func newHolder(addr netip.Addr, given string) (*holder, error) {
	h := &holder{addr: addr, name: given, own: given == ""}
	if h.own {
		h.name = DefaultInterface
	}
	var err error
	if h.lock, err = lockAddr(addr); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, &InUseError{Addr: addr,
				Problem: fmt.Sprintf("another process holds %v", addr),
				Remedy:  fmt.Sprintf("end it first, ss -xp shows who has %s", lockName(addr))}
		}
		return nil, fmt.Errorf("intercept: cannot lock %v: %w", addr, err)
	}
	if h.kernel, err = netlink.NewHandle(syscall.NETLINK_ROUTE); err == nil {
		h.events, err = nl.Subscribe(syscall.NETLINK_ROUTE, syscall.RTNLGRP_LINK, syscall.RTNLGRP_IPV4_IFADDR, syscall.RTNLGRP_IPV6_IFADDR)
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("intercept: netlink: %w", err)
	}
	return h, nil
}

func lockName(addr netip.Addr) string { return "@rhizome-intercept/" + addr.String() }

// lockAddr makes this process the only one of the network namespace that holds
// addr, until it closes the socket or dies.
func lockAddr(addr netip.Addr) (net.PacketConn, error) {
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: lockName(addr), Net: "unixgram"})
}

// close gives back all but the address.
func (h *holder) close() {
	if h.events != nil {
		h.events.Close()
	}
	if h.kernel != nil {
		h.kernel.Close()
	}
	_ = h.lock.Close()
}

// watch sends to changes, which must have room for one, whenever an interface or
// an address of the namespace changes, until unwatch.
func (h *holder) watch(changes chan<- struct{}) {
	for {
		// What exactly changed does not matter, nor that news were lost
		// because too many came: ensure looks at everything.
		_, _, err := h.events.Receive()
		if err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return // by unwatch; else the ticks must do
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}

func (h *holder) unwatch() { h.events.Close() }

// ensure makes that the interface has the address, and says what it did for it.
func (h *holder) ensure() (done string, err error) {
	var steps []string
	did := func(step string) { steps = append(steps, step) }
	// Another one of us may delete the interface between two steps.
	for range 3 {
		if err = h.try(did); !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EEXIST) {
			break
		}
	}
	if err != nil {
		var inUse *InUseError
		if !errors.As(err, &inUse) {
			err = fmt.Errorf("intercept: %v on %s: %w", h.addr, h.name, err)
		}
		return "", err
	}
	h.taken = true
	return strings.Join(steps, ", "), nil
}

func (h *holder) try(did func(string)) error {
	link, err := h.link()
	if err != nil {
		return err
	}
	present, err := h.find(link)
	if err != nil {
		return err
	}
	switch {
	case link == nil:
		if link, err = h.create(); err != nil {
			return err
		}
		did("interface made")
	case h.own && link.Attrs().Alias == "":
		if err := h.mark(link); err != nil {
			return err
		}
	case h.own && !h.taken:
		h.sweep(link, did)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if !h.own {
			return fmt.Errorf("the interface is down: ip link set dev %s up", h.name)
		}
		if err := h.kernel.LinkSetUp(link); err != nil {
			return refused(err)
		}
		did("interface set up")
		// IPv6 addresses went with the state.
		if present, err = h.find(link); err != nil {
			return err
		}
	}
	if present != nil {
		if h.looksOurs(present) {
			return nil
		}
		if err := h.kernel.AddrDel(link, present); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return refused(err)
		}
	}
	if err := h.kernel.AddrAdd(link, h.address()); err != nil {
		if errors.Is(err, syscall.EACCES) && h.addr.Is6() {
			return fmt.Errorf("IPv6 is off there: sysctl net.ipv6.conf.%s.disable_ipv6=0: %w", h.name, err)
		}
		return refused(err)
	}
	did("address added")
	h.settle()
	return nil
}

// settle waits until what is sent to the address ends up here. For IPv6 the kernel
// sees to that some time after it has taken the address, and until then sends it
// out of the interface. In vain is the wait where the address is routed in another
// way, such as by a VRF: that is left to its owner.
func (h *holder) settle() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := h.kernel.RouteGet(h.addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == syscall.RTN_LOCAL {
			return
		}
	}
}

// link returns the interface; nil if it is still to be made.
func (h *holder) link() (netlink.Link, error) {
	link, err := h.kernel.LinkByName(h.name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none) && h.own:
		return nil, nil
	case errors.As(err, &none):
		return nil, errors.New("there is no such interface")
	case err != nil:
		return nil, err
	case h.own && !madeByUs(link) && !h.halfMade(link):
		return nil, &InUseError{Addr: h.addr, Interface: h.name,
			Problem: fmt.Sprintf("the interface %s exists and is not ours", h.name),
			Remedy:  fmt.Sprintf("ip link delete dev %s, or name it as the interface to use", h.name)}
	}
	return link, nil
}

// madeByUs tells our interface from others of its name.
func madeByUs(link netlink.Link) bool {
	return link.Type() == "dummy" && link.Attrs().Alias == alias
}

// halfMade reports whether a dummy interface may have been left by a process that
// was killed between making and marking it, two requests to the kernel: it has no
// alias, is down, and has no address.
func (h *holder) halfMade(link netlink.Link) bool {
	a := link.Attrs()
	if link.Type() != "dummy" || a.Alias != "" || a.Flags&net.FlagUp != 0 {
		return false
	}
	list, err := h.addresses(link, netlink.FAMILY_ALL)
	return err == nil && len(list) == 0
}

// create makes our own interface.
func (h *holder) create() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = h.name
	if err := h.kernel.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		if errors.Is(err, syscall.EOPNOTSUPP) {
			return nil, fmt.Errorf("%w: modprobe dummy, or name an existing interface to use: %w", ErrNoDummy, err)
		}
		return nil, refused(err)
	}
	link, err := h.kernel.LinkByName(h.name)
	if err != nil {
		return nil, err
	}
	return link, h.mark(link)
}

// mark makes a dummy interface ours.
func (h *holder) mark(link netlink.Link) error {
	return refused(h.kernel.LinkSetAlias(link, alias))
}

// refused explains what the kernel says to those who may not.
func refused(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("this needs CAP_NET_ADMIN, run it as root: %w", err)
	}
	return err
}

// find returns the address as link has it, nil if it does not. If it is
// somebody else's, that is an error.
func (h *holder) find(link netlink.Link) (*netlink.Addr, error) {
	family := netlink.FAMILY_V4
	if h.addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := h.addresses(nil, family)
	if err != nil {
		return nil, err
	}
	var present *netlink.Addr
	for i := range list {
		if ip, _ := netip.AddrFromSlice(list[i].IP); ip.Unmap() != h.addr {
			continue
		}
		if link == nil || list[i].LinkIndex != link.Attrs().Index {
			return nil, h.elsewhere(list[i])
		}
		present = &list[i]
	}
	if present != nil && !h.own && !h.taken && !h.looksOurs(present) {
		return nil, h.elsewhere(*present)
	}
	return present, nil
}

// elsewhere is the error for an address that somebody else has put there.
func (h *holder) elsewhere(at netlink.Addr) error {
	name := fmt.Sprintf("number %d", at.LinkIndex)
	if link, err := h.kernel.LinkByIndex(at.LinkIndex); err == nil {
		name = link.Attrs().Name
	}
	return &InUseError{Addr: h.addr, Interface: name,
		Problem: fmt.Sprintf("%v is an address of interface %s already, and not ours", h.addr, name),
		Remedy:  fmt.Sprintf("if nobody needs it there, ip address delete %v dev %s", at.IPNet, name)}
}

// addresses lists those of one interface or, with nil, of all.
func (h *holder) addresses(link netlink.Link, family int) (list []netlink.Addr, err error) {
	for range 5 { // the list may change while it is read
		if list, err = h.kernel.AddrList(link, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// address is the address as we put it there: such that the kernel does not
// choose it as the source of what the host sends elsewhere.
func (h *holder) address() *netlink.Addr {
	bits := h.addr.BitLen()
	a := &netlink.Addr{IPNet: &net.IPNet{IP: h.addr.AsSlice(), Mask: net.CIDRMask(bits, bits)}}
	if h.addr.Is4() {
		a.Scope = int(netlink.SCOPE_HOST)
	} else {
		a.Flags, a.ValidLft, a.PreferedLft = flagNoDAD, forever, 0
	}
	return a
}

// looksOurs reports whether an address is as address makes it.
func (h *holder) looksOurs(a *netlink.Addr) bool {
	if !alone(a) {
		return false
	}
	if h.addr.Is4() {
		return a.Scope == int(netlink.SCOPE_HOST)
	}
	const want = flagNoDAD | flagDeprecated | flagPermanent
	return a.Flags&want == want
}

// alone reports whether an address is a /32 or /128.
func alone(a *netlink.Addr) bool {
	ones, bits := a.Mask.Size()
	return ones == bits
}

// sweep removes from our own interface what killed processes have left there:
// addresses that nobody holds now.
func (h *holder) sweep(link netlink.Link, did func(string)) {
	list, _ := h.addresses(link, netlink.FAMILY_ALL)
	for i := range list {
		ip, _ := netip.AddrFromSlice(list[i].IP)
		if ip = ip.Unmap(); ip == h.addr || !alone(&list[i]) {
			continue
		}
		lock, err := lockAddr(ip)
		if err != nil {
			continue // it is in use
		}
		if h.kernel.AddrDel(link, &list[i]) == nil {
			did("leftover " + ip.String() + " removed")
		}
		_ = lock.Close()
	}
}

// remove takes the address away, and then our interface if nobody else uses it.
func (h *holder) remove() error {
	link, err := h.kernel.LinkByName(h.name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return nil
	case err != nil:
		return fmt.Errorf("intercept: %s: %w", h.name, err)
	case h.own && !madeByUs(link):
		return nil // somebody has made another one meanwhile
	}
	err = h.kernel.AddrDel(link, h.address())
	if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("intercept: %v on %s: %w", h.addr, h.name, refused(err))
	}
	if !h.own {
		return nil
	}
	if used, err := h.used(link); used || err != nil {
		return err
	}
	if err := h.kernel.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("intercept: %s: %w", h.name, refused(err))
	}
	return nil
}

// used reports whether the interface has an address that it was given.
func (h *holder) used(link netlink.Link) (bool, error) {
	list, err := h.addresses(link, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("intercept: %s: %w", h.name, err)
	}
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() || a.IP.To4() != nil {
			return true, nil
		}
	}
	return false, nil
}
