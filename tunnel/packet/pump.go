package packet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// PumpOptions changes how a Pump works. The zero value, and a nil pointer, mean the
// defaults.
type PumpOptions struct {
	// NoCarrier leaves the device's carrier to somebody else, such as
	// bond.Election.
	NoCarrier bool
	// NoMTU leaves the device's MTU as it is.
	NoMTU bool
	// Logger gets a line where the device could not be set as the link needs it.
	// Nil means silent.
	Logger *slog.Logger
}

// PumpError tells which side ended a Pump.
type PumpError struct {
	// Device is true if the device failed, and false if the link did.
	Device bool
	// Err is the cause.
	Err error
}

// Error names the side and the cause.
func (e *PumpError) Error() string {
	if e.Device {
		return fmt.Sprintf("packet: device: %v", e.Err)
	}
	return fmt.Sprintf("packet: link: %v", e.Err)
}

// Unwrap returns the cause.
func (e *PumpError) Unwrap() error { return e.Err }

// Pump carries packets between d, a [Device] as a rule, and a link, both ways, until one
// of them ends or ctx does. It runs c, and has closed it when it returns; d it
// leaves open, for the next link. The error is a *[PumpError], or the cause of
// ctx.
//
// Before, it sets d up as the far end needs it, if d has the methods of a Device:
// the MTU is lowered to the link's, but not below the 1280 of IPv6, unfinished packets are handed over as far as
// the far end takes them, and the carrier is on as long as the Pump runs. The MSS of TCP
// connections that begin is lowered to what the link's MTU allows, in both
// directions, see [ClampMSS].
//
// A d without a SetReadDeadline method keeps Pump waiting until its ReadBatch
// returns.
func Pump(ctx context.Context, d Port, c *Conn, o *PumpOptions) error {
	if o == nil {
		o = &PumpOptions{}
	}
	defer c.Close()
	if err := prepare(d, c, o); err != nil {
		return &PumpError{Device: true, Err: err}
	}
	var (
		work  sync.WaitGroup
		first error
		once  sync.Once
	)
	end := func(device bool, err error) {
		once.Do(func() {
			first = &PumpError{Device: device, Err: err}
			c.Close()
			interrupt(d)
		})
	}
	work.Go(func() { end(false, c.Run(ctx)) })
	work.Go(func() { pumpOut(d, c, end) })
	pumpIn(d, c, end)
	work.Wait()
	resume(d)
	if s, ok := d.(carrier); ok && !o.NoCarrier {
		_ = s.SetCarrier(false) // it may be gone
	}
	if ctx.Err() != nil && errors.Is(first, context.Cause(ctx)) {
		return context.Cause(ctx)
	}
	return first
}

// What Pump uses of a Device beyond a Port.
type (
	carrier       interface{ SetCarrier(up bool) error }
	mtuSetter     interface{ SetMTU(n int) error }
	offloadSetter interface{ SetOffload(take Offload) error }
	interruptible interface{ SetReadDeadline(t time.Time) error }
)

// leastDeviceMTU is what IPv6 needs (RFC 8200, §5): a device with less loses its IPv6
// addresses for good.
const leastDeviceMTU = 1280

// prepare sets d up for the link.
func prepare(d Port, c *Conn, o *PumpOptions) error {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if s, ok := d.(mtuSetter); ok && !o.NoMTU {
		if err := s.SetMTU(max(c.MTU(), leastDeviceMTU)); err != nil {
			return err
		}
	}
	if s, ok := d.(offloadSetter); ok {
		if err := s.SetOffload(c.Remote().Offload); err != nil {
			log.Warn("the device cannot finish its packets as the far end wants them: it is done here", "error", err)
		}
	}
	if s, ok := d.(carrier); ok && !o.NoCarrier {
		return s.SetCarrier(true)
	}
	return nil
}

// interrupt ends a ReadBatch of d that waits.
func interrupt(d Port) {
	if s, ok := d.(interruptible); ok {
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
}

// resume makes d readable again after interrupt.
func resume(d Port) {
	if s, ok := d.(interruptible); ok {
		_ = s.SetReadDeadline(time.Time{})
	}
}

// pumpOut carries packets from the device to the link.
func pumpOut(d Port, c *Conn, end func(device bool, err error)) {
	var b Batch
	for {
		if err := d.ReadBatch(&b); err != nil {
			end(true, err)
			return
		}
		clamp(&b, c)
		if err := c.WriteBatch(&b); err != nil {
			end(false, err)
			return
		}
	}
}

// pumpIn carries packets from the link to the device.
func pumpIn(d Port, c *Conn, end func(device bool, err error)) {
	var b Batch
	for {
		if err := c.ReadBatch(&b); err != nil {
			end(false, err)
			return
		}
		clamp(&b, c)
		if err := d.WriteBatch(&b); err != nil {
			end(true, err)
			return
		}
	}
}

// clamp lowers the MSS of the connections that begin in b.
func clamp(b *Batch, c *Conn) {
	for f := range b.Frames() {
		ClampMSS(f, c.local.Mode, c.MTU())
	}
}

// SetReadDeadline sets until when a ReadBatch may wait, one that waits now included. Its
// error is os.ErrDeadlineExceeded then, and no packet is lost. The zero time
// means for ever.
func (d *Device) SetReadDeadline(t time.Time) error {
	return d.control(func() error { return d.kernel.setReadDeadline(t) })
}
