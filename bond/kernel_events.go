package bond

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// What happens to a [Kernel] besides [LinkUp], [LinkDown], [Switched] and
// [Failed]; a link is a member there.
const (
	MemberRemoved EventKind = "member-removed" // A member is out of the bond, or its interface is gone.
	BondDeleted   EventKind = "bond-deleted"   // The bond is gone.
	Restored      EventKind = "restored"       // Reason says what was put back.
)

// news is what the kernel tells.
type news struct {
	links   []linkState
	address int    // the index of an interface whose addresses have changed
	lost    bool   // there was more than the socket could hold
	mark    uint32 // what stands before it has been told
}

// linkState is an interface, as far as a bond is concerned.
type linkState struct {
	index  int
	gone   bool
	name   string
	isBond bool
	active int  // of a bond: the index of the active member, 0 if it has none
	master int  // the index of the bond that it is a member of, or of another kind of master
	usable bool // of a member: the driver uses it, or would
}

// monitor makes events of what the kernel tells. It is used by one goroutine.
type monitor struct {
	plan    *plan
	bond    int // index, 0 while there is none
	active  int
	members map[int]*linkState
	names   map[int]string // of all that have been members
	list    []Event
	held    []Event // until mark is reached
	mark    uint32
}

func newMonitor(p *plan) *monitor {
	return &monitor{plan: p, members: make(map[int]*linkState), names: make(map[int]string)}
}

// events are those since the last call.
func (m *monitor) events() []Event {
	list := m.list
	m.list = nil
	return list
}

func (m *monitor) happens(e Event) {
	e.Time = time.Now()
	m.list = append(m.list, e)
}

// later is happens for what is told when the mark is reached that is set next.
func (m *monitor) later(e Event) {
	e.Time = time.Now()
	m.held = append(m.held, e)
}

// reached tells that the kernel has told all that was before a mark.
func (m *monitor) reached(mark uint32) {
	if mark == m.mark && mark != 0 {
		m.list = append(m.list, m.held...)
		m.held = nil
	}
}

// forget tells the monitor that these are all interfaces that there are: what it
// knows and is not among them is gone. It does not take them.
func (m *monitor) forget(all []linkState) {
	there := func(index int) bool {
		return slices.ContainsFunc(all, func(l linkState) bool { return l.index == index })
	}
	for index := range m.members {
		if !there(index) {
			m.takeOne(linkState{index: index, gone: true})
		}
	}
	if m.bond != 0 && !there(m.bond) {
		m.takeOne(linkState{index: m.bond, gone: true})
	}
}

// take takes states in their order, and reports whether one has to do with the
// bond.
func (m *monitor) take(list []linkState) (concerned bool) {
	for _, l := range list {
		if m.takeOne(l) {
			concerned = true
		}
	}
	return concerned
}

func (m *monitor) takeOne(l linkState) (concerned bool) {
	if m.bond == 0 && !l.gone && l.isBond && l.name == m.plan.name {
		m.bond = l.index
	}
	if l.index == m.bond && m.bond != 0 {
		m.takeBond(l)
		return true
	}
	was := m.members[l.index]
	is := !l.gone && l.master == m.bond && m.bond != 0
	switch {
	case is && was == nil:
		m.members[l.index], m.names[l.index] = &l, l.name
		if l.usable {
			m.happens(Event{Kind: LinkUp, Link: l.name, Reason: "in the bond, and up"})
		}
	case is:
		if l.usable != was.usable {
			m.turns(l)
		}
		m.members[l.index], m.names[l.index] = &l, l.name
	case was != nil:
		delete(m.members, l.index)
		reason := "taken out of the bond"
		if l.gone {
			reason = "the interface is gone"
		}
		m.happens(Event{Kind: MemberRemoved, Link: was.name, Reason: reason})
	default:
		return slices.Contains(m.plan.members, l.name)
	}
	return true
}

// turns tells that a member has come up or gone down.
func (m *monitor) turns(l linkState) {
	if l.usable {
		m.happens(Event{Kind: LinkUp, Link: l.name, Reason: "up again"})
		return
	}
	m.happens(Event{Kind: LinkDown, Link: l.name, Reason: "found down by the driver"})
}

// takeBond takes the state of the bond itself.
func (m *monitor) takeBond(l linkState) {
	if l.gone || l.name != m.plan.name {
		reason := "deleted"
		if !l.gone {
			reason = "renamed to " + l.name
		}
		m.switched(0, "the bond is gone")
		clear(m.members) // they went with it
		m.bond = 0
		m.happens(Event{Kind: BondDeleted, Reason: reason})
		return
	}
	m.switched(l.active, "")
}

// switched tells that another member is active, with the reason that shows.
func (m *monitor) switched(to int, reason string) {
	from := m.active
	if from == to {
		return
	}
	m.active = to
	member, in := m.members[from]
	switch {
	case reason != "":
	case from == 0:
		reason = "the first member that is up"
	case to == 0:
		reason = "no member is up"
	case !in:
		reason = m.nameOf(from) + " is out of the bond"
	case !member.usable:
		reason = m.nameOf(from) + " is down"
	case m.nameOf(to) == m.plan.primary:
		reason = "the primary is up again"
	default:
		reason = "chosen by the driver, or from outside"
	}
	m.happens(Event{Kind: Switched, From: m.nameOf(from), To: m.nameOf(to), Reason: reason})
}

// nameOf is the name of a member, or of who was one.
func (m *monitor) nameOf(index int) string {
	if index == 0 {
		return ""
	}
	if name, ok := m.names[index]; ok {
		return name
	}
	return fmt.Sprintf("interface %d", index)
}

// tell passes events on and logs them.
func (k *Kernel) tell(events []Event) {
	for _, e := range events {
		level := slog.LevelInfo
		switch e.Kind {
		case LinkDown, MemberRemoved, BondDeleted, Restored:
			level = slog.LevelWarn
		case Failed:
			level = slog.LevelError
		}
		attrs := []any{"bond", k.name()}
		for _, a := range [][2]string{{"link", e.Link}, {"from", e.From}, {"to", e.To}, {"reason", e.Reason}} {
			if a[1] != "" {
				attrs = append(attrs, a[0], a[1])
			}
		}
		k.logger().Log(context.Background(), level, string(e.Kind), attrs...)
		if k.OnEvent != nil {
			k.OnEvent(e)
		}
	}
}
