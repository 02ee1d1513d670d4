package bond

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// deviceState is what a device is told.
type deviceState struct {
	carrier bool
	mtu     int // 0: nothing
	offload packet.Offload
}

// What a device may have beyond a Port.
type (
	carrierSetter interface{ SetCarrier(up bool) error }
	mtuSetter     interface{ SetMTU(n int) error }
	offloadSetter interface {
		SetOffload(take packet.Offload) error
	}
)

// wanted is what follows from the links, and from the members behind them: a
// packet that is too long for one of them would be dropped in front of it, without
// a word to who has sent it. b.mu is held.
func (b *Bond) wanted() deviceState {
	want := deviceState{carrier: len(b.lanes) > 0, offload: packet.OffloadAll}
	for _, l := range b.lanes {
		want.mtu = lower(want.mtu, l.mtu())
		for _, m := range l.members {
			want.mtu = lower(want.mtu, m.MTU)
		}
		if r, ok := l.link.(interface{ Remote() packet.Hello }); ok {
			want.offload &= r.Remote().Offload
		} else {
			want.offload = 0
		}
	}
	// With less the kernel takes IPv6 away from an interface (RFC 8200, §5).
	if want.mtu != 0 && slices.ContainsFunc(b.hello.Addresses, netip.Addr.Is6) {
		want.mtu = max(want.mtu, leastMTU6)
	}
	return want
}

const leastMTU6 = 1280

// mtu is that of the link, 0 if it does not tell.
func (l *lane) mtu() int {
	if m, ok := l.link.(interface{ MTU() int }); ok {
		return m.MTU()
	}
	return 0
}

// lower is the lower of two, of which 0 is none.
func lower(a, b int) int {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func lowestMTU(lanes []*lane) (n int) {
	for _, l := range lanes {
		n = lower(n, l.mtu())
	}
	return n
}

// adjust tells the device what follows from the links, the carrier last when it
// comes. What it was told stays while there is no link. What it refuses it is told
// again after a second: adjust returns when to come back, zero if it need not be.
func (b *Bond) adjust() (again time.Time) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.mu.Lock()
	want := b.wanted()
	b.mu.Unlock()
	now := time.Now()
	if want == b.refused && now.Before(b.retry) {
		return b.retry
	}
	ok := true
	if d, is := b.Device.(mtuSetter); is && want.mtu != 0 && want.mtu != b.state.mtu {
		if b.took("MTU", d.SetMTU(want.mtu)) {
			b.state.mtu = want.mtu
		} else {
			ok = false
		}
	}
	if d, is := b.Device.(offloadSetter); is && want.carrier && want.offload != b.state.offload {
		if b.took("offload", d.SetOffload(want.offload)) {
			b.state.offload = want.offload
		} else {
			ok = false
		}
	}
	if d, is := b.Device.(carrierSetter); is && want.carrier != b.state.carrier {
		if b.took("carrier", d.SetCarrier(want.carrier)) {
			b.state.carrier = want.carrier
		} else {
			ok = false
		}
	}
	if ok {
		b.retry = time.Time{}
		return time.Time{}
	}
	b.refused, b.retry = want, now.Add(carrierRetry)
	return b.retry
}

// took reports whether there is no error, and tells of one. That the device is gone
// is for Run to tell.
func (b *Bond) took(what string, err error) bool {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, packet.ErrGone) {
		b.events.add(Event{Time: time.Now(), Kind: Failed, Reason: "the device takes no " + what + ": " + err.Error()})
	}
	return err == nil
}
