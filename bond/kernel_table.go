package bond

// modes is a set of modes.
type modes uint8

const (
	inRR modes = 1 << iota
	inActiveBackup
	inXOR
	inBroadcast
	in8023AD
	inTLB
	inALB

	inAll     = 1<<iota - 1
	inPrimary = inActiveBackup | inTLB | inALB
	inARP     = inRR | inActiveBackup | inXOR | inBroadcast
)

// of reports whether mode is in the set.
func (m modes) of(mode KernelMode) bool { return m&(1<<modeNumbers[mode]) != 0 }

// names are the modes of the set.
func (m modes) names() (list []string) {
	for i, name := range modeNames {
		if m&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return list
}

// lock is when the driver refuses to change an option.
type lock uint8

const (
	whileUp     lock = 1 << iota // the bond is up
	withMembers                  // the bond has members
)

// form is how a value is written in an attribute.
type form uint8

const (
	formU8       form = 1 // byte
	formU16      form = 2 // bytes
	formU32      form = 4 // bytes
	formMAC      form = 6 // bytes
	formTargets4 form = 7 // attributes of four bytes in network order
	formTargets6 form = 8 // attributes of 16 bytes
	formMember   form = 9 // four bytes, the index of an interface
)

// size is how long a value is, in bytes.
func (f form) size() int {
	if f == formMember {
		return 4
	}
	return int(f)
}

// targetLen is how long an address is, in bytes.
func (f form) targetLen() int {
	if f == formTargets6 {
		return 16
	}
	return 4
}

// option is one that the driver has. Its attribute is an IFLA_BOND_… of linux's
// if_link.h, which are for ever.
type option struct {
	name  string // as the driver and ip-link(8) call it
	attr  uint16
	form  form
	modes modes    // where it means anything
	lock  lock     // when it cannot be changed
	names []string // of its values, if they have any
}

// The options of the driver.
var (
	optMode             = &option{"mode", 1, formU8, inAll, whileUp | withMembers, modeNames}
	optMIIMon           = &option{"miimon", 3, formU32, inAll, 0, nil}
	optUpDelay          = &option{"updelay", 4, formU32, inAll, 0, nil}
	optDownDelay        = &option{"downdelay", 5, formU32, inAll, 0, nil}
	optUseCarrier       = &option{"use_carrier", 6, formU8, inAll, 0, nil}
	optARPInterval      = &option{"arp_interval", 7, formU32, inARP, 0, nil}
	optARPTarget        = &option{"arp_ip_target", 8, formTargets4, inARP, 0, nil}
	optARPValidate      = &option{"arp_validate", 9, formU32, inARP, 0, []string{"none", "active", "backup", "all", "filter", "filter_active", "filter_backup"}}
	optARPAllTargets    = &option{"arp_all_targets", 10, formU32, inARP, 0, nil}
	optPrimary          = &option{"primary", 11, formMember, inPrimary, 0, nil}
	optReselect         = &option{"primary_reselect", 12, formU8, inPrimary, 0, []string{"always", "better", "failure"}}
	optFailOverMAC      = &option{"fail_over_mac", 13, formU8, inActiveBackup, withMembers, []string{"none", "active", "follow"}}
	optHashPolicy       = &option{"xmit_hash_policy", 14, formU8, inXOR | in8023AD | inTLB, 0, []string{"layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"}}
	optResendIGMP       = &option{"resend_igmp", 15, formU32, inRR | inPrimary, 0, nil}
	optPeerNotif        = &option{"num_peer_notif", 16, formU8, inActiveBackup, 0, nil}
	optAllMembers       = &option{"all_slaves_active", 17, formU8, inAll, 0, nil}
	optMinLinks         = &option{"min_links", 18, formU32, in8023AD, 0, nil}
	optLearnInterval    = &option{"lp_interval", 19, formU32, inTLB | inALB, 0, nil}
	optPacketsPerMember = &option{"packets_per_slave", 20, formU32, inRR, 0, nil}
	optLACPRate         = &option{"lacp_rate", 21, formU8, in8023AD, whileUp, []string{"slow", "fast"}}
	optAggregate        = &option{"ad_select", 22, formU8, in8023AD, whileUp, []string{"stable", "bandwidth", "count"}}
	optSystemPriority   = &option{"ad_actor_sys_prio", 24, formU16, in8023AD, whileUp, nil}
	optPortKey          = &option{"ad_user_port_key", 25, formU16, in8023AD, whileUp, nil}
	optSystem           = &option{"ad_actor_system", 26, formMAC, in8023AD, whileUp, nil}
	optDynamicTLB       = &option{"tlb_dynamic_lb", 27, formU8, inTLB | inALB, whileUp, nil}
	optPeerNotifDelay   = &option{"peer_notif_delay", 28, formU32, inActiveBackup, 0, nil}
	optLACPActive       = &option{"lacp_active", 29, formU8, in8023AD, whileUp, nil}
	optMissedMax        = &option{"missed_max", 30, formU8, inARP, 0, nil}
	optNSTarget         = &option{"ns_ip6_target", 31, formTargets6, inARP, 0, nil}
)
