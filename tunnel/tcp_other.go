//go:build !linux

package tunnel

import "syscall"

// setUserTimeout does nothing: only linux can bound unacknowledged data.
func setUserTimeout(syscall.RawConn, int) {}
