package bond_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestKernelModes has every mode and every option, read back by another library,
// and each bond turned into the next.
func TestKernelModes(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	ask := []netip.Addr{netip.MustParseAddr("192.168.123.1"), netip.MustParseAddr("fd8f::1"), netip.MustParseAddr("192.168.123.2")}
	for _, c := range []struct {
		name string
		k    *bond.Kernel
		is   func(b *netlink.Bond) bool
	}{
		{"active-backup", &bond.Kernel{MonitorInterval: 50 * time.Millisecond, UpDelay: 100 * time.Millisecond, DownDelay: 150 * time.Millisecond,
			FailOverMAC: bond.FailOverMACFollow, Primary: "tap1", Reselect: bond.ReselectFailure, PeerNotifications: -1, PeerNotifyDelay: 200 * time.Millisecond,
			IGMPReports: -1, IgnoreCarrier: true, AllMembersReceive: true},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_ACTIVE_BACKUP && b.Miimon == 50 && b.UpDelay == 100 && b.DownDelay == 150 && b.FailOverMac == netlink.BOND_FAIL_OVER_MAC_FOLLOW &&
					b.Primary == linkIndex("tap1") && b.PrimaryReselect == netlink.BOND_PRIMARY_RESELECT_FAILURE && b.NumPeerNotif == 0 && b.ResendIgmp == 0 &&
					b.UseCarrier == 0 && b.AllSlavesActive == 1
			}},
		{"no primary", &bond.Kernel{Primary: bond.NoPrimary, FailOverMAC: bond.FailOverMACNone},
			func(b *netlink.Bond) bool {
				return b.Primary == 0 && b.FailOverMac == netlink.BOND_FAIL_OVER_MAC_NONE && b.UpDelay == 0 && b.UseCarrier == 1 && b.AllSlavesActive == 0
			}},
		{"ARP", &bond.Kernel{ARP: bond.ARPMonitor{Interval: time.Second, Targets: ask, Validate: "backup", AllTargets: true, MaxMissed: 3}},
			func(b *netlink.Bond) bool {
				return b.Miimon == 0 && b.ArpInterval == 1000 && len(b.ArpIpTargets) == 2 && b.ArpIpTargets[1].String() == "192.168.123.2" &&
					b.ArpValidate == netlink.BOND_ARP_VALIDATE_BACKUP && b.ArpAllTargets == netlink.BOND_ARP_ALL_TARGETS_ALL
			}},
		{"balance-rr", &bond.Kernel{Mode: bond.ModeBalanceRR, PacketsPerMember: 7},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_BALANCE_RR && b.PacketsPerSlave == 7 && b.Miimon == 100 && b.ArpInterval == 0 && len(b.ArpIpTargets) == 0 &&
					b.ArpValidate == netlink.BOND_ARP_VALIDATE_NONE
			}},
		{"balance-rr at random", &bond.Kernel{Mode: bond.ModeBalanceRR, PacketsPerMember: -1},
			func(b *netlink.Bond) bool { return b.PacketsPerSlave == 0 }},
		{"balance-xor", &bond.Kernel{Mode: bond.ModeBalanceXOR, HashPolicy: "vlan+srcmac"},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_BALANCE_XOR && b.XmitHashPolicy == netlink.BOND_XMIT_HASH_POLICY_VLAN_SRCMAC
			}},
		{"broadcast", &bond.Kernel{Mode: bond.ModeBroadcast}, func(b *netlink.Bond) bool { return b.Mode == netlink.BOND_MODE_BROADCAST }},
		{"802.3ad", &bond.Kernel{Mode: bond.Mode8023AD, LACP: bond.LACP{Rate: "fast", Passive: true, Select: "count", MinLinks: 2, SystemPriority: 3, System: mac, PortKey: 5}},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_802_3AD && b.LacpRate == netlink.BOND_LACP_RATE_FAST && b.AdSelect == netlink.BOND_AD_SELECT_COUNT && b.MinLinks == 2 &&
					b.AdActorSysPrio == 3 && b.AdActorSystem.String() == mac.String() && b.AdUserPortKey == 5 && b.XmitHashPolicy == netlink.BOND_XMIT_HASH_POLICY_LAYER2
			}},
		{"802.3ad again", &bond.Kernel{Mode: bond.Mode8023AD},
			func(b *netlink.Bond) bool {
				return b.LacpRate == netlink.BOND_LACP_RATE_SLOW && b.AdSelect == netlink.BOND_AD_SELECT_STABLE && b.MinLinks == 0 && b.AdActorSysPrio == 65535 && b.AdUserPortKey == 0
			}},
		{"balance-tlb", &bond.Kernel{Mode: bond.ModeBalanceTLB, StaticTLB: true, LearnInterval: 3 * time.Second, Primary: "tap1"},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_BALANCE_TLB && b.TlbDynamicLb == 0 && b.LpInterval == 3 && b.Primary == linkIndex("tap1")
			}},
		{"balance-alb", &bond.Kernel{Mode: bond.ModeBalanceALB},
			func(b *netlink.Bond) bool {
				return b.Mode == netlink.BOND_MODE_BALANCE_ALB && b.TlbDynamicLb == 1 && b.LpInterval == 1 && b.Primary == 0
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBondingKernel(t, func(h *kernelHost) {
				h.taps()
				// As a predecessor with quite another configuration has left it.
				h.add("bond0", func(b *netlink.Bond) {
					b.Mode, b.ArpInterval, b.ArpIpTargets = netlink.BOND_MODE_BALANCE_XOR, 500, []net.IP{net.IPv4(10, 0, 0, 1)}
				})
				h.must(netlink.LinkSetAlias(h.link("bond0"), "made by rhizome bond"))
				h.join("tap1", "bond0")
				h.must(netlink.LinkSetUp(h.link("bond0")))
				k := c.k
				k.Members, k.Addresses = []string{"tap0", "tap1"}, []netip.Prefix{kernelV6}
				h.must(k.Up())
				if b := h.bond("bond0"); !c.is(b) {
					t.Errorf("options: %+v", b)
				}
				if s := k.Status(); s.Mode != k.Mode.String() || s.Problem != "" {
					t.Errorf("status: %+v", s)
				}
				h.bind(kernelV6.Addr())
				h.must(k.Close())
				h.wantGone("bond0")
			})
		})
	}
}

func linkIndex(name string) int {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return -1
	}
	return l.Attrs().Index
}

// TestKernelBalanceRR has members come and go where none is the active one.
func TestKernelBalanceRR(t *testing.T) {
	inBondingKernel(t, func(h *kernelHost) {
		taps := h.taps()
		k := &bond.Kernel{Mode: bond.ModeBalanceRR, Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{kernelV6}}
		y, _ := h.run(k)
		h.must(taps[0].SetCarrier(true))
		h.want(y, "link-up tap0")
		h.must(taps[1].SetCarrier(true))
		h.want(y, "link-up tap0", "link-up tap1")
		h.must(taps[0].SetCarrier(false))
		h.want(y, "link-up tap0", "link-up tap1", "link-down tap0")
		if active, err := k.Active(); active != "" || err != nil {
			t.Errorf("active: %q, %v", active, err)
		}
		if s := k.Status(); !s.Up || s.Members[0].Up || !s.Members[1].Up {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestKernelNoDriver is what a kernel without the driver says.
func TestKernelNoDriver(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		k := &bond.Kernel{Members: []string{"lo"}}
		err := k.Up()
		if err == nil {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			return // the other tests test the rest
		}
		if errors.Is(err, syscall.EOPNOTSUPP) != errors.Is(err, bond.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
		if errors.Is(err, syscall.EOPNOTSUPP) && !strings.Contains(err.Error(), "no bonding driver: modprobe bonding, or use Bond") {
			t.Errorf("got %v", err)
		}
	})
}

// TestKernelNoRight is what a process without CAP_NET_ADMIN is told.
func TestKernelNoRight(t *testing.T) {
	got := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, because it is never unlocked.
		runtime.LockOSThread()
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			got <- err
			return
		}
		k := &bond.Kernel{Name: fmt.Sprintf("c%d", os.Getpid()), Members: []string{"lo"}}
		err := k.Up()
		if err == nil {
			err = errors.Join(errors.New("it is up"), k.Close())
		}
		got <- err
	}()
	err := <-got
	if !errors.Is(err, bond.ErrUnsupported) || !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, syscall.EPERM) ||
		!strings.Contains(err.Error(), "it needs CAP_NET_ADMIN in the network namespace, run it as root") {
		t.Errorf("got %v", err)
	}
}
