package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// backend is the device of the tunnel, and how links make it. Which one it is the
// flags say:
//
//	--mode tun, one --server    pumped      tun0 ◄─ packet.Pump ─► link
//	--bond user                 userBond    bond0 ◄─ bond.Bond ─► links
//	--bond kernel               kernelBond  bond0 = tap0 ◄─ packet.Pump ─► link, tap1 …
type backend interface {
	// offload is what may be handed over unfinished.
	offload() packet.Offload
	// serve uses a link until it ends.
	serve(ctx context.Context, name string, c *packet.Conn) error
	// run keeps the device until ctx ends, or fails with it. It is called once, or
	// close is.
	run(ctx context.Context) error
	// close removes the device, also after run.
	close() error
	// active is the name of the link that is used, if it is one for all.
	active() string
	// ready tells why the device is not as it should be.
	ready() error
	// status is for people.
	status() backendStatus
}

// backendStatus is what only some have.
type backendStatus struct {
	Device packet.DeviceStats    `json:"device"` // what its kind counts, of all TAPs together
	User   *bond.Status          `json:"user,omitempty"`
	Kernel *bond.KernelStatus    `json:"kernel,omitempty"`
	Legs   []bond.ElectionStatus `json:"legs,omitempty"`
}

const defaultMTU = 1500

// openBackend makes the device, in the network namespace of this thread. MTU is
// what this end of the tunnel can take; 0 means the default.
func openBackend(o *options, mtu int, log *slog.Logger) (backend, error) {
	if mtu == 0 {
		mtu = defaultMTU
	}
	// Servers and members cause most of what is logged from here on.
	log = new(cli.LogLimit).Logger(log)
	if o.kernel {
		return openKernelBond(o, mtu, log)
	}
	// With --bond kernel a killed process has left a bond, which has the name.
	if err := (&bond.Kernel{Name: o.device, Logger: log}).Sweep(); err != nil {
		return nil, err
	}
	d, err := openDevice(o, o.device, 0, mtu, true)
	if err != nil {
		return nil, err
	}
	if o.mode == packet.TUN && len(o.servers) == 1 {
		return &pumped{device: d, log: log, gone: make(chan error, 1)}, nil
	}
	policy := bond.ActiveBackup
	if o.redundant {
		policy = bond.Redundant
	}
	told := &toldDevice{Device: d}
	return &userBond{device: told, bond: bond.Bond{Device: told, Mode: o.mode, Policy: policy, Primary: linkName(o, 0), Logger: log}}, nil
}

// openDevice makes a device. Leg tells those of one client apart.
func openDevice(o *options, name string, leg, mtu int, addresses bool) (*packet.Device, error) {
	d := packet.DeviceOptions{Name: name, MTU: mtu}
	if addresses {
		d.Addresses = o.addresses
	}
	open := packet.OpenTUN
	if o.mode == packet.TAP {
		open = packet.OpenTAP
		d.MAC = packet.MAC(o.addresses[0].Addr(), leg)
	}
	device, err := open(&d)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	return device, nil
}

// closeDevice is for one that somebody else may have closed.
func closeDevice(d *packet.Device) error {
	if err := d.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// userBond makes one device of links in this program.
type userBond struct {
	device *toldDevice
	bond   bond.Bond
}

func (b *userBond) offload() packet.Offload       { return b.device.Offload() }
func (b *userBond) run(ctx context.Context) error { return b.bond.Run(ctx) }
func (b *userBond) close() error                  { return closeDevice(b.device.Device) }
func (b *userBond) ready() error                  { return b.device.ready() }

func (b *userBond) serve(ctx context.Context, name string, c *packet.Conn) error {
	return b.bond.Serve(ctx, name, c)
}

// active is the link for what is for everybody: each member may have another.
func (b *userBond) active() string {
	if all := b.bond.Status().Everybody; len(all) == 1 {
		return all[0]
	}
	return ""
}

func (b *userBond) status() backendStatus {
	s := b.bond.Status()
	return backendStatus{Device: b.device.Stats(), User: &s}
}

// pumped is a device with one link.
type pumped struct {
	device *packet.Device
	log    *slog.Logger
	gone   chan error // the device has failed

	mu   sync.Mutex
	link string // that is up
}

func (b *pumped) offload() packet.Offload { return b.device.Offload() }
func (b *pumped) close() error            { return closeDevice(b.device) }
func (b *pumped) ready() error            { return nil } // a Pump ends, and says why there is no link
func (b *pumped) status() backendStatus   { return backendStatus{Device: b.device.Stats()} }

func (b *pumped) run(ctx context.Context) error { return waitGone(ctx, b.gone) }

func (b *pumped) serve(ctx context.Context, name string, c *packet.Conn) error {
	b.use(name)
	defer b.use("")
	return report(b.gone, packet.Pump(ctx, b.device, c, &packet.PumpOptions{Logger: b.log}))
}

func (b *pumped) use(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.link = name
}

func (b *pumped) active() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link
}

// waitGone waits for the end of a device: without it there is nothing to do here,
// and the next start makes everything anew.
func waitGone(ctx context.Context, gone <-chan error) error {
	select {
	case err := <-gone:
		return err
	case <-ctx.Done():
		return nil
	}
}

// report tells waitGone if a Pump has ended because of its device.
func report(gone chan<- error, err error) error {
	var pump *packet.PumpError
	if errors.As(err, &pump) && pump.Device {
		select {
		case gone <- err:
		default: // one is enough
		}
	}
	return err
}
