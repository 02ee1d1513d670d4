//go:build !linux

package packet

import (
	"fmt"
	"runtime"
)

func openDevice(mode Mode, _ DeviceOptions) (*Device, error) {
	return nil, fmt.Errorf("%w: a %v device needs linux, this is %s", ErrUnsupported, mode, runtime.GOOS)
}

// kernelDevice needs /dev/net/tun of linux.
type kernelDevice struct{}

func (k *kernelDevice) setOffload(Offload) error                 { return ErrUnsupported }
func (k *kernelDevice) setMTU(int) error                         { return ErrUnsupported }
func (k *kernelDevice) setCarrier(bool) error                    { return ErrUnsupported }
func (k *kernelDevice) readBatch(*Batch, *deviceCounters) error  { return ErrUnsupported }
func (k *kernelDevice) writeBatch(*Batch, *deviceCounters) error { return ErrUnsupported }
func (k *kernelDevice) close() error                             { return ErrUnsupported }
