package intercept

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The addresses that the tests own, one of each family.
var families = map[string]netip.Addr{
	"IPv4": netip.MustParseAddr("240.1.2.3"),
	"IPv6": netip.MustParseAddr("fd00:1::2"),
}

// inHost runs f in a network namespace for each family.
func inHost(t *testing.T, f func(t *testing.T, addr netip.Addr)) {
	for name, addr := range families {
		t.Run(name, func(t *testing.T) {
			tunneltest.InNetns(t, func(t *testing.T) { f(t, addr) })
		})
	}
}

// veth makes a pair of interfaces, both up.
func veth(t *testing.T, name, peer string) (a, b netlink.Link) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	for _, n := range []string{name, peer} {
		must(t, netlink.LinkSetUp(linkOf(t, n)))
	}
	return linkOf(t, name), linkOf(t, peer)
}

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

// give adds an address as an administrator would: IP/BITS.
func give(t *testing.T, l netlink.Link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	a.Flags = flagNoDAD
	must(t, netlink.AddrAdd(l, a))
}

// find returns an address of the namespace and the name of its interface, "" if
// nobody has it.
func find(t *testing.T, addr netip.Addr) (a netlink.Addr, name string) {
	t.Helper()
	h := &holder{}
	var err error
	if h.kernel, err = netlink.NewHandle(syscall.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	defer h.kernel.Close()
	list, err := h.addresses(nil, netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range list {
		if ip, _ := netip.AddrFromSlice(a.IP); ip.Unmap() == addr {
			l, err := netlink.LinkByIndex(a.LinkIndex)
			must(t, err)
			return a, l.Attrs().Name
		}
	}
	return netlink.Addr{}, ""
}

// wantOn fails unless the address is on the interface, as ours.
func wantOn(t *testing.T, addr netip.Addr, name string) {
	t.Helper()
	a, on := find(t, addr)
	if on != name || name != "" && !(&holder{addr: addr}).looksOurs(&a) {
		t.Errorf("%v is on %q (%+v), want it on %q", addr, on, a, name)
	}
}

// running has Run run until stop, whose result is Run's.
func running(t *testing.T, a *LocalAddr) (stop func() error) {
	t.Helper()
	must(t, a.Up())
	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan error, 1)
	go func() { result <- a.Run(ctx) }()
	stopped := errors.New("stopped")
	t.Cleanup(func() { cancel(stopped) })
	return func() error {
		cancel(stopped)
		if err := <-result; err != stopped {
			return errors.Join(errors.New("Run does not return the cause"), err)
		}
		return nil
	}
}

// crash leaves everything as a process does that is killed.
func crash(a *LocalAddr) {
	a.holder.close()
	a.holder = nil
}

// talk has bytes go over a conn to the address and back, within the host.
func talk(t *testing.T, addr netip.Addr) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 443).String())
	must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer c.Close()
	s, err := l.Accept()
	must(t, err)
	_, err = s.Write([]byte("hello"))
	must(t, errors.Join(err, s.Close()))
	b, err := io.ReadAll(c)
	if string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}
