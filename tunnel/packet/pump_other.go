//go:build !linux

package packet

import "time"

func (k *kernelDevice) setReadDeadline(time.Time) error { return ErrUnsupported }
