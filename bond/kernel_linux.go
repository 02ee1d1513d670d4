package bond

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// driver has to do with one bond of one network namespace. A [Kernel] calls it
// under its lock, but for listen, unlisten and everything.
type driver struct {
	plan   *plan
	kernel rtnetlink
	before []linkState // what there was when news began

	index    int            // of the bond that we have looked at; 0 if none
	made     bool           // it is of our making
	marked   bool           // it is not, and has our alias
	raised   bool           // it is not, and was down
	enslaved map[int]bool   // members that we put in, by index
	added    []netip.Prefix // addresses that we added
}

// openDriver opens what leads to the kernel.
func openDriver(p *plan, open func(bond string) (rtnetlink, error)) (*driver, error) {
	if open == nil {
		open = openSockets
	}
	kernel, err := open(p.name)
	if err != nil {
		return nil, fmt.Errorf("bond: %s: %w", p.name, err)
	}
	d := &driver{plan: p, kernel: kernel, enslaved: make(map[int]bool)}
	if d.before, err = d.everything(); err != nil {
		d.close()
		return nil, fmt.Errorf("bond: %s: %w", p.name, err)
	}
	return d, nil
}

// close gives back all but the bond.
func (d *driver) close() { d.kernel.close() }

// refused explains what the kernel says to those who may not. The bonding driver
// has the same number for what it does not like, but adds words.
func refused(err error) error {
	if err == error(unix.EPERM) {
		return fmt.Errorf("%w: it needs CAP_NET_ADMIN in the network namespace, run it as root: %w", ErrUnsupported, err)
	}
	return err
}

// request sends one and returns the answers.
func (d *driver) request(kind, flags int, parts ...nl.NetlinkRequestData) ([][]byte, error) {
	return d.kernel.request(kind, flags, parts)
}

// link returns an interface by its name, nil if there is none.
func (d *driver) link(name string) (*link, error) {
	answer, err := d.request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, err
	case len(answer) == 0:
		return nil, errors.New("no answer")
	}
	return parseLink(answer[0])
}

// links returns all interfaces, or those that have a master.
func (d *driver) links(master int) (list []*link, err error) {
	parts := []nl.NetlinkRequestData{nl.NewIfInfomsg(unix.AF_UNSPEC)}
	if master != 0 {
		parts = append(parts, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
	}
	var answers [][]byte
	for range 5 { // the list may change while it is read
		if answers, err = d.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, parts...); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		l, err := parseLink(b)
		if err != nil {
			return nil, err
		}
		// Old kernels do not choose.
		if master == 0 || l.master == master {
			list = append(list, l)
		}
	}
	return list, nil
}

// everything is the state of all interfaces.
func (d *driver) everything() (list []linkState, err error) {
	links, err := d.links(0)
	for _, l := range links {
		list = append(list, l.state())
	}
	// A bond comes before its members, so that these are known as such.
	slices.SortStableFunc(list, func(a, b linkState) int {
		switch {
		case a.isBond == b.isBond:
			return 0
		case a.isBond:
			return -1
		}
		return 1
	})
	return list, err
}

// change changes an interface.
func (d *driver) change(index int, attrs ...*nl.RtAttr) error {
	return d.changeFlags(index, 0, 0, attrs...)
}

// setUp sets the state of an interface.
func (d *driver) setUp(index int, up bool) error {
	flags := uint32(0)
	if up {
		flags = unix.IFF_UP
	}
	return d.changeFlags(index, flags, unix.IFF_UP)
}

func (d *driver) changeFlags(index int, flags, mask uint32, attrs ...*nl.RtAttr) error {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(index), flags, mask
	parts := []nl.NetlinkRequestData{m}
	for _, a := range attrs {
		parts = append(parts, a)
	}
	_, err := d.request(unix.RTM_SETLINK, unix.NLM_F_ACK, parts...)
	return refused(err)
}

// setMaster puts an interface into a bond or, with 0, takes it out.
func (d *driver) setMaster(index, master int) error {
	return d.change(index, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
}

func mtuAttr(n int) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(n))) }

func aliasAttr(s string) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(s)) }

// create makes the bond and marks it as ours, in two steps, of which the first
// leaves a mark, too.
func (d *driver) create() error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bond"))
	_, err := d.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(d.plan.name)), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(groupHalfMade)), info)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: this kernel has no bonding driver: modprobe bonding, or use Bond, which needs none: %w", ErrUnsupported, err)
	}
	return refused(err)
}

// mark gives the bond an alias.
func (d *driver) mark(alias string) error {
	return d.change(d.index, aliasAttr(alias), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(0)))
}

// setOption sets an option of the bond.
func (d *driver) setOption(o *option, value []byte) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bond"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	switch o.form {
	case formTargets4, formTargets6:
		list := data.AddRtAttr(int(o.attr), nil)
		i := 0
		for target := range slices.Chunk(value, o.form.targetLen()) {
			list.AddRtAttr(i, target)
			i++
		}
	default:
		data.AddRtAttr(int(o.attr), value)
	}
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(d.index)
	_, err := d.request(unix.RTM_NEWLINK, unix.NLM_F_ACK, m, info)
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.name, o.text(value), refused(err))
	}
	return nil
}
