//go:build !linux

package main

import (
	"fmt"
	"net/netip"
	"runtime"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// egressMTU needs the routes of linux, as everything here.
func egressMTU([]netip.Prefix) (int, error) {
	return 0, fmt.Errorf("%w: --network needs linux, this is %s", packet.ErrUnsupported, runtime.GOOS)
}
