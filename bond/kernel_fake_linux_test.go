package bond

import (
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// fakeKernel has the bonding driver, and interfaces, in memory: for the race
// detector, which a kernel that has bonding is too small for, and for what no real
// one can be made to refuse.
type fakeKernel struct {
	mu        sync.Mutex
	links     map[int]*fakeInterface
	next      int
	addresses map[int][]netlink.Addr
	told      []syscall.NetlinkMessage
	news      chan struct{} // has room for one
	ended     chan struct{}
	lost      bool             // the next receive is of news that did not fit
	refuse    map[string]error // by what is asked: "create", "set miimon", "master", "down", "up", "mtu", "alias", "delete", "add address", …
	unknown   []*option        // that this driver does not have
	asked     []string
}

type fakeInterface struct {
	link
	carrier  bool
	failures uint32
}

func newFakeKernel(names ...string) *fakeKernel {
	f := &fakeKernel{links: make(map[int]*fakeInterface), addresses: make(map[int][]netlink.Addr), news: make(chan struct{}, 1), ended: make(chan struct{}), refuse: make(map[string]error)}
	for _, name := range names {
		f.add(name, "tun")
	}
	return f
}

// connect is what a [Kernel] opens.
func (f *fakeKernel) connect(string) (rtnetlink, error) { return f, f.refuse["open"] }

func (f *fakeKernel) add(name, kind string) *fakeInterface {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addLocked(name, kind)
}

func (f *fakeKernel) addLocked(name, kind string) *fakeInterface {
	f.next++
	l := &fakeInterface{link: link{index: f.next, name: name, kind: kind, mtu: 1500}}
	if kind == "bond" {
		l.bond = make(map[uint16][]byte)
		// What the driver begins with.
		for o, n := range map[*option]uint64{optMode: 0, optMIIMon: 0, optUpDelay: 0, optDownDelay: 0, optUseCarrier: 1, optARPInterval: 0, optARPValidate: 0,
			optARPAllTargets: 0, optReselect: 0, optFailOverMAC: 0, optHashPolicy: 0, optResendIGMP: 1, optPeerNotif: 1, optAllMembers: 0, optMinLinks: 0,
			optLearnInterval: 1, optPacketsPerMember: 1, optPeerNotifDelay: 0, optMissedMax: 2} {
			if !slices.Contains(f.unknown, o) {
				l.bond[o.attr] = o.encode(n)
			}
		}
	}
	f.links[l.index] = l
	f.tell(unix.RTM_NEWLINK, l)
	return l
}

// with changes things as somebody else does.
func (f *fakeKernel) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.settle()
}

func (f *fakeKernel) find(name string) *fakeInterface {
	for _, l := range f.links {
		if l.name == name {
			return l
		}
	}
	return nil
}

// settle does what the driver does when something has changed.
func (f *fakeKernel) settle() {
	for _, index := range slices.Sorted(maps.Keys(f.links)) {
		l := f.links[index]
		bond := f.links[l.master]
		if bond == nil || bond.kind != "bond" {
			if l.member != nil {
				l.member = nil
				f.tell(unix.RTM_NEWLINK, l)
			}
			continue
		}
		status := []byte{2}
		if l.carrier && l.up() {
			status = []byte{0}
		}
		if l.member == nil || l.member[attrStatus][0] != status[0] {
			if l.member != nil && status[0] == 2 {
				l.failures++
			}
			l.member = map[uint16][]byte{attrStatus: status, attrFailures: nl.Uint32Attr(l.failures)}
			f.tell(unix.RTM_NEWLINK, l)
		}
	}
	for _, b := range f.links {
		if b.kind != "bond" {
			continue
		}
		was, active := attrNumber(b.bond[attrActive]), uint32(0)
		for _, index := range slices.Sorted(maps.Keys(f.links)) {
			l := f.links[index]
			usable := l.master == b.index && l.member[attrStatus][0] == 0
			if usable && (active == 0 || uint32(index) == attrNumber(b.bond[optPrimary.attr])) {
				active = uint32(index)
			}
		}
		b.flags &^= unix.IFF_LOWER_UP
		delete(b.bond, attrActive)
		if active != 0 {
			b.flags |= unix.IFF_LOWER_UP
			b.bond[attrActive] = nl.Uint32Attr(active)
		}
		if was != active {
			f.tell(unix.RTM_NEWLINK, b)
		}
	}
}

func (f *fakeKernel) remove(l *fakeInterface) {
	delete(f.links, l.index)
	delete(f.addresses, l.index)
	for _, m := range f.links {
		if m.master == l.index {
			m.master = 0
			m.flags &^= unix.IFF_UP
		}
	}
	f.settle()
	f.tell(unix.RTM_DELLINK, l)
}

func (f *fakeKernel) tell(kind uint16, l *fakeInterface) {
	f.send(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: l.encode()})
}

func (f *fakeKernel) send(m syscall.NetlinkMessage) {
	f.told = append(f.told, m)
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// encode writes an interface as the kernel does.
func (l *fakeInterface) encode() []byte {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags = int32(l.index), l.flags
	b := m.Serialize()
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.ZeroTerminated(l.kind))
	nested := func(kind int, values map[uint16][]byte) {
		list := info.AddRtAttr(kind, nil)
		for attr, value := range values {
			list.AddRtAttr(int(attr), value)
		}
	}
	if l.bond != nil {
		nested(nl.IFLA_INFO_DATA, l.bond)
	}
	if l.member != nil {
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bond"))
		nested(nl.IFLA_INFO_SLAVE_DATA, l.member)
	}
	for _, a := range []*nl.RtAttr{nameAttr(l.name), mtuAttr(l.mtu), aliasAttr(l.alias), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(l.group)),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(l.master))), info} {
		b = append(b, a.Serialize()...)
	}
	return b
}

func (f *fakeKernel) request(kind, flags int, parts []nl.NetlinkRequestData) (answers [][]byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b []byte
	for _, p := range parts {
		b = append(b, p.Serialize()...)
	}
	l, err := parseLink(b)
	if err != nil {
		return nil, err
	}
	attrs, err := parseAttrs(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	there := f.links[l.index]
	if there == nil {
		there = f.find(l.name)
	}
	switch {
	case kind == unix.RTM_GETLINK && flags&unix.NLM_F_DUMP != 0:
		if err := f.refuse["dump"]; err != nil {
			return nil, err
		}
		for _, index := range slices.Sorted(maps.Keys(f.links)) {
			answers = append(answers, f.links[index].encode())
		}
		return answers, nil // all of them: an old kernel does not choose
	case kind == unix.RTM_NEWLINK && flags&unix.NLM_F_CREATE != 0:
		if err := f.does("create"); err != nil {
			return nil, err
		}
		if there != nil {
			return nil, syscall.EEXIST
		}
		f.addLocked(l.name, l.kind).group = l.group
		return nil, nil
	case there == nil:
		return nil, syscall.ENODEV
	case kind == unix.RTM_GETLINK:
		return [][]byte{there.encode()}, f.refuse["get"]
	case kind == unix.RTM_DELLINK:
		if err := f.does("delete"); err != nil {
			return nil, err
		}
		f.remove(there)
		return nil, nil
	case kind == unix.RTM_NEWLINK:
		return nil, f.setOptions(there, l)
	case kind == unix.RTM_SETLINK:
		return nil, f.change(there, l, binary.NativeEndian.Uint32(b[12:]), attrs)
	}
	return nil, syscall.EINVAL
}

// does notes what is asked, and says whether it is refused.
func (f *fakeKernel) does(what string) error {
	f.asked = append(f.asked, what)
	return f.refuse[what]
}

// setOptions sets options of a bond, under the rules of the driver.
func (f *fakeKernel) setOptions(there *fakeInterface, l *link) error {
	for _, o := range allOptions {
		value, ok := l.bond[o.attr]
		if !ok {
			continue
		}
		members := slices.ContainsFunc(slices.Collect(maps.Values(f.links)), func(m *fakeInterface) bool { return m.master == there.index })
		if err := f.does("set " + o.name); err != nil {
			return err
		}
		switch {
		case slices.Contains(f.unknown, o):
			return nil // skipped, as an older kernel does
		case o.lock&withMembers != 0 && members:
			return syscall.ENOTEMPTY
		case o.lock&whileUp != 0 && there.up():
			return syscall.EBUSY
		}
		there.bond[o.attr] = value
		f.tell(unix.RTM_NEWLINK, there)
	}
	f.settle()
	return nil
}

var allOptions = []*option{optMode, optMIIMon, optUpDelay, optDownDelay, optUseCarrier, optARPTarget, optNSTarget, optARPInterval, optARPValidate, optARPAllTargets,
	optPrimary, optReselect, optFailOverMAC, optHashPolicy, optResendIGMP, optPeerNotif, optAllMembers, optMinLinks, optLearnInterval, optPacketsPerMember,
	optLACPRate, optAggregate, optSystemPriority, optPortKey, optSystem, optDynamicTLB, optPeerNotifDelay, optLACPActive, optMissedMax}

// change changes an interface.
func (f *fakeKernel) change(there *fakeInterface, l *link, mask uint32, attrs map[uint16][]byte) error {
	if mask&unix.IFF_UP != 0 {
		what := "down"
		if l.up() {
			what = "up"
		}
		if err := f.does(what); err != nil {
			return err
		}
		there.flags = there.flags&^unix.IFF_UP | l.flags&unix.IFF_UP
		if what == "down" {
			f.addresses[there.index] = slices.DeleteFunc(f.addresses[there.index], func(a netlink.Addr) bool { return a.IP.To4() == nil })
		}
	}
	if _, ok := attrs[unix.IFLA_MASTER]; ok {
		what := "in"
		if l.master == 0 {
			what = "out"
		}
		if err := f.does(what); err != nil {
			return err
		}
		if there.up() && what == "in" {
			return errors.Join(syscall.EPERM, errors.New("Device can not be enslaved while up"))
		}
		there.master = l.master
		there.flags = there.flags &^ unix.IFF_UP
		if what == "in" {
			there.flags |= unix.IFF_UP
			there.mtu = f.links[l.master].mtu
		}
	}
	if _, ok := attrs[unix.IFLA_MTU]; ok {
		if err := f.does("mtu"); err != nil {
			return err
		}
		there.mtu = l.mtu
		for _, m := range f.links {
			if m.master == there.index {
				m.mtu = l.mtu
			}
		}
	}
	if _, ok := attrs[unix.IFLA_IFALIAS]; ok {
		if err := f.does("alias"); err != nil {
			return err
		}
		there.alias = l.alias
	}
	if _, ok := attrs[unix.IFLA_GROUP]; ok {
		there.group = l.group
	}
	f.tell(unix.RTM_NEWLINK, there)
	f.settle()
	return nil
}

func (f *fakeKernel) addressList(index int) ([]netlink.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.addresses[index]), f.refuse["list addresses"]
}

func (f *fakeKernel) addressAdd(index int, a *netlink.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.does("add address"); err != nil {
		return err
	}
	f.addresses[index] = append(f.addresses[index], *a)
	f.sendAddress(index)
	return nil
}

func (f *fakeKernel) addressDel(index int, a *netlink.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.does("remove address"); err != nil {
		return err
	}
	before := len(f.addresses[index])
	f.addresses[index] = slices.DeleteFunc(f.addresses[index], func(b netlink.Addr) bool { return b.IPNet.String() == a.IPNet.String() })
	if len(f.addresses[index]) == before {
		return syscall.EADDRNOTAVAIL
	}
	f.sendAddress(index)
	return nil
}

func (f *fakeKernel) sendAddress(index int) {
	m := &nl.IfAddrmsg{IfAddrmsg: unix.IfAddrmsg{Index: uint32(index)}}
	f.send(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWADDR}, Data: m.Serialize()})
}

func (f *fakeKernel) local(netip.Addr) bool { return true }

func (f *fakeKernel) mark(n uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refuse["mark"]; err != nil {
		return err
	}
	f.send(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Pid: 1, Seq: n}})
	return nil
}

func (f *fakeKernel) receive() ([]syscall.NetlinkMessage, uint32, error) {
	for {
		f.mu.Lock()
		var list []syscall.NetlinkMessage
		if len(f.told) > 0 {
			list, f.told = f.told[:1], f.told[1:]
		}
		lost := f.lost
		f.lost = false
		broken := f.refuse["receive"]
		delete(f.refuse, "receive") // once
		f.mu.Unlock()
		switch {
		case broken != nil:
			return nil, 0, broken
		case lost:
			return nil, 0, syscall.ENOBUFS
		case len(list) > 0 && list[0].Header.Pid == 1:
			return nil, list[0].Header.Seq, nil
		case len(list) > 0:
			return list, 0, nil
		}
		select {
		case <-f.news:
		case <-f.ended:
			return nil, 0, net.ErrClosed
		}
	}
}

func (f *fakeKernel) unlisten() { close(f.ended) }
func (f *fakeKernel) close()    {}

// state describes the interfaces.
func (f *fakeKernel) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, index := range slices.Sorted(maps.Keys(f.links)) {
		l := f.links[index]
		s := l.name
		if b := f.links[l.master]; b != nil {
			s += " in " + b.name
		}
		if l.up() {
			s += " up"
		}
		for _, a := range f.addresses[index] {
			s += " " + a.IPNet.String()
		}
		list = append(list, s)
	}
	return strings.Join(list, "; ")
}
