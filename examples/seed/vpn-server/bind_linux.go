package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// bindTo makes a socket use a device only.
func bindTo(device string) func(fd uintptr) error {
	return func(fd uintptr) error {
		if err := unix.BindToDevice(int(fd), device); err != nil {
			return fmt.Errorf("bind to %s: %w", device, err)
		}
		return nil
	}
}
