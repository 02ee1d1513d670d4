package bond

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

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

// TestBallotNoImpostor: a member that says the ID of another, which it was told, does
// not count as it, and hides from nobody that a server does not reach the other.
func TestBallotNoImpostor(t *testing.T) {
	b := ballot{primary: "tap0", hold: defaultHold, settle: defaultSettle}
	now := time.Unix(0, 0)
	us, victim, impostor := packet.Member{ID: 1, Name: "us"}, packet.Member{ID: 2, Name: "victim"}, packet.Member{ID: 2, Name: "impostor"}
	b.rise("tap0", now)
	b.rise("tap1", now)
	b.reach("tap0", []packet.Member{us, impostor}, now)
	b.reach("tap1", []packet.Member{us, impostor, victim}, now)
	b.decide(now)
	carry, _ := b.decide(now.Add(time.Second))
	if !carry["tap1"] || carry["tap0"] {
		t.Errorf("carriers %v, want tap1, whose server reaches the victim", carry)
	}
}

// TestBallotCrossed: of four legs two are cut crosswise. One server joins the seed
// with a member of the shoot, the other two members of the shoot, who have nothing to
// say to each other.
func TestBallotCrossed(t *testing.T) {
	p := newPoll(t, 2, 3)
	pods := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/13")}
	p.networks = map[int][]netip.Prefix{1: pods, 2: pods}
	p.all()
	p.run(time.Minute)
	p.want("tap0")
	for _, cut := range []struct{ member, server int }{{0, 0}, {2, 1}} {
		p.memberLoses(cut.member, cut.server)
		p.serverLoses(cut.member, cut.server)
	}
	p.run(time.Second)
	p.want("tap1", "tap1", "tap0") // the last has no other
	p.rise(0, 0)
	p.rise(2, 1)
	p.run(time.Minute)
	p.want("tap0")
}

// TestBallotBeginsAgain: who comes to one server as another process each few seconds
// has nobody follow each time.
func TestBallotBeginsAgain(t *testing.T) {
	p := newPoll(t, 2, 3)
	p.rise(0, 0)
	p.rise(0, 1)
	p.rise(1, 0)
	p.rise(1, 1)
	p.run(time.Minute)
	flips := func() int { return p.members[0].flips["tap0"] + p.members[1].flips["tap0"] }
	before := flips()
	for range 30 {
		p.rise(2, 1)
		p.run(1100 * time.Millisecond)
		p.memberLoses(2, 1)
		p.serverLoses(2, 1)
		p.restart(2)
		p.run(1100 * time.Millisecond)
	}
	if n := flips() - before; n > 12 {
		t.Errorf("the carriers of two members have changed %d times in a minute", n)
	}
	p.run(time.Minute)
	p.want("tap0", "tap0", "")
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
