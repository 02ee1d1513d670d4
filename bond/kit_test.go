package bond

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
)

// fakeLink is a link to a server that is the test.
type fakeLink struct {
	*packettest.Port
	far   *packettest.Port // the server's end
	hello packet.Hello
	other packet.Hello
	rtt   atomic.Int64
	ended chan error

	mu       sync.Mutex
	reach    []packet.Member
	draining bool
	onReach  func([]packet.Member)
	onDrain  func()
}

func newFakeLink() *fakeLink {
	a, b := packettest.Pair()
	return &fakeLink{
		Port: a, far: b, ended: make(chan error, 1),
		hello: packet.Hello{ID: 1, Mode: packet.TAP, MTU: 1500, Addresses: []netip.Addr{memberAddr(1)}},
		other: packet.Hello{MTU: 1500, Offload: packet.OffloadAll},
	}
}

func (l *fakeLink) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-l.ended:
		l.Port.Close()
		return err
	}
}

func (l *fakeLink) setRTT(d time.Duration) { l.rtt.Store(int64(d)) }
func (l *fakeLink) Local() packet.Hello    { return l.hello }
func (l *fakeLink) Remote() packet.Hello   { return l.other }
func (l *fakeLink) MTU() int               { return min(l.hello.MTU, l.other.MTU) }
func (l *fakeLink) Stats() packet.ConnStats {
	return packet.ConnStats{Smoothed: time.Duration(l.rtt.Load())}
}

func (l *fakeLink) Reach() []packet.Member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reach
}

func (l *fakeLink) OnReach(f func([]packet.Member)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onReach = f
}

func (l *fakeLink) Draining() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

func (l *fakeLink) OnDrain(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onDrain = f
}

// tell has the server say that it reaches the members of these numbers.
func (l *fakeLink) tell(ids ...int) {
	list := []packet.Member{}
	for _, id := range ids {
		list = append(list, aMember(id))
	}
	l.tellMembers(list)
}

func (l *fakeLink) tellMembers(list []packet.Member) {
	l.mu.Lock()
	l.reach = list
	f := l.onReach
	l.mu.Unlock()
	if f != nil {
		f(list)
	}
}

// drain has the server say that it drains.
func (l *fakeLink) drain() {
	l.mu.Lock()
	l.draining = true
	f := l.onDrain
	l.mu.Unlock()
	f()
}

// aMember is a member of the network 10.0.0.0/24. We are number 1.
func aMember(id int) packet.Member {
	return packet.Member{ID: uint64(id), Name: fmt.Sprintf("m%d", id), Addresses: []netip.Addr{memberAddr(id)}}
}

func memberAddr(id int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(id)}) }

// everybody as a destination, and somebody whom nobody knows.
const (
	everybody = 0
	nobody    = 200
)

// frame is one from us to a member, with a number in it.
func frame(to int, n uint32) packet.Frame { return frameFrom(1, to, n) }

func frameFrom(from, to int, n uint32) packet.Frame {
	mac := packet.MAC(memberAddr(to), 0)
	if to == everybody {
		mac = packettest.Broadcast()
	}
	payload := binary.BigEndian.AppendUint32(nil, n)
	return packettest.Frame(packettest.Ethernet(mac, packet.MAC(memberAddr(from), 0), packettest.TypeIPv4,
		packettest.UDP(netip.AddrPortFrom(memberAddr(from), 1), netip.AddrPortFrom(memberAddr(to), 2), payload)))
}

// numberOf is the number in a frame of frame, and false if it is another one, such as an
// announcement.
func numberOf(f packet.Frame) (uint32, bool) {
	p := f.Packet()
	if len(p) != 14+20+8+4 || binary.BigEndian.Uint16(p[12:]) != packettest.TypeIPv4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(p[42:]), true
}

// bondTest is a Bond in fake time.
type bondTest struct {
	*Bond
	t       *testing.T
	host    *packettest.Port // the kernel's end of the device
	links   map[string]*fakeLink
	stop    context.CancelFunc
	ctx     context.Context
	work    sync.WaitGroup
	ran     error
	served  map[string]error
	mu      sync.Mutex
	happens []Event
}

// startBond runs a Bond over a device in memory. It is stopped by end.
func startBond(t *testing.T, b *Bond) *bondTest {
	dev, host := packettest.Pair()
	bt := &bondTest{Bond: b, t: t, host: host, links: make(map[string]*fakeLink), served: make(map[string]error)}
	if b.Device == nil {
		b.Device = dev
	}
	b.OnEvent = func(e Event) {
		bt.mu.Lock()
		defer bt.mu.Unlock()
		bt.happens = append(bt.happens, e)
	}
	bt.ctx, bt.stop = context.WithCancel(t.Context())
	bt.work.Go(func() { bt.ran = b.Run(bt.ctx) })
	return bt
}

func (bt *bondTest) end() {
	bt.stop()
	bt.work.Wait()
}

// link adds a link whose server reaches members.
func (bt *bondTest) link(name string, ids ...int) *fakeLink {
	l := newFakeLink()
	l.hello.Mode = bt.Mode
	return bt.add(name, l, ids...)
}

func (bt *bondTest) add(name string, l *fakeLink, ids ...int) *fakeLink {
	bt.links[name] = l
	bt.work.Go(func() {
		err := bt.Serve(bt.ctx, name, l)
		bt.mu.Lock()
		defer bt.mu.Unlock()
		bt.served[name] = err
	})
	synctest.Wait()
	if ids != nil {
		l.tell(ids...)
	}
	synctest.Wait()
	bt.sent() // announcements
	return l
}

// lose ends a link.
func (bt *bondTest) lose(name string) {
	bt.links[name].ended <- errors.New("lost")
	delete(bt.links, name)
	synctest.Wait()
}

// sent is what has come out of the links: which numbers over which.
func (bt *bondTest) sent() map[string][]uint32 {
	synctest.Wait()
	got := make(map[string][]uint32)
	for name, l := range bt.links {
		for _, f := range drainPort(l.far) {
			if n, ok := numberOf(f); ok {
				got[name] = append(got[name], n)
			}
		}
	}
	return got
}

// drainPort takes what there is to read.
func drainPort(p *packettest.Port) (frames []packet.Frame) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		f, err := p.Receive(ctx)
		if err != nil {
			return frames
		}
		frames = append(frames, f)
	}
}

// via sends a frame to a member and returns the links over which it went.
func (bt *bondTest) via(to int) []string {
	bt.sent()
	if err := bt.host.Send(frame(to, 7)); err != nil {
		bt.t.Fatal(err)
	}
	names := []string{}
	for name, numbers := range bt.sent() {
		if len(numbers) != 1 {
			bt.t.Fatalf("%d frames over %s", len(numbers), name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// wantVia checks over which links frames to a member go.
func (bt *bondTest) wantVia(to int, names ...string) {
	bt.t.Helper()
	if got := bt.via(to); !slices.Equal(got, names) {
		bt.t.Fatalf("to %d over %v, want %v\n%+v", to, got, names, bt.Status())
	}
}

// events takes those of a kind.
func (bt *bondTest) events(kind EventKind) (list []Event) {
	synctest.Wait()
	bt.mu.Lock()
	defer bt.mu.Unlock()
	for _, e := range bt.happens {
		if e.Kind == kind {
			list = append(list, e)
		}
	}
	bt.happens = slices.DeleteFunc(bt.happens, func(e Event) bool { return e.Kind == kind })
	return list
}
