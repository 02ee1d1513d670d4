package packet

import (
	"net/netip"
	"runtime"
	"time"
)

// pushBack bounds how long a trusted port waits for its only destination to make room
// for one frame, while that moves at all.
const pushBack = time.Second

// forward passes on what a port has sent. Only the port's reader calls it.
func (p *switchPort) forward(b *Batch) {
	if p.gone.Load() {
		return // another has its place
	}
	v := p.s.view.Load()
	now := time.Now()
	p.within.batch++
	frames, bytes := 0, 0
	for f := range b.Frames() {
		frames++
		bytes += len(f.Data) - HeaderLen
		var d Drop
		if p.s.Mode == TAP {
			d = p.bridge(v, f, now)
		} else {
			d = p.route(v, f)
		}
		if d != dropNone {
			p.in.dropped[d].Add(1)
		}
	}
	p.in.frames.Add(uint64(frames))
	p.in.bytes.Add(uint64(bytes))
	crowded := false
	for i, q := range p.within.touched {
		crowded = q.queue.flush() || crowded
		p.within.touched[i] = nil
	}
	p.within.touched = p.within.touched[:0]
	if crowded {
		// Readers that find more and more to read would go on for their whole time
		// slice, while the writers that could make room wait for a processor.
		runtime.Gosched()
	}
}

// bridge passes an Ethernet frame on.
func (p *switchPort) bridge(v *switchView, f Frame, now time.Time) Drop {
	b := f.Packet()
	if len(b) < ethernetLen {
		return DropMalformed
	}
	dst, src := macOf(b), macOf(b[6:])
	if !p.trusted {
		if d := p.checkOrigin(f); d != dropNone {
			return d
		}
		if d := p.rules.checkEthernet(f, dst, src, v, p); d != dropNone {
			return d
		}
	}
	if d := p.s.table.learn(src, p, now.UnixNano()); d != dropNone {
		return d
	}
	if dst>>40&1 == 0 { // of one
		q := p.s.table.lookup(dst, now.UnixNano())
		if q == nil && dst>>40 == 0x02 {
			q = v.tails[uint32(dst)]
		}
		if q != nil {
			return p.send(v, q, f)
		}
	}
	return p.flood(v, f, now)
}

// flood passes a frame on to everybody else.
func (p *switchPort) flood(v *switchView, f Frame, now time.Time) Drop {
	if !p.trusted && !p.within.flood.take(now, p.s.floodRate(), floodWeight(f)) {
		return DropFlood
	}
	for _, q := range v.ports {
		if q != p && (!p.s.Isolate || p.trusted || q.trusted) {
			p.put(v, q, f)
		}
	}
	return dropNone
}

// route passes an IP packet on.
func (p *switchPort) route(v *switchView, f Frame) Drop {
	var dst netip.Addr
	if p.trusted {
		var ok bool
		if dst, ok = destinationOf(f.Packet()); !ok {
			return DropMalformed
		}
	} else {
		if d := p.checkOrigin(f); d != dropNone {
			return d
		}
		var d Drop
		if dst, d = p.rules.checkTUN(f, v, p); d != dropNone {
			return d
		}
	}
	q := v.routes.find(dst)
	if q == nil {
		return DropNoRoute
	}
	return p.send(v, q, f)
}

// send passes a frame on to one port.
func (p *switchPort) send(v *switchView, q *switchPort, f Frame) Drop {
	switch {
	case q == p:
		return DropNoRoute
	case p.s.Isolate && !p.trusted && !q.trusted:
		return DropIsolated
	}
	p.put(v, q, f)
	return dropNone
}

// put puts a frame into the queue of q, which counts it if it cannot.
func (p *switchPort) put(v *switchView, q *switchPort, f Frame) {
	if p.trusted && len(v.ports) == 2 {
		q.queue.PutWait(f, pushBack)
		return
	}
	q.queue.from(f, p.slot)
	r := &p.within
	if q.slot >= len(r.marks) {
		r.marks = append(r.marks, make([]uint64, q.slot+1-len(r.marks))...)
	}
	if r.marks[q.slot] != r.batch {
		r.marks[q.slot] = r.batch
		r.touched = append(r.touched, q)
	}
}

// checkOrigin checks that what is numbered is numbered by the member itself: with
// another's name its peers would take the other's packets for repetitions.
func (p *switchPort) checkOrigin(f Frame) Drop {
	if f.Seq != 0 && f.Origin != p.rules.id {
		return DropOrigin
	}
	return dropNone
}

// floodWeight is how many frames of ordinary size there are in one.
func floodWeight(f Frame) float64 { return float64(1 + len(f.Data)/1600) }

// floodBucket is a token bucket that holds one second's worth.
type floodBucket struct {
	tokens float64
	last   time.Time
}

// take takes n tokens of which there come perSecond; negative is no bound. More than
// the bucket holds count as what it holds.
func (b *floodBucket) take(now time.Time, perSecond, n float64) bool {
	if perSecond < 0 {
		return true
	}
	size := max(perSecond, 1)
	if b.last.IsZero() {
		b.tokens = size
	} else {
		b.tokens = min(b.tokens+now.Sub(b.last).Seconds()*perSecond, size)
	}
	b.last = now
	if n = min(n, size); b.tokens < n-1e-6 { // sums of fractions are not exact
		return false
	}
	b.tokens -= n
	return true
}

func (s *Switch) floodRate() float64 {
	if s.FloodRate == 0 {
		return 1000
	}
	return s.FloodRate
}
