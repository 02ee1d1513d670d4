package bond

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// kernelBond behaves as the kernel's bond in mode active-backup does, with
// fail_over_mac active and a primary: it looks at the carriers each 100 ms, sends over one
// link, drops what comes over another, and announces its MAC after a switch.
type kernelBond struct {
	self     *worldMember
	election *Election
	up       *packettest.Port // to the host

	mu        sync.Mutex
	carrier   map[string]bool
	active    string
	queues    map[string]*packet.Queue
	neighbors map[uint32]byte // the leg of the MAC that goes with an address
	switches  int
}

const monitorEvery = 100 * time.Millisecond

// addKernel adds a member with a bond of the kernel and an Election.
func (w *world) addKernel() *kernelBond {
	up, host := packettest.Pair()
	k := &kernelBond{up: up, carrier: make(map[string]bool), queues: make(map[string]*packet.Queue), neighbors: make(map[uint32]byte)}
	k.election = &Election{Primary: "tap0", SetCarrier: func(link string, up bool) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.carrier[link] = up
		return nil
	}}
	k.self = &worldMember{
		serve: func(ctx context.Context, link string, c *packet.Conn) error {
			q := new(packet.Queue)
			k.mu.Lock()
			k.queues[link] = q // it may have its carrier before pump begins
			k.mu.Unlock()
			return k.election.Serve(ctx, link, c, func(ctx context.Context) error { return k.pump(ctx, link, c, q) })
		},
		send: k.send,
		next: host.Receive,
	}
	w.add(k.self)
	w.work.Go(func() {
		tick := time.NewTicker(monitorEvery)
		defer tick.Stop()
		for {
			k.monitor()
			select {
			case <-tick.C:
			case <-w.ctx.Done():
				return
			}
		}
	})
	return k
}

func legOf(link string) byte { return link[len(link)-1] - '0' }

// pump is packet.Pump between a link and the bond.
func (k *kernelBond) pump(ctx context.Context, link string, c *packet.Conn, q *packet.Queue) error {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = q.Run(ctx, c) })
	work.Go(func() {
		var b packet.Batch
		for c.ReadBatch(&b) == nil {
			k.receive(link, &b)
		}
	})
	err := c.Run(ctx)
	cancel()
	return err
}

// receive takes what comes over the active link.
func (k *kernelBond) receive(link string, b *packet.Batch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for f := range b.Frames() {
		if link != k.active {
			continue
		}
		if p := f.Packet(); binary.BigEndian.Uint16(p[12:]) == packettest.TypeARP {
			k.neighbors[binary.BigEndian.Uint32(p[8:])] = p[7]
		}
		_ = k.up.Send(f)
	}
}

func (k *kernelBond) send(to int, f func(net.HardwareAddr) packet.Frame) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.active == "" {
		return
	}
	frame := f(packet.MAC(k.self.address(), int(legOf(k.active))))
	frame.Packet()[1] = k.neighbors[binary.BigEndian.Uint32(frame.Packet()[2:])]
	k.queues[k.active].Put(frame)
}

// monitor follows the carriers.
func (k *kernelBond) monitor() {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.active
	switch {
	case k.carrier["tap0"]:
		next = "tap0"
	case !k.carrier[k.active]:
		next = ""
		if k.carrier["tap1"] {
			next = "tap1"
		}
	}
	if next == k.active {
		return
	}
	k.active = next
	k.switches++
	for i := range 5 {
		time.AfterFunc(time.Duration(i)*monitorEvery, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.active == next && next != "" {
				mac := packet.MAC(k.self.address(), int(legOf(next)))
				k.queues[next].Put(packet.Frame{Data: announcement(mac, k.self.address())})
			}
		})
	}
}

// TestElectionOutages is TestOutages for bonds of the kernel.
func TestElectionOutages(t *testing.T) {
	for _, o := range outages() {
		t.Run(o.name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, 2)
				defer w.end()
				var bonds []*kernelBond
				for range 3 {
					bonds = append(bonds, w.addKernel())
				}
				time.Sleep(3 * time.Second)
				list := w.ping()
				time.Sleep(time.Second)
				check := func(what string, most time.Duration) {
					t.Helper()
					for m, tr := range list[1:] {
						worst, lost, doubled, late := tr.take()
						t.Logf("%s: member %d: outage %v, %d lost, %d doubled, %d late", what, m+1, worst, lost, doubled, late)
						if worst > most || doubled > 0 || late > 0 {
							t.Errorf("%s: member %d: outage %v, %d lost, %d doubled, %d late", what, m+1, worst, lost, doubled, late)
						}
					}
				}
				switches := func() (n int) {
					for _, k := range bonds {
						k.mu.Lock()
						n += k.switches
						k.switches = 0
						k.mu.Unlock()
					}
					return n
				}
				check("before", 20*time.Millisecond)
				switches()
				o.hit(w)
				time.Sleep(4 * time.Second)
				// A carrier is looked at each 100 ms, and not at the same moment
				// everywhere.
				check("hit", o.most)
				hit := switches()
				o.mend(w)
				time.Sleep(4 * time.Second)
				check("mended", 250*time.Millisecond)
				if n := switches(); n != hit || n != 0 && n != len(bonds) {
					t.Errorf("%d switches when hit and %d when mended, want none or one of each of %d members", hit, n, len(bonds))
				}
				for m, k := range bonds {
					k.mu.Lock()
					if k.active != "tap0" || !k.carrier["tap1"] {
						t.Errorf("member %d uses %q in the end, carriers %v", m, k.active, k.carrier)
					}
					k.mu.Unlock()
				}
			})
		})
	}
}

// electionTest is an Election whose links are the test.
type electionTest struct {
	*Election
	t       *testing.T
	ctx     context.Context
	work    sync.WaitGroup
	mu      sync.Mutex
	set     []string // carriers as they were set
	refuse  error
	happens []string
}

func startElection(t *testing.T) *electionTest {
	et := &electionTest{t: t, ctx: t.Context()}
	et.Election = &Election{
		Primary: "tap0",
		SetCarrier: func(link string, up bool) error {
			et.mu.Lock()
			defer et.mu.Unlock()
			if et.refuse != nil {
				return et.refuse
			}
			et.set = append(et.set, fmt.Sprintf("%s %v", link, up))
			return nil
		},
		OnEvent: func(e Event) {
			et.mu.Lock()
			defer et.mu.Unlock()
			et.happens = append(et.happens, strings.TrimSuffix(fmt.Sprintf("%s %s: %s", e.Kind, e.Link, e.Reason), ": "))
		},
	}
	return et
}

func (et *electionTest) link(name string, ids ...int) (*fakeLink, *error) {
	l, err := newFakeLink(), new(error)
	et.work.Go(func() { *err = et.Serve(et.ctx, name, l, l.Run) })
	synctest.Wait()
	if ids != nil {
		l.tell(ids...)
	}
	return l, err
}

func (et *electionTest) want(set ...string) {
	et.t.Helper()
	synctest.Wait()
	et.mu.Lock()
	defer et.mu.Unlock()
	if !slices.Equal(et.set, set) {
		et.t.Errorf("carriers set %q, want %q", et.set, set)
	}
	et.set = nil
}

// TestElectionLeftCarrier: where a carrier cannot be taken away when its link ends, it
// is tried again, by whoever goes on, or by the next link of the name.
func TestElectionLeftCarrier(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		tap1, _ := e.link("tap1", 1, 2)
		tap0, _ := e.link("tap0", 1, 2)
		e.want("tap1 true", "tap0 true")
		refuse := func(err error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.refuse = err
		}
		refuse(errors.New("no"))
		tap0.ended <- errors.New("lost")
		e.want()
		refuse(nil)
		time.Sleep(carrierRetry)
		e.want("tap0 false")
		if n := len(e.runs); n != 1 {
			t.Errorf("%d links", n)
		}
		tap0, _ = e.link("tap0", 1, 2)
		time.Sleep(defaultHold)
		e.want("tap0 false", "tap0 true")
		refuse(errors.New("no"))
		tap0.ended <- errors.New("lost")
		e.want()
		tap0, _ = e.link("tap0", 1, 2)
		refuse(nil)
		time.Sleep(carrierRetry)
		e.want("tap0 true")
		tap0.ended <- errors.New("lost")
		tap1.ended <- errors.New("lost")
		e.work.Wait()
	})
}

func TestElection(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		tap1, _ := e.link("tap1", 1, 2, 3)
		e.want("tap1 true")
		tap0, served := e.link("tap0", 1, 2, 3)
		e.want("tap0 true")
		second := newFakeLink()
		if err := e.Serve(t.Context(), "tap0", second, second.Run); err == nil || !strings.Contains(err.Error(), "being served already") {
			t.Errorf("the name twice: %v", err)
		}
		if err := second.Send(frame(2, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second link is open: %v", err)
		}
		tap0.tell(1, 2)
		time.Sleep(defaultSettle)
		e.want("tap0 false")
		tap0.tell(1, 2, 3)
		time.Sleep(defaultHold)
		e.want("tap0 true")
		tap0.drain()
		e.want("tap0 false")
		tap1.drain()
		e.want() // neither is better than the other

		tap0.ended <- errors.New("lost")
		e.want()
		if *served == nil || (*served).Error() != "lost" {
			t.Errorf("Serve: %v", *served)
		}
		tap0.tell(1, 2, 3, 4) // of nobody's interest any more
		tap1.ended <- errors.New("lost, too")
		e.want("tap1 false")
		e.work.Wait()
		want := []string{
			"link-up tap1", "carrier-up tap1: it reaches as many members as any other",
			"link-up tap0", "carrier-up tap0: it reaches as many members as any other",
			"carrier-down tap0: its server reaches 2 members, another 3",
			"carrier-up tap0: reaches as many members as any other since 1s",
			"link-draining tap0: its server asked for it", "carrier-down tap0: its server is draining",
			"link-draining tap1: its server asked for it", "link-down tap0: lost",
			"link-down tap1: lost, too", "carrier-down tap1: lost, too",
		}
		if !slices.Equal(e.happens, want) {
			t.Errorf("events:\n%s\nwant\n%s", strings.Join(e.happens, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestElectionOrder: a new carrier comes before the old one goes.
func TestElectionOrder(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		tap0, _ := e.link("tap0", 1, 2)
		e.want("tap0 true")
		time.Sleep(time.Minute)
		tap1, _ := e.link("tap1", 1, 2)
		e.want("tap1 true")
		tap1.tell(1)
		time.Sleep(time.Minute)
		e.want("tap1 false")
		tap1.tell(1, 2)
		time.Sleep(time.Second / 2)
		tap0.tell(1)
		time.Sleep(defaultSettle)
		e.want("tap1 true", "tap0 false")
		tap0.ended <- nil
		tap1.ended <- nil
		e.work.Wait()
	})
}

// TestElectionRefused: what SetCarrier refuses is tried again.
func TestElectionRefused(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		e.refuse = errors.New("no such device")
		l, _ := e.link("tap0", 1, 2)
		e.want()
		time.Sleep(carrierRetry / 2)
		e.mu.Lock()
		e.refuse = nil
		e.mu.Unlock()
		e.want()
		if s := e.Status(); s[0].Carrier {
			t.Errorf("status %+v", s)
		}
		time.Sleep(carrierRetry / 2)
		e.want("tap0 true")
		if s := e.Status(); !s[0].Carrier || !s[0].Up || s[0].Members != 2 || s[0].Name != "tap0" || s[0].Reason == "" {
			t.Errorf("status %+v", s)
		}
		if len(e.happens) != 3 || e.happens[1] != "failed tap0: carrier cannot be set to true: no such device" {
			t.Errorf("events %q", e.happens)
		}
		l.ended <- nil
		e.work.Wait()
	})
}

// TestElectionContext: Serve ends with its context, and with whatever pump returns.
func TestElectionContext(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		ctx, cancel := context.WithCancel(t.Context())
		e.ctx = ctx
		_, err := e.link("tap0", 1, 2)
		e.want("tap0 true")
		cancel()
		e.work.Wait()
		e.want("tap0 false")
		if !errors.Is(*err, context.Canceled) {
			t.Errorf("Serve: %v", *err)
		}
		if s := e.Status(); len(s) != 1 || s[0].Up || s[0].Carrier || s[0].Reason != "it was ended here" {
			t.Errorf("status %+v", s)
		}
	})
}

// TestElectionSilentServers: links whose servers say nothing are equals.
func TestElectionSilentServers(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		e := startElection(t)
		tap0, _ := e.link("tap0")
		tap1, _ := e.link("tap1")
		e.want("tap0 true", "tap1 true")
		tap0.ended <- nil
		tap1.ended <- nil
		e.work.Wait()
	})
}
