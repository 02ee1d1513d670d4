package packettest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// frame makes one whose packet has so many bytes, all of a value.
func frame(value byte, size int) packet.Frame {
	b := make([]byte, size)
	for i := range b {
		b[i] = value
	}
	return packettest.Frame(b)
}

func TestPair(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := packettest.Pair()
		numbered := frame(2, 20)
		numbered.Origin, numbered.Seq = 7, 8
		if err := a.WriteBatch(packettest.Batch(frame(1, 10), numbered)); err != nil {
			t.Fatal(err)
		}
		batch := packet.NewBatch(0)
		if err := b.ReadBatch(batch); err != nil || batch.Len() != 2 {
			t.Fatalf("%d frames, %v", batch.Len(), err)
		}
		n := 0
		for f := range batch.Frames() {
			if n++; int(f.Packet()[0]) != n || n == 2 && (f.Origin != 7 || f.Seq != 8) {
				t.Errorf("frame %d: %+v", n, f)
			}
		}
		if err := b.Send(frame(3, 30)); err != nil {
			t.Fatal(err)
		}
		if f, err := a.Receive(t.Context()); err != nil || len(f.Packet()) != 30 {
			t.Errorf("%v, %v", f, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		tired := errors.New("tired")
		cancel(tired)
		if _, err := a.Receive(ctx); err != tired {
			t.Errorf("in an ended context: %v", err)
		}
		a.Close()
		if err := b.ReadBatch(batch); !errors.Is(err, net.ErrClosed) {
			t.Errorf("behind a closed peer: %v", err)
		}
		if err := b.Send(frame(1, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("to a closed peer: %v", err)
		}
	})
}

// More than fits into a batch comes in several.
func TestPairSmallBatch(t *testing.T) {
	a, b := packettest.Pair()
	small := packet.NewBatch(1)
	for n := range 4 {
		if err := a.Send(frame(byte(n+1), 40000)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		if err := b.ReadBatch(small); err != nil || small.Len() != 1 {
			t.Fatalf("batch %d: %d frames, %v", n, small.Len(), err)
		}
	}
}

func TestPairWaits(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := packettest.Pair()
		sent := make(chan int, 1)
		send := func(n int) {
			for i := range n {
				if a.Send(frame(1, 60000)) != nil {
					sent <- i
					return
				}
			}
			sent <- n
		}
		a.Stall()
		go send(1)
		synctest.Wait()
		if len(sent) != 0 {
			t.Error("a stalled port took a frame")
		}
		a.Resume()
		if n := <-sent; n != 1 {
			t.Errorf("%d frames", n)
		}
		go send(1000) // more than there is room for
		synctest.Wait()
		if len(sent) != 0 {
			t.Error("a port has no bound")
		}
		for range 1001 {
			if _, err := b.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := <-sent; n != 1000 {
			t.Errorf("%d frames", n)
		}

		// It fails in the middle of everything.
		go send(1000)
		synctest.Wait()
		gone := errors.New("gone")
		a.Fail(gone)
		if n := <-sent; n >= 1000 {
			t.Error("a port that has failed took frames")
		}
		if err := a.ReadBatch(new(packet.Batch)); err != gone {
			t.Errorf("ReadBatch: %v", err)
		}
		if err := a.Send(frame(1, 1)); err != gone {
			t.Errorf("Send: %v", err)
		}
	})
}

func TestRecorder(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var r packettest.Recorder
		r.Give(frame(1, 10), frame(2, 20))
		batch := new(packet.Batch)
		if err := r.ReadBatch(batch); err != nil || batch.Len() != 2 {
			t.Errorf("%d frames, %v", batch.Len(), err)
		}
		if err := r.WriteBatch(batch); err != nil {
			t.Error(err)
		}
		if f, err := r.Next(t.Context()); err != nil || len(f.Packet()) != 10 {
			t.Errorf("%v, %v", f, err)
		}
		if w := r.Written(); len(w) != 1 || len(w[0].Packet()) != 20 {
			t.Errorf("%v", w)
		}
		r.Stall()
		done := make(chan error, 1)
		go func() { done <- r.WriteBatch(packettest.Batch(frame(3, 30))) }()
		synctest.Wait()
		if len(done) != 0 {
			t.Error("a stalled port took a batch")
		}
		r.Resume()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r.ByeCode() != "" || r.Drains() != 0 || len(r.Reaches()) != 0 {
			t.Error("it was told something")
		}
		_ = r.SendReach([]packet.Member{{ID: 7}})
		_ = r.SendDrain()
		_ = r.Bye("replaced", "")
		if m := r.Reaches(); len(m) != 1 || m[0][0].ID != 7 || r.Drains() != 1 || r.ByeCode() != "replaced" {
			t.Errorf("%v, %d, %q", m, r.Drains(), r.ByeCode())
		}
		r.Close()
		if err := r.ReadBatch(batch); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := r.WriteBatch(packettest.Batch(frame(1, 1))); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if f, err := r.Next(t.Context()); err != nil || len(f.Packet()) != 30 {
			t.Errorf("what was written before: %v, %v", f, err)
		}
		if _, err := r.Next(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the end: %v", err)
		}
	})
}

// ones adds up words with the carry, as a receiver does to verify a checksum.
func ones(parts ...[]byte) uint32 {
	s := uint32(0)
	for _, b := range parts {
		for i, x := range b {
			s += uint32(x) << (8 * (1 - i%2))
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return s
}

// valid reports whether a packet has the lengths and checksums that it should.
func valid(t *testing.T, what string, b []byte) {
	t.Helper()
	var pseudo, body []byte
	proto := byte(0)
	switch b[0] >> 4 {
	case 4:
		if int(binary.BigEndian.Uint16(b[2:])) != len(b) || ones(b[:20]) != 0xffff {
			t.Errorf("%s: IPv4 header: %x", what, b[:20])
		}
		proto, body, pseudo = b[9], b[20:], b[12:20]
	case 6:
		if int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 {
			t.Errorf("%s: IPv6 header: %x", what, b[:40])
		}
		proto, body, pseudo = b[6], b[40:], b[8:40]
	default:
		t.Fatalf("%s: version of %x", what, b)
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if proto == packettest.ProtoICMP {
		pseudo, length, proto = nil, nil, 0
	}
	if s := ones(pseudo, length, []byte{0, proto}, body); s != 0xffff {
		t.Errorf("%s: checksum: %x of %x", what, s, b)
	}
	if proto == packettest.ProtoUDP && int(binary.BigEndian.Uint16(body[4:])) != len(body) {
		t.Errorf("%s: UDP length", what)
	}
}

func TestPackets(t *testing.T) {
	four, six := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, a := range []netip.AddrPort{four, six} {
		for _, payload := range [][]byte{nil, {1}, []byte("hello"), make([]byte, 1400)} {
			valid(t, "UDP", packettest.UDP(a, a, payload))
			valid(t, "TCP", packettest.TCP(a, a, packettest.Segment{Seq: 1, Ack: 2, Flags: packettest.SYN, MSS: 1460, Payload: payload}))
			valid(t, "TCP", packettest.TCP(a, a, packettest.Segment{Payload: payload}))
			valid(t, "ping", packettest.Echo(a.Addr(), a.Addr(), false, 1, 2, payload))
			valid(t, "pong", packettest.Echo(a.Addr(), a.Addr(), true, 1, 2, payload))
		}
	}
	valid(t, "solicitation", packettest.Solicit(six.Addr(), six.Addr(), mac))
	valid(t, "advertisement", packettest.Advertise(six.Addr(), six.Addr(), six.Addr(), mac))
	// A checksum of zero would mean that there is none.
	c := packettest.UDP(four, four, []byte{0, 0})[26:28]
	if b := packettest.UDP(four, four, c); b[26] != 0xff || b[27] != 0xff {
		t.Errorf("the checksum of %x", b)
	}
	if got := packettest.LinkLocal(mac).String(); got != "fe80::ff:fe00:1" {
		t.Errorf("link-local: %s", got)
	}
	if got := packettest.Multicast(netip.MustParseAddr("ff02::1:ff00:1")).String(); got != "33:33:ff:00:00:01" {
		t.Errorf("multicast: %s", got)
	}
	if got := packettest.Multicast(netip.MustParseAddr("224.129.0.5")).String(); got != "01:00:5e:01:00:05" {
		t.Errorf("multicast: %s", got)
	}
	arp := packettest.ARP(packettest.ARPRequest, mac, four.Addr(), nil, four.Addr())
	if len(arp) != 28 || binary.BigEndian.Uint16(arp[6:]) != 1 || arp[24] != 192 || arp[18] != 0 {
		t.Errorf("ARP: %x", arp)
	}
	if e := packettest.Ethernet(packettest.Broadcast(), mac, packettest.TypeARP, arp); len(e) != 42 || e[12] != 8 || e[13] != 6 {
		t.Errorf("Ethernet: %x", e)
	}
}
