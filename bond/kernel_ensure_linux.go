package bond

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Our marks on a bond.
const (
	aliasMade    = "made by rhizome bond"
	aliasAdopted = "adopted by rhizome bond"
	// groupHalfMade is the device group of a bond from its making until it has its
	// alias: what a process leaves that is killed in between.
	groupHalfMade = 0x72686962
)

// errAgain wants another try from the beginning.
var errAgain = errors.New("changed meanwhile")

// ensure makes all as it should be, and says what it did for it.
func (d *driver) ensure() (done []string, err error) {
	did := func(format string, args ...any) { done = append(done, fmt.Sprintf(format, args...)) }
	// Others may make, change and delete between two steps.
	for range 6 {
		if err = d.try(did); !errors.Is(err, errAgain) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("bond: %s: %w", d.plan.name, err)
	}
	return done, err
}

func (d *driver) try(did func(string, ...any)) error {
	bond, err := d.link(d.plan.name)
	if err != nil {
		return err
	}
	if bond != nil && bond.kind != "bond" {
		return fmt.Errorf("the interface exists and is no bond: choose another name, or ip link delete dev %s", d.plan.name)
	}
	if d.index == 0 {
		if err := d.checkMembers(bond); err != nil {
			return err
		}
	}
	if bond == nil {
		if err := d.create(); err != nil {
			return err
		}
		did("bond made")
		if bond, err = d.link(d.plan.name); err != nil {
			return err
		}
		if bond == nil || !ours(bond) {
			return errAgain
		}
		d.index, d.made = bond.index, true // from here on it is ours to remove
	}
	members, err := d.links(bond.index)
	if err != nil {
		return err
	}
	if blocked := d.blocked(bond, len(members) > 0); len(blocked) > 0 {
		if !ours(bond) {
			return blocked[0]
		}
		if err := d.delete(bond.index); err != nil {
			return err
		}
		did("bond deleted, because %v", blocked[0])
		return errAgain
	}
	if bond.index != d.index || half(bond) {
		if err := d.meet(bond, members, did); err != nil {
			return err
		}
	}
	if err := d.ensureOptions(bond, did); err != nil {
		return err
	}
	// One that fails does not keep the others.
	return errors.Join(d.ensureMembers(did), d.ensureState(did), d.ensureAddresses(did))
}

// ours reports whether a bond is of our making, by whichever process.
func ours(bond *link) bool { return bond.alias == aliasMade || half(bond) }

// half reports whether a bond of our making has no alias yet.
func half(bond *link) bool { return bond.alias == "" && bond.group == groupHalfMade }

// checkMembers finds out before anything is touched whether the members can be had.
func (d *driver) checkMembers(bond *link) error {
	var errs []error
	for _, name := range d.plan.members {
		l, err := d.link(name)
		if err == nil {
			err = d.checkMember(name, l, bond)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d *driver) checkMember(name string, l, bond *link) error {
	switch {
	case l == nil:
		return fmt.Errorf("there is no interface %s to be a member", name)
	case l.master == 0, bond != nil && l.master == bond.index:
		return nil
	}
	return fmt.Errorf("%s has another master, interface %d: ip link set dev %s nomaster", name, l.master, name)
}

// blocked are the options that are not as they should be and cannot be changed as
// the bond is.
func (d *driver) blocked(bond *link, members bool) (list []error) {
	for _, s := range d.plan.settings {
		have, err := bond.value(s.option)
		if err != nil || have == nil || bytes.Equal(have, s.value) {
			continue
		}
		why, remedy := "", ""
		switch {
		case s.lock&withMembers != 0 && members:
			why, remedy = "while it has members", "take them out (ip link set dev MEMBER nomaster) and set it down, or delete it"
		case s.lock&whileUp != 0 && bond.up():
			why, remedy = "while it is up", "set it down, or delete it"
		default:
			continue
		}
		list = append(list, fmt.Errorf("the option %s is %s and not %s, which the driver does not change %s: %s (ip link delete dev %s)",
			s.name, s.text(have), s.text(s.value), why, remedy, d.plan.name))
	}
	return list
}

// meet gets to know a bond: one that we have made, that a process of ours has left,
// or that is somebody else's.
func (d *driver) meet(bond *link, members []*link, did func(string, ...any)) error {
	d.index, d.made, d.marked, d.raised, d.added = bond.index, ours(bond), false, false, nil
	clear(d.enslaved)
	if bond.alias == aliasMade {
		did("bond of an ended process taken over")
		return d.sweep(members, did)
	}
	if d.made {
		return d.mark(aliasMade)
	}
	did("bond adopted")
	switch bond.alias {
	case aliasAdopted:
		// What is wanted and there already is the work of our predecessor.
		d.marked = true
		for _, m := range members {
			d.enslaved[m.index] = slices.Contains(d.plan.members, m.name)
		}
		d.added = slices.Clone(d.plan.addresses)
	case "":
		if err := d.mark(aliasAdopted); err != nil {
			return err
		}
		d.marked, d.raised = true, !bond.up()
	default:
		d.raised = !bond.up()
	}
	return nil
}

// sweep takes from a bond of ours what is not wanted any more.
func (d *driver) sweep(members []*link, did func(string, ...any)) error {
	for _, m := range members {
		if slices.Contains(d.plan.members, m.name) {
			continue
		}
		if err := d.setMaster(m.index, 0); err != nil {
			return fmt.Errorf("member %s: %w", m.name, err)
		}
		did("member %s out", m.name)
	}
	list, err := d.kernel.addressList(d.index)
	if err != nil {
		return err
	}
	for _, a := range list {
		p := prefixOf(&a)
		if p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() || slices.Contains(d.plan.addresses, p) {
			continue
		}
		if err := d.kernel.addressDel(d.index, &a); err != nil {
			return fmt.Errorf("address %v: %w", p, refused(err))
		}
		did("address %v removed", p)
	}
	return nil
}

// ensureOptions sets what is not as it should be, but for the primary, which must be
// a member first.
func (d *driver) ensureOptions(bond *link, did func(string, ...any)) error {
	for _, s := range d.plan.settings {
		have, err := bond.value(s.option)
		if err != nil {
			return err
		}
		if bytes.Equal(have, s.value) || have == nil && !s.given {
			continue // an older driver without the option does what its default says
		}
		if err := d.setOption(s.option, s.value); err != nil {
			return err
		}
		did("%s %s", s.name, s.text(s.value))
		// One option may have changed others.
		if bond, err = d.again(); err != nil {
			return err
		}
		if now, _ := bond.value(s.option); now == nil && !s.secret() && len(s.value) > 0 {
			return fmt.Errorf("%s %s: this kernel's driver has no such option", s.name, s.text(s.value))
		}
	}
	return nil
}

// secret reports whether the driver tells the option only to those who are root
// outside of user namespaces, too.
func (o *option) secret() bool { return o == optSystem || o == optSystemPriority || o == optPortKey }

// again reads the bond again.
func (d *driver) again() (*link, error) {
	bond, err := d.link(d.plan.name)
	if err == nil && (bond == nil || bond.index != d.index) {
		err = errAgain
	}
	return bond, err
}

func (d *driver) ensureMembers(did func(string, ...any)) error {
	bond, err := d.again()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range d.plan.members {
		l, err := d.link(name)
		if err == nil {
			err = d.checkMember(name, l, bond)
		}
		if err == nil && l.master == 0 {
			err = d.enslave(l)
			did("member %s in", name)
		}
		if err == nil && name == d.plan.primary && !bytes.Equal(bond.bond[optPrimary.attr], optPrimary.encode(uint64(l.index))) {
			err = d.setOption(optPrimary, optPrimary.encode(uint64(l.index)))
			did("primary %s", name)
		}
		errs = append(errs, err)
	}
	if d.plan.primary == "" && attrNumber(bond.bond[optPrimary.attr]) != 0 {
		errs = append(errs, d.setOption(optPrimary, optPrimary.encode(0)))
		did("no primary")
	}
	return errors.Join(errs...)
}

// enslave puts an interface into the bond, which the driver allows only while it is
// down.
func (d *driver) enslave(l *link) error {
	if l.up() {
		if err := d.setUp(l.index, false); err != nil {
			return fmt.Errorf("member %s: down: %w", l.name, err)
		}
	}
	if err := d.setMaster(l.index, d.index); err != nil {
		return fmt.Errorf("member %s: %w", l.name, err)
	}
	d.enslaved[l.index] = true
	return nil
}

// ensureState sees to the MTU, which the driver passes on to the members that are
// in, and to that the bond is up.
func (d *driver) ensureState(did func(string, ...any)) error {
	bond, err := d.again()
	if err != nil {
		return err
	}
	if mtu := d.plan.mtu; mtu != 0 && bond.mtu != mtu {
		if err := d.change(d.index, mtuAttr(mtu)); err != nil {
			return fmt.Errorf("MTU %d: %w", mtu, err)
		}
		did("MTU %d", mtu)
	}
	if !bond.up() {
		if err := d.setUp(d.index, true); err != nil {
			return fmt.Errorf("up: %w", err)
		}
		did("up")
	}
	return nil
}

// setMTU changes what ensure keeps.
func (d *driver) setMTU(n int) error {
	d.plan.mtu = n
	if err := d.ensureState(func(string, ...any) {}); err != nil {
		return fmt.Errorf("bond: %s: %w", d.plan.name, err)
	}
	return nil
}

func (d *driver) delete(index int) error {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	_, err := d.request(unix.RTM_DELLINK, unix.NLM_F_ACK, m)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return refused(err)
}

// remove takes away what we have made.
func (d *driver) remove() error {
	if d.index == 0 {
		return nil
	}
	bond, err := d.link(d.plan.name)
	if err == nil && bond != nil && bond.index == d.index { // else it is gone already
		if d.made {
			err = d.delete(d.index)
		} else {
			err = d.leave()
		}
	}
	d.index = 0
	if err != nil {
		return fmt.Errorf("bond: %s: remove: %w", d.plan.name, err)
	}
	return nil
}

// discard removes a bond that is of our making, by whichever process.
func (d *driver) discard() error {
	bond, err := d.link(d.plan.name)
	if err == nil && bond != nil && bond.kind == "bond" && ours(bond) {
		err = d.delete(bond.index)
	}
	if err != nil {
		return fmt.Errorf("bond: %s: remove: %w", d.plan.name, err)
	}
	return nil
}

// leave leaves an adopted bond.
func (d *driver) leave() error {
	var errs []error
	for _, p := range d.added {
		err := d.kernel.addressDel(d.index, &netlink.Addr{IPNet: ipNet(p)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("address %v: %w", p, refused(err)))
		}
	}
	members, err := d.links(d.index)
	errs = append(errs, err)
	for _, m := range members {
		if d.enslaved[m.index] {
			errs = append(errs, d.setMaster(m.index, 0))
		}
	}
	if d.raised {
		errs = append(errs, d.setUp(d.index, false))
	}
	if d.marked {
		errs = append(errs, d.mark(""))
	}
	return errors.Join(errs...)
}

// status fills in what the kernel says.
func (d *driver) status(s *KernelStatus) error {
	bond, err := d.link(d.plan.name)
	if err != nil || bond == nil {
		return errors.Join(err, fmt.Errorf("bond: there is no interface %s", d.plan.name))
	}
	members, err := d.links(bond.index)
	if err != nil {
		return err
	}
	s.Adopted = !d.made
	s.Up = bond.flags&unix.IFF_LOWER_UP != 0 && bond.flags&unix.IFF_UP != 0
	place := func(m *link) int {
		if i := slices.Index(d.plan.members, m.name); i >= 0 {
			return i
		}
		return len(d.plan.members)
	}
	slices.SortStableFunc(members, func(a, b *link) int { return place(a) - place(b) })
	for _, m := range members {
		s.Members = append(s.Members, MemberStatus{Name: m.name, Up: m.state().usable, Failures: int(attrNumber(m.member[attrFailures]))})
		if uint32(m.index) == attrNumber(bond.bond[attrActive]) {
			s.Active = m.name
		}
	}
	return nil
}
