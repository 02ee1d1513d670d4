package packet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// openOrSkip makes a device that is closed with the test.
func openOrSkip(t *testing.T, m Mode, o *DeviceOptions) *Device {
	t.Helper()
	open := OpenTUN
	if m == TAP {
		open = OpenTAP
	}
	d, err := open(o)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// eventually waits for a state.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func linkNamed(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var bothModes = []Mode{TUN, TAP}

// eachMode runs f for both kinds of device in a namespace.
func eachMode(t *testing.T, f func(t *testing.T, m Mode)) {
	for _, m := range bothModes {
		t.Run(m.String(), func(t *testing.T) {
			tunneltest.InNetns(t, func(t *testing.T) { f(t, m) })
		})
	}
}

func TestDeviceOptions(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		o := &DeviceOptions{
			Name: "rhizome7", MTU: 1400, QueueLen: 77,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::3/96")},
		}
		if m == TAP {
			o.MAC = MAC(netip.MustParseAddr("fd00::1:2"), 1)
		}
		d := openOrSkip(t, m, o)
		l := linkNamed(t, "rhizome7")
		a := l.Attrs()
		if d.Name() != a.Name || d.Index() != a.Index || d.Mode() != m {
			t.Errorf("%s, %d, %v", d.Name(), d.Index(), d.Mode())
		}
		if a.MTU != 1400 || a.TxQLen != 77 || a.Flags&net.FlagUp == 0 {
			t.Errorf("MTU %d, queue %d, flags %v", a.MTU, a.TxQLen, a.Flags)
		}
		if m == TAP && a.HardwareAddr.String() != "02:01:00:01:00:02" {
			t.Errorf("MAC %v", a.HardwareAddr)
		}
		if tap, ok := l.(*netlink.Tuntap); !ok || tap.NonPersist == false {
			t.Errorf("%#v is no device that goes with its process", l)
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range list {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("%v is still to be tried", a)
			}
			if !a.IP.IsLinkLocalUnicast() || m == TUN {
				got = append(got, a.IPNet.String())
			}
		}
		if want := []string{"10.1.2.3/24", "fd00::3/96"}; !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
		if err := d.SetMTU(1300); err != nil || linkNamed(t, "rhizome7").Attrs().MTU != 1300 {
			t.Errorf("SetMTU: %v, %d", err, linkNamed(t, "rhizome7").Attrs().MTU)
		}
		if err := d.SetMTU(1 << 20); err == nil || !strings.Contains(err.Error(), "1048576") {
			t.Errorf("SetMTU of more than there can be: %v", err)
		}
	})
}

func TestDeviceDefaults(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := openOrSkip(t, m, nil)
		if want := m.String() + "0"; d.Name() != want {
			t.Errorf("name %s, want %s", d.Name(), want)
		}
		a := linkNamed(t, d.Name()).Attrs()
		if a.MTU != 1500 || a.TxQLen != 1000 {
			t.Errorf("MTU %d, queue %d", a.MTU, a.TxQLen)
		}
		if d.Offload()&^OffloadUSO != OffloadAll&^OffloadUSO {
			t.Errorf("takes %v", d.Offload())
		}
		second := openOrSkip(t, m, &DeviceOptions{Name: "more%d", NoOffload: true})
		if second.Name() != "more0" {
			t.Errorf("name %s, want more0", second.Name())
		}
		if second.Offload() != 0 {
			t.Errorf("takes %v", second.Offload())
		}
		if err := second.SetOffload(OffloadAll); err != nil {
			t.Errorf("SetOffload: %v", err)
		}
	})
}

// TestDeviceRefusesOptions: each error says which option it is, and leaves no interface.
func TestDeviceRefusesOptions(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		_ = openOrSkip(t, TUN, nil).Close()
		eventually(t, "nothing but the loopback", func() bool { l, err := netlink.LinkList(); return err == nil && len(l) == 1 })
		mac, _ := net.ParseMAC("02:00:00:00:00:01")
		for _, c := range []struct {
			open func(*DeviceOptions) (*Device, error)
			o    DeviceOptions
			want string
		}{
			{OpenTUN, DeviceOptions{Name: "sixteen-bytes-xx"}, `"sixteen-bytes-xx" has more than 15 bytes`},
			{OpenTUN, DeviceOptions{Name: "a/b"}, `"a/b" cannot be made`},
			{OpenTUN, DeviceOptions{Name: "lo"}, "there is an interface lo already"},
			{OpenTUN, DeviceOptions{MTU: -1}, "negative MTU -1"},
			{OpenTUN, DeviceOptions{MTU: 20}, "MTU 20: "},
			{OpenTUN, DeviceOptions{MTU: 70000}, "MTU 70000: "},
			{OpenTUN, DeviceOptions{QueueLen: -1}, "negative queue length -1"},
			{OpenTUN, DeviceOptions{MAC: mac}, "a TUN device has no MAC address"},
			{OpenTAP, DeviceOptions{MAC: mac[:5]}, "has 5 bytes, not 6"},
			{OpenTAP, DeviceOptions{MAC: net.HardwareAddr{1, 0, 0, 0, 0, 0}}, "MAC address 01:00:00:00:00:00: "},
			{OpenTAP, DeviceOptions{Addresses: []netip.Prefix{{}}}, "is not valid"},
			{OpenTAP, DeviceOptions{MTU: 1000, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/64")}}, "an MTU of 1280"},
		} {
			d, err := c.open(&c.o)
			if err == nil {
				_ = d.Close()
				t.Errorf("%+v was taken", c.o)
				continue
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "packet: ") {
				t.Errorf("%v, want %s", err, c.want)
			}
			if errors.Is(err, ErrUnsupported) {
				t.Errorf("%v is no lack of support", err)
			}
		}
		eventually(t, "nothing but the loopback", func() bool { l, err := netlink.LinkList(); return err == nil && len(l) == 1 })
	})
}

// TestDeviceBusy: an interface that exists is not taken over, be it in use or made to
// stay.
func TestDeviceBusy(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := openOrSkip(t, m, &DeviceOptions{Name: "vpn"})
		open := OpenTUN
		if m == TAP {
			open = OpenTAP
		}
		if _, err := open(&DeviceOptions{Name: "vpn"}); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "ip link delete dev vpn") {
			t.Errorf("a second time: %v", err)
		}
		_ = d.Close()
		kind := netlink.TuntapMode(netlink.TUNTAP_MODE_TUN)
		if m == TAP {
			kind = netlink.TUNTAP_MODE_TAP
		}
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "stays"}, Mode: kind}); err != nil {
			t.Fatal(err)
		}
		if _, err := open(&DeviceOptions{Name: "stays"}); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("one that was made to stay: %v", err)
		}
		again, err := open(&DeviceOptions{Name: "vpn"})
		if err != nil {
			t.Fatalf("after Close: %v", err)
		}
		_ = again.Close()
	})
}

// TestDeviceWithoutRight asks for the reason and the remedy.
func TestDeviceWithoutRight(t *testing.T) {
	for err, want := range map[error]string{
		unix.ENOENT: "modprobe tun", unix.ENODEV: "modprobe tun", unix.ENXIO: "modprobe tun",
		unix.EACCES: "run as root", unix.EPERM: "run as root",
	} {
		e := refusedOpen(err)
		if !errors.Is(e, ErrUnsupported) || !errors.Is(e, errors.ErrUnsupported) || !errors.Is(e, err) || !strings.Contains(e.Error(), want) {
			t.Errorf("%v: %v", err, e)
		}
	}
	if e := refusedOpen(unix.EMFILE); errors.Is(e, ErrUnsupported) || !errors.Is(e, unix.EMFILE) {
		t.Errorf("too many open files: %v", e)
	}
	// TUNSETIFF without CAP_NET_ADMIN.
	tunneltest.InNetns(t, func(t *testing.T) {
		_ = openOrSkip(t, TUN, nil).Close()
		if out, err := helperCommand("open-without-right").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// helperCommand is this binary again as one of the programs of TestHelperProcess, in the
// namespace of the caller.
func helperCommand(what string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", "-test.run=^TestHelperProcess$")
	c.Env = append(os.Environ(), "PACKET_HELPER="+what)
	return c
}

// TestHelperProcess is no test: it is what helperCommand runs.
func TestHelperProcess(t *testing.T) {
	switch os.Getenv("PACKET_HELPER") {
	case "hold":
		if _, err := OpenTAP(&DeviceOptions{Name: "held"}); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("held\n")
		select {}
	case "open-without-right":
		runtime.LockOSThread() // which alone has these capabilities
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Fatal(err)
		}
		_, err := OpenTUN(nil)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Fatal(err)
		}
	}
}

// TestDeviceDiesWithProcess: kill -9 leaves nothing behind.
func TestDeviceDiesWithProcess(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		_ = openOrSkip(t, TUN, nil).Close()
		c := helperCommand("hold")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 5)
		_, err = out.Read(line)
		_, there := netlink.LinkByName("held")
		_ = c.Process.Kill()
		_ = c.Wait()
		if err != nil || there != nil {
			t.Fatalf("%q, %v, %v", line, err, there)
		}
		eventually(t, "the interface is gone", func() bool { _, err := netlink.LinkByName("held"); return err != nil })
	})
}

func TestDeviceCarrier(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := openOrSkip(t, m, nil)
		carrier := func() bool { return linkNamed(t, d.Name()).Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }
		if carrier() != (m == TUN) {
			t.Errorf("at first: carrier %v", carrier())
		}
		for _, up := range []bool{true, false, false, true} {
			if err := d.SetCarrier(up); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the carrier", func() bool { return carrier() == up })
		}
		if err := d.SetMTU(1400); err != nil || !carrier() {
			t.Errorf("SetMTU: %v, carrier %v", err, carrier())
		}
	})
}
