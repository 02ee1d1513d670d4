package bond

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// Policy is how a [Bond] uses several links.
type Policy int

const (
	// ActiveBackup sends what is for a peer over one link.
	ActiveBackup Policy = iota
	// Redundant sends it over all that reach the peer, and the peer drops what
	// comes a second time: the loss of a link costs not one packet, and each
	// packet is carried as often as there are links.
	Redundant
)

// String returns active-backup or redundant.
func (p Policy) String() string {
	switch p {
	case ActiveBackup:
		return "active-backup"
	case Redundant:
		return "redundant"
	}
	return "unknown"
}

// Reselect is when the primary link is taken again, once it is back and
// another is in use: primary_reselect of the kernel.
type Reselect int

const (
	ReselectAlways  Reselect = iota // when it has been back for Hold
	ReselectBetter                  // and its round trip is shorter than that of the link in use
	ReselectFailure                 // when the link in use fails
)

// String returns always, better or failure, as the driver calls it.
func (r Reselect) String() string {
	switch r {
	case ReselectAlways:
		return "always"
	case ReselectBetter:
		return "better"
	case ReselectFailure:
		return "failure"
	}
	return "unknown"
}

// Bond makes one device of several links, in user space.
//
// What is for a peer goes over a link whose server reaches the peer: over the
// primary, else over the one that it goes over already, else over the one with the
// shortest round trip; over one whose server drains only if there is no other. The
// peer is found by the destination: in mode TAP by a MAC that [packet.MAC] makes of
// one of its addresses, in mode TUN by the longest prefix among the addresses and
// networks of all. What is for everybody, or for nobody who is known, goes over as many
// links as are needed to reach all, and over how many it comes, the device is given it once.
//
//	Run    device ──► destination ──► peer ──► link's queue ──► link
//	Serve  link ──► known number? ──► device
//
// The zero value with a Device works. The exported fields must not be changed after
// the first use.
type Bond struct {
	// Device is the kernel's side, a [packet.Device] as a rule. Run owns it. In
	// mode TAP it has the MAC that goes with the first address of our
	// [packet.Hello]. While there are links it has a carrier, the lowest MTU of
	// them (1280 at least if we have an IPv6 address), and hands over unfinished what
	// all of them take.
	Device packet.Port
	// Mode is what the packets are, TUN or TAP.
	Mode packet.Mode
	// Policy is how links are used, ActiveBackup or Redundant.
	Policy Policy
	// Primary is the name of the link to prefer. Empty means none.
	Primary string
	// Reselect is when the primary is taken again.
	Reselect Reselect
	// Hold is how long the primary's server must have reached a peer again before it
	// is taken again for that peer, by default 1 s. It doubles, up to 30 s, each
	// time that the peer is lost within a minute of that. Negative means at
	// once.
	Hold time.Duration
	// Queue is how many bytes may wait for a link, by default
	// [packet.DefaultQueue].
	Queue int
	// OnEvent is told what happens, one event at a time and without a lock held.
	// It should return soon, and must not wait for a Serve to return, which may be
	// what has called it. Nil means that nobody is told.
	OnEvent func(Event)
	// Logger gets what OnEvent gets, at level Info, and what failed at Warn. Nil
	// means silent.
	Logger *slog.Logger

	events teller
	table  atomic.Pointer[table]
	mac    atomic.Uint64 // of the device, 0: not known yet

	turn    sync.Mutex  // held while the device is adjusted; before mu
	state   deviceState // of the device
	refused deviceState // what it did not take
	retry   time.Time   // when it is told again

	mu    sync.Mutex
	hello packet.Hello // of our links
	lanes map[string]*lane
	peers map[peerKey]*peer
	met   uint64            // peers, ever
	ends  map[string]string // why a link is not there
	spare *lane             // for everybody, as long as nobody is known

	order  sync.Mutex // held from the look at a number until the packet is written
	filter filter

	unsent, malformed atomic.Uint64
}

// init makes what the zero value lacks. b.mu is held.
func (b *Bond) init() {
	if b.lanes != nil {
		return
	}
	b.lanes = make(map[string]*lane)
	b.peers = make(map[peerKey]*peer)
	b.ends = make(map[string]string)
	b.table.Store(b.newTable(nil))
}

// How long the reader of the device waits for room in the queue of a link: the
// kernel holds and shapes what is not read. But while other links are in use as
// well, waiting for one holds up all.
const (
	pushBack       = 250 * time.Millisecond
	pushBackShared = 10 * time.Millisecond
	sharedFor      = time.Second
)

// Run sends what the device has to send, until ctx ends or the device fails, and returns
// why. It owns the device and closes it. Links are served before, meanwhile and after.
func (b *Bond) Run(ctx context.Context) error {
	b.mu.Lock()
	b.init()
	b.mu.Unlock()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		b.Device.Close()
		close(closed)
	})
	err := b.send()
	if !stop() {
		<-closed
		return context.Cause(ctx)
	}
	b.Device.Close()
	return fmt.Errorf("bond: device: %w", err)
}

// send reads the device until it fails.
func (b *Bond) send() error {
	s := &sender{b: b}
	s.part = func(f packet.Frame) error { return s.numbered(f, true) }
	var in packet.Batch
	for {
		if err := b.Device.ReadBatch(&in); err != nil {
			return err
		}
		s.send(&in)
	}
}

// sender is what only the reader of the device uses.
type sender struct {
	b      *Bond
	table  *table
	batch  uint64
	seq    uint64
	last   *lane     // that was put to
	mixed  bool      // the batch is for more than one
	shared time.Time // when one was
	late   []lateFrame

	route *route                   // of the packet that is being cut
	part  func(packet.Frame) error // takes its parts
}

// lateFrame is a frame for which there was no room.
type lateFrame struct {
	lane  *lane
	frame packet.Frame
}

// send puts each packet of a batch into the queues of its links. A full one is
// waited for when all the others have theirs.
func (s *sender) send(in *packet.Batch) {
	b := s.b
	s.table = b.table.Load()
	s.batch++
	s.mixed = false
	for f := range in.Frames() {
		p := f.Packet()
		r := s.table.route(p)
		if r == nil {
			b.malformed.Add(1)
			continue
		}
		if b.Mode == packet.TAP {
			b.seen(s.table, p)
		}
		if len(r.lanes) == 0 {
			b.unsent.Add(1)
			continue
		}
		if s.table.mtu > 0 {
			packet.ClampMSS(f, b.Mode, s.table.mtu)
		}
		if r.numbered {
			s.number(r, f)
		} else {
			s.put(r.lanes[0], f, false)
		}
	}
	if s.mixed {
		s.shared = time.Now()
	}
	if len(s.late) > 0 {
		s.wait()
	}
}

// number sends a packet over several links. One that is to be segmented is cut
// before, because nobody on the way can cut what has a number.
func (s *sender) number(r *route, f packet.Frame) {
	s.route = r
	if f.Data[1] == 0 { // gso_type of the virtio-net header
		_ = s.numbered(f, false)
		return
	}
	if err := packet.Segment(f, s.b.Mode, packet.OffloadChecksum, s.part); err != nil {
		s.b.malformed.Add(1)
	}
}

func (s *sender) numbered(f packet.Frame, lent bool) error {
	s.seq++
	f.Origin, f.Seq = s.table.id, s.seq
	for _, l := range s.route.lanes {
		s.put(l, f, lent)
	}
	return nil
}

// seen notes the MAC of the device, once it shows.
func (b *Bond) seen(t *table, p []byte) {
	mac := uint64(binary.BigEndian.Uint16(p[6:]))<<32 | uint64(binary.BigEndian.Uint32(p[8:]))
	if mac == b.mac.Load() || mac>>40 != macFirst || !slices.Contains(t.own, uint32(mac)) {
		return
	}
	b.mac.Store(mac)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		l.announced = time.Time{}
	}
	b.alert()
}

// put puts a frame into the queue of a link, or among those that are late. Lent
// memory is good for the call only.
func (s *sender) put(l *lane, f packet.Frame, lent bool) {
	if l != s.last {
		s.mixed = s.last != nil
		s.last = l
	}
	if l.late != s.batch && l.queue.Put(f) {
		l.stuck = false
		l.sent.Add(1)
		return
	}
	l.late = s.batch // so that what comes behind it does not overtake it
	if lent {
		f.Data = slices.Clone(f.Data)
	}
	s.late = append(s.late, lateFrame{l, f})
}

// wait puts what was late. Who was waited for in vain is not waited for again before
// he has taken something.
func (s *sender) wait() {
	now := time.Now()
	most := pushBack
	if now.Sub(s.shared) < sharedFor {
		most = pushBackShared
	}
	last := now.Add(most)
	for i, late := range s.late {
		l := late.lane
		if l.stuck {
			most = 0
		} else {
			most = time.Until(last)
		}
		if l.queue.PutWait(late.frame, most) {
			l.stuck = false
			l.sent.Add(1)
		} else {
			l.stuck = true
			l.dropped.Add(1)
		}
		s.late[i] = lateFrame{}
	}
	s.late = s.late[:0]
}

// deliver gives the device what came over a link, without what came before. out is
// memory for it.
func (b *Bond) deliver(l *lane, in, out *packet.Batch) error {
	t := b.table.Load()
	numbered := false
	for f := range in.Frames() {
		numbered = numbered || f.Seq != 0
		if t.mtu > 0 {
			packet.ClampMSS(f, b.Mode, t.mtu)
		}
	}
	if !numbered {
		return b.write(in)
	}
	// Under the lock, so that what has come first over one link is not written
	// behind what comes next over another.
	b.order.Lock()
	defer b.order.Unlock()
	var failed error
	rest, doubles := b.filter.fresh(t, in, out, func(full *packet.Batch) {
		failed = errors.Join(failed, b.write(full))
	})
	l.doubles.Add(uint64(doubles))
	if rest != nil {
		failed = errors.Join(failed, b.write(rest))
	}
	return failed
}

// write gives packets to the device. That it has ended ends a link, too: there is
// nothing more to carry. Other errors are for Run to find.
func (b *Bond) write(batch *packet.Batch) error {
	err := b.Device.WriteBatch(batch)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, packet.ErrGone) {
		return fmt.Errorf("bond: device: %w", err)
	}
	return nil
}
