package packet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// handPort attaches a port that nobody serves: a test forwards by hand, and looks into
// the queues.
func handPort(tb testing.TB, s *Switch, o PortOptions) *switchPort {
	tb.Helper()
	p := newSwitchPort(s, nil, o, func(error) {})
	if err := s.attach(p); err != nil {
		tb.Fatal(err)
	}
	return p
}

// handMember is handPort for a member with two addresses that depend on its ID.
func handMember(tb testing.TB, s *Switch, id uint64) *switchPort {
	six := netip.AddrFrom16([16]byte{0xfd, 13: byte(id >> 16), 14: byte(id >> 8), 15: byte(id)})
	four := netip.AddrFrom4([4]byte{192, byte(id >> 16), byte(id >> 8), byte(id)})
	return handPort(tb, s, PortOptions{
		Member:    Member{ID: id, Name: fmt.Sprint(id), Addresses: []netip.Addr{six, four}},
		Addresses: []netip.Prefix{netip.PrefixFrom(six, 128), netip.PrefixFrom(four, 32)},
		Networks:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
	})
}

// plainUDP makes a UDP datagram over IPv6, in an Ethernet frame in a TAP.
func plainUDP(m Mode, from, to netip.Addr, size int) Frame {
	f := Frame{Data: make([]byte, HeaderLen, HeaderLen+size)}
	if m == TAP {
		f.Data = append(f.Data, MAC(to, 0)...)
		f.Data = append(f.Data, MAC(from, 0)...)
		f.Data = append(f.Data, 0x86, 0xdd)
	}
	body := HeaderLen + size - len(f.Data) - ipv6Len
	f.Data = append(f.Data, 0x60, 0, 0, 0, byte(body>>8), byte(body), protoUDP, 64)
	f.Data = append(f.Data, from.AsSlice()...)
	f.Data = append(f.Data, to.AsSlice()...)
	f.Data = binary.BigEndian.AppendUint16(f.Data, 1000)
	f.Data = binary.BigEndian.AppendUint16(f.Data, 2000)
	f.Data = binary.BigEndian.AppendUint16(f.Data, uint16(body))
	f.Data = append(f.Data, make([]byte, body-6)...)
	return f
}

// The hot path makes no garbage: neither for what has one destination, nor for what goes
// to all, nor for what is dropped.
func TestSwitchAllocs(t *testing.T) {
	for _, mode := range []Mode{TAP, TUN} {
		s := &Switch{Mode: mode, FloodRate: -1}
		device := handPort(t, s, PortOptions{Trusted: true, Networks: []netip.Prefix{netip.MustParsePrefix("::/0")}})
		a, b := handMember(t, s, 1), handMember(t, s, 2)
		addr := func(p *switchPort) netip.Addr { return p.rules.own[0] }
		far := netip.MustParseAddr("2001:db8::7")
		for name, f := range map[string]Frame{
			"to one":      plainUDP(mode, addr(a), addr(b), 1000),
			"from behind": plainUDP(mode, far, addr(b), 1000),
			"to nobody":   plainUDP(mode, addr(a), netip.MustParseAddr("2001:db8:1::1"), 1000),
			"spoofed":     plainUDP(mode, addr(b), addr(b), 1000),
		} {
			if mode == TAP {
				copy(f.Packet()[6:], MAC(addr(a), 0))
			}
			batch := NewBatch(0)
			for range 50 {
				batch.Append(f)
			}
			turn := func() {
				a.forward(batch)
				for _, p := range []*switchPort{device, a, b} {
					if p.queue.waiting() > 0 {
						q := &p.queue
						_ = q.write(writerFunc(func(*Batch) error { return nil }), q.take(context.Background()))
					}
				}
			}
			for range 3 {
				turn()
			}
			before := a.in.frames.Load()
			if n := testing.AllocsPerRun(100, turn); n > 0 {
				t.Errorf("%v, %s: %v allocations for 50 frames", mode, name, n)
			}
			if n := a.in.frames.Load() - before; n != 101*50 {
				t.Errorf("%d frames", n)
			}
		}
	}
}

// sourcePort says the same batch again and again, as long as the budget of all lasts.
type sourcePort struct {
	batch   []byte
	frames  int
	budget  *atomic.Int64
	heard   *atomic.Int64
	start   chan struct{}
	said    *sync.WaitGroup // what it had to say
	once    sync.Once
	closed  chan struct{}
	closing sync.Once
}

func (p *sourcePort) ReadBatch(b *Batch) error {
	<-p.start
	if p.frames == 0 || p.budget.Add(-int64(p.frames)) < 0 {
		if p.frames > 0 {
			p.once.Do(p.said.Done)
		}
		<-p.closed
		return net.ErrClosed
	}
	b.borrow(p.batch, p.frames)
	return nil
}

func (p *sourcePort) WriteBatch(b *Batch) error { p.heard.Add(int64(b.Len())); return nil }
func (p *sourcePort) Close() error              { p.closing.Do(func() { close(p.closed) }); return nil }

// BenchmarkSwitch has so many ports send to the next one each, with nobody who pushes
// back: delivered is the share of the frames that the queues had room for.
func BenchmarkSwitch(b *testing.B) {
	for _, mode := range []Mode{TAP, TUN} {
		for _, senders := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("mode=%v/senders=%d", mode, senders), func(b *testing.B) { benchmarkSwitch(b, mode, senders) })
		}
	}
}

func benchmarkSwitch(b *testing.B, mode Mode, senders int) {
	const size, run = 1400, 64
	ctx, cancel := context.WithCancel(context.Background())
	s := &Switch{Mode: mode}
	var work, said sync.WaitGroup
	var budget, heard atomic.Int64
	start := make(chan struct{})
	addr := func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}) }
	ports := max(senders, 2)
	said.Add(senders)
	for i := range ports {
		p := &sourcePort{budget: &budget, heard: &heard, start: start, said: &said, closed: make(chan struct{})}
		if i < senders {
			batch := NewBatch(0)
			for range run {
				batch.Append(plainUDP(mode, addr(i), addr((i+1)%ports), size))
			}
			p.batch, p.frames = batch.data, run
		}
		work.Go(func() {
			_ = s.Serve(ctx, p, PortOptions{
				Member:    Member{ID: uint64(i + 1)},
				Addresses: []netip.Prefix{netip.PrefixFrom(addr(i), 128)},
			})
		})
	}
	for len(s.Members()) < ports {
		time.Sleep(time.Millisecond)
	}
	budget.Store(int64(b.N) + run - 1)
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	close(start)
	said.Wait()
	b.StopTimer()
	cancel()
	work.Wait()
	b.ReportMetric(100*float64(heard.Load())/float64(s.Stats().Frames), "%delivered")
}
