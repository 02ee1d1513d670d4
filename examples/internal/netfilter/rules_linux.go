package netfilter

import (
	"fmt"
	"net/netip"
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
	post := b.nat()
	for _, family := range []struct {
		v6           bool
		name         string
		kind         nftables.SetDatatype
		proto        byte
		offset, size uint32 // of the destination in the header
	}{
		{false, "networks4", nftables.TypeIPAddr, unix.NFPROTO_IPV4, 16, 4},
		{true, "networks6", nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 24, 16},
	} {
		list := intervals(networks, family.v6)
		if len(list) == 0 {
			continue
		}
		set := &nftables.Set{Table: b.table, Name: family.name, KeyType: family.kind, Interval: true}
		if err := b.conn.AddSet(set, elements(list)); err != nil {
			b.err = err
			return
		}
		rule := append(deviceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, device), deviceName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, device)...)
		rule = append(rule, protocol(expr.MetaKeyNFPROTO, family.proto)...)
		b.rule(post, append(rule,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: family.offset, Len: family.size},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Masq{},
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
	b.rule(from, icmp(unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 8)...)
	for _, kind := range []byte{128, 135, 136} { // echo, and who has an address
		b.rule(from, icmp(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, kind)...)
	}
	b.rule(from, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	for _, base := range []*nftables.Chain{b.filter("input", nftables.ChainHookInput), b.filter("forward", nftables.ChainHookForward)} {
		b.rule(base, append(deviceName(expr.MetaKeyIIFNAME, expr.CmpOpEq, device), &expr.Verdict{Kind: expr.VerdictJump, Chain: from.Name})...)
	}
}

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
func established() []expr.Any {
	mask := uint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
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
