package bond

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkMessage is the body of a message about an interface.
func linkMessage(index int, attrs ...*nl.RtAttr) []byte {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags = int32(index), unix.IFF_UP
	b := m.Serialize()
	for _, a := range attrs {
		b = append(b, a.Serialize()...)
	}
	return b
}

func nameAttr(s string) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(s)) }

// bondAttrs is what a bond says of itself, memberAttrs what it says of a member.
func bondAttrs(active uint32) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.ZeroTerminated("bond"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(int(optMode.attr), []byte{1})
	data.AddRtAttr(attrActive, nl.Uint32Attr(active))
	list := data.AddRtAttr(int(optARPTarget.attr)|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(0, []byte{10, 0, 0, 1})
	list.AddRtAttr(1, []byte{10, 0, 0, 2})
	return info
}

func memberAttrs(status byte) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bond"))
	data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	data.AddRtAttr(attrStatus, []byte{status})
	data.AddRtAttr(attrFailures, nl.Uint32Attr(3))
	return info
}

func TestKernelParseNews(t *testing.T) {
	master := nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(9))
	of := func(kind int, b []byte) *news {
		return parseNews(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: uint16(kind)}, Data: b})
	}
	for what, c := range map[string]struct {
		got  *news
		want linkState
	}{
		"bond":    {of(unix.RTM_NEWLINK, linkMessage(9, nameAttr("bond0"), bondAttrs(7))), linkState{index: 9, name: "bond0", isBond: true, active: 7}},
		"up":      {of(unix.RTM_NEWLINK, linkMessage(7, nameAttr("tap0"), master, memberAttrs(0))), linkState{index: 7, name: "tap0", master: 9, usable: true}},
		"failing": {of(unix.RTM_NEWLINK, linkMessage(7, master, memberAttrs(1))), linkState{index: 7, master: 9, usable: true}},
		"down":    {of(unix.RTM_NEWLINK, linkMessage(7, master, memberAttrs(2))), linkState{index: 7, master: 9}},
		"back":    {of(unix.RTM_NEWLINK, linkMessage(7, master, memberAttrs(3))), linkState{index: 7, master: 9}},
		"gone":    {of(unix.RTM_DELLINK, linkMessage(9, nameAttr("bond0"))), linkState{index: 9, name: "bond0", gone: true}},
	} {
		if c.got == nil || !slices.Equal(c.got.links, []linkState{c.want}) {
			t.Errorf("%s: %+v", what, c.got)
		}
	}
	bridge := linkMessage(9, nameAttr("bond0"))
	bridge[0] = unix.AF_BRIDGE
	if of(unix.RTM_DELLINK, bridge) != nil || of(unix.RTM_NEWROUTE, bridge) != nil || of(unix.RTM_NEWADDR, nil) != nil || of(unix.RTM_NEWLINK, nil) != nil {
		t.Error("news of what does not concern us")
	}
	if n := of(unix.RTM_DELADDR, (&nl.IfAddrmsg{IfAddrmsg: unix.IfAddrmsg{Index: 9}}).Serialize()); n == nil || n.address != 9 {
		t.Errorf("an address: %+v", n)
	}
}

func TestKernelValues(t *testing.T) {
	l, err := parseLink(linkMessage(9, bondAttrs(7)))
	if err != nil {
		t.Fatal(err)
	}
	for o, want := range map[*option][]byte{optMode: {1}, optARPTarget: {10, 0, 0, 1, 10, 0, 0, 2}, optNSTarget: nil, optMIIMon: nil} {
		if got, err := l.value(o); !bytes.Equal(got, want) || (got == nil) != (want == nil) || err != nil {
			t.Errorf("%s: %v, %v", o.name, got, err)
		}
	}
	l.bond[optMIIMon.attr] = []byte{1}
	if _, err := l.value(optMIIMon); err == nil {
		t.Error("a value that is too short")
	}
}

// FuzzKernelNews reads messages that no kernel sends.
func FuzzKernelNews(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), linkMessage(9, nameAttr("bond0"), bondAttrs(7)))
	f.Add(uint16(unix.RTM_NEWLINK), linkMessage(7, nameAttr("tap0"), nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(9)), memberAttrs(0)))
	f.Add(uint16(unix.RTM_DELLINK), linkMessage(9, nameAttr("bond0"))[:20])
	f.Add(uint16(unix.RTM_NEWADDR), []byte{0, 0, 0, 0, 9, 0, 0, 0})
	f.Fuzz(func(t *testing.T, kind uint16, b []byte) {
		m := newMonitor(&plan{name: "bond0", members: []string{"tap0"}})
		m.bond = 9
		if n := parseNews(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: b}); n != nil {
			m.take(n.links)
			m.forget(n.links)
		}
		if l, err := parseLink(b); err == nil {
			for _, o := range []*option{optMode, optARPTarget, optNSTarget, optSystem} {
				if v, err := l.value(o); err == nil {
					_ = o.text(v)
				}
			}
		}
	})
}
