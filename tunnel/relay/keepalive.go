package relay

import (
	"net"
	"time"
)

// KeepAlive has the kernel find the dead peer of a silent TCP connection within
// a minute: keep-alive after 30 s of silence, then each 10 s, three times. It
// looks through wrappers that have a NetConn method, such as *tls.Conn, and does
// nothing for other connections. Errors of the kernel are not reported: the
// connection works without.
//
// Keep-alive rests while data is unacknowledged or waits for the peer's window
// (tcp(7)); [Relay] looks after such a connection itself. TCP_USER_TIMEOUT, which
// seems made for it, is not set: linux counts the time of a closed window too,
// though the peer answers every probe, and would reset a reader who pauses for a
// minute, with what he has not read yet.
func KeepAlive(c net.Conn) {
	t, ok := below(c).(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
}
