package bond

import (
	"fmt"
	"maps"
	"math/rand/v2"
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
	t       *testing.T
	now     time.Time
	todo    []todo
	servers []map[int]bool // server → members that have a link, as it sees it
	members []*voter
	delay   func() time.Duration // of REACH and of what an end learns of the other
	told    map[[2]int]time.Time // until then nothing is told later: links keep the order
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
		list = append(list, packet.Member{ID: p.members[m].id})
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

// TestBallotLegs cuts each leg alone: of the seed's client and of two shoot
// clients to two servers. Both ends learn of it at once, or one later than the
// other.
func TestBallotLegs(t *testing.T) {
	const lag = 400 * time.Millisecond
	for _, test := range []struct {
		name           string
		member, server time.Duration // when its ends learn of it
	}{
		{"both at once", 0, 0},
		{"the member first", 0, lag},
		{"the server first", lag, 0},
	} {
		for m := range 3 {
			for s := range 2 {
				t.Run(fmt.Sprintf("%s, member %d server %d", test.name, m, s), func(t *testing.T) {
					p := newPoll(t, 2, 3)
					p.all()
					p.run(5 * time.Second)
					p.want("tap0")
					for _, v := range p.members {
						if !v.carry["tap0"] || !v.carry["tap1"] {
							t.Fatalf("equals do not all have a carrier\n%s", p.state())
						}
					}
					before := p.flips()

					p.after(test.member, func() { p.memberLoses(m, s) })
					p.after(test.server, func() { p.serverLoses(m, s) })
					p.run(max(test.member, test.server) + defaultSettle - time.Millisecond)
					if test.server == 0 && test.member == 0 && s == 0 {
						// Not before the time to settle, which a dead member needs.
						if v := p.members[(m+1)%3]; v.active != "tap0" {
							t.Fatalf("left at once\n%s", p.state())
						}
					}
					p.run(2 * time.Millisecond)
					p.want(tap(1 - s))

					p.run(20 * time.Second)
					p.rise(m, s)
					p.run(defaultHold - time.Millisecond)
					p.want(tap(1 - s))
					p.run(2 * time.Millisecond)
					p.want("tap0")
					for _, v := range p.members {
						if !v.carry["tap0"] || !v.carry["tap1"] {
							t.Fatalf("the link has no carrier again\n%s", p.state())
						}
					}
					// Down and up again at each member, and nothing else.
					if n := p.flips() - before; n != 6 {
						t.Errorf("%d changes of carriers, want 6", n)
					}
				})
			}
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

// TestBallotDeadMember: a member that dies is missed by two servers one after the
// other, and nobody moves.
func TestBallotDeadMember(t *testing.T) {
	for _, first := range []int{0, 1} {
		p := newPoll(t, 2, 3)
		p.all()
		p.run(5 * time.Second)
		before := p.flips()
		p.serverLoses(2, first)
		p.run(defaultSettle - time.Millisecond)
		p.serverLoses(2, 1-first)
		p.run(10 * time.Second)
		if n := p.flips() - before; n != 0 {
			t.Errorf("server %d first: %d changes of carriers\n%s", first, n, p.state())
		}
	}
}

// TestBallotServers: servers that are lost and come back, and servers that drain.
func TestBallotServers(t *testing.T) {
	p := newPoll(t, 2, 3)
	p.all()
	p.run(5 * time.Second)

	for _, s := range []int{0, 1} { // a rolling update
		for m, v := range p.members {
			v.vote.drain(tap(s), p.now)
			v.decide(p)
			if v.active == tap(s) {
				t.Fatalf("member %d stays with a server that drains\n%s", m, p.state())
			}
		}
		p.run(time.Second)
		for m := range p.members {
			p.memberLoses(m, s)
			p.serverLoses(m, s)
		}
		p.want(tap(1 - s))
		for m := range p.members { // they return one after the other
			p.run(300 * time.Millisecond)
			p.rise(m, s)
		}
		p.run(defaultHold - time.Millisecond)
		p.want(tap(1 - s))
		p.run(2 * time.Millisecond)
		p.want("tap0")
		p.run(5 * time.Second)
	}

	for m := range p.members { // killed: no time passes
		p.memberLoses(m, 0)
		p.serverLoses(m, 0)
	}
	p.want("tap1")
	for m := range p.members { // and the other one as well, which was the last
		p.memberLoses(m, 1)
		p.serverLoses(m, 1)
	}
	p.want("")
	p.rise(0, 1)
	p.rise(1, 1)
	p.rise(2, 1)
	p.want("tap1")
}

// TestBallotLast: what is the only link keeps its carrier, whatever its server
// says.
func TestBallotLast(t *testing.T) {
	var b ballot
	b.settle, b.hold = defaultSettle, defaultHold
	now := time.Unix(0, 0)
	b.rise("tap1", now)
	carry, _ := b.decide(now)
	if !carry["tap1"] {
		t.Error("the only link has no carrier before its server has said anything")
	}
	b.drain("tap1", now)
	if carry, _ = b.decide(now.Add(time.Second)); !carry["tap1"] {
		t.Error("the only link has no carrier while its server drains")
	}
	b.rise("tap0", now.Add(time.Second))
	b.reach("tap0", []packet.Member{{ID: 1}}, now.Add(time.Second))
	if carry, _ = b.decide(now.Add(time.Second)); !carry["tap0"] || carry["tap1"] {
		t.Errorf("carriers %v, want tap0 alone", carry)
	}
}

// TestBallotFlapping: a leg that comes and goes costs fewer changes each time, and
// has its carrier again in the end.
func TestBallotFlapping(t *testing.T) {
	p := newPoll(t, 2, 3)
	p.all()
	p.run(5 * time.Second)
	before := p.flips()
	for range 120 { // ten minutes
		p.memberLoses(1, 0)
		p.serverLoses(1, 0)
		p.run(2500 * time.Millisecond)
		p.rise(1, 0)
		p.run(2500 * time.Millisecond)
	}
	// It goes, comes after 1 s, goes, comes after 2 s, goes, and is not trusted
	// for 4 s.
	if n := p.flips() - before; n != 3*5 {
		t.Errorf("%d changes of carriers in ten minutes, want 15", n)
	}
	p.run(maxHold)
	p.want("tap0")

	// A minute later it is as any other.
	p.run(calm)
	p.memberLoses(1, 0)
	p.serverLoses(1, 0)
	p.run(time.Second)
	p.want("tap1")
	p.rise(1, 0)
	p.run(defaultHold + time.Millisecond)
	p.want("tap0")
}

func TestBallotHoldBound(t *testing.T) {
	for flaps, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		if got := longer(time.Second, flaps); got != want*time.Second {
			t.Errorf("after %d flaps %v, want %v s", flaps, got, int(want))
		}
	}
	if got := longer(time.Minute, 3); got != time.Minute {
		t.Errorf("longer than the bound: %v", got)
	}
	if got := longer(0, 1000); got != 0 {
		t.Errorf("no hold: %v", got)
	}
}

// TestBallotNewMember: a process that has just begun does not know that a link was
// lost before, and the others do as it does.
func TestBallotNewMember(t *testing.T) {
	p := newPoll(t, 2, 3)
	for m := range 2 {
		p.rise(m, 0)
		p.rise(m, 1)
	}
	p.run(5 * time.Second)
	for range 4 { // so that it is held for long
		p.memberLoses(1, 0)
		p.serverLoses(1, 0)
		p.run(time.Second)
		p.rise(1, 0)
		p.run(longer(defaultHold, p.members[0].vote.links["tap0"].flaps) + time.Millisecond)
	}
	p.memberLoses(1, 0)
	p.serverLoses(1, 0)
	p.run(time.Second)
	p.rise(1, 0)
	p.run(time.Second)
	for _, v := range p.members[:2] {
		if v.active != "tap1" {
			t.Fatalf("the link is not held\n%s", p.state())
		}
	}
	p.rise(2, 1)
	p.run(50 * time.Millisecond)
	p.rise(2, 0)
	p.run(time.Millisecond)
	p.want("tap0")

	// A member that comes to one server only takes all along.
	p.restart(2)
	p.serverLoses(2, 0)
	p.serverLoses(2, 1)
	p.run(5 * time.Second)
	p.rise(2, 1)
	p.run(defaultSettle + time.Millisecond)
	p.want("tap1")
	p.rise(2, 0)
	p.run(defaultHold + time.Millisecond)
	p.want("tap0")
}

// TestBallotNoPrimary: without a primary all equals carry; with one that is not
// among them, the first.
func TestBallotNoPrimary(t *testing.T) {
	for primary, want := range map[string][]string{"": {"tap1", "tap2"}, "tap0": {"tap1"}} {
		b := ballot{primary: primary, hold: defaultHold, settle: defaultSettle}
		now := time.Unix(0, 0)
		for _, name := range []string{"tap2", "tap1", "tap0"} {
			b.rise(name, now)
			members := []packet.Member{{ID: 1}, {ID: 2}}
			if name == "tap0" {
				members = members[:1]
			}
			b.reach(name, members, now)
		}
		b.decide(now.Add(time.Second))
		carry, _ := b.decide(now.Add(2 * time.Second))
		if got := slices.Sorted(maps.Keys(carry)); !slices.Equal(got, want) {
			t.Errorf("primary %q: carriers %v, want %v", primary, got, want)
		}
	}
}

// TestBallotForgets: what is remembered of members has a bound.
func TestBallotForgets(t *testing.T) {
	b := ballot{hold: defaultHold, settle: defaultSettle}
	now := time.Unix(0, 0)
	b.rise("tap0", now)
	for i := range uint64(3 * maxSeen) {
		b.reach("tap0", []packet.Member{{ID: i + 1}}, now)
	}
	if len(b.seen) > maxSeen+1 {
		t.Errorf("%d members are remembered", len(b.seen))
	}
}

// TestBallotRandom: whatever happens to links, members and servers, once it is quiet
// all members carry where they can meet, and agree on the primary among what they
// have in common.
func TestBallotRandom(t *testing.T) {
	histories := 1000
	if testing.Short() {
		histories = 100
	}
	for i := range histories {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%d, seed %#x", i, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			p := newPoll(t, 2+r.IntN(2), 2+r.IntN(4))
			p.delay = func() time.Duration { return time.Duration(r.IntN(30)) * time.Millisecond }
			if r.IntN(2) == 0 {
				p.all()
			}
			for range 5 + r.IntN(60) {
				p.disturb(r)
				p.run(time.Duration(r.ExpFloat64() * float64(time.Second)))
			}
			// Both ends of each link come to know what is.
			for m, v := range p.members {
				for s := range p.servers {
					if v.up[s] != p.servers[s][m] {
						p.memberLoses(m, s)
						p.serverLoses(m, s)
					}
				}
			}
			p.run(maxHold + 5*time.Second)
			p.checkQuiet()
		})
	}
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
