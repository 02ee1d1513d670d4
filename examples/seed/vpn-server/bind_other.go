//go:build !linux

package main

import "github.com/rhizome-tunnel/rhizome/tunnel/packet"

// bindTo has no device to use: packet.OpenTUN has said so before.
func bindTo(string) func(uintptr) error {
	return func(uintptr) error { return packet.ErrUnsupported }
}
