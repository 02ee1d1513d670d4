package bond

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestDevices has two kernels talk to each other over a bond each, and cuts one link
// after the other.
func TestDevices(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		near := openSide(t, "fd8f:6d53:b97a:1::a:1")
		tunneltest.InNetns(t, func(t *testing.T) {
			far := openSide(t, "fd8f:6d53:b97a:1::b:1")
			ctx, cancel := context.WithCancel(t.Context())
			var work sync.WaitGroup
			defer work.Wait()
			defer cancel()
			servers := []*packet.Switch{{Mode: packet.TAP}, {Mode: packet.TAP}}
			cut := make(map[*side]map[int]context.CancelFunc)
			for id, s := range []*side{near, far} {
				s.bond = &Bond{Device: s.device, Mode: packet.TAP, Primary: "tap0"}
				work.Go(func() { _ = s.bond.Run(ctx) })
				cut[s] = make(map[int]context.CancelFunc)
				for n, server := range servers {
					a, b := tunneltest.Pipe()
					linkCtx, end := context.WithCancel(ctx)
					cut[s][n] = end
					defer end()
					work.Go(func() {
						c, err := packet.Handshake(ctx, b, packet.Hello{Mode: packet.TAP, Offload: packet.OffloadAll}, nil)
						if err == nil {
							m := packet.Member{ID: uint64(id + 1), Name: s.addr.String(), Addresses: []netip.Addr{s.addr}}
							_ = server.Serve(ctx, c, packet.PortOptions{Member: m, Addresses: []netip.Prefix{netip.PrefixFrom(s.addr, 128)}})
						}
					})
					work.Go(func() {
						c, err := packet.Handshake(ctx, a, packet.Hello{ID: uint64(id + 1), Mode: packet.TAP, Offload: s.device.Offload(), Addresses: []netip.Addr{s.addr}}, nil)
						if err == nil {
							_ = s.bond.Serve(linkCtx, tap(n), c)
						}
					})
				}
			}
			work.Go(func() { // echo
				buf := make([]byte, 2000)
				for {
					n, from, err := far.socket.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					_, _ = far.socket.WriteToUDPAddrPort(buf[:n], from)
				}
			})
			defer far.socket.Close()
			defer near.socket.Close()
			echo := func(when string) {
				t.Helper()
				buf := make([]byte, 2000)
				for end := time.Now().Add(20 * time.Second); ; {
					_, _ = near.socket.WriteToUDPAddrPort([]byte(when), netip.AddrPortFrom(far.addr, 7))
					_ = near.socket.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
					n, _, err := near.socket.ReadFromUDPAddrPort(buf)
					if err == nil && string(buf[:n]) == when {
						return
					}
					if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
						t.Fatalf("%s: no echo: %v\n%+v", when, err, near.bond.Status())
					}
				}
			}
			wait := func(links int) {
				t.Helper()
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					a, b := near.bond.Status().Peers, far.bond.Status().Peers
					if len(a) == 1 && len(a[0].Reachable) == links && len(b) == 1 && len(b[0].Reachable) == links {
						return
					}
					if time.Now().After(end) {
						t.Fatalf("the peer is not reached over %d links: %+v", links, near.bond.Status())
					}
				}
			}
			wait(2)
			echo("both")
			cut[near][0]()
			wait(1)
			echo("one leg less")
		})
	})
}

// side is one of the two kernels.
type side struct {
	addr   netip.Addr
	device *packet.Device
	socket *net.UDPConn
	bond   *Bond
}

func openSide(t *testing.T, addr string) *side {
	s := &side{addr: netip.MustParseAddr(addr)}
	var err error
	s.device, err = packet.OpenTAP(&packet.DeviceOptions{
		Name: "bond%d", MAC: packet.MAC(s.addr, 0), Addresses: []netip.Prefix{netip.PrefixFrom(s.addr, 96)},
	})
	if errors.Is(err, packet.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.device.Close() })
	s.socket, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.addr, 7)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
