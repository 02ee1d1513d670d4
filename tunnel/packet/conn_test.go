package packet

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Packets arrive whole and in order, in both directions, with their numbers, and
// what one link has read another can write as it is.
func TestLinkCarries(t *testing.T) {
	a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
	c, d := linkPair(t, tunHello(), tunHello(), nil, nil)
	linkRun(t, a, b, c, d)
	const batches, each = 200, 37
	go func() { // b to c
		var batch Batch
		for b.ReadBatch(&batch) == nil {
			if c.WriteBatch(&batch) != nil {
				return
			}
		}
	}()
	linkDrain(a, nil)
	linkDrain(c, nil)
	got := make(chan Frame, 1000)
	linkDrain(d, func(f Frame) {
		f.Data = slices.Clone(f.Data)
		got <- f
	})
	go func() {
		for i := range batches {
			batch := NewBatch(0)
			for j := range each {
				f := linkPacket(100+i*j%1200, uint32(i*each+j))
				if j%2 == 1 {
					f.Origin, f.Seq = 7, uint64(i*each+j)
				}
				batch.Append(f)
			}
			if err := a.WriteBatch(batch); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := range batches * each {
		f := soon(t, got)
		if markOf(f) != uint32(i) || len(f.Packet()) != 100+(i/each)*(i%each)%1200 {
			t.Fatalf("packet %d has mark %d and %d bytes", i, markOf(f), len(f.Packet()))
		}
		if odd := i % each % 2; odd == 1 && (f.Origin != 7 || f.Seq != uint64(i)) || odd == 0 && f.Seq != 0 {
			t.Fatalf("packet %d is numbered %d %d", i, f.Origin, f.Seq)
		}
	}
	s := d.Stats()
	if s.ReadPackets != batches*each || s.Bad != 0 {
		t.Errorf("%+v", s)
	}
	if w := a.Stats(); w.WrittenPackets != batches*each || w.WrittenBytes != s.ReadBytes {
		t.Errorf("%+v, and read %+v", w, s)
	}
}

// A large batch of packets of all sizes passes, and a packet of the largest size.
func TestLinkLargest(t *testing.T) {
	a, b := linkPair(t, Hello{Mode: TUN, MTU: 65535}, Hello{Mode: TUN, MTU: 65535}, nil, nil)
	linkRun(t, a, b)
	lengths := make(chan int, 10)
	linkDrain(b, func(f Frame) { lengths <- len(f.Packet()) })
	batch := NewBatch(0)
	for _, n := range []int{65535, 20, 65535, 32, 65535} {
		batch.Append(linkPacket(max(n, 28), 0))
	}
	if err := a.WriteBatch(batch); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{65535, 28, 65535, 32, 65535} {
		if n := soon(t, lengths); n != want {
			t.Errorf("%d bytes, want %d", n, want)
		}
	}
}

// What each side says arrives at the other, and the lower MTU counts.
func TestHello(t *testing.T) {
	full := Hello{
		ID: 1 << 63, Name: "ä client", Mode: TAP, MTU: 1400, Offload: OffloadChecksum | OffloadTSO6,
		Addresses: linkAddrs("fd00::1", "10.0.0.1"), Networks: linkPrefixes("10.1.0.0/16", "fd01::/64"), Software: "test 1",
	}
	a, b := linkPair(t, full, Hello{Mode: TAP}, nil, nil)
	r := b.Remote()
	if r.ID != full.ID || r.Name != full.Name || r.Mode != TAP || r.MTU != 1400 || r.Offload != full.Offload ||
		!slices.Equal(r.Addresses, full.Addresses) || !slices.Equal(r.Networks, full.Networks) || r.Software != "test 1" {
		t.Errorf("%+v", r)
	}
	if r := a.Remote(); r.ID == 0 || r.MTU != 1500 || r.Software != "rhizome" || r.Offload != 0 {
		t.Errorf("%+v", r)
	}
	if a.MTU() != 1400 || b.MTU() != 1400 || a.Local().ID != full.ID {
		t.Errorf("MTUs %d and %d, id %d", a.MTU(), b.MTU(), a.Local().ID)
	}
	if a.RemoteAddr().String() != b.LocalAddr().String() {
		t.Errorf("%v is not %v", a.RemoteAddr(), b.LocalAddr())
	}
}

// What does not fit is refused at both ends, with a type and with words.
func TestHelloRefused(t *testing.T) {
	deny := func(Hello) error { return errLinkTest }
	words := func(Hello) error {
		return &ByeError{Code: ByeFull, Reason: "later", RetryAfter: 1500 * time.Millisecond}
	}
	for _, tt := range []struct {
		name  string
		b     Hello
		admit func(Hello) error
		code  string
		text  string
		retry time.Duration
	}{
		{name: "mode", b: tapHello(), code: ByeMismatch, text: "carries t"},
		{name: "denied", b: tunHello(), admit: deny, code: ByeDenied, text: "test"},
		{name: "full", b: tunHello(), admit: words, code: ByeFull, text: "later", retry: 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, cb := tunneltest.Pipe()
			end := make(chan error, 1)
			go func() {
				_, err := Handshake(t.Context(), cb, tt.b, &ConnOptions{Admit: tt.admit})
				end <- err
			}()
			_, err := Handshake(t.Context(), ca, tunHello(), nil)
			var here, there *ByeError
			if !errors.As(err, &here) || here.Code != tt.code || !strings.Contains(here.Error(), tt.text) {
				t.Errorf("client: %v", err)
			}
			err = soon(t, end)
			if !errors.As(err, &there) || there.Code != tt.code || there.Remote && here.Remote {
				t.Errorf("server: %v", err)
			}
			if here.RetryAfter != tt.retry {
				t.Errorf("retry after %v", here.RetryAfter)
			}
			for _, c := range []net.Conn{ca, cb} {
				if err := c.Close(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("it is not closed: %v", err)
				}
			}
		})
	}
}

// A peer with a HELLO that cannot be is told so, and one of another version which
// ones there are.
func TestHelloMalformed(t *testing.T) {
	good := Hello{Mode: TUN}.withDefaults().message(nil)
	for _, tt := range []struct {
		name string
		send []byte
		code string // "": no BYE, the framing is broken
	}{
		{"future", rawControl(typeHello, having(good, func(m *helloMessage) { m.MinVersion, m.MaxVersion = 7, 9 })), ByeVersion},
		{"no version", rawControl(typeHello, having(good, func(m *helloMessage) { m.MaxVersion = 0 })), ByeProtocol},
		{"no id", rawControl(typeHello, having(good, func(m *helloMessage) { m.ID = 0 })), ByeProtocol},
		{"no mode", rawControl(typeHello, having(good, func(m *helloMessage) { m.Mode = "tup" })), ByeProtocol},
		{"tiny MTU", rawControl(typeHello, having(good, func(m *helloMessage) { m.MTU = 575 })), ByeProtocol},
		{"huge MTU", rawControl(typeHello, having(good, func(m *helloMessage) { m.MTU = 65536 })), ByeProtocol},
		{"long name", rawControl(typeHello, having(good, func(m *helloMessage) { m.Name = strings.Repeat("n", 257) })), ByeProtocol},
		{"control bytes", rawControl(typeHello, having(good, func(m *helloMessage) { m.Software = "a\nb" })), ByeProtocol},
		{"addresses", rawControl(typeHello, having(good, func(m *helloMessage) { m.Addresses = linkAddrs(strings.Fields(strings.Repeat("10.0.0.1 ", 17))...) })), ByeProtocol},
		{"multicast", rawControl(typeHello, having(good, func(m *helloMessage) { m.Addresses = linkAddrs("ff02::1") })), ByeProtocol},
		{"mapped", rawControl(typeHello, having(good, func(m *helloMessage) { m.Networks = linkPrefixes("::ffff:10.0.0.0/104") })), ByeProtocol},
		{"features", rawControl(typeHello, having(good, func(m *helloMessage) { m.Features = make([]string, 65) })), ByeProtocol},
		{"no JSON", rawFrame(typeHello, []byte("{")), ByeProtocol},
		{"no HELLO", rawControl(typePing, pingMessage{}), ""},
		{"too long", rawFrame(typeHello, make([]byte, maxControl+1)), ""},
		{"a packet", rawFrame(typePacket, linkPacket(100, 0).Data), ""},
		{"HTTP", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, cb := tunneltest.Pipe()
			defer cb.Close()
			if _, err := cb.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			said := make(chan error, 1)
			go func() {
				defer cb.Close()
				for {
					kind, body, err := rawRead(cb)
					if kind == typeBye {
						err = decodeBye(body)
					}
					if err != nil {
						said <- err
						return
					}
				}
			}()
			_, err := Handshake(t.Context(), ca, tunHello(), nil)
			if tt.code == "" {
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%v, want ErrProtocol", err)
				}
				soon(t, said)
				return
			}
			var here, there *ByeError
			if !errors.As(err, &here) || here.Code != tt.code || here.Remote {
				t.Errorf("%v, want BYE %s", err, tt.code)
			}
			if err := soon(t, said); !errors.As(err, &there) || there.Code != tt.code {
				t.Errorf("the peer is told %v", err)
			}
		})
	}
}

// An unknown field, feature and offload of a newer peer are ignored.
func TestHelloOfNewer(t *testing.T) {
	body := `{"minVersion":1,"maxVersion":9,"features":["reach","teleport"],"id":"5","mode":"tun","mtu":9000,"offload":["checksum","warp"],"colour":"red"}`
	h, features, err := decodeHello([]byte(body))
	if err != nil || h.Offload != OffloadChecksum || !features[featureReach] || h.ID != 5 {
		t.Errorf("%+v %v %v", h, features, err)
	}
}

// A peer that says nothing has ten seconds, and ctx counts too.
func TestHelloInTime(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		start := time.Now()
		for _, o := range []*ConnOptions{nil, {Admit: func(Hello) error { return nil }}} {
			a, b := tunneltest.Pipe()
			_, err := Handshake(t.Context(), a, tunHello(), o)
			if !errors.Is(err, errNoHello) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			if d := time.Since(start); d != 10*time.Second {
				t.Errorf("after %v", d)
			}
			b.Close()
			start = time.Now()
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errLinkTest)
		defer cancel()
		a, b := tunneltest.Pipe()
		defer b.Close()
		if _, err := Handshake(ctx, a, tunHello(), nil); err != errLinkTest || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c, d := tunneltest.Pipe()
		d.Close()
		if _, err := Handshake(ctx, c, Hello{MTU: 1}, nil); err == nil || !strings.Contains(err.Error(), "MTU") {
			t.Error(err)
		}
	})
}

// REACH and DRAIN arrive, the newest counts, and a side that does not want REACH is
// not bothered.
func TestReachAndDrain(t *testing.T) {
	server, client := linkPair(t, tunHello(), tunHello(), &ConnOptions{NoReach: true}, nil)
	reached := make(chan []Member, 10)
	drained := make(chan bool, 10)
	client.OnReach(func(m []Member) { reached <- m })
	client.OnDrain(func() { drained <- true })
	linkRun(t, server, client)
	linkDrain(server, nil)
	linkDrain(client, nil)
	if client.Reach() != nil || client.Draining() {
		t.Error("it knows before it is told")
	}
	want := []Member{{ID: 1 << 60, Name: "a", Addresses: linkAddrs("fd00::1"), Networks: linkPrefixes("10.0.0.0/8")}, {ID: 2, Name: "b"}}
	if err := server.SendReach(want); err != nil {
		t.Fatal(err)
	}
	got := soon(t, reached)
	if len(got) != 2 || got[0].ID != 1<<60 || got[0].Networks[0] != want[0].Networks[0] || len(client.Reach()) != 2 {
		t.Errorf("%+v", got)
	}
	if err := server.SendReach(nil); err != nil {
		t.Fatal(err)
	}
	if got := soon(t, reached); got == nil || len(got) != 0 {
		t.Errorf("%+v, want none, which is not nil", got)
	}
	for range 3 {
		if err := server.SendDrain(); err != nil {
			t.Fatal(err)
		}
	}
	soon(t, drained)
	if !client.Draining() {
		t.Error("not draining")
	}
	if err := client.SendReach(want); err != nil {
		t.Error(err)
	}
	untilLink(t, "PINGs", func() bool { return client.Stats().RTT > 0 && server.Stats().RTT > 0 })
	if server.Reach() != nil || len(drained) > 0 {
		t.Errorf("the server has %v, %d more DRAINs", server.Reach(), len(drained))
	}
	server.Close()
	if err := server.SendReach(nil); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := server.SendDrain(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// BYE ends both sides with the same words, after all that was written before.
func TestBye(t *testing.T) {
	a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
	ran := linkRun(t, a, b)
	marks := make(chan uint32, 100)
	ends := []chan error{linkDrain(a, nil), linkDrain(b, func(f Frame) { marks <- markOf(f) })}
	if err := a.WriteBatch(linkBatch(50, 500, 0)); err != nil {
		t.Fatal(err)
	}
	if err := a.Bye(ByeReplaced, "another\nprocess"); err != nil {
		t.Fatal(err)
	}
	for i, c := range append(ends, ran...) {
		var e *ByeError
		if err := soon(t, c); !errors.As(err, &e) || e.Code != ByeReplaced || e.Remote != (i%2 == 1) {
			t.Errorf("%d: %v", i, err)
		} else if e.Remote && e.Reason != "another process" {
			t.Errorf("reason %q", e.Reason)
		}
	}
	if len(marks) != 50 {
		t.Errorf("%d packets arrived", len(marks))
	}
	var e *ByeError
	if err := a.WriteBatch(linkBatch(1, 100, 0)); !errors.As(err, &e) {
		t.Error(err)
	}
	if err := a.Bye(ByeDenied, "again"); !errors.As(err, &e) || e.Code != ByeReplaced {
		t.Error(err)
	}
}

// Close ends a reader and a writer that wait, Run too, with net.ErrClosed; the peer
// sees a loss, and never the end of a link that was told.
func TestClose(t *testing.T) {
	a, b := linkPair(t, tunHello(), tunHello(), &ConnOptions{Dead: -1}, nil)
	ran := linkRun(t, a)
	ends := []chan error{linkDrain(a, nil), ran[0], make(chan error, 1)}
	go func() {
		for {
			if err := a.WriteBatch(linkBatch(100, 1400, 0)); err != nil {
				ends[2] <- err
				return
			}
		}
	}()
	untilLink(t, "a blocked writer", func() bool {
		before := a.Stats().WrittenBytes
		time.Sleep(20 * time.Millisecond)
		return before > 0 && a.Stats().WrittenBytes == before
	})
	a.Close()
	for i, c := range ends {
		if err := soon(t, c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
	<-a.Done()
	if err := soon(t, linkDrain(b, nil)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the peer: %v", err)
	}
	if err := a.WriteBatch(linkBatch(1, 100, 0)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// Ending Run's context ends the link with its cause.
func TestRunContext(t *testing.T) {
	a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
	end := linkDrain(a, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	cancel(errLinkTest)
	if err := soon(t, ran); err != errLinkTest {
		t.Error(err)
	}
	if err := soon(t, end); err != errLinkTest {
		t.Error(err)
	}
	if err := soon(t, linkDrain(b, nil)); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Error(err)
	}
}

func having[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

// BYE is bounded: by a peer that takes nothing, and by one that does not close.
func TestByeIsBounded(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		l, raw := rawLink(t, nil)
		ran := linkRun(t, l)
		end := linkDrain(l, nil)
		written := make(chan error, 1)
		go func() {
			for {
				if err := l.WriteBatch(linkBatch(100, 1400, 0)); err != nil {
					written <- err
					return
				}
			}
		}()
		time.Sleep(time.Second)
		start := time.Now()
		_ = l.Bye(ByeFull, "")
		if d := time.Since(start); d != byeTime {
			t.Errorf("nothing is taken: %v", d)
		}
		for _, c := range []chan error{ran[0], end, written} {
			var e *ByeError
			if err := <-c; !errors.As(err, &e) || e.Remote {
				t.Error(err)
			}
		}
		raw.Close()
		m, raw := rawLink(t, nil)
		defer raw.Close()
		end = linkDrain(m, nil)
		start = time.Now()
		_ = m.Bye(ByeFull, "")
		if d := time.Since(start); d != byeTime {
			t.Errorf("it does not close: %v", d)
		}
		<-end
		n, raw2 := rawLink(t, nil)
		defer raw2.Close()
		start = time.Now()
		_ = n.Bye(ByeFull, "") // nobody reads
		if d := time.Since(start); d != 2*byeTime {
			t.Errorf("nobody reads: %v", d)
		}
	})
}
