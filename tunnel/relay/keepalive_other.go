//go:build !linux

package relay

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only linux can bound unacknowledged data.
func setUserTimeout(*net.TCPConn, time.Duration) {}
