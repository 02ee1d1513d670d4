//go:build !linux

package packet

import "net"

// shortQueue does nothing here: see the linux one.
func shortQueue(net.Conn) {}
