package bond

import (
	"strings"
	"testing"
)

// TestKernelEvents has what the kernel tells, in its order, and what is made of it.
func TestKernelEvents(t *testing.T) {
	tap := func(index, master int, usable bool) linkState {
		return linkState{index: index, name: map[int]string{1: "tap0", 2: "tap1", 3: "other"}[index], master: master, usable: usable}
	}
	the := func(active int) linkState { return linkState{index: 9, name: "bond0", isBond: true, active: active} }
	m := newMonitor(&plan{name: "bond0", members: []string{"tap0", "tap1"}, primary: "tap0"})
	for _, c := range []struct {
		what      string
		list      []linkState
		concerned bool
		want      string // kind link from>to: reason
	}{
		{"a stranger", []linkState{tap(3, 0, false), {index: 7, name: "bond7", isBond: true}}, false, ""},
		{"a member that is not in", []linkState{tap(1, 0, false)}, true, ""},
		{"the bond", []linkState{the(0)}, true, ""},
		{"a member in", []linkState{tap(1, 9, true), the(1)}, true, "link-up tap0 >: in the bond, and up; switched  >tap0: the first member that is up"},
		{"the same again", []linkState{tap(1, 9, true), the(1)}, true, ""},
		{"one that is down", []linkState{tap(2, 9, false)}, true, ""},
		{"up", []linkState{tap(2, 9, true)}, true, "link-up tap1 >: up again"},
		{"the active one fails", []linkState{tap(1, 9, false), the(2)}, true, "link-down tap0 >: found down by the driver; switched  tap0>tap1: tap0 is down"},
		{"the primary is back", []linkState{tap(1, 9, true), the(1)}, true, "link-up tap0 >: up again; switched  tap1>tap0: the primary is up again"},
		{"chosen by somebody", []linkState{the(2)}, true, "switched  tap0>tap1: chosen by the driver, or from outside"},
		{"out of the bond", []linkState{tap(2, 0, false), the(1)}, true, "member-removed tap1 >: taken out of the bond; switched  tap1>tap0: tap1 is out of the bond"},
		{"in another", []linkState{tap(1, 8, true)}, true, "member-removed tap0 >: taken out of the bond"},
		{"nobody is up", []linkState{the(0)}, true, "switched  tap0>: no member is up"},
		{"a member that nobody named", []linkState{tap(3, 9, true), the(3)}, true, "link-up other >: in the bond, and up; switched  >other: the first member that is up"},
		{"gone", []linkState{{index: 3, name: "other", gone: true}}, true, "member-removed other >: the interface is gone"},
		{"one that we have not heard of", []linkState{the(5)}, true, "switched  other>interface 5: other is out of the bond"},
		{"deleted", []linkState{{index: 9, name: "bond0", gone: true}}, true, "switched  interface 5>: the bond is gone; bond-deleted  >: deleted"},
		{"another bond of the name", []linkState{{index: 10, name: "bond0", isBond: true}, {index: 1, name: "tap0", master: 10, usable: true}}, true, "link-up tap0 >: in the bond, and up"},
		{"renamed", []linkState{{index: 10, name: "b", isBond: true}}, true, "bond-deleted  >: renamed to b"},
	} {
		concerned := m.take(c.list)
		var got []string
		for _, e := range m.events() {
			got = append(got, string(e.Kind)+" "+e.Link+" "+e.From+">"+e.To+": "+e.Reason)
			if e.Time.IsZero() {
				t.Errorf("%s: no time", c.what)
			}
		}
		if s := strings.Join(got, "; "); s != c.want || concerned != c.concerned {
			t.Errorf("%s: %t\ngot  %s\nwant %s", c.what, concerned, s, c.want)
		}
	}
}

// TestKernelForget has news lost, and then all that there is.
func TestKernelForget(t *testing.T) {
	m := newMonitor(&plan{name: "bond0"})
	m.take([]linkState{{index: 9, name: "bond0", isBond: true}, {index: 1, name: "a", master: 9}, {index: 2, name: "b", master: 9}})
	m.forget([]linkState{{index: 9}, {index: 2}})
	if list := m.events(); len(list) != 1 || list[0].Kind != MemberRemoved || list[0].Link != "a" || m.bond != 9 {
		t.Errorf("got %+v", list)
	}
	m.forget(nil)
	if list := m.events(); len(list) != 2 || list[0].Link != "b" || list[1].Kind != BondDeleted || m.bond != 0 {
		t.Errorf("got %+v", list)
	}
}
