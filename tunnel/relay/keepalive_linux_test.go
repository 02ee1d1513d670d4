package relay

import (
	"crypto/tls"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKeepAlive(t *testing.T) {
	a, _ := tcpPair(t)
	tcp := a.(*net.TCPConn)
	KeepAlive(tls.Client(NewPrefixed(tcp, []byte("x")), &tls.Config{}))
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]struct{ level, option, want int }{
		"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
		"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
		"TCP_KEEPCNT":      {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0}, // see KeepAlive
	} {
		var got int
		_ = raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.option) })
		if err != nil || got != o.want {
			t.Errorf("%s is %d, %v; want %d", name, got, err, o.want)
		}
	}
	m, _ := memoryPair(t)
	KeepAlive(m) // nothing to set
}
