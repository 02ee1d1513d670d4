package bond

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

const fakeIn = "tap0 in bond0 up; tap1 in bond0 up; bond0 up 10.0.0.1/24 fd00::1/64"

// fakeBond is a Kernel over a fake one.
func fakeBond(f *fakeKernel) *Kernel {
	return &Kernel{Members: []string{"tap0", "tap1"}, connect: f.connect,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}}
}

// TestKernelFake makes sure that the fake is like a kernel, where both are tested.
func TestKernelFake(t *testing.T) {
	f := newFakeKernel("tap0", "tap1")
	k := fakeBond(f)
	if err := k.Up(); err != nil {
		t.Fatal(err)
	}
	if got := f.state(); got != fakeIn {
		t.Errorf("got %s", got)
	}
	asked := len(f.asked)
	if err := k.Up(); err != nil || len(f.asked) != asked {
		t.Errorf("a second Up: %v, %q", err, f.asked[asked:])
	}
	if err := k.SetMTU(1400); err != nil || f.find("tap1").mtu != 1400 {
		t.Errorf("MTU: %v", err)
	}
	if err := k.Close(); err != nil || f.state() != "tap0; tap1" {
		t.Errorf("after Close: %v, %s", err, f.state())
	}
}

// TestKernelSweep removes what a killed process has made, and nothing else.
func TestKernelSweep(t *testing.T) {
	f := newFakeKernel("tap0", "tap1")
	if err := fakeBond(f).Up(); err != nil { // and is killed
		t.Fatal(err)
	}
	sweep := func(want string) {
		t.Helper()
		if err := (&Kernel{connect: f.connect}).Sweep(); err != nil || f.state() != want {
			t.Errorf("%v, left is %s, want %s", err, f.state(), want)
		}
	}
	sweep("tap0; tap1")
	sweep("tap0; tap1")
	f.add("bond0", "bond")
	sweep("tap0; tap1; bond0")
	f.refuse["get"] = syscall.EBUSY
	if err := (&Kernel{connect: f.connect}).Sweep(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("got %v", err)
	}
}

// TestKernelRefused has the kernel refuse each thing that is asked of it. The error
// says what, and nothing is left.
func TestKernelRefused(t *testing.T) {
	busy := fmt.Errorf("%w: the driver's words", syscall.EBUSY)
	for what, want := range map[string]string{
		"open":               "bond: bond0: ",
		"get":                "bond: bond0: ",
		"dump":               "bond: bond0: ",
		"create":             "bond: bond0: ",
		"alias":              "bond: bond0: ",
		"set mode":           "bond: bond0: mode active-backup: ",
		"set miimon":         "bond: bond0: miimon 100: ",
		"set fail_over_mac":  "bond: bond0: fail_over_mac active: ",
		"set num_peer_notif": "bond: bond0: num_peer_notif 5: ",
		"set primary":        "primary 1: ",
		"in":                 "member tap0: ",
		"mtu":                "MTU 1400: ",
		"up":                 "up: ",
		"list addresses":     "bond: bond0: ",
		"add address":        "address 10.0.0.1/24: ",
	} {
		f := newFakeKernel("tap0", "tap1")
		k := fakeBond(f)
		k.MTU = 1400
		f.refuse[what] = busy
		err := k.Up()
		if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), want+busy.Error()) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		if got := f.state(); got != "tap0; tap1" && what != "get" {
			t.Errorf("%s: left behind: %s", what, got)
		}
		delete(f.refuse, what)
		// And afterwards it goes.
		if err := k.Up(); err != nil || f.state() != fakeIn {
			t.Errorf("%s: again: %v, %s", what, err, f.state())
		}
		// Nor can it be removed, if the kernel does not let us.
		f.refuse["delete"] = busy
		if err := k.Close(); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "bond: bond0: remove: ") {
			t.Errorf("close: %v", err)
		}
	}
}

// TestKernelRefusedRights has errors that are explained.
func TestKernelRefusedRights(t *testing.T) {
	for _, c := range []struct {
		what string
		err  error
		want string
	}{
		{"create", syscall.EOPNOTSUPP, "this kernel has no bonding driver: modprobe bonding, or use Bond"},
		{"create", syscall.EPERM, "it needs CAP_NET_ADMIN in the network namespace"},
		{"set miimon", syscall.EPERM, "it needs CAP_NET_ADMIN in the network namespace"},
		{"add address", syscall.EPERM, "it needs CAP_NET_ADMIN in the network namespace"},
		{"add address", syscall.EACCES, "IPv6 is off there: sysctl net.ipv6.conf.bond0.disable_ipv6=0"},
	} {
		f := newFakeKernel("tap0", "tap1")
		f.refuse[c.what] = c.err
		k := fakeBond(f)
		k.Addresses = k.Addresses[1:]
		err := k.Up()
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUnsupported) != (c.err != syscall.EACCES) {
			t.Errorf("%s %v: %v", c.what, c.err, err)
		}
	}
}

// TestKernelOldDriver has one without the newer options.
func TestKernelOldDriver(t *testing.T) {
	f := newFakeKernel("tap0", "tap1")
	f.unknown = []*option{optMissedMax, optPeerNotifDelay, optNSTarget}
	k := fakeBond(f)
	if err := k.Up(); err != nil {
		t.Errorf("by default: %v", err)
	}
	_ = k.Close()
	k.PeerNotifyDelay = time.Second
	if err := k.Up(); err == nil || !strings.Contains(err.Error(), "peer_notif_delay 1000: this kernel's driver has no such option") {
		t.Errorf("got %v", err)
	}
}

// TestKernelMadeMeanwhile has a bond come up when ours is made: loading the driver
// does that.
func TestKernelMadeMeanwhile(t *testing.T) {
	f := newFakeKernel("tap0", "tap1")
	f.refuse["create"] = syscall.EEXIST
	k := fakeBond(f)
	if err := k.Up(); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("got %v", err)
	}
	f.add("bond0", "bond")
	if err := k.Up(); err != nil || !k.Status().Adopted || f.state() != fakeIn {
		t.Errorf("got %v, %s", err, f.state())
	}
	if err := k.Close(); err != nil || f.state() != "tap0; tap1; bond0" {
		t.Errorf("got %v, %s", err, f.state())
	}
	// One that cannot be left as it was is left as far as it can.
	if err := k.Up(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"out", "remove address", "down", "alias"} {
		f.refuse[what] = syscall.EBUSY
	}
	if err := k.Close(); !errors.Is(err, syscall.EBUSY) || strings.Count(err.Error(), "busy") < 4 {
		t.Errorf("got %v", err)
	}
}

// TestKernelLeftoverFake has what a killed process left refuse to be cleaned up.
func TestKernelLeftoverFake(t *testing.T) {
	for _, what := range []string{"out", "remove address", "list addresses"} {
		f := newFakeKernel("tap0", "tap1", "old")
		b := f.add("bond0", "bond")
		f.with(func() { b.alias, f.find("old").master = aliasMade, b.index })
		f.addresses[b.index] = []netlink.Addr{{IPNet: ipNet(netip.MustParsePrefix("10.0.0.9/24"))}, {IPNet: ipNet(netip.MustParsePrefix("fe80::1/64"))}}
		f.refuse[what] = syscall.EBUSY
		k := fakeBond(f)
		k.Mode = ModeBalanceRR
		if err := k.Up(); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// One with the address, but with another length, is ours to mend.
	f := newFakeKernel("tap0", "tap1")
	b := f.add("bond0", "bond")
	f.with(func() { b.alias = aliasMade })
	k := fakeBond(f)
	if err := k.Up(); err != nil {
		t.Fatal(err)
	}
	f.with(func() {
		f.addresses[b.index] = []netlink.Addr{{IPNet: ipNet(netip.MustParsePrefix("10.0.0.1/8"))}, {IPNet: ipNet(netip.MustParsePrefix("fd00::1/64")), Flags: unix.IFA_F_DADFAILED}}
	})
	if err := k.Up(); err != nil || f.state() != fakeIn {
		t.Errorf("got %v, %s", err, f.state())
	}
}

// diary collects events.
type diary struct {
	mu   sync.Mutex
	list []string
}

func (y *diary) add(e Event) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.list = append(y.list, strings.Join([]string{string(e.Kind), e.Link, e.From, e.To, e.Reason}, "|"))
}

// has waits for an event that has all the words.
func (y *diary) has(t *testing.T, words ...string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		y.mu.Lock()
		ok := slices.ContainsFunc(y.list, func(s string) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) })
		})
		list := strings.Join(y.list, "\n")
		y.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no event with %q among\n%s", words, list)
		}
	}
}

// TestKernelRun has a Kernel at work while others change things at the same time.
func TestKernelRun(t *testing.T) {
	f := newFakeKernel("tap0", "tap1")
	y := new(diary)
	k := fakeBond(f)
	k.OnEvent = y.add
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	for end := time.Now().Add(20 * time.Second); f.state() != fakeIn; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("got %s", f.state())
		}
	}
	f.with(func() { f.find("tap1").carrier = true })
	y.has(t, "link-up|tap1")
	y.has(t, "switched||", "|tap1|the first member that is up")
	f.with(func() { f.find("tap0").carrier = true })
	y.has(t, "switched||tap1|tap0|the primary is up again")
	f.with(func() { f.find("tap0").carrier = false })
	y.has(t, "switched||tap0|tap1|tap0 is down")
	if active, err := k.Active(); active != "tap1" || err != nil {
		t.Errorf("active: %s, %v", active, err)
	}
	f.with(func() { f.remove(f.find("bond0")) })
	y.has(t, "bond-deleted")
	y.has(t, "restored", "bond made, mode active-backup")
	f.with(func() {
		f.find("bond0").bond[optMIIMon.attr] = nl.Uint32Attr(7)
		f.tell(unix.RTM_NEWLINK, f.find("bond0"))
	})
	y.has(t, "restored||||miimon 100")
	// The news of a member that goes are lost.
	f.with(func() {
		f.remove(f.find("tap1"))
		f.told, f.lost = nil, true
		f.refuse["dump"] = netlink.ErrDumpInterrupted
	})
	y.has(t, "failed", "bond: bond0: results may be incomplete")
	f.with(func() { delete(f.refuse, "dump") })
	y.has(t, "member-removed|tap1|||the interface is gone")
	y.has(t, "failed", "there is no interface tap1 to be a member")
	if k.Ready() == nil || !strings.Contains(k.Status().Problem, "tap1") || len(k.Status().Members) != 1 {
		t.Errorf("all is well without tap1: %+v", k.Status())
	}
	f.add("tap1", "tun")
	y.has(t, "restored||||member tap1 in")
	// Refused for a while.
	f.with(func() {
		f.refuse["up"] = syscall.EBUSY
		f.find("bond0").flags = 0
		f.tell(unix.RTM_NEWLINK, f.find("bond0"))
	})
	y.has(t, "failed||||bond: bond0: up: device or resource busy")
	f.with(func() { delete(f.refuse, "up") })
	y.has(t, "restored||||up")
	// The order of news cannot be found out: so told at once.
	f.with(func() { f.refuse["mark"] = syscall.EBUSY; f.find("tap0").master = 0 })
	y.has(t, "restored||||member tap0 in")
	end := errors.New("the end")
	cancel(end)
	if err := <-done; err != end || f.state() != "tap0; tap1" {
		t.Errorf("got %v, %s", err, f.state())
	}
}

// TestKernelNewsLost: what the kernel drops behind the first news that it had to drop,
// of which it says nothing, is seen; and an odd error is not the end of news.
func TestKernelNewsLost(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		f := newFakeKernel("tap0", "tap1")
		k := fakeBond(f)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		time.Sleep(time.Minute)
		spoil := func(tell bool) {
			f.with(func() {
				f.find("bond0").bond[optMIIMon.attr] = nl.Uint32Attr(7)
				if tell {
					f.tell(unix.RTM_NEWLINK, f.find("bond0"))
				}
			})
		}
		mended := func() {
			t.Helper()
			f.mu.Lock()
			defer f.mu.Unlock()
			if got := f.find("bond0").bond[optMIIMon.attr]; !slices.Equal(got, nl.Uint32Attr(100)) {
				t.Errorf("miimon is %v", got)
			}
		}
		wake := func() { f.tell(unix.RTM_NEWLINK, f.find("tap0")) }
		f.with(func() { wake(); f.lost = true })
		time.Sleep(lookAgain / 2)
		spoil(false)
		time.Sleep(lookAgain)
		mended()

		f.with(func() { wake(); f.refuse["receive"] = syscall.EIO })
		time.Sleep(lookAgain / 2)
		spoil(false)
		time.Sleep(lookAgain)
		mended()
		time.Sleep(time.Minute)
		spoil(true)
		time.Sleep(lookAgain)
		mended()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestKernelRunFails has what Run cannot begin or end with.
func TestKernelRunFails(t *testing.T) {
	f := newFakeKernel("tap0")
	k := fakeBond(f)
	if err := k.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no interface tap1") {
		t.Errorf("got %v", err)
	}
	f.add("tap1", "tun")
	f.refuse["delete"] = syscall.EBUSY
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Run(ctx); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("got %v", err)
	}
	if err := (&Kernel{}).Run(t.Context()); err == nil {
		t.Error("no error without members")
	}
}

// TestKernelLock has one process at a time have a bond.
func TestKernelLock(t *testing.T) {
	name := fmt.Sprintf("b%d", os.Getpid())
	s, err := openSockets(name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	k := &Kernel{Name: name, Members: []string{"lo"}}
	if err := k.Up(); err == nil || !strings.Contains(err.Error(), "another process has the bond: end it first, ss -xp shows who has @rhizome-bond/"+name) {
		t.Errorf("got %v", err)
	}
	// The real kernel at least answers: lo is its own, and no bond.
	d, err := openDriver(&plan{name: name + "x"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if l, err := d.link("lo"); err != nil || l == nil || l.kind != "" || !slices.ContainsFunc(d.before, func(s linkState) bool { return s.name == "lo" }) {
		t.Errorf("lo: %+v, %v", l, err)
	}
	if l, err := d.link("nosuchthing"); l != nil || err != nil {
		t.Errorf("got %v, %v", l, err)
	}
	if !d.kernel.local(netip.MustParseAddr("127.0.0.1")) || d.kernel.local(netip.MustParseAddr("192.0.2.1")) {
		t.Error("what is local")
	}
	if list, err := d.kernel.addressList(1); err != nil || len(list) == 0 {
		t.Errorf("the addresses of lo: %v, %v", list, err)
	}
}
