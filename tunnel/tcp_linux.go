package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds how long sent data may stay unacknowledged: keep-alive
// does not fire while it does (tcp(7), TCP_USER_TIMEOUT).
func setUserTimeout(raw syscall.RawConn, milliseconds int) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, milliseconds)
	})
}
