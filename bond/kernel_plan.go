package bond

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// plan is what a [Kernel] wants, with nothing left to default.
type plan struct {
	name      string
	mtu       int // 0: as it is
	members   []string
	primary   string // "" means none
	addresses []netip.Prefix
	settings  []setting // in the order in which they are set
}

// setting is an option with the value it is to have.
type setting struct {
	*option
	value []byte // as in an attribute, of four bytes and less in this machine's order
	given bool   // by a field: a driver that does not know the option is too old
}

// resolve finds out what the fields mean, and all that is wrong with them.
func (k *Kernel) resolve() (*plan, error) {
	p := &plan{name: k.Name, mtu: k.MTU, members: slices.Clone(k.Members)}
	if p.name == "" {
		p.name = defaultKernelName
	}
	r := &resolver{mode: k.Mode}
	if why := badInterfaceName(p.name); why != "" {
		r.bad("Name %q: %s", p.name, why)
	}
	r.members(p)
	r.addresses(p, k.Addresses)
	switch {
	case p.mtu == 0:
	case p.mtu < 68 || p.mtu > 65535:
		r.bad("MTU %d: want 68 to 65535", p.mtu)
	case p.mtu < 1280 && slices.ContainsFunc(p.addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }):
		r.bad("MTU %d: IPv6 addresses need 1280 at least", p.mtu)
	}
	if k.Mode.known() {
		r.options(k)
		p.primary = r.primary(k)
	} else {
		r.bad("Mode %d is none that there is", k.Mode)
	}
	p.settings = r.list
	if err := errors.Join(r.errs...); err != nil {
		return nil, fmt.Errorf("bond: %w", err)
	}
	return p, nil
}

// resolver collects settings and errors.
type resolver struct {
	mode KernelMode
	list []setting
	errs []error
}

func (r *resolver) bad(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

// badInterfaceName says why the kernel would not take a name.
func badInterfaceName(name string) string {
	switch {
	case name == "", len(name) > 15:
		return "the name of an interface has 1 to 15 bytes"
	case name == ".", name == "..", strings.ContainsFunc(name, func(c rune) bool { return c == '/' || c == ':' || unicode.IsSpace(c) }):
		return "an interface cannot be called that"
	}
	return ""
}

func (r *resolver) members(p *plan) {
	if len(p.members) == 0 {
		r.bad("no Members: which interfaces are to be the bond?")
	}
	for i, name := range p.members {
		switch why := badInterfaceName(name); {
		case why != "":
			r.bad("Members: %q: %s", name, why)
		case name == p.name:
			r.bad("Members: the bond %s cannot be a member of itself", name)
		case slices.Contains(p.members[:i], name):
			r.bad("Members: %s is named twice", name)
		}
	}
}

func (r *resolver) addresses(p *plan, list []netip.Prefix) {
	for _, a := range list {
		if a.Addr().Is4In6() && a.Bits() >= 96 {
			a = netip.PrefixFrom(a.Addr().Unmap(), a.Bits()-96)
		}
		switch addr := a.Addr(); {
		case !a.IsValid():
			r.bad("Addresses: %v is not an address with a prefix length", a)
		case addr.Is4In6(), addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback():
			r.bad("Addresses: %v cannot be one of a bond", a)
		case slices.ContainsFunc(p.addresses, func(b netip.Prefix) bool { return b.Addr() == addr }):
			r.bad("Addresses: %v is named twice", addr)
		default:
			p.addresses = append(p.addresses, a)
		}
	}
}

// options turns the fields into settings. The order matters: the mode decides what
// else there is, setting one of the two monitors ends the other, and delays are
// counted in intervals.
func (r *resolver) options(k *Kernel) {
	r.set(optMode, uint64(modeNumbers[k.Mode]), true)
	interval := r.monitors(k)
	r.delay("UpDelay", optUpDelay, k.UpDelay, interval)
	r.delay("DownDelay", optDownDelay, k.DownDelay, interval)
	r.flag("IgnoreCarrier", optUseCarrier, k.IgnoreCarrier, 0)
	r.named("FailOverMAC", optFailOverMAC, k.FailOverMAC.String(), FailOverMACActive.String())
	r.named("Reselect", optReselect, k.Reselect.String(), ReselectAlways.String())
	r.count("PeerNotifications", optPeerNotif, k.PeerNotifications, 5, 255)
	r.delay("PeerNotifyDelay", optPeerNotifDelay, k.PeerNotifyDelay, interval)
	r.named("HashPolicy", optHashPolicy, k.HashPolicy, "layer2")
	r.count("PacketsPerMember", optPacketsPerMember, k.PacketsPerMember, 1, 65535)
	r.count("IGMPReports", optResendIGMP, k.IGMPReports, 1, 255)
	r.learnInterval(k.LearnInterval)
	r.flag("StaticTLB", optDynamicTLB, k.StaticTLB, 0)
	r.flag("AllMembersReceive", optAllMembers, k.AllMembersReceive, 1)
	r.lacp(&k.LACP)
}

// monitors settles which of the two watches the members, and returns the interval
// of the one that looks at carriers, 0 if it is off.
func (r *resolver) monitors(k *Kernel) (interval time.Duration) {
	arp := k.ARP.Interval
	switch {
	case arp < 0:
		r.bad("ARP.Interval %v is negative", arp)
	case k.MonitorInterval > 0 && arp > 0:
		r.bad("MonitorInterval %v and ARP.Interval %v: the driver looks at carriers or asks by ARP, not both", k.MonitorInterval, arp)
	case k.MonitorInterval < 0 && arp == 0:
		r.bad("MonitorInterval %v and no ARP.Interval: nothing would see that a member fails", k.MonitorInterval)
	case k.MonitorInterval == 0 && arp == 0:
		interval = 100 * time.Millisecond
	default:
		interval = max(k.MonitorInterval, 0)
	}
	r.set(optMIIMon, r.millis("MonitorInterval", interval), true)
	if !r.fits("ARP", optARPInterval, arp != 0 || len(k.ARP.Targets) > 0 || k.ARP.Validate != "" || k.ARP.AllTargets || k.ARP.MaxMissed != 0) {
		return interval
	}
	var four, six []byte
	for _, a := range k.ARP.Targets {
		switch a = a.Unmap(); {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
			r.bad("ARP.Targets: %v cannot be asked", a)
		case a.Is4():
			four = append(four, a.AsSlice()...)
		default:
			six = append(six, a.AsSlice()...)
		}
	}
	switch targets := len(k.ARP.Targets); {
	case arp > 0 && targets == 0:
		r.bad("ARP.Interval without ARP.Targets: who is to be asked?")
	case arp == 0 && targets > 0:
		r.bad("ARP.Targets without ARP.Interval: how often are they to be asked?")
	case len(four) > 16*4 || len(six) > 16*16:
		r.bad("ARP.Targets: the driver takes 16 of IPv4 and 16 of IPv6")
	}
	r.list = append(r.list, setting{optARPTarget, four, len(four) > 0}, setting{optNSTarget, six, len(six) > 0})
	r.set(optARPInterval, r.millis("ARP.Interval", arp), arp > 0)
	r.named("ARP.Validate", optARPValidate, k.ARP.Validate, "none")
	r.flag("ARP.AllTargets", optARPAllTargets, k.ARP.AllTargets, 1)
	if k.ARP.MaxMissed < 0 {
		r.bad("ARP.MaxMissed %d: want 1 to 255", k.ARP.MaxMissed)
	}
	r.count("ARP.MaxMissed", optMissedMax, k.ARP.MaxMissed, 2, 255)
	return interval
}

func (r *resolver) learnInterval(d time.Duration) {
	if !r.fits("LearnInterval", optLearnInterval, d != 0) {
		return
	}
	if d < 0 || d%time.Second != 0 || d > (1<<31-1)*time.Second {
		r.bad("LearnInterval %v: want whole seconds", d)
	}
	r.set(optLearnInterval, uint64(max(d/time.Second, 1)), d != 0)
}

func (r *resolver) lacp(l *LACP) {
	r.named("LACP.Rate", optLACPRate, l.Rate, "slow")
	r.flag("LACP.Passive", optLACPActive, l.Passive, 0)
	r.named("LACP.Select", optAggregate, l.Select, "stable")
	r.positive("LACP.MinLinks", optMinLinks, l.MinLinks, 0, 1<<31-1)
	r.positive("LACP.SystemPriority", optSystemPriority, l.SystemPriority, 65535, 65535)
	r.positive("LACP.PortKey", optPortKey, l.PortKey, 0, 1023)
	if r.fits("LACP.System", optSystem, l.System != nil) {
		switch {
		case l.System == nil:
			r.list = append(r.list, setting{optSystem, make([]byte, 6), false})
		case len(l.System) != 6 || l.System[0]&1 != 0 || [6]byte(l.System) == [6]byte{}:
			r.bad("LACP.System %v: want the MAC address of one host", l.System)
		default:
			r.list = append(r.list, setting{optSystem, slices.Clone(l.System), true})
		}
	}
}

// primary is the member to prefer.
func (r *resolver) primary(k *Kernel) string {
	given := k.Primary != "" && k.Primary != NoPrimary
	switch {
	case !r.fits("Primary", optPrimary, given), k.Primary == NoPrimary:
		return ""
	case given && !slices.Contains(k.Members, k.Primary):
		r.bad("Primary %q is none of the Members %s", k.Primary, strings.Join(k.Members, ", "))
	case given:
		return k.Primary
	case k.Mode == ModeActiveBackup && len(k.Members) > 0:
		return k.Members[0]
	}
	return ""
}

// fits reports whether an option means anything in the mode. That a field asks for
// one that does not is an error.
func (r *resolver) fits(field string, o *option, given bool) bool {
	if o.modes.of(r.mode) {
		return true
	}
	if given {
		r.bad("%s means nothing in mode %v: %s is for %s", field, r.mode, o.name, strings.Join(o.modes.names(), ", "))
	}
	return false
}

// set adds a setting whose value is a number.
func (r *resolver) set(o *option, n uint64, given bool) {
	r.list = append(r.list, setting{o, o.encode(n), given})
}

// named adds an option whose values have names. Empty means the default.
func (r *resolver) named(field string, o *option, given, def string) {
	if !r.fits(field, o, given != "" && given != def) {
		return
	}
	if given == "" {
		given = def
	}
	i := slices.Index(o.names, given)
	if i < 0 {
		r.bad("%s %q is none of %s", field, given, strings.Join(o.names, ", "))
	}
	r.set(o, uint64(max(i, 0)), given != def)
}

// count adds a number of which zero means the default and negative zero.
func (r *resolver) count(field string, o *option, given, def, most int) {
	if !r.fits(field, o, given != 0) {
		return
	}
	if given > most {
		r.bad("%s %d: the driver takes %d at most", field, given, most)
	}
	n := max(given, 0)
	if given == 0 {
		n = def
	}
	r.set(o, uint64(n), given != 0)
}

// positive is count for what cannot be switched off.
func (r *resolver) positive(field string, o *option, given, def, most int) {
	if given < 0 {
		r.bad("%s %d is negative", field, given)
		return
	}
	r.count(field, o, given, def, most)
}

// flag adds an option that is value if it is given, and the other of 0 and 1
// otherwise.
func (r *resolver) flag(field string, o *option, given bool, value uint64) {
	if !r.fits(field, o, given) {
		return
	}
	if !given {
		value = 1 - value
	}
	r.set(o, value, given)
}

// delay adds a time that the driver counts in intervals.
func (r *resolver) delay(field string, o *option, d, interval time.Duration) {
	if !r.fits(field, o, d != 0) {
		return
	}
	switch {
	case d < 0:
		r.bad("%s %v is negative", field, d)
	case d > 0 && interval == 0:
		r.bad("%s %v: without a MonitorInterval nobody counts it", field, d)
	case d > 0 && d%interval != 0:
		r.bad("%s %v is not a multiple of MonitorInterval, which is %v: the driver would make it %v", field, d, interval, d.Truncate(interval))
	}
	if interval > 0 { // without, the driver refuses to be told 0 as well
		r.set(o, r.millis(field, d), d != 0)
	}
}

// millis is a time in whole milliseconds.
func (r *resolver) millis(field string, d time.Duration) uint64 {
	if d%time.Millisecond != 0 || d > (1<<31-1)*time.Millisecond {
		r.bad("%s %v: want whole milliseconds", field, d)
		return 0
	}
	return uint64(d / time.Millisecond)
}

// encode writes a number as the attribute has it.
func (o *option) encode(n uint64) []byte {
	b := binary.NativeEndian.AppendUint64(nil, n)
	switch o.form {
	case formU8:
		return []byte{byte(n)}
	case formU16:
		return binary.NativeEndian.AppendUint16(b[:0], uint16(n))
	}
	return binary.NativeEndian.AppendUint32(b[:0], uint32(n))
}

// text is a value for people.
func (o *option) text(value []byte) string {
	switch o.form {
	case formMAC:
		return fmt.Sprintf("% x", value)
	case formTargets4, formTargets6:
		var list []string
		for a := range slices.Chunk(value, o.form.targetLen()) {
			addr, _ := netip.AddrFromSlice(a)
			list = append(list, addr.String())
		}
		return "[" + strings.Join(list, " ") + "]"
	}
	n := uint64(0)
	switch len(value) {
	case 1:
		n = uint64(value[0])
	case 2:
		n = uint64(binary.NativeEndian.Uint16(value))
	case 4:
		n = uint64(binary.NativeEndian.Uint32(value))
	}
	if o.names != nil && n < uint64(len(o.names)) {
		return o.names[n]
	}
	return strconv.FormatUint(n, 10)
}
