package bond

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet/packettest"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// device is a Port with what a packet.Device has beyond it.
type device struct {
	*packettest.Port
	mu     sync.Mutex
	told   []string
	refuse error
}

func (d *device) SetCarrier(up bool) error { return d.tell("carrier %v", up) }
func (d *device) SetMTU(n int) error       { return d.tell("mtu %d", n) }
func (d *device) SetOffload(take packet.Offload) error {
	return d.tell("offload %v", take)
}

func (d *device) tell(format string, arg any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse == nil {
		d.told = append(d.told, fmt.Sprintf(format, arg))
	}
	return d.refuse
}

func (d *device) setRefuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// TestDeviceFollows: the device has what all links have in common.
func TestDeviceFollows(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		port, host := packettest.Pair()
		d := &device{Port: port}
		b := startBond(t, &Bond{Mode: packet.TAP, Device: d})
		b.host = host
		defer b.end()
		want := func(told ...string) {
			t.Helper()
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			if !slices.Equal(d.told, told) {
				t.Errorf("told %q, want %q", d.told, told)
			}
			d.told = nil
		}
		want()
		b.link("tap0", 1, 2)
		want("mtu 1500", "offload checksum+tso4+tso6+uso", "carrier true")
		l := newFakeLink()
		l.other.MTU, l.other.Offload = 1400, packet.OffloadChecksum
		b.add("tap1", l, 1, 2)
		want("mtu 1400", "offload checksum")

		// A member behind the link that takes less, and more again.
		m := aMember(2)
		m.MTU = 1300
		l.tellMembers([]packet.Member{aMember(1), m})
		want("mtu 1300")
		l.tellMembers([]packet.Member{aMember(1), aMember(2)})
		want("mtu 1400")

		host.Send(frame(2, 1))
		b.sent()
		syn := packettest.TCP(netip.AddrPortFrom(memberAddr(1), 1), netip.AddrPortFrom(memberAddr(2), 2), packettest.Segment{Flags: packettest.SYN, MSS: 1460})
		f := packettest.Frame(packettest.Ethernet(packet.MAC(memberAddr(2), 0), packet.MAC(memberAddr(1), 0), packettest.TypeIPv4, syn))
		mss := func(f packet.Frame) int { return int(f.Packet()[14+20+22])<<8 | int(f.Packet()[14+20+23]) }
		host.Send(f)
		b.links["tap0"].far.Send(f)
		synctest.Wait()
		for _, p := range []*packettest.Port{host, b.links["tap0"].far} {
			for _, f := range drainPort(p) {
				if got := mss(f); got != 1360 {
					t.Errorf("MSS %d, want 1360", got)
				}
			}
		}

		b.lose("tap1")
		want("mtu 1500", "offload checksum+tso4+tso6+uso")
		b.lose("tap0")
		want("carrier false")

		l = newFakeLink()
		l.other.MTU = 1000
		l.hello.Addresses = []netip.Addr{netip.MustParseAddr("fd00::1")}
		b.add("tap0", l, 1, 2)
		want("mtu 1280", "carrier true")
		b.lose("tap0")
		want("carrier false")

		d.setRefuse(errors.New("no"))
		b.link("tap0", 1, 2)
		var reasons []string
		for _, e := range b.events(Failed) {
			reasons = append(reasons, e.Reason)
		}
		if !slices.Equal(reasons, []string{"the device takes no MTU: no", "the device takes no carrier: no"}) {
			t.Errorf("failures %q", reasons)
		}
		d.setRefuse(nil)
		time.Sleep(carrierRetry)
		want("mtu 1500", "carrier true")
	})
}
