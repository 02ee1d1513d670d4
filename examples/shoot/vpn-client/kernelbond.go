package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// kernelBond has the kernel's bonding driver make one device of TAPs, of which each
// is a link. The driver looks at their carriers, about which the election decides.
type kernelBond struct {
	kernel   *bond.Kernel
	election *bond.Election
	taps     map[string]*packet.Device
	own      int // our MTU
	log      *slog.Logger
	gone     chan error // a TAP has failed

	mu    sync.Mutex
	links map[*packet.Conn]bool
	mtu   int // that the bond has
}

func openKernelBond(o *options, mtu int, log *slog.Logger) (backend, error) {
	b := &kernelBond{
		taps: make(map[string]*packet.Device), own: mtu, mtu: mtu, log: log,
		gone: make(chan error, 1), links: make(map[*packet.Conn]bool),
	}
	b.kernel = &bond.Kernel{Name: o.device, Addresses: o.addresses, MTU: mtu, Logger: log}
	for i := range o.servers {
		name := linkName(o, i)
		d, err := openDevice(o, name, i, mtu, false)
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		b.taps[name] = d
		b.kernel.Members = append(b.kernel.Members, name)
	}
	b.election = &bond.Election{
		Primary:    linkName(o, 0),
		SetCarrier: func(name string, up bool) error { return b.taps[name].SetCarrier(up) },
		Logger:     log,
	}
	if err := b.kernel.Up(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// offload is the same for all TAPs: they are of one kernel.
func (b *kernelBond) offload() packet.Offload {
	all := packet.OffloadAll
	for _, d := range b.taps {
		all &= d.Offload()
	}
	return all
}

func (b *kernelBond) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	wait.Go(func() { cancel(waitGone(ctx, b.gone)) })
	err := b.kernel.Run(ctx)
	cancel(nil)
	wait.Wait()
	return err
}

// close removes the bond before its members.
func (b *kernelBond) close() error {
	errs := []error{b.kernel.Close()}
	for _, d := range b.taps {
		errs = append(errs, closeDevice(d))
	}
	return errors.Join(errs...)
}

func (b *kernelBond) serve(ctx context.Context, name string, c *packet.Conn) error {
	b.refit(func() { b.links[c] = true })
	defer b.refit(func() { delete(b.links, c) })
	return b.election.Serve(ctx, name, refitted{c, b}, func(ctx context.Context) error {
		o := &packet.PumpOptions{NoCarrier: true, NoMTU: true, Logger: b.log}
		return report(b.gone, packet.Pump(ctx, b.taps[name], c, o))
	})
}

// refitted is a link that has the bond refit when it tells of other members.
type refitted struct {
	*packet.Conn
	bond *kernelBond
}

func (l refitted) OnReach(f func([]packet.Member)) {
	l.Conn.OnReach(func(members []packet.Member) {
		f(members)
		l.bond.refit(func() {})
	})
}

// refit keeps the MTU of the bond at the least of those of its links, and of the
// members behind them.
func (b *kernelBond) refit(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	mtu := b.own
	for c := range b.links {
		mtu = min(mtu, c.MTU())
		for _, m := range c.Reach() {
			if m.MTU != 0 {
				mtu = min(mtu, m.MTU)
			}
		}
	}
	mtu = max(mtu, minMTU) // below, the kernel takes the device's IPv6 away
	if mtu == b.mtu {
		return
	}
	if err := b.kernel.SetMTU(mtu); err != nil {
		b.log.Warn("MTU not set", "device", b.kernel.Name, "mtu", mtu, "error", err)
		return
	}
	b.mtu = mtu
}

func (b *kernelBond) ready() error { return b.kernel.Ready() }

func (b *kernelBond) active() string {
	name, _ := b.kernel.Active() // none, if it cannot be told
	return name
}

func (b *kernelBond) status() backendStatus {
	kernel := b.kernel.Status()
	s := backendStatus{Kernel: &kernel, Legs: b.election.Status()}
	for _, d := range b.taps {
		add(&s.Device, d.Stats())
	}
	return s
}

func add(sum *packet.DeviceStats, s packet.DeviceStats) {
	sum.ReadPackets += s.ReadPackets
	sum.ReadBytes += s.ReadBytes
	sum.WritePackets += s.WritePackets
	sum.WriteBytes += s.WriteBytes
	sum.Unreadable += s.Unreadable
	sum.Refused += s.Refused
	sum.Down += s.Down
	sum.Full += s.Full
}
