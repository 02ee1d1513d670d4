package pathcontrol

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestRouterLosesNothing: of a stream of datagrams in one direction none is lost
// while their network and 1,000 others move to and fro, whatever the family.
func TestRouterLosesNothing(t *testing.T) {
	for _, address := range []string{"10.200.0.1:9", "[fd00:200::1]:9"} {
		t.Run(address, func(t *testing.T) {
			inHost(t, func(t *testing.T, self *routeHost) {
				w := newTwoPaths(self)
				var sink net.PacketConn
				w.target.do(func() {
					var err error
					sink, err = net.ListenPacket("udp", address)
					self.must(err)
				})
				defer sink.Close()
				self.must(sink.(*net.UDPConn).SetReadBuffer(4 << 20))
				var warm, got atomic.Int64 // datagrams before the moves and during them
				go func() {
					b, seen := make([]byte, 100), make(map[uint64]bool)
					for {
						n, _, err := sink.ReadFrom(b)
						if err != nil {
							return
						}
						seq := binary.BigEndian.Uint64(b[:n])
						switch {
						case seq == 0:
							warm.Add(1)
						case !seen[seq]:
							seen[seq] = true
							got.Add(1)
						}
					}
				}()
				r := w.router()
				r.Networks = append(r.Networks, many(1000)...)
				running(t, r)
				c, err := net.Dial("udp", address)
				if err == nil {
					t.Fatal("there was a route before Use")
				}
				for _, path := range []string{"a", "b"} { // both next hops are known then
					self.must(r.Use(t.Context(), path))
					c, err = net.Dial("udp", address)
					self.must(err)
					defer c.Close()
					until(t, "datagrams arrive on "+path, func() bool {
						before := warm.Load()
						_, err := c.Write(make([]byte, 8))
						self.must(err)
						time.Sleep(time.Millisecond)
						return warm.Load() > before
					})
				}
				stop, sent := make(chan struct{}), make(chan uint64)
				go func() {
					for seq := uint64(1); ; seq++ {
						select {
						case <-stop:
							sent <- seq - 1
							return
						case <-time.After(100 * time.Microsecond):
						}
						if _, err := c.Write(binary.BigEndian.AppendUint64(nil, seq)); err != nil {
							t.Errorf("datagram %d: %v", seq, err)
						}
					}
				}()
				for i := range 50 {
					self.must(r.Use(t.Context(), []string{"a", "b"}[i%2]))
				}
				close(stop)
				n := <-sent
				end := time.Now().Add(10 * time.Second)
				for got.Load() < int64(n) && time.Now().Before(end) {
					time.Sleep(time.Millisecond)
				}
				if lost := int64(n) - got.Load(); lost != 0 {
					t.Errorf("%d of %d datagrams lost", lost, n)
				}
				t.Logf("%d datagrams during 50 moves of 1,003 networks", n)
			})
		})
	}
}

// TestRouterAnswersLost: when the kernel refuses so much that its answers do not
// fit, all is as before and the error says why.
func TestRouterAnswersLost(t *testing.T) {
	inHost(t, func(t *testing.T, self *routeHost) {
		w := newTwoPaths(self)
		r := w.router()
		r.Networks = many(2000)
		r.Hops["b"] = NextHop{Via: netip.MustParseAddr(bAddr6), Interface: "link", Source: netip.MustParseAddr("10.77.0.1")} // nobody's
		self.must(r.Use(t.Context(), "a"))
		before := self.dump(nobody)
		self.must(r.kernel.talk.SetReceiveBufferSize(100<<10, false))
		err := r.Use(t.Context(), "b")
		if !errors.Is(err, errRoutesLost) || !strings.Contains(err.Error(), "as before") {
			t.Errorf("error %v", err)
		}
		sameDump(t, before, self.dump(nobody))
		// The next question is answered, whatever it is.
		want, err := r.resolve(r.kernel, r.wanted("b"))
		self.must(err)
		have, err := r.kernel.routes(r.table(), 0)
		self.must(err)
		if _, err := r.apply(r.kernel, planRoutes(want, have, r.owns)); !errors.Is(err, errRoutesLost) {
			t.Errorf("error %v", err)
		}
		if _, err := r.kernel.link("link"); err != nil {
			t.Error(err)
		}
		self.must(r.Use(t.Context(), "a"))
		self.must(r.Close())
		if lines := routesOf(t, r); len(lines) != 0 {
			t.Errorf("left: %q", lines)
		}
	})
}
