package bond

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// world is a network of servers and members over real links, in fake time. Member 0 is
// the seed's and sends to all others, which send back.
type world struct {
	t       *testing.T
	ctx     context.Context
	stop    context.CancelFunc
	work    sync.WaitGroup
	network tunneltest.Network
	servers []*worldServer
	members []*worldMember

	mu   sync.Mutex
	cut  map[[2]int]bool             // legs: member, server
	legs map[[2]int]*tunneltest.Conn // the member's end
}

// worldServer is a server, which can be killed and started again.
type worldServer struct {
	w        *world
	number   int
	packets  *packet.Switch
	listener net.Listener
	stop     context.CancelFunc
	work     sync.WaitGroup
}

// worldMember is a member: whatever serves its links, and the kernel above.
type worldMember struct {
	number int
	serve  func(ctx context.Context, link string, c *packet.Conn) error
	send   func(to int, f func(mac net.HardwareAddr) packet.Frame)
	next   func(ctx context.Context) (packet.Frame, error)
}

func (m *worldMember) address() netip.Addr { return memberAddr(m.number + 1) }

// mine is numberOf for frames that are for the member: a switch that does not know
// where somebody is floods, and others get what is not theirs.
func (m *worldMember) mine(f packet.Frame) (uint32, bool) {
	n, ok := numberOf(f)
	return n, ok && lastFour(m.address()) == binary.BigEndian.Uint32(f.Packet()[2:])
}

func newWorld(t *testing.T, servers int) *world {
	w := &world{t: t, cut: make(map[[2]int]bool), legs: make(map[[2]int]*tunneltest.Conn)}
	w.ctx, w.stop = context.WithCancel(t.Context())
	for s := range servers {
		w.servers = append(w.servers, &worldServer{w: w, number: s})
		w.servers[s].start()
	}
	return w
}

// end ends everything.
func (w *world) end() {
	w.stop()
	for _, s := range w.servers {
		s.kill()
	}
	w.work.Wait()
}

func (s *worldServer) host() string { return fmt.Sprintf("server%d", s.number) }

func (s *worldServer) start() {
	l, err := s.w.network.Host(s.host()).Listen("tcp", ":443")
	if err != nil {
		s.w.t.Error(err)
		return
	}
	s.listener = l
	s.packets = &packet.Switch{Mode: packet.TAP}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.work.Go(func() { s.serve(ctx, c) })
		}
	})
}

func (s *worldServer) serve(ctx context.Context, c net.Conn) {
	link, err := packet.Handshake(ctx, c, packet.Hello{Mode: packet.TAP, Offload: packet.OffloadAll}, nil)
	if err != nil {
		return
	}
	h := link.Remote()
	o := packet.PortOptions{Member: packet.Member{ID: h.ID, Name: h.Name, Addresses: h.Addresses}}
	for _, a := range h.Addresses {
		o.Addresses = append(o.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	_ = s.packets.Serve(ctx, link, o)
}

// kill ends a server and its connections, as the kernel does for a process that is
// killed.
func (s *worldServer) kill() {
	s.listener.Close()
	s.stop()
	s.work.Wait()
}

// add adds a member and keeps it connected.
func (w *world) add(m *worldMember) {
	m.number = len(w.members)
	w.members = append(w.members, m)
	for s := range w.servers {
		w.work.Go(func() { w.connect(m, s) })
	}
}

// connect is the part of packet.Client that matters here.
func (w *world) connect(m *worldMember, s int) {
	hello := packet.Hello{
		ID: uint64(m.number + 1), Name: fmt.Sprintf("m%d", m.number), Mode: packet.TAP, Offload: packet.OffloadAll,
		Addresses: []netip.Addr{m.address()},
	}
	leg := [2]int{m.number, s}
	for w.ctx.Err() == nil {
		c, err := w.dial(leg)
		if err == nil {
			var link *packet.Conn
			if link, err = packet.Handshake(w.ctx, c, hello, nil); err == nil {
				_ = m.serve(w.ctx, tap(s), link)
			}
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-w.ctx.Done():
		}
	}
}

// dial connects a member with a server, unless the leg is cut.
func (w *world) dial(leg [2]int) (net.Conn, error) {
	w.mu.Lock()
	cut := w.cut[leg]
	w.mu.Unlock()
	if cut {
		return nil, errors.New("the leg is cut")
	}
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	c, err := w.network.Host(fmt.Sprintf("member%d", leg[0])).Dial(ctx, "tcp", w.servers[leg[1]].host()+":443")
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.legs[leg] = c.(*tunneltest.Conn)
	return c, nil
}

// freeze cuts a leg: nothing gets through, and nobody is told.
func (w *world) freeze(member, server int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	leg := [2]int{member, server}
	w.cut[leg] = true
	w.legs[leg].Freeze()
}

func (w *world) thaw(member, server int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	leg := [2]int{member, server}
	w.cut[leg] = false
	w.legs[leg].Thaw()
}

// traffic is one echo each 10 ms between member 0 and another.
type traffic struct {
	mu       sync.Mutex
	sent     uint32
	last     time.Time
	worst    time.Duration
	received map[uint32]int
	highest  uint32
	late     int // echoes that came behind a later one
}

// answer has a member send back what it gets.
func (w *world) answer(m *worldMember) {
	w.work.Go(func() {
		for {
			f, err := m.next(w.ctx)
			if err != nil {
				return
			}
			if n, ok := m.mine(f); ok {
				m.send(0, func(mac net.HardwareAddr) packet.Frame { return echoFrame(m.number, 0, n, mac) })
			}
		}
	})
}

// echoFrame is a frame of the member with one number to that with another.
func echoFrame(from, to int, n uint32, mac net.HardwareAddr) packet.Frame {
	f := frameFrom(from+1, to+1, n)
	copy(f.Packet(), packet.MAC(memberAddr(to+1), 0))
	if mac != nil {
		copy(f.Packet()[6:], mac)
	}
	return f
}

// ping starts the traffic with all other members. The results are by member.
func (w *world) ping() []*traffic {
	list := make([]*traffic, len(w.members))
	for m := 1; m < len(w.members); m++ {
		w.answer(w.members[m])
		list[m] = &traffic{received: make(map[uint32]int), last: time.Now()}
	}
	seed := w.members[0]
	w.work.Go(func() {
		for {
			f, err := seed.next(w.ctx)
			if err != nil {
				return
			}
			if n, ok := seed.mine(f); ok {
				list[int(f.Packet()[14+12+3])-1].note(n)
			}
		}
	})
	w.work.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			for m := 1; m < len(w.members); m++ {
				tr := list[m]
				tr.mu.Lock()
				tr.sent++
				n := tr.sent
				tr.mu.Unlock()
				seed.send(m, func(mac net.HardwareAddr) packet.Frame { return echoFrame(0, m, n, mac) })
			}
			select {
			case <-tick.C:
			case <-w.ctx.Done():
				return
			}
		}
	})
	return list
}

func (tr *traffic) note(n uint32) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.worst = max(tr.worst, time.Since(tr.last))
	tr.last = time.Now()
	tr.received[n]++
	if n < tr.highest {
		tr.late++
	}
	tr.highest = max(tr.highest, n)
}

// take returns the longest gap and what was lost, doubled or late, and begins anew.
func (tr *traffic) take() (worst time.Duration, lost, doubled, late int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	worst = max(tr.worst, time.Since(tr.last))
	for n := uint32(1); n+5 < tr.sent; n++ { // the last may be on their way
		switch {
		case tr.received[n] == 0:
			lost++
		case tr.received[n] > 1:
			doubled++
		}
	}
	late = tr.late
	tr.worst, tr.late = 0, 0
	for n := uint32(1); n+5 < tr.sent; n++ {
		tr.received[n] = 1 // counted
	}
	return worst, lost, doubled, late
}

// addBond adds a member with a Bond.
func (w *world) addBond(b *Bond) {
	dev, host := packettest.Pair()
	b.Device, b.Mode = dev, packet.TAP
	w.work.Go(func() { _ = b.Run(w.ctx) })
	w.add(&worldMember{
		serve: func(ctx context.Context, link string, c *packet.Conn) error { return b.Serve(ctx, link, c) },
		send:  func(to int, f func(net.HardwareAddr) packet.Frame) { _ = host.Send(f(nil)) },
		next:  host.Receive,
	})
}

// outage is a row of what may be cut.
type outage struct {
	name string
	hit  func(w *world)
	mend func(w *world)
	most time.Duration // of outage
}

func outages() []outage {
	list := []outage{
		{"server frozen", func(w *world) { w.network.Freeze("server0") }, func(w *world) { w.network.Thaw("server0") }, 3 * time.Second},
		{"server killed", func(w *world) { w.servers[0].kill() }, func(w *world) { w.servers[0].start() }, 500 * time.Millisecond},
		{"server drained", func(w *world) {
			w.servers[0].packets.Drain()
			time.Sleep(time.Second)
			w.servers[0].kill()
		}, func(w *world) { w.servers[0].start() }, 300 * time.Millisecond},
	}
	for leg := range 4 {
		m, s := leg/2, leg%2
		list = append(list, outage{fmt.Sprintf("leg of member %d to server %d frozen", m, s),
			func(w *world) { w.freeze(m, s) }, func(w *world) { w.thaw(m, s) }, 3 * time.Second})
	}
	for s := range 2 {
		list = append(list, outage{fmt.Sprintf("leg of member 1 to server %d reset", s), func(w *world) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cut[[2]int{1, s}] = true
			w.legs[[2]int{1, s}].Cut()
		}, func(w *world) { w.thaw(1, s) }, 500 * time.Millisecond})
	}
	return list
}

// TestOutages cuts each leg and each server of a network of bonds, and measures for how
// long nothing comes through, in fake time.
func TestOutages(t *testing.T) {
	for _, policy := range []Policy{ActiveBackup, Redundant} {
		for _, o := range outages() {
			t.Run(policy.String()+"/"+o.name, func(t *testing.T) {
				tunneltest.Bubble(t, func(t *testing.T) {
					w := newWorld(t, 2)
					defer w.end()
					for range 3 {
						w.addBond(&Bond{Policy: policy, Primary: "tap0"})
					}
					time.Sleep(3 * time.Second)
					list := w.ping()
					time.Sleep(time.Second)
					check := func(what string, most time.Duration, mayLose bool) {
						t.Helper()
						for m, tr := range list[1:] {
							worst, lost, doubled, late := tr.take()
							if mayLose {
								t.Logf("%s: member %d: outage %v, %d lost, %d doubled, %d late", what, m+1, worst, lost, doubled, late)
							}
							if worst > most || doubled > 0 || lost > 0 && !mayLose {
								t.Errorf("%s: member %d: outage %v, %d lost, %d doubled, %d late", what, m+1, worst, lost, doubled, late)
							}
							if late > 0 && (policy == Redundant || !mayLose) {
								t.Errorf("%s: member %d: %d came late", what, m+1, late)
							}
						}
					}
					check("before", 20*time.Millisecond, false)
					o.hit(w)
					time.Sleep(4 * time.Second)
					if policy == Redundant {
						check("hit", 20*time.Millisecond, false)
					} else {
						check("hit", o.most, true)
					}
					o.mend(w)
					time.Sleep(4 * time.Second)
					check("mended", 20*time.Millisecond, false)
				})
			})
		}
	}
}

// TestRedundantStream sends packets as fast as they go, and cuts one link after the
// other in mid-stream: not one is lost or doubled, and all are in order.
func TestRedundantStream(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.end()
		w.addBond(&Bond{Policy: Redundant})
		w.addBond(&Bond{Policy: Redundant})
		time.Sleep(3 * time.Second)
		const packets = 30_000
		from, to := w.members[0], w.members[1]
		next := uint32(0)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for next < packets {
				f, err := to.next(w.ctx)
				if err != nil {
					t.Errorf("%d of %d packets have come: %v", next, packets, err)
					return
				}
				n, ok := to.mine(f)
				if !ok {
					continue
				}
				if n != next {
					t.Errorf("packet %d where %d should be", n, next)
					return
				}
				next++
			}
		}()
		cut := func(leg [2]int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.legs[leg].Cut()
		}
		for n := range uint32(packets) {
			from.send(1, func(net.HardwareAddr) packet.Frame { return echoFrame(0, 1, n, nil) })
			if n%100 == 99 {
				time.Sleep(10 * time.Millisecond)
			}
			switch n { // not at the end of a burst
			case 5_033:
				cut([2]int{0, 0})
			case 10_033:
				cut([2]int{0, 1})
			case 15_033:
				cut([2]int{1, 0})
			case 20_033:
				w.servers[1].kill()
				w.servers[1].start()
			case 25_033:
				w.freeze(1, 0)
			}
		}
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("not all packets have come")
			w.stop()
			<-done
		}
	})
}
