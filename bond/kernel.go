package bond

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// A Kernel is a bond of the Linux bonding driver: several interfaces, its
// members (the driver calls them slaves), used as one. The driver looks at their
// carrier, which for a TAP is what its program says: see packet.Device.
//
//	k := &bond.Kernel{Members: []string{"tap0", "tap1"}, Addresses: []netip.Prefix{addr}}
//	err := k.Up()      // the addresses can be bound to
//	err = k.Run(ctx)   // tells events, puts back what others take away; removes it all at the end
//
// Only Members must be set. It needs the driver, CAP_NET_ADMIN in the network
// namespace, and linux: otherwise Up fails with [ErrUnsupported]. [Bond] does
// without the driver.
//
//	Up ──► there ──Run──► kept there ──ctx ends──► removed
//	         └──────────────Close──────────────────────┘
//
// All options are set, those whose field is zero to the default that the field
// names, whatever they were before. What the driver would refuse or not heed is
// an error before anything is touched. The fields must not be changed after the
// first use.
type Kernel struct {
	// Name is the interface to make or to adopt, by default bond0.
	Name string
	// Members are the interfaces of the bond, one at least. They must exist,
	// and have no master. Up takes them down first, which the driver wants, and
	// the driver takes them up; they lose their IPv6 addresses by that.
	Members []string
	// Addresses are given to the bond, each with the network around it. IPv6
	// addresses are usable at once: duplicates are not looked for.
	Addresses []netip.Prefix
	// MTU of the bond and, through the driver, of its members, in bytes. It is
	// set after the members are in. Zero leaves it: 1500 for a bond that we make.
	MTU int

	// Mode is how the members are used, by default [ModeActiveBackup].
	Mode KernelMode
	// MonitorInterval is how often the driver looks at the carrier of the members
	// (miimon), by default 100 ms. Negative means never, which needs ARP.Interval;
	// that is also the default then.
	MonitorInterval time.Duration
	// UpDelay and DownDelay are how long a carrier must be there, or be gone,
	// before the driver heeds it (updelay, downdelay): multiples of
	// MonitorInterval, by default 0.
	UpDelay, DownDelay time.Duration
	// IgnoreCarrier makes the driver ask a member's own driver for the state of
	// its link (use_carrier 0), which is for hardware that has no carrier. TAPs
	// have one. Newer kernels refuse it.
	IgnoreCarrier bool
	// FailOverMAC is which MAC address the bond has ([ModeActiveBackup]), by
	// default [FailOverMACActive]: a switch port then sees one address for ever.
	FailOverMAC FailOverMAC
	// Primary is the member that is preferred while it is up, in
	// [ModeActiveBackup], [ModeBalanceTLB] and [ModeBalanceALB]. In the first the
	// default is the first of Members: without one, the two ends of a network may
	// settle on different members and not hear each other. [NoPrimary] means none.
	Primary string
	// Reselect is when the primary takes over again, by default [ReselectAlways].
	Reselect Reselect
	// PeerNotifications is how many gratuitous ARPs and unsolicited neighbour
	// advertisements tell of a new active member (num_peer_notif), in
	// [ModeActiveBackup], by default 5, at most 255. Negative means none.
	PeerNotifications int
	// PeerNotifyDelay is the time between them (peer_notif_delay), a multiple of
	// MonitorInterval. Zero means MonitorInterval.
	PeerNotifyDelay time.Duration
	// ARP is the other way to find out whether a member works.
	ARP ARPMonitor

	// LACP is for [Mode8023AD].
	LACP LACP
	// HashPolicy chooses the member for a packet (xmit_hash_policy), in
	// [ModeBalanceXOR], [Mode8023AD] and [ModeBalanceTLB]: layer2, which is the
	// default, layer2+3, layer3+4, encap2+3, encap3+4, vlan+srcmac.
	HashPolicy string
	// PacketsPerMember is how many packets go over a member before the next one is
	// used (packets_per_slave), in [ModeBalanceRR], by default 1, at most 65,535.
	// Negative means one that is drawn for each packet.
	PacketsPerMember int
	// IGMPReports is how many membership reports follow a new active member
	// (resend_igmp), by default 1, at most 255. Negative means none.
	IGMPReports int
	// LearnInterval is how often learning packets go to the switches
	// (lp_interval), in [ModeBalanceTLB] and [ModeBalanceALB]: whole seconds, by
	// default 1 s.
	LearnInterval time.Duration
	// StaticTLB keeps flows where HashPolicy puts them instead of shuffling them by
	// load (tlb_dynamic_lb 0), in [ModeBalanceTLB] and [ModeBalanceALB].
	StaticTLB bool
	// AllMembersReceive takes in what arrives at members that are not active
	// (all_slaves_active), too, which otherwise is dropped as a duplicate.
	AllMembersReceive bool

	// OnEvent hears what happens to the bond, in the order in which it does, from
	// the goroutine of Run: what it does not return from in time delays the rest.
	// Nil means nobody does.
	OnEvent func(Event)
	// Logger gets a line for each event, and when the bond comes or goes. Nil
	// means silent.
	Logger *slog.Logger

	mu     sync.Mutex
	driver *driver // nil unless up
	err    error   // of the last look

	connect func(bond string) (rtnetlink, error) // nil: the kernel; set by tests
}

const (
	defaultKernelName = "bond0"
	// lookPause is the least time between two looks at the bond, so that a fight
	// with another program about it costs little.
	lookPause = 100 * time.Millisecond
	// lookAgain is how long after a failed look the next one is, if the kernel
	// has no news before.
	lookAgain = time.Second
)

// ErrUnsupported is what errors.Is finds if a [Kernel] cannot be had here. The
// error says what is missing and what to do: the bonding driver, the right to use
// it, or linux. It is an [errors.ErrUnsupported], too.
var ErrUnsupported error = unsupportedError("the kernel's bonding cannot be used")

type unsupportedError string

func (e unsupportedError) Error() string        { return string(e) }
func (e unsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

var errNotUp = errors.New("bond: the bond is not up yet, or not any more")

// Up makes the bond, or adopts the one of this name, and returns when sockets can
// be bound to its addresses. It starts nothing: Run keeps the bond, or Close
// removes it. A second call looks at everything again and puts right what is not
// as it should be.
//
// The network namespace is that of the calling thread, and stays it for Run and
// Close, wherever they run.
//
// A bond that we make has an alias, by which the next start knows what a killed
// process has left: it is taken over, given the options, members and addresses
// that are wanted now, and removed at the end like any that we make. Where the
// driver does not change an option any more, it is made anew.
//
// A bond that somebody else has made is adopted. Members and addresses that it has
// and that are in no field stay. An option that the driver does not change, because
// the bond is up or has members, is an error that names it and the remedy, before
// anything is touched. Loading the driver may make such a bond: bond0, which is
// down and empty, and so can be adopted as it is.
//
// One process at a time has the bond of a name in a network namespace, which is
// known by an abstract Unix socket, @rhizome-bond/NAME, that ends with its process.
func (k *Kernel) Up() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver != nil {
		return k.look("bond put right")
	}
	return k.open()
}

// open is the first Up. The caller holds the lock.
func (k *Kernel) open() error {
	p, err := k.resolve()
	if err != nil {
		return err
	}
	d, err := openDriver(p, k.connect)
	if err != nil {
		return err
	}
	k.driver = d
	if err := k.look("bond up"); err != nil {
		k.driver, k.err = nil, nil
		err = errors.Join(err, d.remove())
		d.close()
		return err
	}
	return nil
}

// opened is the driver, after Up if nobody has called it.
func (k *Kernel) opened() (*driver, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver == nil {
		if err := k.open(); err != nil {
			return nil, err
		}
	}
	return k.driver, nil
}

// look makes all as it should be. The caller holds the lock.
func (k *Kernel) look(message string) error {
	done, err := k.driver.ensure()
	k.err = err
	if len(done) > 0 {
		k.logger().Info(message, "bond", k.driver.plan.name, "done", strings.Join(done, ", "))
	}
	return err
}

// Sweep removes a bond of this Name that a killed process has made, for who wants
// another device of that name. One that is of somebody else, or of nobody, is no error
// and stays; that a process has it that runs is one. It needs no other field.
func (k *Kernel) Sweep() error {
	d, err := openDriver(&plan{name: k.name()}, k.connect)
	if err != nil {
		return err
	}
	defer d.close()
	return d.discard()
}

// Run keeps the bond, after Up if nobody has called it, and removes it when ctx
// ends. What others take away it puts back: the bond itself, members, addresses,
// options, the MTU, and that it is up. A member that has gone comes in again when
// there is an interface of its name. While something cannot be put back, Run tells
// so by a [Failed] and tries again each second.
//
// A member that somebody has set down stays down.
//
// It learns of changes from the kernel, and calls OnEvent in their order, beginning
// with what the bond was when Up came to it. A [Restored] comes behind the events of
// what had been taken away.
//
// It returns the error of Up, or of the removal, or otherwise ctx's cause.
func (k *Kernel) Run(ctx context.Context) error {
	d, err := k.opened()
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	news := make(chan news)
	stop := make(chan struct{})
	work.Go(func() { d.listen(news, stop) })
	k.keep(ctx, d, news)
	close(stop)
	d.unlisten()
	work.Wait()
	if err := k.Close(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// keep looks after the bond until ctx ends.
func (k *Kernel) keep(ctx context.Context, d *driver, incoming <-chan news) {
	m := newMonitor(d.plan)
	next := time.NewTimer(0) // when the next look is
	defer next.Stop()
	// When the kernel has had to drop news, it drops what follows, too, until
	// nothing is left to read, and tells of the first only.
	later := time.NewTimer(lookAgain)
	later.Stop()
	defer later.Stop()
	pending, last := true, time.Time{}
	changed, missed := m.take(d.before), false
	for {
		k.tell(m.events())
		if changed && !pending {
			next.Reset(max(0, lookPause-time.Since(last)))
			pending = true
		}
		changed = false
		select {
		case <-ctx.Done():
			return
		case n := <-incoming:
			if n.lost {
				missed = true
				later.Reset(lookAgain)
			}
			changed = m.take(n.links) || n.address == m.bond && m.bond != 0
			m.reached(n.mark)
		case <-later.C:
			missed = true
		case <-next.C:
			pending, last = false, time.Now()
			if !k.restore(d, m) {
				next.Reset(lookAgain)
				pending = true
			}
		}
		if missed {
			all, err := d.everything()
			if missed = err != nil; !missed {
				m.forget(all)
				m.take(all)
				m.reached(m.mark)
			}
			changed = true
		}
	}
}

// restore puts right what is wrong, and reports whether it could. The events of it
// come behind those of all that was before, which the kernel has told, but
// nobody may have heard yet.
func (k *Kernel) restore(d *driver, m *monitor) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver != d {
		return true // closed
	}
	done, err := d.ensure()
	if len(done) > 0 {
		m.later(Event{Kind: Restored, Reason: strings.Join(done, ", ")})
	}
	if err != nil && (k.err == nil || k.err.Error() != err.Error()) {
		m.later(Event{Kind: Failed, Reason: err.Error()})
	}
	if len(m.held) > 0 {
		m.mark++
		if d.kernel.mark(m.mark) != nil {
			m.reached(m.mark)
		}
	}
	k.err = err
	return err == nil
}

// Close removes what Up has made: the bond, or, if it was adopted, the members and
// addresses that it was given; its options stay as they are. Members are left
// down, as the driver leaves them. It is for who has called Up and not Run, which
// does the same at its end. A second call does nothing.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.driver
	if d == nil {
		return nil
	}
	k.driver, k.err = nil, nil
	err := d.remove()
	d.close()
	if err != nil {
		k.logger().Error("bond cannot be removed", "bond", d.plan.name, "error", err)
		return err
	}
	k.logger().Info("bond removed", "bond", d.plan.name)
	return nil
}
