package bond

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// KernelMode is how a [Kernel] uses its members: a mode of the bonding driver. As
// text it is the driver's name of it, such as balance-rr.
type KernelMode int

// The modes of the bonding driver.
const (
	ModeActiveBackup KernelMode = iota // one member carries all, the others wait
	ModeBalanceRR                      // packets go over the members in turn
	ModeBalanceXOR                     // a hash of its addresses chooses the member for a packet
	ModeBroadcast                      // each packet goes over all
	Mode8023AD                         // members are aggregated with the other end, by LACP
	ModeBalanceTLB                     // what is sent is spread by load, one member receives
	ModeBalanceALB                     // what is received is spread as well, by ARP
)

// modeNumbers are the driver's numbers.
var modeNumbers = []int{1, 0, 2, 3, 4, 5, 6}

// modeNames are the driver's names, by its numbers.
var modeNames = []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

// String returns the driver's name for it, such as active-backup.
func (m KernelMode) String() string {
	if !m.known() {
		return "unknown"
	}
	return modeNames[modeNumbers[m]]
}

func (m KernelMode) known() bool { return m >= 0 && int(m) < len(modeNumbers) }

// MarshalText returns the driver's name.
func (m KernelMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText takes the driver's name or, as the driver does, its number.
func (m *KernelMode) UnmarshalText(text []byte) error {
	for mode, number := range modeNumbers {
		if string(text) == modeNames[number] || string(text) == strconv.Itoa(number) {
			*m = KernelMode(mode)
			return nil
		}
	}
	return fmt.Errorf("bond: the mode %q is none of %s", text, strings.Join(modeNames, ", "))
}

// FailOverMAC is which MAC address a bond in [ModeActiveBackup] has
// (fail_over_mac).
type FailOverMAC int

// What a bond's MAC address may be.
const (
	FailOverMACActive FailOverMAC = iota // that of the active member: members keep theirs
	FailOverMACNone                      // that of the first member, which all members get
	FailOverMACFollow                    // that of the first member, which a member gets when it becomes active
)

var failOverMACNames = []string{"active", "none", "follow"}

// String returns the driver's name for it, such as active.
func (f FailOverMAC) String() string { return nameOf(failOverMACNames, int(f)) }

// nameOf is a name by its number.
func nameOf(names []string, i int) string {
	if i < 0 || i >= len(names) {
		return "unknown"
	}
	return names[i]
}

// NoPrimary is the Primary of a [Kernel] that has none.
const NoPrimary = "none"

// An ARPMonitor finds out by ARP, or neighbour solicitation, whether a member
// works, instead of by its carrier: in [ModeActiveBackup], [ModeBalanceRR],
// [ModeBalanceXOR] and [ModeBroadcast].
type ARPMonitor struct {
	// Interval is how often Targets are asked (arp_interval). Zero means never.
	Interval time.Duration
	// Targets are whom to ask: up to 16 IPv4 and 16 IPv6 addresses
	// (arp_ip_target, ns_ip6_target; for the latter, linux 5.19).
	Targets []netip.Addr
	// Validate says whose answers count (arp_validate): none, which is the default
	// and means that any traffic does, active, backup, all, filter, filter_active
	// or filter_backup.
	Validate string
	// AllTargets wants an answer of each target instead of one (arp_all_targets).
	AllTargets bool
	// MaxMissed is after how many intervals without an answer a member is down
	// (missed_max, linux 5.17), by default 2, at most 255.
	MaxMissed int
}

// LACP is what a bond in [Mode8023AD] tells the other end, and how it chooses
// among aggregates.
type LACP struct {
	// Rate is how often the other end is to send: slow, which is the default and
	// means each 30 s, or fast, each second (lacp_rate).
	Rate string
	// Passive means to speak only when spoken to (lacp_active 0, linux 5.15).
	Passive bool
	// Select is which aggregate is used (ad_select): stable, which is the default,
	// bandwidth or count.
	Select string
	// MinLinks is how many members must be up for the bond to have a carrier
	// (min_links), by default 0: any.
	MinLinks int
	// SystemPriority is that of the system (ad_actor_sys_prio), by default 65,535.
	SystemPriority int
	// System is the MAC address of the system (ad_actor_system). Nil means that of
	// the bond.
	System net.HardwareAddr
	// PortKey is the upper 10 bits of the port key (ad_user_port_key), 0 to 1023.
	PortKey int
}
