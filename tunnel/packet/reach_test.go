package packet

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// largestMember is what a member says that says as much as a HELLO may hold, and rules
// that allow more.
func largestMember(n int) PortOptions {
	o := PortOptions{Member: Member{ID: 1<<63 + uint64(n), Name: fmt.Sprintf("%s%03d", strings.Repeat("<", maxName-3), n), MTU: maxMTU}}
	for i := range maxAddresses {
		o.Member.Addresses = append(o.Member.Addresses, netip.MustParseAddr(fmt.Sprintf("fd8f:6d53:b97a:1111:2222:3333:%x:%x", 0xa000+n, 0xb000+i)))
	}
	for i := range maxNetworks {
		o.Member.Networks = append(o.Member.Networks, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x:%x:aaaa:bbbb:cccc::/112", 0xa000+n, 0xb000+i)))
	}
	o.Addresses = []netip.Prefix{netip.MustParsePrefix("fd8f::/16")}
	o.Networks = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("::/0")}
	for i := range 300 { // each single address counts for itself
		o.Addresses = append(o.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 32))
	}
	return o
}

// Whatever HELLO and rules say, a client takes what it is told of it.
func TestReachOfLargestMember(t *testing.T) {
	rules := make([]netip.Prefix, 0, 300)
	for i := range 300 {
		rules = append(rules, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), 32))
	}
	product := largestMember(2)
	product.Member.Networks, product.Networks = linkPrefixes("0.0.0.0/0", "100.64.0.0/16"), rules
	product.Member.Addresses = append(product.Member.Addresses, largestMember(3).Member.Addresses...)
	for _, mode := range []Mode{TAP, TUN} {
		s := &Switch{Mode: mode}
		handPort(t, s, largestMember(1))
		handPort(t, s, product)
		handPort(t, s, PortOptions{Trusted: true, Member: Member{ID: 5, Name: "device", Networks: rules}, Addresses: rules})
		members := s.Members()
		for i, m := range members[1:] {
			if len(m.Addresses) != maxAddresses || len(m.Networks) != maxNetworks || m.MTU != maxMTU {
				t.Errorf("%d: believed %d addresses and %d networks, MTU %d", i, len(m.Addresses), len(m.Networks), m.MTU)
			}
		}
		a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
		linkRun(t, a, b)
		linkDrain(a, nil)
		linkDrain(b, nil)
		if err := a.sendReach(s.view.Load().reach); err != nil {
			t.Fatal(err)
		}
		untilLink(t, "REACH", func() bool { return len(b.Reach()) == 3 })
		told := b.Reach()
		if n := b.Stats().SkippedMembers; n != 0 || fmt.Sprint(told[1:]) != fmt.Sprint(members[1:]) {
			t.Errorf("%d skipped", n)
		}
		if d := told[0]; len(d.Addresses) != maxAddresses || len(d.Networks) != maxNetworks || s.Stats().ReachCut != 1 {
			t.Errorf("of the device %d addresses and %d networks are told, %d cut", len(d.Addresses), len(d.Networks), s.Stats().ReachCut)
		}
		a.Close()
	}
}

// As many members as there may be are told of, however much each of them says; who says
// little loses nothing.
func TestReachOfMostMembers(t *testing.T) {
	log := new(strings.Builder)
	s := &Switch{Mode: TAP, MaxPorts: -1, Logger: slog.New(slog.NewTextHandler(log, nil))}
	handPort(t, s, PortOptions{
		Member:    Member{ID: 7, Name: "small", Addresses: linkAddrs("192.0.2.1"), Networks: linkPrefixes("10.0.0.0/8"), MTU: 1400},
		Addresses: linkPrefixes("192.0.2.0/24"), Networks: linkPrefixes("10.0.0.0/8"),
	})
	tell := func() []Member {
		t.Helper()
		frame := s.view.Load().reach()
		members, skipped, err := decodeReach(frame[frameHead:])
		if err != nil || skipped > 0 || len(frame) > frameHead+maxReach {
			t.Fatalf("%v, %d skipped, %d bytes", err, skipped, len(frame))
		}
		if m := members[0]; m.ID != 7 || len(m.Addresses) != 1 || m.MTU != 1400 {
			t.Errorf("the small one: %+v", m)
		}
		return members
	}
	for i := range 9 {
		handPort(t, s, largestMember(i))
	}
	if all := tell(); len(all) != 10 || len(all[9].Networks) != maxNetworks || s.Stats().ReachCut != 0 {
		t.Errorf("ten: %d are told, %d cut", len(all), s.Stats().ReachCut)
	}
	for i := 9; i < 40; i++ {
		handPort(t, s, largestMember(i))
	}
	if all := tell(); len(all) != 41 || len(all[0].Networks) != 1 || len(all[40].Networks) != 64 || len(all[40].Addresses) != maxAddresses {
		t.Errorf("41: %d are told, of the last %d networks", len(all), len(all[40].Networks))
	}
	if !strings.Contains(log.String(), "level=WARN") || s.Stats().ReachCut != 1 {
		t.Errorf("%d cut, log: %s", s.Stats().ReachCut, log)
	}
	for i := 40; i < 300; i++ { // more than fit with nothing but their long names
		handPort(t, s, largestMember(i))
	}
	if all := tell(); len(all) < 100 || len(all) >= 301 {
		t.Errorf("301: %d are told", len(all))
	}
	if n := len(s.Members()); n != 301 {
		t.Errorf("%d members", n)
	}
}

// A member that is out of bounds costs the others nothing.
func TestReachSkips(t *testing.T) {
	l, raw := rawLink(t, nil)
	linkDrain(l, nil)
	many := strings.Repeat(`"fd00::1",`, maxAddresses) + `"fd00::1"`
	networks := strings.Repeat(`"10.0.0.0/8",`, maxNetworks) + `"10.0.0.0/8"`
	for i, tt := range []struct {
		members string
		kept    int
		skipped uint64
	}{
		{`{"name":"no id"}`, 1, 1},
		{`null`, 1, 1},
		{`7,"x",[],{}`, 1, 4},
		{`{"id":"x"}`, 1, 1},
		{`{"id":"3","name":"\n"}`, 1, 1},
		{`{"id":"3","name":"` + strings.Repeat("n", maxName+1) + `"}`, 1, 1},
		{`{"id":"3","mtu":575}`, 1, 1},
		{`{"id":"3","mtu":65536}`, 1, 1},
		{`{"id":"3","mtu":-1}`, 1, 1},
		{`{"id":"3","addresses":["x"]}`, 1, 1},
		{`{"id":"3","addresses":["fe80::1%lo"]}`, 1, 1},
		{`{"id":"3","addresses":["ff02::1"]}`, 1, 1},
		{`{"id":"3","addresses":[` + many + `]}`, 1, 1},
		{`{"id":"3","networks":["10.0.0.0"]}`, 1, 1},
		{`{"id":"3","networks":[` + networks + `]}`, 1, 1},
		{strings.Repeat(`{"id":"3"},`, maxMembers) + `{"id":"3"}`, maxMembers, 2},
		{`{"id":"3","mtu":1400,"later":true}`, 2, 0},
	} {
		before := l.Stats().SkippedMembers
		name := fmt.Sprint("round ", i)
		body := fmt.Sprintf(`{"members":[%s,{"id":"9","name":"%s"}]}`, tt.members, name)
		if tt.kept == maxMembers {
			body = fmt.Sprintf(`{"members":[{"id":"9","name":"%s"},%s]}`, name, tt.members)
		}
		if _, err := raw.Write(rawFrame(typeReach, []byte(body))); err != nil {
			t.Fatal(err)
		}
		has := func(m []Member) bool {
			return len(m) > 0 && (m[0].Name == name || m[len(m)-1].Name == name)
		}
		untilLink(t, tt.members, func() bool { return has(l.Reach()) })
		if n := l.Stats().SkippedMembers - before; len(l.Reach()) != tt.kept || n != tt.skipped {
			t.Errorf("%.60s: %d are kept, %d skipped", tt.members, len(l.Reach()), n)
		}
	}
	if err := l.failure(); err != nil {
		t.Error(err)
	}
	l.Close()
}

// A member that no client would take is not told of.
func TestReachLeavesOut(t *testing.T) {
	frame, cut := encodeReach([]Member{{}, {ID: 1, Name: "\n"}, {ID: 2, MTU: 1}, {ID: 3}})
	if members, skipped, err := decodeReach(frame[frameHead:]); err != nil || skipped != 0 || !cut || len(members) != 1 || members[0].ID != 3 {
		t.Errorf("%+v, %d skipped, cut %v, %v", members, skipped, cut, err)
	}
	if frame, cut := encodeReach(nil); cut || string(frame[frameHead:]) != `{"members":[]}` {
		t.Errorf("%s", frame)
	}
}

// The same ID is one member per name, and what is told has both.
func TestReachOrder(t *testing.T) {
	s := &Switch{Mode: TAP}
	for i, name := range []string{"b", "c", "a"} {
		handPort(t, s, PortOptions{Member: Member{ID: 7, Name: name}, Addresses: linkPrefixes(fmt.Sprintf("192.0.2.%d/32", i))})
	}
	m := s.Members()
	if len(m) != 3 || m[0].Name != "a" || m[1].Name != "b" || m[2].Name != "c" {
		t.Errorf("%+v", m)
	}
}

// resetConn sees how it is ended.
type resetConn struct {
	net.Conn
	reset bool
}

func (c *resetConn) Reset() error {
	c.reset = true
	return c.Conn.Close()
}

// A link to a peer that is silent, or takes nothing, ends with a reset: a FIN would
// wait behind what was never acknowledged. Others end in the usual way.
func TestDeadIsReset(t *testing.T) {
	for _, tt := range []struct {
		cause error
		want  bool
	}{{ErrDead, true}, {ErrStalled, true}, {errClosed, false}, {bye(ByeShutdown, ""), false}, {errNoHello, false}} {
		ca, cb := tunneltest.Pipe()
		c := &resetConn{Conn: ca}
		a, _ := linkOver(t, c, cb, tunHello(), tunHello(), nil, nil)
		a.fail(tt.cause)
		if c.reset != tt.want {
			t.Errorf("%v: reset: %v", tt.cause, c.reset)
		}
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		ca, cb := tunneltest.Pipe()
		c := &resetConn{Conn: ca}
		a, b := linkOver(t, c, cb, tunHello(), tunHello(), nil, nil)
		linkRun(t, a) // nobody runs b
		end := linkDrain(a, nil)
		start := time.Now()
		if err := <-end; err != ErrDead || !c.reset || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("%v after %v, reset %v", err, time.Since(start), c.reset)
		}
		b.Close()
	})
}

// What is longer than the link's MTU is dropped where it would be sent, the rest of its
// batch is not, whatever the peer finishes.
func TestWriteTooLong(t *testing.T) {
	tap := func(n int) Frame {
		return Frame{Data: append(make([]byte, HeaderLen), append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, linkPacket(n, 0).Packet()...)...)}
	}
	segments := func(size byte) Frame { // of 1000 bytes, and 40 of headers
		f := tcpSegments(5000)
		f.Data[4], f.Data[5] = byte(1000+int(size)), byte((1000+int(size))>>8)
		return f
	}
	for _, tt := range []struct {
		name string
		mode Mode
		mtu  int
		f    Frame
		want bool
	}{
		{"as long as it may be", TUN, 1000, linkPacket(1000, 0), true},
		{"longer", TUN, 1000, linkPacket(1001, 0), false},
		{"with an Ethernet header", TAP, 1000, tap(1000), true},
		{"longer, with an Ethernet header", TAP, 1000, tap(1001), false},
		{"segments that fit", TUN, 1040, segments(0), true},
		{"segments that do not", TUN, 1040, segments(1), false},
	} {
		for _, take := range []Offload{OffloadAll, OffloadChecksum} {
			a, b := linkPair(t, Hello{Mode: tt.mode, Offload: OffloadAll}, Hello{Mode: tt.mode, Offload: take, MTU: tt.mtu}, nil, nil)
			linkRun(t, a, b)
			got := make(chan int, 20)
			linkDrain(b, func(f Frame) { got <- len(f.Packet()) })
			last := linkPacket(100, 0)
			if tt.mode == TAP {
				last = tap(100)
			}
			batch := NewBatch(0)
			if !batch.Append(last) || !batch.Append(tt.f) || !batch.Append(last) {
				t.Fatal("full")
			}
			if err := a.WriteBatch(batch); err != nil {
				t.Fatal(err)
			}
			soon(t, got)
			between := 0
			for soon(t, got) != len(last.Packet()) {
				between++
			}
			dropped := a.Stats().TooLong
			if tt.want != (dropped == 0) || tt.want != (between > 0) || b.Stats().Bad != 0 || a.Stats().Unfit != 0 {
				t.Errorf("%s, %v: %d arrived, %d dropped, %d bad", tt.name, take, between, dropped, b.Stats().Bad)
			}
			a.Close()
		}
	}
}
