package relay

import (
	"net"
	"time"
)

// KeepAlive has the kernel find a dead peer of a TCP connection within a
// minute, busy or idle: keep-alive after 30 s of silence, then each 10 s, three
// times, and on linux TCP_USER_TIMEOUT of 60 s, because keep-alive does not fire
// while data is unacknowledged (tcp(7)). It looks through wrappers that have a
// NetConn method, such as *tls.Conn, and does nothing for other connections.
// Errors of the kernel are not reported: the connection works without.
func KeepAlive(c net.Conn) {
	for {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
			setUserTimeout(t, time.Minute)
			return
		}
		w, ok := c.(netConner)
		if !ok {
			return
		}
		c = w.NetConn()
	}
}
