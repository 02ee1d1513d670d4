package bond

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// link is an interface as the kernel describes it.
type link struct {
	index  int
	flags  uint32
	name   string
	kind   string // bond, tun, …
	alias  string
	group  uint32
	mtu    int
	master int
	bond   map[uint16][]byte // options of a bond, by attribute
	member map[uint16][]byte // state of a member of a bond, by attribute
}

func (l *link) up() bool { return l.flags&unix.IFF_UP != 0 }

// Attributes besides those of options.
const (
	attrActive   = 2 // IFLA_BOND_ACTIVE_SLAVE
	attrStatus   = 2 // IFLA_BOND_SLAVE_MII_STATUS
	attrFailures = 3 // IFLA_BOND_SLAVE_LINK_FAILURE_COUNT
)

// Values of attrStatus. A member that fails is used until DownDelay is over, and
// one that is back is not until UpDelay is.
const (
	statusUp      = 0
	statusFailing = 1
)

var errShort = errors.New("a message of the kernel that is cut short")

// parseLink reads the body of a message about an interface.
func parseLink(b []byte) (*link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return nil, errShort
	}
	m := nl.DeserializeIfInfomsg(b)
	l := &link{index: int(m.Index), flags: m.Flags}
	attrs, err := parseAttrs(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	l.name = attrText(attrs[unix.IFLA_IFNAME])
	l.alias = attrText(attrs[unix.IFLA_IFALIAS])
	l.group = attrNumber(attrs[unix.IFLA_GROUP])
	l.mtu = int(attrNumber(attrs[unix.IFLA_MTU]))
	l.master = int(attrNumber(attrs[unix.IFLA_MASTER]))
	info, err := parseAttrs(attrs[unix.IFLA_LINKINFO])
	if err != nil {
		return nil, err
	}
	if l.kind = attrText(info[nl.IFLA_INFO_KIND]); l.kind == "bond" {
		if l.bond, err = parseAttrs(info[nl.IFLA_INFO_DATA]); err != nil {
			return nil, err
		}
	}
	if attrText(info[nl.IFLA_INFO_SLAVE_KIND]) == "bond" {
		l.member, err = parseAttrs(info[nl.IFLA_INFO_SLAVE_DATA])
	}
	return l, err
}

// parseAttrs reads the values by their type.
func parseAttrs(b []byte) (map[uint16][]byte, error) {
	list := make(map[uint16][]byte)
	for len(b) > 0 {
		if len(b) < unix.SizeofRtAttr {
			return nil, errShort
		}
		size, kind := int(nl.NativeEndian().Uint16(b)), nl.NativeEndian().Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, errShort
		}
		list[kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[unix.SizeofRtAttr:size:size]
		b = b[min((size+3)&^3, len(b)):]
	}
	return list, nil
}

func attrText(b []byte) string { return unix.ByteSliceToString(b) }

// attrNumber is a value of one to four bytes, 0 if there is none.
func attrNumber(b []byte) uint32 {
	switch len(b) {
	case 1:
		return uint32(b[0])
	case 2:
		return uint32(nl.NativeEndian().Uint16(b))
	case 4:
		return nl.NativeEndian().Uint32(b)
	}
	return 0
}

// value is an option of a bond in the form of [setting], nil if the kernel does
// not tell.
func (l *link) value(o *option) ([]byte, error) {
	b, ok := l.bond[o.attr]
	if o.form != formTargets4 && o.form != formTargets6 {
		if ok && o.form.size() != len(b) {
			return nil, fmt.Errorf("%s: %w", o.name, errShort)
		}
		return b, nil
	}
	if !ok {
		return nil, nil
	}
	targets, err := parseAttrs(b)
	value := []byte{}
	for i := range uint16(16) {
		if t := targets[i]; len(t) == o.form.targetLen() {
			value = append(value, t...)
		}
	}
	return value, err
}

// state is what [monitor] wants to know.
func (l *link) state() linkState {
	s := linkState{index: l.index, name: l.name, isBond: l.kind == "bond", master: l.master}
	s.active = int(attrNumber(l.bond[attrActive]))
	if status, ok := l.member[attrStatus]; ok {
		s.usable = attrNumber(status) == statusUp || attrNumber(status) == statusFailing
	}
	return s
}

// parseNews reads one message; nil if it is about something else.
func parseNews(m syscall.NetlinkMessage) *news {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// Messages of another family are about the ports of a bridge.
		if l, err := parseLink(m.Data); err == nil && m.Data[0] == unix.AF_UNSPEC {
			s := l.state()
			s.gone = m.Header.Type == unix.RTM_DELLINK
			return &news{links: []linkState{s}}
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg {
			return &news{address: int(nl.DeserializeIfAddrmsg(m.Data).Index)}
		}
	}
	return nil
}

// listen passes on what the kernel tells, until unlisten.
func (d *driver) listen(to chan<- news, stop <-chan struct{}) {
	for {
		messages, mark, err := d.kernel.receive()
		list := []news{}
		switch {
		case mark != 0:
			list = append(list, news{mark: mark})
		case errors.Is(err, unix.ENOBUFS):
			list = append(list, news{lost: true})
		case errors.Is(err, unix.EINTR):
		case err != nil: // by unlisten, or of whatever
			select {
			case <-stop:
				return
			case <-time.After(lookAgain):
			}
			list = append(list, news{lost: true})
		}
		for _, m := range messages {
			if n := parseNews(m); n != nil {
				list = append(list, *n)
			}
		}
		for _, n := range list {
			select {
			case to <- n:
			case <-stop:
				return
			}
		}
	}
}

func (d *driver) unlisten() { d.kernel.unlisten() }
