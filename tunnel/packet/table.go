package packet

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// macTable says behind which port an Ethernet address is. Every frame looks two
// addresses up and almost none changes anything, so that readers take no lock:
// they walk chains of entries that never change but for the time at which they were
// last seen, and for their link, which leads past what was removed.
type macTable struct {
	seed    uint64
	shift   int
	buckets []atomic.Pointer[macEntry]

	mu    sync.Mutex // of who changes it
	count int
	extra int   // entries beyond what each port has for sure
	swept int64 // UnixNano: looking at all is not done for each frame of a flood

	max, perPort, sure int
	aging              time.Duration
}

type macEntry struct {
	mac  uint64
	port *switchPort
	seen atomic.Int64 // UnixNano, exact to a second
	next atomic.Pointer[macEntry]
}

// newMACTable makes one for so many addresses in all and of each port. Half of it
// is divided evenly: each port has so much for sure. The other half is for who
// comes first, so that a few ports that fill it lock nobody out.
func newMACTable(most, perPort, ports int, aging time.Duration) *macTable {
	size := bits.Len(uint(2*most - 1))
	return &macTable{
		// The seed is odd and unknown to peers, who could choose addresses that
		// all fall into one chain.
		seed: rand.Uint64() | 1, shift: 64 - size, buckets: make([]atomic.Pointer[macEntry], 1<<size),
		max: most, perPort: perPort, sure: max(1, most/(2*ports)), aging: aging,
	}
}

// macOf packs an Ethernet address.
func macOf(b []byte) uint64 {
	_ = b[5]
	return uint64(b[0])<<40 | uint64(b[1])<<32 | uint64(b[2])<<24 | uint64(b[3])<<16 | uint64(b[4])<<8 | uint64(b[5])
}

func (t *macTable) bucket(mac uint64) *atomic.Pointer[macEntry] {
	h := mac * t.seed
	h = (h ^ h>>32) * t.seed
	return &t.buckets[h>>t.shift]
}

// find returns the entry of an address, also one that is too old.
func (t *macTable) find(mac uint64) *macEntry {
	for e := t.bucket(mac).Load(); e != nil; e = e.next.Load() {
		if e.mac == mac {
			return e
		}
	}
	return nil
}

// lookup returns the port behind which an address was seen within the aging time,
// or nil.
func (t *macTable) lookup(mac uint64, now int64) *switchPort {
	if e := t.find(mac); e != nil && !t.old(e, now) {
		return e.port
	}
	return nil
}

func (t *macTable) old(e *macEntry, now int64) bool {
	return t.aging > 0 && now-e.seen.Load() > int64(t.aging)
}

// learn notes that a frame from mac came from p. The answer is dropNone, or why the
// frame must not pass.
func (t *macTable) learn(mac uint64, p *switchPort, now int64) Drop {
	e := t.find(mac)
	if e != nil && e.port == p {
		if now-e.seen.Load() > int64(time.Second) {
			e.seen.Store(now)
		}
		return dropNone
	}
	if e != nil && !t.old(e, now) && !p.trusted {
		return DropTaken
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.gone.Load() {
		return dropNone // it is the last that it says, and nothing comes back
	}
	if e = t.find(mac); e != nil { // again: there was no lock
		if e.port == p {
			return dropNone
		}
		if !t.old(e, now) && !p.trusted {
			return DropTaken
		}
		t.remove(e)
	}
	if !t.hasRoom(p) && now-t.swept > int64(time.Second) {
		t.sweep(now)
	}
	if !t.hasRoom(p) {
		return DropTable
	}
	t.insert(mac, p, now)
	return dropNone
}

// hasRoom reports whether p may have one more; t.mu is held.
func (t *macTable) hasRoom(p *switchPort) bool {
	if p.macs >= t.perPort && !p.trusted {
		return false
	}
	return p.macs < t.sure || t.extra < t.max-t.max/2
}

func (t *macTable) insert(mac uint64, p *switchPort, now int64) {
	e := &macEntry{mac: mac, port: p}
	e.seen.Store(now)
	b := t.bucket(mac)
	e.next.Store(b.Load())
	b.Store(e)
	if p.macs++; p.macs > t.sure {
		t.extra++
	}
	t.count++
}

func (t *macTable) remove(e *macEntry) {
	link := t.bucket(e.mac)
	for at := link.Load(); at != e; at = link.Load() {
		link = &at.next
	}
	link.Store(e.next.Load())
	if e.port.macs > t.sure {
		t.extra--
	}
	e.port.macs--
	t.count--
}

// sweep removes what was not seen for the aging time; t.mu is held.
func (t *macTable) sweep(now int64) {
	t.swept = now
	t.removeIf(func(e *macEntry) bool { return t.old(e, now) })
}

func (t *macTable) removeIf(goes func(*macEntry) bool) {
	for i := range t.buckets {
		for e := t.buckets[i].Load(); e != nil; e = e.next.Load() {
			if goes(e) {
				t.remove(e)
			}
		}
	}
}

// forget removes a port with all its addresses; it learns none any more.
func (t *macTable) forget(p *switchPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.gone.Store(true)
	t.removeIf(func(e *macEntry) bool { return e.port == p })
}

// sizes returns how many addresses each port has, and all.
func (t *macTable) sizes(now int64, ports []*switchPort) (each []int, all int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	for _, p := range ports {
		each = append(each, p.macs)
	}
	return each, t.count
}
