package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// toldDevice is a device that remembers what it has refused: a bond goes on with
// it, and tries again.
type toldDevice struct {
	*packet.Device

	mu      sync.Mutex
	refused map[string]error // by what it should have
}

// SetMTU is the device's.
func (d *toldDevice) SetMTU(n int) error { return d.note("MTU", d.Device.SetMTU(n)) }

// SetCarrier is the device's.
func (d *toldDevice) SetCarrier(up bool) error { return d.note("carrier", d.Device.SetCarrier(up)) }

func (d *toldDevice) note(what string, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused == nil {
		d.refused = make(map[string]error)
	}
	if delete(d.refused, what); err != nil {
		d.refused[what] = fmt.Errorf("device %s: %s: %w", d.Name(), what, err)
	}
	return err
}

// ready tells what the device is not as it should be in.
func (d *toldDevice) ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, what := range slices.Sorted(maps.Keys(d.refused)) {
		errs = append(errs, d.refused[what])
	}
	return errors.Join(errs...)
}
