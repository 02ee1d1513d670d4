package bond_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
)

// TestKernelAdopt adopts what somebody else has made, and leaves it.
func TestKernelAdopt(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		h.taps()
		h.tap("other")
		h.add("bond0", func(b *netlink.Bond) {
			b.Mode, b.Miimon, b.FailOverMac = netlink.BOND_MODE_ACTIVE_BACKUP, 250, netlink.BOND_FAIL_OVER_MAC_ACTIVE
		})
		h.join("other", "bond0")
		h.join("tap1", "bond0")
		h.must(netlink.LinkSetUp(h.link("bond0")))
		h.give("bond0", "10.0.0.1/24")
		index := h.link("bond0").Attrs().Index
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6, kernelV4}}
		h.must(k.Up())
		b := h.bond("bond0")
		if b.Index != index || b.Miimon != 100 || b.NumPeerNotif != 5 || b.Alias != "adopted by rhizome bond" {
			t.Errorf("options: %+v", b)
		}
		h.wantMaster("tap0", "bond0")
		h.wantMaster("other", "bond0")
		if s := k.Status(); !s.Adopted || len(s.Members) != 3 || s.Members[0].Name != "tap0" || s.Members[2].Name != "other" {
			t.Errorf("status: %+v", s)
		}
		h.must(k.Close())
		if b := h.bond("bond0"); b.Index != index || b.Alias != "" {
			t.Errorf("left: %+v", b)
		}
		h.wantMaster("tap0", "")
		h.wantMaster("tap1", "bond0") // it was there before
		h.wantMaster("other", "bond0")
		h.wantAddress("bond0", kernelV6, false)
		h.wantAddress("bond0", kernelV4, false)
		h.wantAddress("bond0", netip.MustParsePrefix("10.0.0.1/24"), true)
	})
}

// TestKernelAdoptEmpty adopts what the driver makes by itself when it is loaded.
func TestKernelAdoptEmpty(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		h.taps()
		h.add("bond0", nil)
		k := &bond.Kernel{Members: []string{"tap0"}, Addresses: []netip.Prefix{kernelV6}}
		for range 2 {
			h.must(k.Up())
			if b := h.bond("bond0"); b.Mode != netlink.BOND_MODE_ACTIVE_BACKUP || b.FailOverMac != netlink.BOND_FAIL_OVER_MAC_ACTIVE {
				t.Errorf("options: %+v", b)
			}
			h.must(k.Close())
			h.wantMaster("tap0", "")
			if h.link("bond0").Attrs().OperState == netlink.OperUp || h.link("bond0").Attrs().RawFlags&1 != 0 {
				t.Error("it was down before")
			}
		}
	})
}

// TestKernelAdoptRefused has bonds that the driver does not change any more, and
// interfaces that are none. Nothing of them is touched.
func TestKernelAdoptRefused(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		h.taps()
		h.tap("other")
		k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV4}}
		refused := func(k *bond.Kernel, want ...string) {
			t.Helper()
			err := k.Up()
			if err == nil {
				t.Errorf("no error; want %q", want)
				h.must(k.Close())
				return
			}
			for _, w := range append(want, "bond: bond0: ") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %v\nwant %q", err, w)
				}
			}
			h.wantMaster("tap0", "")
			if l, err := netlink.LinkByName("bond0"); err == nil {
				if l.Attrs().Alias != "" {
					t.Errorf("it was marked: %q", l.Attrs().Alias)
				}
				h.wantAddress("bond0", kernelV4, false)
				h.must(netlink.LinkDel(l))
			}
		}
		h.add("bond0", nil)
		h.must(netlink.LinkSetUp(h.link("bond0")))
		refused(k, "the option mode is balance-rr and not active-backup", "while it is up: set it down", "ip link delete dev bond0")
		h.add("bond0", func(b *netlink.Bond) { b.Mode = netlink.BOND_MODE_ACTIVE_BACKUP })
		h.join("other", "bond0")
		refused(k, "the option fail_over_mac is none and not active", "while it has members: take them out (ip link set dev MEMBER nomaster)")
		h.add("bond0", func(b *netlink.Bond) { b.Mode = netlink.BOND_MODE_802_3AD })
		h.must(netlink.LinkSetUp(h.link("bond0")))
		refused(&bond.Kernel{Members: []string{"tap0"}, Mode: bond.Mode8023AD, LACP: bond.LACP{Rate: "fast"}}, "the option lacp_rate is slow and not fast", "set it down")
		h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bond0"}, PeerName: "peer"}))
		refused(k, "the interface exists and is no bond", "ip link delete dev bond0")
		refused(&bond.Kernel{Members: []string{"tap0", "nope"}}, "there is no interface nope")
		h.wantGone("bond0")
		h.add("bond1", nil)
		h.join("tap1", "bond1")
		refused(k, "tap1 has another master", "ip link set dev tap1 nomaster")
		h.must(netlink.LinkDel(h.link("bond1")))
		// What goes wrong late is undone.
		refused(&bond.Kernel{Members: []string{"tap0", "tap1"}, MTU: 65535}, "MTU 65535: invalid argument")
		h.wantGone("bond0")
		h.add("bond0", func(b *netlink.Bond) {
			b.Mode, b.FailOverMac = netlink.BOND_MODE_ACTIVE_BACKUP, netlink.BOND_FAIL_OVER_MAC_ACTIVE
		})
		h.give("bond0", "192.168.123.7/16")
		refused(k, "address 192.168.123.7/24: it is there as 192.168.123.7/16: ip address delete 192.168.123.7/16 dev bond0")
	})
}

// victim is set in the process that is killed.
const victim = "RHIZOME_BOND_TEST_VICTIM"

// TestKernelVictim is a process that has a bond until it is killed; in a usual run
// it does nothing.
func TestKernelVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		return
	}
	k := &bond.Kernel{Members: []string{"e0", "f0"}, Addresses: []netip.Prefix{kernelV6, kernelV4}, MTU: 1400}
	if os.Getenv(victim) == "round robin" {
		k.Mode = bond.ModeBalanceRR
	}
	if err := k.Up(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("up")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	select {}
}

// kill runs a process with a bond and kills it with -9.
func (h *kernelHost) kill(how string, meanwhile func()) {
	h.Helper()
	path, err := os.Executable()
	h.must(err)
	c := exec.Command(path, "-test.run=^TestKernelVictim$")
	c.Env = append(os.Environ(), victim+"="+how)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	h.must(err)
	in, err := c.StdinPipe()
	h.must(err)
	defer in.Close()
	h.must(c.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		h.Fatalf("the process says %q, %v", line, err)
	}
	if meanwhile != nil {
		meanwhile()
	}
	h.must(c.Process.Kill())
	_ = c.Wait()
}

// TestKernelLeftover starts where a process was killed.
func TestKernelLeftover(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		for _, name := range []string{"e0", "f0"} {
			h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "x"}))
		}
		h.tap("tap0")
		k := &bond.Kernel{Members: []string{"tap0", "e0"}, Addresses: []netip.Prefix{kernelV4}}
		h.kill("active backup", func() {
			if err := k.Up(); err == nil || !strings.Contains(err.Error(), "another process has the bond: end it first, ss -xp shows who has @rhizome-bond/bond0") {
				t.Errorf("a second process: %v", err)
			}
		})
		index := h.link("bond0").Attrs().Index
		h.wantMaster("f0", "bond0")
		h.wantAddress("bond0", kernelV6, true)
		h.must(k.Up())
		if h.link("bond0").Attrs().Index != index || k.Status().Adopted {
			t.Errorf("made anew, or somebody else's: %+v", k.Status())
		}
		h.wantMaster("f0", "")
		h.wantMaster("tap0", "bond0")
		h.wantAddress("bond0", kernelV6, false)
		h.wantAddress("bond0", kernelV4, true)
		if b := h.bond("bond0"); b.Primary != h.link("tap0").Attrs().Index {
			t.Errorf("primary %d", b.Primary)
		}
		h.must(k.Close())
		h.wantGone("bond0")

		h.kill("round robin", nil)
		index = h.link("bond0").Attrs().Index
		h.must(k.Up())
		if b := h.bond("bond0"); b.Index == index || b.Mode != netlink.BOND_MODE_ACTIVE_BACKUP {
			t.Errorf("the mode: %+v", b)
		}
		h.must(k.Close())
		h.wantGone("bond0")

		// In somebody else's bond, too.
		h.add("bond0", nil)
		h.kill("active backup", nil)
		k.Members = []string{"f0", "tap0"}
		k.Addresses = []netip.Prefix{kernelV6}
		h.must(k.Up())
		h.must(k.Close())
		h.wantMaster("f0", "")
		h.wantMaster("e0", "bond0") // nobody wants it now, or has it
		h.wantAddress("bond0", kernelV6, false)
		if b := h.bond("bond0"); b.Alias != "" {
			t.Errorf("alias %q", b.Alias)
		}
		h.must(netlink.LinkDel(h.link("bond0")))

		// Killed between making and marking.
		h.add("bond0", func(b *netlink.Bond) { b.Group = 0x72686962 })
		h.must(k.Up())
		h.must(k.Close())
		h.wantGone("bond0")
	})
}
