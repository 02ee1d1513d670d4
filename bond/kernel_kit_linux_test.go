package bond_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// kernelHost is a network namespace of a kernel that has bonding.
type kernelHost struct{ *testing.T }

// inBondingKernel runs f in one, or skips the test.
func inBondingKernel(t *testing.T, f func(h *kernelHost)) {
	t.Helper()
	tunneltest.InNetns(t, func(t *testing.T) {
		h := &kernelHost{t}
		probe := netlink.NewLinkBond(netlink.LinkAttrs{Name: "probe"})
		err := netlink.LinkAdd(probe)
		if errors.Is(err, syscall.EOPNOTSUPP) {
			t.Skip(`this kernel has no bonding: run it with go test -exec "$PWD/.ci/run-in-kernel"`)
		}
		h.must(err)
		h.must(netlink.LinkDel(probe))
		f(h)
	})
}

func (h *kernelHost) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// until waits for a state that comes by itself.
func (h *kernelHost) until(what string, is func() bool) {
	h.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("still not: %s", what)
		}
	}
}

// tap makes a TAP, which has no carrier.
func (h *kernelHost) tap(name string) *packet.Device {
	h.Helper()
	d, err := packet.OpenTAP(&packet.DeviceOptions{Name: name})
	h.must(err)
	h.Cleanup(func() { d.Close() })
	return d
}

// taps makes tap0 and tap1.
func (h *kernelHost) taps() [2]*packet.Device {
	h.Helper()
	return [2]*packet.Device{h.tap("tap0"), h.tap("tap1")}
}

// bond is a bond as another library reads it.
func (h *kernelHost) bond(name string) *netlink.Bond {
	h.Helper()
	b, ok := h.link(name).(*netlink.Bond)
	if !ok {
		h.Fatalf("%s is no bond", name)
	}
	return b
}

func (h *kernelHost) link(name string) netlink.Link {
	h.Helper()
	l, err := netlink.LinkByName(name)
	h.must(err)
	return l
}

// add makes a bond that is not ours.
func (h *kernelHost) add(name string, with func(b *netlink.Bond)) *netlink.Bond {
	h.Helper()
	b := netlink.NewLinkBond(netlink.LinkAttrs{Name: name})
	if with != nil {
		with(b)
	}
	h.must(netlink.LinkAdd(b))
	return b
}

// join makes an interface a member of a bond without our help.
func (h *kernelHost) join(member, master string) {
	h.Helper()
	h.must(netlink.LinkSetDown(h.link(member)))
	h.must(netlink.LinkSetMaster(h.link(member), h.link(master)))
}

func (h *kernelHost) wantMaster(member, master string) {
	h.Helper()
	got := ""
	if i := h.link(member).Attrs().MasterIndex; i != 0 {
		l, err := netlink.LinkByIndex(i)
		h.must(err)
		got = l.Attrs().Name
	}
	if got != master {
		h.Errorf("the master of %s is %q, want %q", member, got, master)
	}
}

func (h *kernelHost) wantGone(name string) {
	h.Helper()
	if _, err := netlink.LinkByName(name); err == nil {
		h.Errorf("%s is left behind", name)
	}
}

// wantAddress wants the address to be on the interface or, with no, not to be.
func (h *kernelHost) wantAddress(name string, want netip.Prefix, yes bool) {
	h.Helper()
	if h.hasAddress(name, want) != yes {
		h.Errorf("that %s has %v is %t", name, want, !yes)
	}
}

func (h *kernelHost) hasAddress(name string, want netip.Prefix) bool {
	h.Helper()
	list, err := netlink.AddrList(h.link(name), netlink.FAMILY_ALL)
	h.must(err)
	for _, a := range list {
		if a.IPNet.String() == want.String() {
			return a.Flags&(syscall.IFA_F_TENTATIVE|0x08) == 0
		}
	}
	return false
}

// give gives an interface an address.
func (h *kernelHost) give(name, address string) {
	h.Helper()
	a, err := netlink.ParseAddr(address)
	h.must(err)
	h.must(netlink.AddrAdd(h.link(name), a))
}

// bind binds a socket to an address: the kernel takes it for its own.
func (h *kernelHost) bind(addr netip.Addr) *net.UDPConn {
	h.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	h.must(err)
	h.Cleanup(func() { c.Close() })
	return c
}

// history collects events.
type history struct {
	mu   sync.Mutex
	list []bond.Event
}

func (y *history) add(e bond.Event) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.list = append(y.list, e)
}

// lines are the events as kind, link, from>to.
func (y *history) lines() (list []string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, e := range y.list {
		s := string(e.Kind)
		if e.Link != "" {
			s += " " + e.Link
		}
		if e.Kind == bond.Switched {
			s += fmt.Sprintf(" %s>%s", e.From, e.To)
		}
		list = append(list, s)
	}
	return list
}

// reasons are those of all events in one text.
func (y *history) reasons() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	var list []string
	for _, e := range y.list {
		list = append(list, string(e.Kind)+": "+e.Reason)
	}
	return strings.Join(list, "\n")
}

func (y *history) clear() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.list = nil
}

// want waits for these events, in this order, others among them or not.
func (h *kernelHost) want(y *history, lines ...string) {
	h.Helper()
	h.until(strings.Join(lines, ", "), func() bool {
		rest := lines
		for _, l := range y.lines() {
			if len(rest) > 0 && l == rest[0] {
				rest = rest[1:]
			}
		}
		return len(rest) == 0
	})
}

// run runs a Kernel until stop, which returns what Run does.
func (h *kernelHost) run(k *bond.Kernel) (y *history, stop func() error) {
	h.Helper()
	y = &history{}
	k.OnEvent = y.add
	h.must(k.Up())
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	end := errors.New("the test ends it")
	stop = sync.OnceValue(func() error {
		cancel(end)
		if err := <-done; err != end {
			return err
		}
		return nil
	})
	h.Cleanup(func() {
		if err := stop(); err != nil {
			h.Error(err)
		}
		if h.Failed() {
			h.Logf("events:\n%s\n%s", strings.Join(y.lines(), "\n"), y.reasons())
		}
	})
	return y, stop
}
