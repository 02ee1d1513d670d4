package tunnel

import (
	"net"
	"time"
)

// tuneTCP has the kernel find a dead peer of a TCP connection within a minute,
// busy or idle: keep-alive after 30 s of silence, each 10 s, three times, and
// TCP_USER_TIMEOUT of 60 s where there is one.
func tuneTCP(c net.Conn) {
	for {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
			if raw, err := t.SyscallConn(); err == nil {
				setUserTimeout(raw, 60_000)
			}
			return
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		c = w.NetConn()
	}
}
