package bond

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// loop is a device that always has the same packets to send, until it is told to
// stop, and takes everything.
type loop struct {
	frames  []packet.Frame
	batches int
	got     atomic.Int64
}

func (d *loop) ReadBatch(b *packet.Batch) error {
	if d.batches == 0 {
		return net.ErrClosed
	}
	d.batches--
	b.Reset()
	for _, f := range d.frames {
		b.Append(f)
	}
	return nil
}

func (d *loop) WriteBatch(b *packet.Batch) error {
	d.got.Add(int64(b.Len()))
	return nil
}

func (d *loop) Close() error { return nil }

// BenchmarkSend is what the bond costs for a packet from the device to the queue of its
// link, of 1400 bytes and in batches of 64.
func BenchmarkSend(b *testing.B) {
	for _, policy := range []Policy{ActiveBackup, Redundant} {
		for _, members := range []int{2, 200} {
			b.Run(fmt.Sprintf("%v/%d members", policy, members), func(b *testing.B) {
				bond := &Bond{Mode: packet.TAP, Policy: policy, Primary: "tap0"}
				ctx, cancel := context.WithCancel(b.Context())
				var work sync.WaitGroup
				defer work.Wait()
				defer cancel()
				var ids []packet.Member
				for id := 2; id < 2+members; id++ {
					ids = append(ids, aMember(id))
				}
				bond.init()
				for _, name := range []string{"tap0", "tap1"} {
					l := newFakeLink()
					bond.hello = l.hello
					lane := &lane{name: name, link: l, members: ids, wake: make(chan struct{}, 1)}
					bond.lanes[name] = lane
					work.Go(func() { _ = lane.queue.Run(ctx, new(loop)) })
				}
				bond.update(bond.lanes["tap0"].since)
				d := &loop{batches: b.N/64 + 1}
				for i := range 64 {
					f := frame(2+i%2, 1)
					f.Data = append(f.Data, make([]byte, 1400)...)
					d.frames = append(d.frames, f)
				}
				bond.Device = d
				b.SetBytes(1400)
				b.ReportAllocs()
				b.ResetTimer()
				_ = bond.send()
			})
		}
	}
}

// BenchmarkDeliver is what it costs on the way back, without numbers and with, and with
// making the batch.
func BenchmarkDeliver(b *testing.B) {
	for _, numbered := range []bool{false, true} {
		b.Run(fmt.Sprintf("numbered %v", numbered), func(b *testing.B) {
			bond := &Bond{Mode: packet.TAP, Device: new(loop)}
			bond.init()
			l := new(lane)
			var in, out packet.Batch
			f := frameFrom(2, 1, 1)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += 64 {
				if in.Reset(); numbered {
					f.Origin = 2
				}
				for range 64 {
					f.Seq += f.Origin / 2
					in.Append(f)
				}
				_ = bond.deliver(l, &in, &out)
			}
		})
	}
}
