package packet_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A link at a switch: its client is told who is there, its packets are switched, and it
// learns why it was ended.
func TestSwitchServesConn(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		b := w.join("b", 2, []string{"fd00::b:1"})
		addr := netip.MustParseAddr("fd00::a:1")
		type end struct {
			conn *packet.Conn
			err  chan error
		}
		dial := func(id uint64) (*end, *switchPeer) {
			near, far := tunneltest.Pipe()
			hello := packet.Hello{ID: id, Mode: packet.TAP, Addresses: []netip.Addr{addr}, Offload: packet.OffloadAll}
			e := &end{err: make(chan error, 1)}
			go func() {
				c, err := packet.Handshake(context.Background(), near, hello, nil)
				if err != nil {
					t.Error(err)
				}
				e.conn = c
			}()
			c, err := packet.Handshake(t.Context(), far, packet.Hello{ID: 100, Mode: packet.TAP, Offload: packet.OffloadAll}, &packet.ConnOptions{NoReach: true})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			go func() { e.err <- e.conn.Run(context.Background()) }()
			p := &switchPeer{t: t, Recorder: new(packettest.Recorder), done: make(chan error, 1), options: packet.PortOptions{
				Member:    packet.Member{ID: id, Name: "a", Addresses: c.Remote().Addresses},
				Addresses: []netip.Prefix{netip.PrefixFrom(addr, 128)},
			}}
			w.serve(p, c)
			return e, p
		}
		read := func(e *end, to chan<- []byte) {
			batch := new(packet.Batch)
			for e.conn.ReadBatch(batch) == nil {
				for f := range batch.Frames() {
					to <- append([]byte(nil), f.Packet()...)
				}
			}
		}
		mac := packet.MAC(addr, 0)

		a, port := dial(1)
		heard := make(chan []byte, 10)
		go read(a, heard)
		synctest.Wait()
		if m := a.conn.Reach(); len(m) != 2 || m[0].ID != 1 || m[1].ID != 2 {
			t.Errorf("reach: %v", m)
		}
		hello := ether(b.mac, mac, udp(addr, b.addr))
		if err := a.conn.WriteBatch(packettest.Batch(packettest.Frame(hello))); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		b.hears(hello)
		answer := ether(mac, b.mac, udp(b.addr, addr))
		b.say(answer)
		if got := <-heard; string(got) != string(answer) {
			t.Errorf("heard %x", got)
		}
		time.Sleep(time.Minute) // nothing but PINGs
		b.say(answer)
		<-heard
		w.Drain()
		synctest.Wait()
		if !a.conn.Draining() {
			t.Error("the client was not told that the server drains")
		}

		// Another process with its address.
		again, port2 := dial(11)
		go read(again, heard)
		var bye *packet.ByeError
		if err := <-a.err; !errors.As(err, &bye) || bye.Code != packet.ByeReplaced {
			t.Errorf("the older one: %v", err)
		}
		a.conn.Close()
		time.Sleep(3 * time.Second)
		if err := port.ended(); !errors.Is(err, packet.ErrReplaced) {
			t.Errorf("its port: %v", err)
		}
		b.say(answer)
		<-heard
		if !again.conn.Draining() {
			t.Error("who came later was not told that the server drains")
		}

		// A client that goes.
		again.conn.Close()
		<-again.err
		time.Sleep(3 * time.Second)
		if err := port2.ended(); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("its port: %v", err)
		}
		if n := len(w.Members()); n != 1 {
			t.Errorf("%d members", n)
		}
	})
}
