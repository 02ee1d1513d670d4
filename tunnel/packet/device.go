package packet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
)

// DeviceOptions say what a new device looks like. Nil and the zero value are valid.
type DeviceOptions struct {
	// Name is that of the interface, at most 15 bytes. Empty: the kernel picks one,
	// as it does for the number in a pattern such as "vpn%d".
	Name string
	// MTU is the length of the longest IP packet. 0 means 1500; the kernel takes 68
	// to 65,535 (a TAP's header counts), and no IPv6 below 1280.
	MTU int
	// MAC is the Ethernet address of a TAP, 6 bytes (see [MAC]). Nil: the
	// kernel draws one.
	MAC net.HardwareAddr
	// Addresses are those of the interface with the length of their network, which gets
	// a route. They are used at once, without duplicate address detection, which takes
	// a second and would find an address twice behind a bond.
	Addresses []netip.Prefix
	// NoOffload makes the device take and hand over whole packets only, whatever
	// [Device.SetOffload] says. It is slower several times over.
	NoOffload bool
	// QueueLen is how many packets the kernel holds for ReadBatch before it drops, known as
	// txqueuelen. 0 means 1000.
	QueueLen int
}

const (
	defaultMTU      = 1500
	defaultQueueLen = 1000
)

func (o *DeviceOptions) withDefaults() DeviceOptions {
	var d DeviceOptions
	if o != nil {
		d = *o
	}
	if d.MTU == 0 {
		d.MTU = defaultMTU
	}
	if d.QueueLen == 0 {
		d.QueueLen = defaultQueueLen
	}
	return d
}

// Device is a network interface whose cable ends in this process: what the
// kernel sends out of it comes from ReadBatch, and what WriteBatch is given arrives
// there. It is a [Port] and lives as long as the process has it open: it is gone
// after Close, and after a kill -9.
//
//	OpenTUN ──► up ───────────────────────────────────────────► Close, or ErrGone
//	OpenTAP ──► up, no carrier ──SetCarrier(true)──► carrier ─┘
//
// OpenTAP and OpenTUN make one in the network namespace of the calling thread. All
// methods may be called from any, by several goroutines at once, but only one
// goroutine reads.
type Device struct {
	name    string
	index   int
	mode    Mode
	offload Offload // what WriteBatch may be handed
	kernel  *kernelDevice
	closed  atomic.Bool
	stats   deviceCounters
}

var _ Port = (*Device)(nil)

// ErrUnsupported is what errors.Is finds if this system makes no devices, or none
// for this process. The text says what is missing, and what to do about it. It is
// an [errors.ErrUnsupported] too.
var ErrUnsupported error = unsupportedError("packet: no device can be made")

type unsupportedError string

func (e unsupportedError) Error() string        { return string(e) }
func (e unsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// ErrGone is the end of a device that was deleted by somebody else, such as with
// ip link delete. Close is still to be called.
var ErrGone = errors.New("packet: the device was deleted")

// OpenTAP makes an interface that carries Ethernet frames. It is up but has no
// carrier until SetCarrier(true), so that a bond does not use it before there is a
// link behind it. Nil options mean the defaults.
//
// The error matches [ErrUnsupported] where there are no devices or no right to make
// one, and syscall.EBUSY if there is an interface of that name: it is never taken
// over, since it belongs to another process or was made to stay.
func OpenTAP(o *DeviceOptions) (*Device, error) { return openDevice(TAP, o.withDefaults()) }

// OpenTUN makes an interface that carries IP packets. It is up. Options and errors
// are those of [OpenTAP].
func OpenTUN(o *DeviceOptions) (*Device, error) { return openDevice(TUN, o.withDefaults()) }

// Name is what the interface was called when it was made.
func (d *Device) Name() string { return d.name }

// Index is the number of the interface.
func (d *Device) Index() int { return d.index }

// Mode tells a TUN from a TAP.
func (d *Device) Mode() Mode { return d.mode }

// Offload is what WriteBatch may be handed unfinished: what this kernel takes.
func (d *Device) Offload() Offload { return d.offload }

// SetOffload says what ReadBatch may hand over unfinished: nothing before the first
// call. What the kernel does not know is left out, and no error: it then hands over whole
// packets. Packets that already wait keep the form which they have.
func (d *Device) SetOffload(take Offload) error {
	return d.control(func() error { return d.kernel.setOffload(take.usable() & d.offload) })
}

// SetMTU changes the length of the longest IP packet.
func (d *Device) SetMTU(n int) error {
	return d.control(func() error { return d.kernel.setMTU(n) })
}

// SetCarrier plugs the cable in or pulls it: without a carrier the kernel sends nothing
// out of the interface, and a bond or a routing daemon looks for another.
func (d *Device) SetCarrier(up bool) error {
	return d.control(func() error { return d.kernel.setCarrier(up) })
}

// control runs f unless the device is closed.
func (d *Device) control(f func() error) error {
	if d.closed.Load() {
		return net.ErrClosed
	}
	err := d.ended(f())
	if err == nil || err == net.ErrClosed || errors.Is(err, ErrGone) {
		return err
	}
	return fmt.Errorf("packet: device %s: %w", d.name, err)
}

// ended turns the errors of a closed device into the one of package net.
func (d *Device) ended(err error) error {
	if err != nil && d.closed.Load() {
		return net.ErrClosed
	}
	return err
}

// ReadBatch waits for a packet and takes it and all that wait behind it, until b has
// no room for another packet of the largest size. It ends with [net.ErrClosed]
// after Close and with [ErrGone] when the device was deleted.
func (d *Device) ReadBatch(b *Batch) error {
	b.Reset()
	if d.closed.Load() {
		return net.ErrClosed
	}
	return d.ended(d.kernel.readBatch(b, &d.stats))
}

// WriteBatch hands the packets to the kernel. Those which it does not take are dropped
// and counted, see [DeviceStats], and so is everything while the interface is set down:
// only [net.ErrClosed] and [ErrGone] are errors. It does not look at the packets:
// those of a stranger go through [Check] first.
func (d *Device) WriteBatch(b *Batch) error {
	if d.closed.Load() {
		return net.ErrClosed
	}
	return d.ended(d.kernel.writeBatch(b, &d.stats))
}

// Close deletes the interface and ends ReadBatch and WriteBatch. A second
// call returns net.ErrClosed.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return net.ErrClosed
	}
	return d.kernel.close()
}

// DeviceStats counts what went through a device. Bytes are those of packets,
// without virtio-net headers.
type DeviceStats struct {
	ReadPackets, ReadBytes   uint64 // from the kernel
	WritePackets, WriteBytes uint64 // taken by the kernel
	// Unreadable are packets of the kernel that could not be read: longer than
	// [MaxPacket], or of a form that has no virtio-net header.
	Unreadable uint64
	// Refused are packets to the kernel that it took for malformed, Down those that came
	// while the interface was down, Full those for which it had no memory.
	Refused, Down, Full uint64
}

type deviceCounters struct {
	readPackets, readBytes, unreadable                   atomic.Uint64
	writePackets, writeBytes, refused, down, fullDropped atomic.Uint64
}

// Stats returns what was counted until now.
func (d *Device) Stats() DeviceStats {
	s := &d.stats
	return DeviceStats{
		ReadPackets: s.readPackets.Load(), ReadBytes: s.readBytes.Load(), Unreadable: s.unreadable.Load(),
		WritePackets: s.writePackets.Load(), WriteBytes: s.writeBytes.Load(),
		Refused: s.refused.Load(), Down: s.down.Load(), Full: s.fullDropped.Load(),
	}
}
