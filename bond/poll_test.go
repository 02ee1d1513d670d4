package bond

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// poll is a network in which the kernel bonds, as far as an election is concerned:
// servers that tell whom they reach, members that vote, and bonds that follow their
// carriers. Its time is a number, and what happens at a time is in a list.
type poll struct {
	t        *testing.T
	now      time.Time
	todo     []todo
	servers  []map[int]bool // server → members that have a link, as it sees it
	members  []*voter
	networks map[int][]netip.Prefix // behind members
	delay    func() time.Duration   // of REACH and of what an end learns of the other
	told     map[[2]int]time.Time   // until then nothing is told later: links keep the order
}

type todo struct {
	at time.Time
	f  func()
}

// voter is a member.
type voter struct {
	id     uint64
	vote   ballot
	carry  map[string]bool
	active string
	flips  map[string]int // how often a carrier has changed
	wakeAt time.Time
	up     map[int]bool
}

func newPoll(t *testing.T, servers, members int) *poll {
	p := &poll{t: t, now: time.Unix(1000, 0), delay: func() time.Duration { return 0 }, told: make(map[[2]int]time.Time)}
	for range servers {
		p.servers = append(p.servers, make(map[int]bool))
	}
	for m := range members {
		p.members = append(p.members, newVoter(uint64(m+1)))
	}
	return p
}

func newVoter(id uint64) *voter {
	return &voter{
		id: id, vote: ballot{primary: "tap0", hold: defaultHold, settle: defaultSettle},
		carry: make(map[string]bool), flips: make(map[string]int), up: make(map[int]bool),
	}
}

func tap(server int) string { return fmt.Sprintf("tap%d", server) }

// after has f happen later.
func (p *poll) after(d time.Duration, f func()) {
	p.todo = append(p.todo, todo{p.now.Add(d), f})
	slices.SortStableFunc(p.todo, func(a, b todo) int { return a.at.Compare(b.at) })
}

// run lets time pass.
func (p *poll) run(d time.Duration) {
	end := p.now.Add(d)
	for {
		next := end
		if len(p.todo) > 0 && p.todo[0].at.Before(next) {
			next = p.todo[0].at
		}
		for _, v := range p.members {
			if !v.wakeAt.IsZero() && v.wakeAt.Before(next) {
				next = v.wakeAt
			}
		}
		if next.After(p.now) {
			p.now = next
		}
		if len(p.todo) > 0 && !p.todo[0].at.After(p.now) {
			f := p.todo[0].f
			p.todo = p.todo[1:]
			f()
			continue
		}
		due := false
		for _, v := range p.members {
			if !v.wakeAt.IsZero() && !v.wakeAt.After(p.now) {
				v.decide(p)
				due = true
			}
		}
		if !due && !p.now.Before(end) {
			return
		}
	}
}

// decide sets the carriers of a member, and its bond follows.
func (v *voter) decide(p *poll) {
	carry, next := v.vote.decide(p.now)
	v.wakeAt = next
	if !next.IsZero() && !next.After(p.now) {
		p.t.Fatalf("asked to come back at %v, and it is %v", next, p.now)
	}
	for name := range v.vote.links {
		if carry[name] != v.carry[name] {
			v.flips[name]++
		}
	}
	v.carry = carry
	up := slices.ContainsFunc(slices.Collect(maps.Keys(v.up)), func(s int) bool { return v.up[s] })
	if up && len(carry) == 0 {
		p.t.Fatalf("member %d has links and no carrier", v.id)
	}
	switch {
	case carry["tap0"]:
		v.active = "tap0"
	case carry[v.active]:
	case len(carry) == 0:
		v.active = ""
	default:
		v.active = slices.Sorted(maps.Keys(carry))[0]
	}
}

// tell has a server tell all that it has links to.
func (p *poll) tell(server int) {
	var list []packet.Member
	for m := range p.servers[server] {
		list = append(list, packet.Member{ID: p.members[m].id, Name: fmt.Sprint("m", m), Networks: p.networks[m]})
	}
	for m := range p.servers[server] {
		at := p.now.Add(p.delay())
		if last := p.told[[2]int{server, m}]; at.Before(last) {
			at = last
		}
		p.told[[2]int{server, m}] = at
		v := p.members[m]
		p.after(at.Sub(p.now), func() {
			if p.members[m] == v && v.up[server] {
				v.vote.reach(tap(server), list, p.now)
				v.decide(p)
			}
		})
	}
}

// rise connects a member with a server.
func (p *poll) rise(m, server int) {
	if v := p.members[m]; !v.up[server] {
		v.up[server] = true
		v.vote.rise(tap(server), p.now)
		v.decide(p)
	}
	if !p.servers[server][m] {
		p.servers[server][m] = true
		p.tell(server)
	}
}

// memberLoses and serverLoses are the two ends of a link that is lost.
func (p *poll) memberLoses(m, server int) {
	if v := p.members[m]; v.up[server] {
		v.up[server] = false
		v.vote.fall(tap(server), p.now)
		v.decide(p)
	}
}

func (p *poll) serverLoses(m, server int) {
	if p.servers[server][m] {
		delete(p.servers[server], m)
		p.tell(server)
	}
}

// restart makes a member a new process.
func (p *poll) restart(m int) {
	v := newVoter(p.members[m].id + 1000)
	v.flips = p.members[m].flips
	p.members[m] = v
}

func (p *poll) all() {
	for m := range p.members {
		for s := range p.servers {
			p.rise(m, s)
		}
	}
}

func (p *poll) state() string {
	var b strings.Builder
	for s, reach := range p.servers {
		fmt.Fprintf(&b, "server %d reaches %v\n", s, slices.Sorted(maps.Keys(reach)))
	}
	for m, v := range p.members {
		fmt.Fprintf(&b, "member %d: carriers %v, active %q\n", m, slices.Sorted(maps.Keys(v.carry)), v.active)
		for _, name := range slices.Sorted(maps.Keys(v.vote.links)) {
			s := v.vote.links[name]
			fmt.Fprintf(&b, "  %s up %v elected %v votes %d flaps %d (%s)\n", name, s.up, s.elected, s.votes(), s.flaps, s.why)
		}
	}
	return b.String()
}

// want checks which link each member uses.
func (p *poll) want(active ...string) {
	p.t.Helper()
	for m, v := range p.members {
		if v.active != active[m%len(active)] {
			p.t.Fatalf("member %d uses %q, want %q\n%s", m, v.active, active[m%len(active)], p.state())
		}
	}
}

func (p *poll) flips() (n int) {
	for _, v := range p.members {
		for _, f := range v.flips {
			n += f
		}
	}
	return n
}

// disturb does something bad, or mends it.
func (p *poll) disturb(r *rand.Rand) {
	m, s := r.IntN(len(p.members)), r.IntN(len(p.servers))
	lag := time.Duration(r.IntN(2500)) * time.Millisecond
	switch r.IntN(8) {
	case 0, 1, 2:
		if p.members[m].up[s] == p.servers[s][m] {
			p.rise(m, s)
		}
	case 3: // a link is lost, for one end later
		p.memberLoses(m, s)
		v := p.members[m]
		p.after(lag, func() {
			if p.members[m] == v && !v.up[s] {
				p.serverLoses(m, s)
			}
		})
	case 4:
		p.serverLoses(m, s)
		v := p.members[m]
		p.after(lag, func() {
			if !p.servers[s][m] && p.members[m] == v {
				p.memberLoses(m, s)
			}
		})
	case 5: // a server is lost
		for m := range p.members {
			p.memberLoses(m, s)
			p.serverLoses(m, s)
		}
	case 6: // a member is lost, and begins again
		for s := range p.servers {
			p.memberLoses(m, s)
			p.serverLoses(m, s)
		}
		p.restart(m)
	case 7: // a server drains
		for m, v := range p.members {
			if v.up[s] {
				v.vote.drain(tap(s), p.now)
				v.decide(p)
			}
			p.after(time.Second, func() {
				p.memberLoses(m, s)
				p.serverLoses(m, s)
			})
		}
	}
}

// checkQuiet checks what has to be once nothing happens any more.
func (p *poll) checkQuiet() {
	most := 0
	for _, reach := range p.servers {
		most = max(most, len(reach))
	}
	meeting := ""
	for s, reach := range p.servers {
		if meeting == "" && len(reach) == most {
			meeting = tap(s)
		}
	}
	for m, v := range p.members {
		best := 0
		for s := range p.servers {
			if v.up[s] {
				best = max(best, len(p.servers[s]))
			}
		}
		var equals []string
		for s := range p.servers {
			if v.up[s] && len(p.servers[s]) == best {
				equals = append(equals, tap(s))
			}
		}
		want := equals
		if len(want) > 0 && want[0] != "tap0" {
			want = want[:1]
		}
		if got := slices.Sorted(maps.Keys(v.carry)); !slices.Equal(got, want) {
			p.t.Fatalf("member %d has carriers %v, want %v\n%s", m, got, want, p.state())
		}
		// Whoever has a link to the server that reaches most uses it; of several,
		// the first.
		if best == most && most > 0 {
			first := equals[0]
			if v.active != first {
				p.t.Fatalf("member %d uses %q, want %q\n%s", m, v.active, first, p.state())
			}
			if len(p.servers) == 2 && len(p.servers[0]) == len(p.members) && v.active != "tap0" {
				p.t.Fatalf("member %d uses %q although all can meet at the primary\n%s", m, v.active, p.state())
			}
		}
		if most == len(p.members) && v.active != meeting {
			p.t.Fatalf("member %d uses %q, and all can meet at %q\n%s", m, v.active, meeting, p.state())
		}
	}
}
