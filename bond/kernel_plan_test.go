package bond

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestKernelWrong has everything that is refused before anything is touched.
func TestKernelWrong(t *testing.T) {
	one := func(s ...string) (list []netip.Prefix) {
		for _, s := range s {
			list = append(list, netip.MustParsePrefix(s))
		}
		return list
	}
	ask := func(s ...string) (list []netip.Addr) {
		for _, s := range s {
			list = append(list, netip.MustParseAddr(s))
		}
		return list
	}
	many := make([]netip.Addr, 17)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	second, ms := time.Second, time.Millisecond
	for _, c := range []struct {
		k    *Kernel
		want string
	}{
		{&Kernel{}, "no Members: which interfaces are to be the bond?"},
		{&Kernel{Name: "far-too-long-name"}, `Name "far-too-long-name": the name of an interface has 1 to 15 bytes`},
		{&Kernel{Name: "a b"}, `Name "a b": an interface cannot be called that`},
		{&Kernel{Members: []string{""}}, `Members: "": the name of an interface has`},
		{&Kernel{Members: []string{"a/b"}}, `Members: "a/b": an interface cannot`},
		{&Kernel{Members: []string{"bond0"}}, "the bond bond0 cannot be a member of itself"},
		{&Kernel{Members: []string{"a", "b", "a"}}, "Members: a is named twice"},
		{&Kernel{Addresses: []netip.Prefix{{}}}, "is not an address with a prefix length"},
		{&Kernel{Addresses: one("::/0")}, "Addresses: ::/0 cannot be one of a bond"},
		{&Kernel{Addresses: one("ff02::1/64")}, "Addresses: ff02::1/64 cannot"},
		{&Kernel{Addresses: one("127.0.0.1/8")}, "Addresses: 127.0.0.1/8 cannot"},
		{&Kernel{Addresses: one("::ffff:10.0.0.1/64")}, "Addresses: ::ffff:10.0.0.1/64 cannot"},
		{&Kernel{Addresses: one("10.0.0.1/8", "::ffff:10.0.0.1/112")}, "Addresses: 10.0.0.1 is named twice"},
		{&Kernel{MTU: 60}, "MTU 60: want 68 to 65535"},
		{&Kernel{MTU: 70000}, "MTU 70000: want 68 to 65535"},
		{&Kernel{MTU: 1000, Addresses: one("fd00::1/64")}, "MTU 1000: IPv6 addresses need 1280 at least"},
		{&Kernel{Mode: 7}, "Mode 7 is none that there is"},
		{&Kernel{Mode: -1}, "Mode -1 is none that there is"},
		{&Kernel{MonitorInterval: -1}, "no ARP.Interval: nothing would see that a member fails"},
		{&Kernel{MonitorInterval: time.Microsecond}, "MonitorInterval 1µs: want whole milliseconds"},
		{&Kernel{MonitorInterval: 1 << 62}, "want whole milliseconds"},
		{&Kernel{MonitorInterval: second, ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1")}}, "the driver looks at carriers or asks by ARP, not both"},
		{&Kernel{UpDelay: -1}, "UpDelay -1ns is negative"},
		{&Kernel{UpDelay: 150 * ms}, "UpDelay 150ms is not a multiple of MonitorInterval, which is 100ms: the driver would make it 100ms"},
		{&Kernel{DownDelay: second, ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1")}}, "DownDelay 1s: without a MonitorInterval nobody counts it"},
		{&Kernel{PeerNotifyDelay: 50 * ms}, "PeerNotifyDelay 50ms is not a multiple"},
		{&Kernel{PeerNotifications: 256}, "PeerNotifications 256: the driver takes 255 at most"},
		{&Kernel{Mode: ModeBalanceRR, PeerNotifications: 5}, "PeerNotifications means nothing in mode balance-rr: num_peer_notif is for active-backup"},
		{&Kernel{FailOverMAC: 3}, `FailOverMAC "unknown" is none of none, active, follow`},
		{&Kernel{Mode: ModeBroadcast, FailOverMAC: FailOverMACNone}, "FailOverMAC means nothing in mode broadcast"},
		{&Kernel{Primary: "x"}, `Primary "x" is none of the Members`},
		{&Kernel{Mode: ModeBalanceXOR, Primary: "tap0"}, "Primary means nothing in mode balance-xor: primary is for active-backup, balance-tlb, balance-alb"},
		{&Kernel{Mode: Mode8023AD, Reselect: ReselectBetter}, "Reselect means nothing in mode 802.3ad"},
		{&Kernel{Reselect: 9}, `Reselect "unknown" is none of`},
		{&Kernel{HashPolicy: "layer2"}, ""},
		{&Kernel{HashPolicy: "layer3+4"}, "HashPolicy means nothing in mode active-backup: xmit_hash_policy is for balance-xor, 802.3ad, balance-tlb"},
		{&Kernel{Mode: ModeBalanceXOR, HashPolicy: "layer4"}, `HashPolicy "layer4" is none of layer2, layer3+4`},
		{&Kernel{PacketsPerMember: 2}, "PacketsPerMember means nothing in mode active-backup"},
		{&Kernel{Mode: ModeBalanceRR, PacketsPerMember: 65536}, "PacketsPerMember 65536: the driver takes 65535 at most"},
		{&Kernel{IGMPReports: 256}, "IGMPReports 256: the driver takes 255 at most"},
		{&Kernel{LearnInterval: second}, "LearnInterval means nothing in mode active-backup"},
		{&Kernel{Mode: ModeBalanceALB, LearnInterval: 1500 * ms}, "LearnInterval 1.5s: want whole seconds"},
		{&Kernel{StaticTLB: true}, "StaticTLB means nothing in mode active-backup: tlb_dynamic_lb is for balance-tlb, balance-alb"},
		{&Kernel{ARP: ARPMonitor{Interval: -1}}, "ARP.Interval -1ns is negative"},
		{&Kernel{ARP: ARPMonitor{Interval: second}}, "ARP.Interval without ARP.Targets: who is to be asked?"},
		{&Kernel{ARP: ARPMonitor{Targets: ask("10.0.0.1")}}, "ARP.Targets without ARP.Interval"},
		{&Kernel{ARP: ARPMonitor{Interval: second, Targets: many}}, "ARP.Targets: the driver takes 16 of IPv4"},
		{&Kernel{ARP: ARPMonitor{Interval: second, Targets: ask("fe80::1%e0")}}, "ARP.Targets: fe80::1%e0 cannot be asked"},
		{&Kernel{ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1"), Validate: "some"}}, `ARP.Validate "some" is none of none, active`},
		{&Kernel{ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1"), MaxMissed: 256}}, "ARP.MaxMissed 256: the driver takes 255 at most"},
		{&Kernel{ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1"), MaxMissed: -1}}, "ARP.MaxMissed -1: want 1 to 255"},
		{&Kernel{Mode: ModeBalanceTLB, ARP: ARPMonitor{Interval: second, Targets: ask("10.0.0.1")}}, "ARP means nothing in mode balance-tlb: arp_interval is for balance-rr"},
		{&Kernel{LACP: LACP{MinLinks: 1}}, "LACP.MinLinks means nothing in mode active-backup"},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{MinLinks: -1}}, "LACP.MinLinks -1 is negative"},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{Rate: "quick"}}, `LACP.Rate "quick" is none of slow, fast`},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{Select: "best"}}, `LACP.Select "best" is none of stable`},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{PortKey: 1024}}, "LACP.PortKey 1024: the driver takes 1023 at most"},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{System: net.HardwareAddr{1, 2, 3, 4, 5, 6}}}, "LACP.System 01:02:03:04:05:06: want the MAC address of one host"},
		{&Kernel{LACP: LACP{Passive: true, System: net.HardwareAddr{2, 2, 3, 4, 5, 6}}}, "LACP.System means nothing in mode"},
	} {
		if c.k.Members == nil && !strings.HasPrefix(c.want, "no Members") {
			c.k.Members = []string{"tap0", "tap1"}
		}
		_, err := c.k.resolve()
		if c.want == "" {
			if err != nil {
				t.Errorf("got %v", err)
			}
			continue
		}
		if err == nil || strings.Count(err.Error(), c.want) != 1 || strings.Count(err.Error(), "\n") > strings.Count(c.want, "\n")+1 {
			t.Errorf("got %v\nwant %q once", err, c.want)
		}
	}
}

// settingsOf are all settings as text.
func settingsOf(t *testing.T, k *Kernel) string {
	t.Helper()
	k.Members = []string{"tap0", "tap1"}
	p, err := k.resolve()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, s := range p.settings {
		list = append(list, s.name+" "+s.text(s.value))
		if n := s.form.size(); s.form != formTargets4 && s.form != formTargets6 && len(s.value) != n {
			t.Errorf("%s has %d bytes, want %d", s.name, len(s.value), n)
		}
	}
	if p.primary != "" {
		list = append(list, "primary "+p.primary)
	}
	return strings.Join(list, ", ")
}

// TestKernelSettings has what the driver is told, by default and otherwise.
func TestKernelSettings(t *testing.T) {
	arp := ARPMonitor{Interval: time.Second, Targets: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.2")}, Validate: "filter"}
	for _, c := range []struct {
		k    *Kernel
		want string
	}{
		{&Kernel{}, "mode active-backup, miimon 100, arp_ip_target [], ns_ip6_target [], arp_interval 0, arp_validate none, arp_all_targets 0, missed_max 2, " +
			"updelay 0, downdelay 0, use_carrier 1, fail_over_mac active, primary_reselect always, num_peer_notif 5, peer_notif_delay 0, resend_igmp 1, " +
			"all_slaves_active 0, primary tap0"},
		{&Kernel{ARP: arp, MonitorInterval: -1, Primary: NoPrimary, IgnoreCarrier: true}, "mode active-backup, miimon 0, arp_ip_target [10.0.0.1 10.0.0.2], " +
			"ns_ip6_target [fd00::1], arp_interval 1000, arp_validate filter, arp_all_targets 0, missed_max 2, use_carrier 0, fail_over_mac active, " +
			"primary_reselect always, num_peer_notif 5, resend_igmp 1, all_slaves_active 0"},
		{&Kernel{Mode: ModeBalanceALB, Primary: "tap1", UpDelay: 200 * time.Millisecond}, "mode balance-alb, miimon 100, updelay 200, downdelay 0, use_carrier 1, " +
			"primary_reselect always, resend_igmp 1, lp_interval 1, tlb_dynamic_lb 1, all_slaves_active 0, primary tap1"},
		{&Kernel{Mode: Mode8023AD, LACP: LACP{System: net.HardwareAddr{2, 0, 0, 0, 0, 255}}}, "mode 802.3ad, miimon 100, updelay 0, downdelay 0, use_carrier 1, " +
			"xmit_hash_policy layer2, all_slaves_active 0, lacp_rate slow, lacp_active 1, ad_select stable, min_links 0, ad_actor_sys_prio 65535, " +
			"ad_user_port_key 0, ad_actor_system 02 00 00 00 00 ff"},
	} {
		if got := settingsOf(t, c.k); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestKernelMode(t *testing.T) {
	for mode := ModeActiveBackup; mode <= ModeBalanceALB; mode++ {
		text, err := mode.MarshalText()
		var again KernelMode = -1
		if err != nil || again.UnmarshalText(text) != nil || again != mode || mode.String() != string(text) {
			t.Errorf("%d: %s, %v", mode, text, again)
		}
	}
	var m KernelMode
	if err := m.UnmarshalText([]byte("4")); err != nil || m != Mode8023AD || KernelMode(9).String() != "unknown" || FailOverMACFollow.String() != "follow" {
		t.Errorf("%v, %v", m, err)
	}
}
