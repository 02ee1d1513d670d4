package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// What is no frame ends the link, at once and with a type.
func TestMalformedFrames(t *testing.T) {
	longest := HeaderLen + MaxPacket
	head := func(kind byte, n int) []byte {
		return binary.BigEndian.AppendUint32(nil, uint32(kind)<<24|uint32(n))
	}
	for _, tt := range []struct {
		name string
		send []byte
		want error
	}{
		{"type 0", rawFrame(0, nil), ErrProtocol},
		{"unknown packets", rawFrame(3, linkPacket(100, 0).Data), ErrProtocol},
		{"last of the packets", rawFrame(15, nil), ErrProtocol},
		{"packet without header", rawFrame(typePacket, make([]byte, HeaderLen-1)), ErrProtocol},
		{"numbered without header", rawFrame(typeNumbered, make([]byte, numberLen+HeaderLen-1)), ErrProtocol},
		{"packet too long", head(typePacket, longest+1), ErrProtocol},
		{"numbered too long", head(typeNumbered, longest+numberLen+1), ErrProtocol},
		{"packet of 16 MiB", head(typePacket, 1<<24-1), ErrProtocol},
		{"control too long", head(typeDrain, maxControl+1), ErrProtocol},
		{"unknown control too long", head(200, maxControl+1), ErrProtocol},
		{"REACH too long", head(typeReach, maxReach+1), ErrProtocol},
		{"second HELLO", rawControl(typeHello, Hello{}.withDefaults().message(nil)), ErrProtocol},
		{"PING too long", rawFrame(typePing, make([]byte, maxPing+1)), ErrProtocol},
		{"PONG too long", rawFrame(typePong, make([]byte, maxPing+1)), ErrProtocol},
		{"PONG no JSON", rawFrame(typePong, []byte("[")), ErrProtocol},
		{"REACH no JSON", rawFrame(typeReach, []byte(`{"members":`)), ErrProtocol},
		{"BYE no JSON", rawFrame(typeBye, nil), ErrProtocol},
		{"cut short", rawFrame(typePacket, linkPacket(100, 0).Data)[:60], io.ErrUnexpectedEOF},
		{"head cut short", rawFrame(typePacket, linkPacket(100, 0).Data)[:3], io.ErrUnexpectedEOF},
		{"nothing", nil, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, raw := rawLink(t, nil)
			packets := make(chan uint32, 10)
			end := linkDrain(l, func(f Frame) { packets <- markOf(f) })
			// What came before is not lost.
			for i := range 3 {
				_, _ = raw.Write(rawFrame(typePacket, linkPacket(100, uint32(i)).Data))
			}
			_, _ = raw.Write(tt.send)
			if errors.Is(tt.want, io.ErrUnexpectedEOF) {
				raw.Close()
			}
			if err := soon(t, end); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if len(packets) != 3 {
				t.Errorf("%d packets before it", len(packets))
			}
			var b Batch
			if err := l.ReadBatch(&b); !errors.Is(err, tt.want) {
				t.Errorf("then %v", err)
			}
		})
	}
}

// A packet that is wrong in itself costs only itself, wherever it stands, and none of it
// is in a view that could be passed on.
func TestBadPackets(t *testing.T) {
	good := linkPacket(100, 7)
	bad := map[string][]byte{
		"empty":          rawFrame(typePacket, make([]byte, HeaderLen)),
		"numbered empty": rawFrame(typeNumbered, make([]byte, numberLen+HeaderLen)),
		"number 0":       rawFrame(typeNumbered, append(make([]byte, numberLen), good.Data...)),
		"no IP":          rawFrame(typePacket, having(linkPacket(100, 0).Data, func(d *[]byte) { (*d)[HeaderLen] = 0x75 })),
		"over the MTU":   rawFrame(typePacket, linkPacket(1501, 0).Data),
		"virtio flags":   rawFrame(typePacket, having(linkPacket(100, 0).Data, func(d *[]byte) { (*d)[0] = 0x80 })),
		"segmentation":   rawFrame(typePacket, having(linkPacket(100, 0).Data, func(d *[]byte) { (*d)[1] = 9 })),
		"checksum":       rawFrame(typePacket, having(linkPacket(100, 0).Data, func(d *[]byte) { (*d)[0] = 1; (*d)[6] = 99 })),
	}
	other := [][]byte{
		rawFrame(200, []byte("later")), rawControl(typeDrain, struct{}{}), rawControl(typePing, pingMessage{Seq: 1}),
	}
	l, raw := rawLink(t, nil)
	marks := make(chan uint32, 1000)
	go func() {
		var b Batch
		for l.ReadBatch(&b) == nil {
			n := 0
			for f := range b.Frames() {
				n++
				marks <- markOf(f)
			}
			// All of its bytes are packets.
			if n != b.Len() || b.Size() != n*(frameHead+len(good.Data)) {
				t.Errorf("a batch of %d with %d packets and %d bytes", b.Len(), n, b.Size())
			}
		}
	}()
	all := rawFrame(typePacket, good.Data)
	count := 1
	for _, b := range bad {
		all = append(all, b...)
		all = append(all, rawFrame(typePacket, good.Data)...)
		count++
	}
	for _, b := range other {
		all = append(all, b...)
		all = append(all, rawFrame(typePacket, good.Data)...)
		count++
	}
	all = append(append(all, bad["empty"]...), bad["empty"]...)
	for i := range all { // in two pieces, cut everywhere
		_, _ = raw.Write(all[:i])
		_, _ = raw.Write(all[i:])
		for range count {
			if m := soon(t, marks); m != 7 {
				t.Fatalf("mark %d", m)
			}
		}
	}
	untilLink(t, "the bad ones are counted", func() bool { return l.Stats().Bad == uint64(len(all)*(len(bad)+2)) })
	if s := l.Stats(); s.ReadPackets != uint64(len(all)*count) || s.Ignored < uint64(len(all)) {
		t.Errorf("%+v, want %d", s, len(all)*count)
	}
}

// Byte by byte is as good as at once.
func TestByteByByte(t *testing.T) {
	l, raw := rawLink(t, nil)
	got := make(chan uint32, 10)
	linkDrain(l, func(f Frame) { got <- markOf(f) })
	go func() {
		for _, b := range append(rawFrame(typePacket, linkPacket(200, 5).Data), rawControl(typeReach, reachMessage{[]Member{{ID: 3}}})...) {
			if _, err := raw.Write([]byte{b}); err != nil {
				return
			}
		}
	}()
	if m := soon(t, got); m != 5 {
		t.Error(m)
	}
	untilLink(t, "REACH", func() bool { return len(l.Reach()) == 1 })
}

// A flood of PINGs is answered 20 times a second, and what is answered is bounded
// while the peer does not read.
func TestPingFlood(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		l, raw := rawLink(t, nil)
		linkRun(t, l)
		linkDrain(l, nil)
		pongs := make(chan bool, 10000)
		go func() {
			for {
				kind, body, err := rawRead(raw)
				if err != nil {
					return
				}
				if kind == typePong {
					if !bytes.Equal(body, []byte(`{"seq":1,"sent":2,"more":"x"}`)) {
						t.Errorf("PONG %s", body)
					}
					pongs <- true
				}
			}
		}()
		start := time.Now()
		for range 100 {
			for range 100 {
				_, _ = raw.Write(rawFrame(typePing, []byte(`{"seq":1,"sent":2,"more":"x"}`)))
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		most := int(time.Since(start).Seconds()*maxPongs) + maxPongs
		if n := len(pongs); n > most || n < most/4 {
			t.Errorf("%d PONGs for 10000 PINGs in %v", n, time.Since(start))
		}
		if s := l.Stats(); s.Ignored < 9000 {
			t.Errorf("%+v", s)
		}
		raw.Close()
		time.Sleep(time.Second)
	})
}

// A peer that never reads and asks for answers costs a bounded outbox.
func TestOutboxIsBounded(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		l, raw := rawLink(t, &ConnOptions{WriteTimeout: -1})
		linkRun(t, l)
		linkDrain(l, nil)
		go func() {
			for l.WriteBatch(linkBatch(100, 1400, 0)) == nil {
			}
		}()
		for range 600 {
			_, _ = raw.Write(rawFrame(typePing, bytes.Repeat([]byte{'x'}, maxPing)))
			_ = l.SendDrain()
			_ = l.SendReach([]Member{{ID: 1}})
			time.Sleep(100 * time.Millisecond)
		}
		l.out.mu.Lock()
		n := len(l.out.frames) + len(l.out.reach)
		l.out.mu.Unlock()
		if n > 4<<10 {
			t.Errorf("the outbox has %d bytes", n)
		}
		l.Close()
		raw.Close()
	})
}

// Floods of what is not understood, or not wanted, cost no memory and no decoding.
func TestControlFlood(t *testing.T) {
	l, raw := rawLink(t, &ConnOptions{NoReach: true})
	end := linkDrain(l, nil)
	giant := rawFrame(typeReach, bytes.Repeat([]byte{'{'}, maxReach)) // no JSON
	unknown := rawFrame(255, make([]byte, maxControl))
	drain := rawFrame(typeDrain, nil)
	for range 4 { // as many as could be meant
		if _, err := raw.Write(rawControl(typePong, pingMessage{})); err != nil {
			t.Fatal(err)
		}
	}
	pong := rawFrame(typePong, bytes.Repeat([]byte{'{'}, maxPing)) // no JSON
	for range 50 {
		for _, b := range [][]byte{giant, unknown, drain, pong} {
			if _, err := raw.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	untilLink(t, "all are read", func() bool { return l.Stats().Ignored == 150 })
	if !l.Draining() || l.Reach() != nil {
		t.Error("DRAIN, REACH")
	}
	l.Close()
	soon(t, end)
	if n := len(l.in.buf); n > largeInbox {
		t.Errorf("the inbox has %d bytes", n)
	}
}

// The largest REACH that may be arrives.
func TestLargestReach(t *testing.T) {
	a, b := linkPair(t, tunHello(), tunHello(), nil, nil)
	linkRun(t, a, b)
	linkDrain(a, nil)
	linkDrain(b, nil)
	members := make([]Member, maxMembers)
	for i := range members {
		members[i] = Member{ID: uint64(i) + 1, Name: strings.Repeat("n", 150), Addresses: linkAddrs("fd8f:6d53:b97a:1::ffff")}
	}
	if err := a.SendReach(members); err != nil {
		t.Fatal(err)
	}
	untilLink(t, "REACH", func() bool { return len(b.Reach()) == maxMembers })
}

// What the peer says for people is cut and harmless.
func TestByeWords(t *testing.T) {
	body, _ := json.Marshal(byeMessage{Code: strings.Repeat("c", 1000), Reason: "a\x1b[31m\n" + strings.Repeat("ä", 1000), RetryAfter: 1 << 40})
	var e *ByeError
	if err := decodeBye(body); !errors.As(err, &e) {
		t.Fatal(err)
	}
	if len(e.Code) > 300 || len(e.Reason) > 300 || strings.ContainsAny(e.Reason, "\x1b\n") || e.RetryAfter != time.Hour {
		t.Errorf("%q %v", e.Reason, e.RetryAfter)
	}
}

// hostileFrames writes bytes to a link and returns what it made of them.
func hostileFrames(t testing.TB, data []byte) (packets int, end error) {
	l, raw := rawLink(t, nil)
	go func() { _, _ = io.Copy(io.Discard, raw) }()
	go func() {
		_, _ = raw.Write(data)
		_ = raw.(interface{ CloseWrite() error }).CloseWrite()
	}()
	var b Batch
	for {
		if err := l.ReadBatch(&b); err != nil {
			return packets, err
		}
		n := 0
		for f := range b.Frames() {
			n++
			if err := Check(f, TUN, l.MTU()); err != nil {
				t.Fatalf("a bad packet came through: %v", err)
			}
		}
		if n == 0 || n != b.Len() {
			t.Fatalf("a batch of %d with %d packets", b.Len(), n)
		}
		packets += n
	}
}

// FuzzFrames gives a link the bytes of a hostile peer: it ends with one of its errors,
// and lets good packets through only.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add(rawFrame(typePacket, linkPacket(100, 0).Data))
	f.Add(append(rawFrame(typeNumbered, append(bytes.Repeat([]byte{1}, numberLen), linkPacket(100, 0).Data...)), rawControl(typePing, pingMessage{Seq: 1})...))
	f.Add(rawControl(typeReach, reachMessage{[]Member{{ID: 3, Addresses: linkAddrs("10.0.0.1")}}}))
	f.Add(rawControl(typeBye, byeMessage{Code: ByeFull, Reason: "x", RetryAfter: 3}))
	f.Add(append(rawControl(typeDrain, struct{}{}), rawFrame(99, []byte("?"))...))
	f.Add([]byte{typePacket, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := hostileFrames(t, data)
		var e *ByeError
		if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &e) {
			t.Errorf("%v", err)
		}
	})
}

// FuzzHello decodes what a stranger with a credential says first: what is taken
// is within bounds, and can be said again.
func FuzzHello(f *testing.F) {
	for _, h := range []Hello{{Mode: TAP}, {Mode: TUN, Name: "x", MTU: 1400, Offload: OffloadAll, Addresses: linkAddrs("fd00::1"), Networks: linkPrefixes("10.0.0.0/8")}} {
		body, _ := json.Marshal(h.withDefaults().message([]string{featureReach}))
		f.Add(body)
	}
	f.Add([]byte(`{"minVersion":2,"maxVersion":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, _, err := decodeHello(data)
		if err != nil {
			return
		}
		body, err := json.Marshal(h.message(nil))
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := decodeHello(body)
		if err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", h) {
			t.Errorf("%v\n%+v\n%+v", err, h, again)
		}
	})
}

// FuzzReach decodes what a hostile server says of its members.
func FuzzReach(f *testing.F) {
	body, _ := json.Marshal(reachMessage{[]Member{{ID: 1 << 63, Name: "a", Addresses: linkAddrs("fd00::1"), Networks: linkPrefixes("10.0.0.0/8")}}})
	f.Add(body)
	f.Add([]byte(`{"members":[{"id":"0"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		members, _, err := decodeReach(data)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Error(err)
			}
			return
		}
		for _, m := range members {
			if !m.tellable() {
				t.Errorf("%+v", m)
			}
		}
		frame, cut := encodeReach(members)
		again, skipped, err := decodeReach(frame[frameHead:])
		if err != nil || skipped > 0 || !cut && len(again) != len(members) {
			t.Errorf("%v, %d skipped, %d of %d", err, skipped, len(again), len(members))
		}
	})
}

var _ net.Error = timeoutError("")
