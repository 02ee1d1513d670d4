package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// batch collects what a table is made of.
type batch struct {
	conn   *nftables.Conn
	table  *nftables.Table
	needs  []need // what to look for if the kernel refuses
	remedy string // what to do then
	err    error
}

// What to do without. The flags are those of the programs.
const (
	remedyMasquerade = "without it turn masquerading off (--masquerade=false), and have the networks behind route the answers to this host"
	remedyGate       = "without it nothing limits what the far side reaches of this host and by it, which --masquerade=false allows"
	remedyFirewall   = "without it turn the firewall off (--firewall=false) if the far side may begin connections, or keep it out by other means"
)

// What the kernel may lack.
var (
	needInet = need{"nftables for IPv4 and IPv6 together, the family inet", "CONFIG_NF_TABLES_INET", func(*batch) {}}
	needNAT  = need{"address translation", "CONFIG_NFT_NAT, CONFIG_NF_NAT", func(b *batch) { b.nat() }}
	needMasq = need{"masquerading", "CONFIG_NFT_MASQ", func(b *batch) { b.rule(b.nat(), &expr.Masq{}) }}
	needCt   = need{"connection tracking", "CONFIG_NFT_CT, CONFIG_NF_CONNTRACK", func(b *batch) {
		b.rule(b.filter("input", nftables.ChainHookInput), established()...)
	}}
)

// masquerade is the table of a [Masquerade].
func (b *batch) masquerade(device string, networks []netip.Prefix) {
	b.needs, b.remedy = []need{needNAT, needMasq}, remedyMasquerade
	if !atLeast(release(), 5, 7) {
		// Older ones accept the rule, which then never matches.
		b.err = lacks("rules for what comes from one device and leaves by another (Linux 5.7)", b.remedy, syscall.EOPNOTSUPP)
		return
	}
	b.toNetworks(b.nat(), onward(device), b.sets(networks), &expr.Masq{})
}

// onward matches what comes from the device and leaves by another.
func onward(device string) []expr.Any {
	return append(deviceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, device), deviceName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, device)...)
}

// family is the addresses of networks of one family.
type family struct {
	set          *nftables.Set
	proto        byte
	offset, size uint32 // of the destination in the header
}

// sets adds the networks, as far as there are any of a family.
func (b *batch) sets(networks []netip.Prefix) (all []family) {
	for _, f := range []struct {
		name string
		kind nftables.SetDatatype
		v6   bool
		family
	}{
		{"networks4", nftables.TypeIPAddr, false, family{proto: unix.NFPROTO_IPV4, offset: 16, size: 4}},
		{"networks6", nftables.TypeIP6Addr, true, family{proto: unix.NFPROTO_IPV6, offset: 24, size: 16}},
	} {
		list := intervals(networks, f.v6)
		if len(list) == 0 {
			continue
		}
		f.set = &nftables.Set{Table: b.table, Name: f.name, KeyType: f.kind, Interval: true}
		if err := b.conn.AddSet(f.set, elements(list)); err != nil {
			b.err = err
		}
		all = append(all, f.family)
	}
	return all
}

// toNetworks adds rules for what goes to one of the networks.
func (b *batch) toNetworks(c *nftables.Chain, match []expr.Any, sets []family, then expr.Any) {
	for _, f := range sets {
		rule := append(slices.Clip(match), protocol(expr.MetaKeyNFPROTO, f.proto)...)
		b.rule(c, append(rule,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.size},
			&expr.Lookup{SourceRegister: 1, SetName: f.set.Name, SetID: f.set.ID},
			then,
		)...)
	}
}

// elements are intervals as a set has them: the end of each is an element, too.
func elements(list []interval) (all []nftables.SetElement) {
	if len(list) > 0 && !list[0].first.IsUnspecified() {
		// The addresses before the first one are an interval that is not in the set.
		all = append(all, nftables.SetElement{Key: make([]byte, list[0].first.BitLen()/8), IntervalEnd: true})
	}
	for _, in := range list {
		all = append(all, nftables.SetElement{Key: in.first.AsSlice()})
		if in.end.IsValid() {
			all = append(all, nftables.SetElement{Key: in.end.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// firewall is the table of a [Firewall].
func (b *batch) firewall(device string) {
	b.needs, b.remedy = []need{needCt}, remedyFirewall
	from := b.conn.AddChain(&nftables.Chain{Table: b.table, Name: "from-tunnel"})
	b.rule(from, append(established(), &expr.Verdict{Kind: expr.VerdictAccept})...)
	b.rule(from, drop()...)
	// Only this host may be asked whether it is there, and not what is behind it.
	here := b.conn.AddChain(&nftables.Chain{Table: b.table, Name: "to-this-host"})
	b.neighbours(here)
	b.rule(here, &expr.Verdict{Kind: expr.VerdictJump, Chain: from.Name})
	for _, way := range []struct{ base, to *nftables.Chain }{
		{b.filter("input", nftables.ChainHookInput), here},
		{b.filter("forward", nftables.ChainHookForward), from},
	} {
		b.rule(way.base, append(deviceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, device), &expr.Verdict{Kind: expr.VerdictJump, Chain: way.to.Name})...)
	}
}

// neighbours accepts echo requests, and what IPv6 needs on the link.
func (b *batch) neighbours(c *nftables.Chain) {
	b.rule(c, icmp(unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 8)...)
	for _, kind := range []byte{128, 135, 136} { // echo, and who has an address
		b.rule(c, icmp(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, kind)...)
	}
}

// gate is the table of a [Gate].
func (b *batch) gate(device string, networks []netip.Prefix, host bool) {
	b.needs, b.remedy = []need{needCt}, remedyGate
	sets := b.sets(networks)
	from, accept := deviceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, device), &expr.Verdict{Kind: expr.VerdictAccept}
	forward := b.filter("forward", nftables.ChainHookForward)
	b.toNetworks(forward, onward(device), sets, accept)
	b.rule(forward, append(slices.Clip(from), drop()...)...)
	// What is of no known connection and begins none passes: another host may have
	// seen the other half of it.
	b.rule(forward, append(append(deviceName(expr.MetaKeyOIFNAME, expr.CmpOpEq, device), state(expr.CtStateBitNEW)...), drop()...)...)
	if host {
		return
	}
	here := b.conn.AddChain(&nftables.Chain{Table: b.table, Name: "to-this-host"})
	b.rule(here, append(established(), accept)...)
	b.neighbours(here)
	b.toNetworks(here, nil, sets, accept)
	b.rule(here, drop()...)
	b.rule(b.filter("input", nftables.ChainHookInput), append(slices.Clip(from), &expr.Verdict{Kind: expr.VerdictJump, Chain: here.Name})...)
}

// drop counts what it drops.
func drop() []expr.Any { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

// nat adds the chain in which sources are translated.
func (b *batch) nat() *nftables.Chain {
	return b.conn.AddChain(&nftables.Chain{Table: b.table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
}

// filter adds a chain that packets go through.
func (b *batch) filter(name string, hook *nftables.ChainHook) *nftables.Chain {
	return b.conn.AddChain(&nftables.Chain{Table: b.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
		Priority: nftables.ChainPriorityFilter})
}

func (b *batch) rule(c *nftables.Chain, exprs ...expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: exprs})
}

// deviceName matches the name of an interface.
func deviceName(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// protocol matches a byte of the packet's description.
func protocol(key expr.MetaKey, value byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}}}
}

// established matches answers, and what has to do with a connection.
func established() []expr.Any { return state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// state matches packets whose connection is in one of the states.
func state(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// icmp accepts messages of one type.
func icmp(family, proto, kind byte) []expr.Any {
	return append(append(protocol(expr.MetaKeyNFPROTO, family), protocol(expr.MetaKeyL4PROTO, proto)...),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
}

// atLeast compares the version of a kernel, which it takes for new if it cannot
// read it.
func atLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return true
	}
	return a > major || a == major && b >= minor
}
