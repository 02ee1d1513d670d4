package packet

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// linkPacket is a whole IPv4 packet of UDP, n bytes long, with a mark in it.
func linkPacket(n int, mark uint32) Frame {
	data := make([]byte, HeaderLen+n)
	ip := data[HeaderLen:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(n))
	ip[8], ip[9] = 64, 17
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20]))
	binary.BigEndian.PutUint16(ip[24:], uint16(n-20))
	if n >= 32 {
		binary.BigEndian.PutUint32(ip[28:], mark)
	}
	return Frame{Data: data}
}

// markOf is the mark in a packet of linkPacket.
func markOf(f Frame) uint32 { return binary.BigEndian.Uint32(f.Packet()[28:]) }

// linkBatch is a batch of so many packets with marks from a first one on.
func linkBatch(n, size int, first uint32) *Batch {
	b := NewBatch(0)
	for i := range n {
		if !b.Append(linkPacket(size, first+uint32(i))) {
			panic("the batch is full")
		}
	}
	return b
}

// linkPair makes a link over an in-memory connection. Nothing runs yet.
func linkPair(t testing.TB, a, b Hello, oa, ob *ConnOptions) (*Conn, *Conn) {
	t.Helper()
	ca, cb := tunneltest.Pipe()
	return linkOver(t, ca, cb, a, b, oa, ob)
}

func linkOver(t testing.TB, ca, cb net.Conn, a, b Hello, oa, ob *ConnOptions) (*Conn, *Conn) {
	t.Helper()
	var (
		work   sync.WaitGroup
		lb     *Conn
		aErr   error
		bErr   error
		la     *Conn
		cancel context.CancelFunc
		ctx    context.Context
	)
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	work.Go(func() { lb, bErr = Handshake(ctx, cb, b, ob) })
	la, aErr = Handshake(ctx, ca, a, oa)
	work.Wait()
	if err := errors.Join(aErr, bErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { la.Close(); lb.Close() })
	return la, lb
}

// linkRun runs links until the test ends.
func linkRun(t testing.TB, links ...*Conn) (errs []chan error) {
	var work sync.WaitGroup
	for _, l := range links {
		err := make(chan error, 1)
		errs = append(errs, err)
		work.Go(func() { err <- l.Run(context.Background()) })
	}
	t.Cleanup(func() {
		for _, l := range links {
			l.Close()
		}
		work.Wait()
	})
	return errs
}

// linkDrain reads a link to its end, and gives that.
func linkDrain(l *Conn, each func(Frame)) chan error {
	end := make(chan error, 1)
	go func() {
		var b Batch
		for {
			if err := l.ReadBatch(&b); err != nil {
				end <- err
				return
			}
			for f := range b.Frames() {
				if each != nil {
					each(f)
				}
			}
		}
	}()
	return end
}

// rawLink is a link whose far end the test plays by hand, after its HELLO.
func rawLink(t testing.TB, o *ConnOptions) (l *Conn, raw net.Conn) {
	t.Helper()
	ca, cb := tunneltest.Pipe()
	t.Cleanup(func() { cb.Close() })
	if _, err := cb.Write(rawControl(typeHello, Hello{Mode: TUN, Offload: OffloadAll}.withDefaults().message([]string{featureReach}))); err != nil {
		t.Fatal(err)
	}
	l, err := Handshake(context.Background(), ca, Hello{Mode: TUN, Offload: OffloadAll}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	kind, _, err := rawRead(cb)
	if err != nil || kind != typeHello {
		t.Fatal(kind, err)
	}
	return l, cb
}

func rawControl(kind byte, payload any) []byte {
	b, err := appendControl(nil, kind, payload)
	if err != nil {
		panic(err)
	}
	return b
}

// rawFrame is a frame of any kind with any payload.
func rawFrame(kind byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(kind)<<24|uint32(len(payload)))
	return append(b, payload...)
}

// rawRead reads one frame.
func rawRead(r io.Reader) (kind byte, body []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint32(head[:])&0xffffff)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}

// soon waits for a value for some seconds.
func soon[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("it takes too long")
	}
	return v
}

// untilLink polls for a state.
func untilLink(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for i := 0; !ok(); i++ {
		if i > 4000 {
			t.Fatal("never: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func tapHello() Hello { return Hello{Mode: TAP, Offload: OffloadAll} }
func tunHello() Hello { return Hello{Mode: TUN, Offload: OffloadAll} }

var errLinkTest = fmt.Errorf("test")

func linkAddrs(all ...string) (a []netip.Addr) {
	for _, s := range all {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func linkPrefixes(all ...string) (p []netip.Prefix) {
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

type x509Certificate = x509.Certificate

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dialTCP(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}
