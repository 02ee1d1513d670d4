package packet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hostile are packets that the kernel takes for malformed.
func hostile(m Mode) []Frame {
	gso := forged{mode: m, version: 4, protocol: protoTCP, payload: make([]byte, 3000), header: virtioHeader{gso: gsoTCPv4, size: 1000}}
	frames := []Frame{
		edit(gso.frame(), func(h *virtioHeader) { h.gso = 0x7f }),
		edit(gso.frame(), func(h *virtioHeader) { h.size = 0 }),
		edit(gso.frame(), func(h *virtioHeader) { h.start = 60000 }),
		edit(gso.frame(), func(h *virtioHeader) { h.offset = 2 }),
	}
	if m == TUN {
		frames = append(frames, Frame{Data: make([]byte, HeaderLen+1)})
	} else {
		frames = append(frames, Frame{Data: make([]byte, HeaderLen+13)})
	}
	return frames
}

// echoDevice has the address 10.0.2.2 and a carrier: the kernel behind it answers pings.
func echoDevice(t *testing.T, m Mode) *Device {
	t.Helper()
	d := openOrSkip(t, m, &DeviceOptions{MAC: map[Mode]net.HardwareAddr{TAP: {2, 0, 0, 0, 0, 2}}[m], Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/24")}})
	if err := d.SetCarrier(true); err != nil {
		t.Fatal(err)
	}
	return d
}

// ping makes an echo request to 10.0.2.2, from 10.0.2.1.
func ping(m Mode) Frame {
	g := forged{mode: m, version: 4, protocol: 1, src: 2, dst: 2, whole: true}
	f := g.frame()
	p := f.Packet()
	l, _ := locate(p, m)
	icmp := p[l.network+ipv4Len:]
	clear(icmp)
	icmp[0] = 8
	c := ^plainSum(icmp)
	icmp[2], icmp[3] = byte(c>>8), byte(c)
	return f
}

// counts waits until a device has counted what is wanted.
func counts(t *testing.T, d *Device, what string, ok func(s DeviceStats) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(d.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %+v", what, d.Stats())
		}
	}
}

// arrived is how many packets the kernel has got from a device.
func arrived(t *testing.T, d *Device) uint64 {
	t.Helper()
	return linkNamed(t, d.Name()).Attrs().Statistics.RxPackets
}

// TestDeviceRefusedPackets: what the kernel refuses is counted, and what comes with it
// in one batch arrives.
func TestDeviceRefusedPackets(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := echoDevice(t, m)
		b := NewBatch(0)
		n := uint64(0)
		for _, f := range hostile(m) {
			b.Append(ping(m))
			b.Append(f)
			n++
		}
		b.Append(ping(m))
		if err := d.WriteBatch(b); err != nil {
			t.Fatal(err)
		}
		size := uint64(len(ping(m).Packet()))
		if s := d.Stats(); s.Refused != n || s.WritePackets != n+1 || s.WriteBytes != (n+1)*size {
			t.Errorf("%+v, want %d refused and %d taken", s, n, n+1)
		}
		if got := arrived(t, d); got != n+1 {
			t.Errorf("%d packets arrive, want %d", got, n+1)
		}
	})
}

// TestCheckLikeKernel damages frames at random: the kernel takes every one that Check
// lets pass.
func TestCheckLikeKernel(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := echoDevice(t, m)
		taken := 0
		for seed := range uint64(1500) {
			r := rand.New(rand.NewPCG(seed, 9))
			g := randomForged(r)
			g.mode, g.payload = m, g.payload[:len(g.payload)%3000]
			if m == TUN {
				g.vlan = 0
			}
			f := g.frame()
			for range r.IntN(4) {
				f.Data[r.IntN(min(len(f.Data), 90))] = byte(r.Uint32())
			}
			if f.Data[1] == gsoUDP && d.Offload()&OffloadUSO == 0 || Check(f, m, 65535) != nil {
				continue
			}
			// Not through WriteBatch, which cuts what the kernel refuses.
			var refused error
			err := d.kernel.raw.Write(func(fd uintptr) bool {
				_, refused = unix.Write(int(fd), f.Data)
				return true
			})
			if err != nil || refused != nil {
				t.Fatalf("seed %d: %v, %v: %+v, % x", seed, err, refused, readHeader(f.Data), f.Packet()[:min(100, len(f.Packet()))])
			}
			taken++
		}
		if taken < 700 {
			t.Errorf("%d frames are too few to mean anything", taken)
		}
	})
}

// TestDeviceCutsWhatKernelDoesNot: a segmentation that is right but beyond the kernel is
// done here.
func TestDeviceCutsWhatKernelDoesNot(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := echoDevice(t, m)
		// The kernel has another use for this size.
		g := forged{mode: m, version: 4, protocol: protoTCP, src: 2, dst: 2, payload: make([]byte, 1000), header: virtioHeader{gso: gsoTCPv4, size: 65535}}
		b := NewBatch(0)
		b.Append(g.frame())
		if err := d.WriteBatch(b); err != nil {
			t.Fatal(err)
		}
		if s := d.Stats(); s.Refused != 0 || s.WritePackets != 1 || arrived(t, d) != 1 {
			t.Errorf("%+v, %d arrive", s, arrived(t, d))
		}
	})
}

// TestDeviceDown: while the interface is set down, packets to it are counted, and the
// device goes on when it is up again.
func TestDeviceDown(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		d := echoDevice(t, m)
		l := linkNamed(t, d.Name())
		b := NewBatch(0)
		b.Append(ping(m))
		b.Append(ping(m))
		if err := netlink.LinkSetDown(l); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteBatch(b); err != nil {
			t.Fatalf("while it is down: %v", err)
		}
		if s := d.Stats(); s.Down != 2 || s.WritePackets != 0 {
			t.Errorf("while it is down: %+v", s)
		}
		read := make(chan error, 1)
		go func() { read <- d.ReadBatch(NewBatch(0)) }()
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteBatch(b); err != nil {
			t.Fatal(err)
		}
		if s := d.Stats(); s.Down != 2 || s.WritePackets != 2 {
			t.Errorf("when it is up again: %+v", s)
		}
		if err := <-read; err != nil { // the answer to a ping, or a question for its sender
			t.Error(err)
		}
	})
}

// TestDeviceClose: what waits in the device ends, and everything after.
func TestDeviceClose(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		for range 20 {
			d := openOrSkip(t, m, nil)
			b := NewBatch(0)
			b.Append(ping(m))
			var all sync.WaitGroup
			for range 2 {
				all.Go(func() {
					for {
						if err := d.WriteBatch(b); err != nil {
							if err != net.ErrClosed {
								t.Errorf("WriteBatch: %v", err)
							}
							return
						}
					}
				})
			}
			all.Go(func() {
				b := NewBatch(0)
				for {
					if err := d.ReadBatch(b); err != nil {
						if err != net.ErrClosed || b.Len() != 0 {
							t.Errorf("ReadBatch: %v, %d packets", err, b.Len())
						}
						return
					}
				}
			})
			all.Go(func() {
				for n := 1400; ; n = 2800 - n + 1 {
					if err := errors.Join(d.SetMTU(n), d.SetCarrier(n%2 == 0), d.SetOffload(Offload(n))); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("SetMTU: %v", err)
						}
						return
					}
				}
			})
			counts(t, d, "a packet is written", func(s DeviceStats) bool { return s.WritePackets > 0 })
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			if err := d.Close(); err != net.ErrClosed {
				t.Errorf("a second Close: %v", err)
			}
			for what, err := range map[string]error{
				"ReadBatch": d.ReadBatch(NewBatch(0)), "WriteBatch": d.WriteBatch(b),
				"SetMTU": d.SetMTU(1400), "SetCarrier": d.SetCarrier(true), "SetOffload": d.SetOffload(0),
			} {
				if err != net.ErrClosed {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	})
}

// TestDeviceGone: somebody else deletes the interface while it is read and written.
func TestDeviceGone(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		for i := range 20 {
			d := openOrSkip(t, m, &DeviceOptions{Name: fmt.Sprintf("vpn%d", i)})
			b := NewBatch(0)
			b.Append(ping(m))
			var all sync.WaitGroup
			all.Go(func() {
				b := NewBatch(0)
				for {
					if err := d.ReadBatch(b); err != nil {
						if err != ErrGone {
							t.Errorf("ReadBatch: %v", err)
						}
						return
					}
				}
			})
			if i%2 == 0 { // else nothing but the reader is there to see it
				all.Go(func() {
					for {
						if err := d.WriteBatch(b); err != nil {
							if err != ErrGone {
								t.Errorf("WriteBatch: %v", err)
							}
							return
						}
					}
				})
				counts(t, d, "a packet is written", func(s DeviceStats) bool { return s.WritePackets > 0 })
			}
			if err := netlink.LinkDel(linkNamed(t, d.Name())); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			for what, err := range map[string]error{
				"ReadBatch": d.ReadBatch(NewBatch(0)), "WriteBatch": d.WriteBatch(b),
				"SetMTU": d.SetMTU(1400), "SetCarrier": d.SetCarrier(true), "SetOffload": d.SetOffload(0),
			} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
}

// TestDeviceDrains: one ReadBatch takes all that waits, in its order, as far as there is
// room.
func TestDeviceDrains(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		d := echoDevice(t, TUN)
		c, err := net.Dial("udp", "10.0.2.1:7")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const packets = 300
		message := make([]byte, 1000)
		for i := range packets {
			message[0], message[1] = byte(i>>8), byte(i)
			if _, err := c.Write(message); err != nil {
				t.Fatal(err)
			}
		}
		b := NewBatch(0)
		next, batches := 0, 0
		for next < packets {
			if err := d.ReadBatch(b); err != nil {
				t.Fatal(err)
			}
			batches++
			for f := range b.Frames() {
				p := f.Packet()
				if p[0]>>4 != 4 || p[9] != protoUDP {
					continue
				}
				if got := int(p[28])<<8 | int(p[29]); got != next {
					t.Fatalf("packet %d, want %d", got, next)
				}
				if f.Seq != 0 || f.Data[0] != 0 || len(p) != 1028 {
					t.Fatalf("%d, header % x, %d bytes", f.Seq, f.Data[:HeaderLen], len(p))
				}
				next++
			}
			if room := b.room(frameHead + maxPayload); room != nil && next < packets {
				t.Fatalf("a batch of %d packets ends with room for more", b.Len())
			}
		}
		if batches > 3 {
			t.Errorf("%d packets come in %d batches", packets, batches)
		}
		if s := d.Stats(); s.ReadPackets < packets || s.ReadBytes < packets*1028 {
			t.Errorf("%+v", s)
		}
	})
}

// TestDeviceDoesNotAllocate in ReadBatch and WriteBatch.
func TestDeviceDoesNotAllocate(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		d := echoDevice(t, TUN)
		write, read := NewBatch(0), NewBatch(0)
		write.Append(ping(TUN))
		if n := testing.AllocsPerRun(100, func() {
			if err := errors.Join(d.WriteBatch(write), d.ReadBatch(read)); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
