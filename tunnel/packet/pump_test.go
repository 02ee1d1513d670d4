package packet

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// pumpPort is a device for Pump: it gives what is put in and keeps what it is given.
type pumpPort struct {
	in  chan Frame
	out chan Frame

	mu       sync.Mutex
	deadline chan struct{} // closed while reads are not to wait
	closed   chan struct{}
	writeErr error
	mtu      int
	take     Offload
	carrier  []bool
	fail     error // of the settings
}

func newPumpPort() *pumpPort {
	return &pumpPort{
		in: make(chan Frame, 100), out: make(chan Frame, 1000), deadline: make(chan struct{}), closed: make(chan struct{}),
	}
}

func (p *pumpPort) ReadBatch(b *Batch) error {
	b.Reset()
	p.mu.Lock()
	deadline := p.deadline
	p.mu.Unlock()
	select {
	case f := <-p.in:
		b.Append(f)
		return nil
	case <-deadline:
		return os.ErrDeadlineExceeded
	case <-p.closed:
		return net.ErrClosed
	}
}

func (p *pumpPort) WriteBatch(b *Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range b.Frames() {
		f.Data = append([]byte(nil), f.Data...)
		p.out <- f
	}
	return p.writeErr
}

func (p *pumpPort) Close() error { close(p.closed); return nil }

func (p *pumpPort) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !t.IsZero() {
		close(p.deadline)
	} else {
		p.deadline = make(chan struct{})
	}
	return nil
}

func (p *pumpPort) SetMTU(n int) error            { p.mtu = n; return p.fail }
func (p *pumpPort) SetOffload(take Offload) error { p.take = take; return p.fail }
func (p *pumpPort) SetCarrier(up bool) error      { p.carrier = append(p.carrier, up); return nil }

// A Pump carries both ways, sets the device up for the link, and leaves it open
// for the next one.
func TestPump(t *testing.T) {
	d := newPumpPort()
	for round := range 3 {
		a, b := linkPair(t, Hello{Mode: TUN, MTU: 1400, Offload: OffloadAll}, Hello{Mode: TUN, MTU: 9000, Offload: OffloadChecksum}, nil, nil)
		linkRun(t, b)
		far := make(chan uint32, 100)
		linkDrain(b, func(f Frame) { far <- markOf(f) })
		end := make(chan error, 1)
		go func() { end <- Pump(t.Context(), d, a, nil) }()
		d.in <- linkPacket(100, 1)
		if m := soon(t, far); m != 1 {
			t.Error(m)
		}
		if err := b.WriteBatch(linkBatch(3, 200, 5)); err != nil {
			t.Fatal(err)
		}
		for i := range uint32(3) {
			if m := markOf(soon(t, d.out)); m != 5+i {
				t.Error(m)
			}
		}
		_ = b.Bye(ByeShutdown, "test")
		err := soon(t, end)
		var e *PumpError
		var said *ByeError
		if !errors.As(err, &e) || e.Device || !errors.As(err, &said) || said.Code != ByeShutdown {
			t.Errorf("round %d: %v", round, err)
		}
		if d.mtu != 1400 || d.take != OffloadChecksum || len(d.carrier) != 2*round+2 || !d.carrier[2*round] || d.carrier[2*round+1] {
			t.Errorf("MTU %d, offload %v, carrier %v", d.mtu, d.take, d.carrier)
		}
	}
}

// A peer does not take the IPv6 addresses of a device away by its MTU.
func TestPumpMTU(t *testing.T) {
	d := newPumpPort()
	a, b := linkPair(t, Hello{Mode: TUN, Offload: OffloadAll}, Hello{Mode: TUN, MTU: minMTU, Offload: OffloadAll}, nil, nil)
	linkRun(t, b)
	linkDrain(b, nil)
	end := make(chan error, 1)
	go func() { end <- Pump(t.Context(), d, a, nil) }()
	d.in <- linkPacket(minMTU+1, 1)
	untilLink(t, "the packet is dropped", func() bool { return a.Stats().TooLong == 1 })
	b.Close()
	soon(t, end)
	if d.mtu != 1280 {
		t.Errorf("MTU %d", d.mtu)
	}
}

// Whatever ends a Pump, it says which side, and closes the link and not the device.
func TestPumpEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		o      *PumpOptions
		do     func(d *pumpPort, far *Conn, cancel context.CancelCauseFunc)
		device bool
		want   error
	}{
		{"context", nil, func(_ *pumpPort, _ *Conn, cancel context.CancelCauseFunc) { cancel(errLinkTest) }, false, errLinkTest},
		{"device read", nil, func(d *pumpPort, _ *Conn, _ context.CancelCauseFunc) { d.Close() }, true, net.ErrClosed},
		{"device write", nil, func(d *pumpPort, far *Conn, _ context.CancelCauseFunc) {
			d.mu.Lock()
			d.writeErr = errLinkTest
			d.mu.Unlock()
			_ = far.WriteBatch(linkBatch(1, 100, 0))
		}, true, errLinkTest},
		{"link", &PumpOptions{NoCarrier: true, NoMTU: true}, func(_ *pumpPort, far *Conn, _ context.CancelCauseFunc) { far.Close() }, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newPumpPort()
			a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
			linkRun(t, b)
			linkDrain(b, nil)
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			end := make(chan error, 1)
			go func() { end <- Pump(ctx, d, a, tt.o) }()
			untilLink(t, "it runs", func() bool { return b.Stats().RTT > 0 })
			tt.do(d, b, cancel)
			err := soon(t, end)
			var e *PumpError
			if tt.want != nil && !errors.Is(err, tt.want) || errors.As(err, &e) && e.Device != tt.device || e == nil && tt.want != errLinkTest {
				t.Errorf("%v", err)
			}
			select {
			case <-a.Done():
			default:
				t.Error("the link is open")
			}
			if tt.o != nil && (d.mtu != 0 || len(d.carrier) > 0) {
				t.Errorf("MTU %d, carrier %v", d.mtu, d.carrier)
			}
		})
	}
}

// A device that cannot be set up ends a Pump before it begins.
func TestPumpSetup(t *testing.T) {
	d := newPumpPort()
	d.fail = errLinkTest
	a, _ := linkPair(t, tunHello(), tunHello(), nil, nil)
	err := Pump(t.Context(), d, a, nil)
	var e *PumpError
	if !errors.As(err, &e) || !e.Device || !errors.Is(err, errLinkTest) || a.failure() == nil {
		t.Error(err)
	}
	// That packets come unfinished is made up for here.
	a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
	linkRun(t, b)
	linkDrain(b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- Pump(ctx, d, a, &PumpOptions{NoMTU: true}) }()
	untilLink(t, "it runs", func() bool { return b.Stats().RTT > 0 })
	cancel()
	if err := soon(t, end); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The MSS of connections that begin is lowered, in both directions.
func TestPumpClamps(t *testing.T) {
	d := newPumpPort()
	a, b := linkPair(t, Hello{Mode: TUN, MTU: 1300}, tunHello(), nil, nil)
	linkRun(t, b)
	far := make(chan uint16, 10)
	linkDrain(b, func(f Frame) { far <- mssOf(f) })
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- Pump(ctx, d, a, nil) }()
	d.in <- synPacket(1460)
	if m := soon(t, far); m != 1260 {
		t.Errorf("out: MSS %d", m)
	}
	batch := NewBatch(0)
	batch.Append(synPacket(1460))
	if err := b.WriteBatch(batch); err != nil {
		t.Fatal(err)
	}
	if m := mssOf(soon(t, d.out)); m != 1260 {
		t.Errorf("in: MSS %d", m)
	}
	cancel()
	soon(t, end)
}

// synPacket is a SYN over IPv4 with an MSS option.
func synPacket(mss uint16) Frame {
	f := linkPacket(44, 0)
	ip := f.Packet()
	ip[9] = 6
	ip[20+12] = 6 << 4
	ip[20+13] = tcpSYN
	copy(ip[40:], []byte{2, 4, byte(mss >> 8), byte(mss)})
	return f
}

func mssOf(f Frame) uint16 { return uint16(f.Packet()[42])<<8 | uint16(f.Packet()[43]) }

// A real device: what the kernel sends into the link comes out there, Pump after
// Pump.
func TestPumpDevice(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		d, err := OpenTUN(&DeviceOptions{Addresses: linkPrefixes("10.9.0.1/24")})
		if errors.Is(err, ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		c, err := net.Dial("udp", "10.9.0.2:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for round := range 3 {
			a, b := linkPair(t, Hello{Mode: TUN, MTU: 1300 + round, Offload: d.Offload()}, tunHello(), nil, nil)
			linkRun(t, b)
			got := make(chan string, 1000)
			linkDrain(b, func(f Frame) {
				if p := f.Packet(); p[0] == 0x45 && p[9] == 17 {
					got <- string(p[28:])
				}
			})
			end := make(chan error, 1)
			go func() { end <- Pump(context.Background(), d, a, nil) }()
			untilLink(t, "a datagram", func() bool {
				_, _ = c.Write([]byte("hello"))
				select {
				case s := <-got:
					return s == "hello"
				default:
					return false
				}
			})

			b.Close()
			var e *PumpError
			if err := soon(t, end); !errors.As(err, &e) || e.Device {
				t.Error(err)
			}
		}
	})
}
