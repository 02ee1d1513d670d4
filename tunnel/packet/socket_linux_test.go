package packet

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The kernel keeps little unsent, below TLS too; other connections are left alone.
func TestShortQueue(t *testing.T) {
	a, b := loopback(t)
	defer a.Close()
	defer b.Close()
	for _, c := range []net.Conn{a, b} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) }); err != nil {
			t.Fatal(err)
		}
		if err != nil || n != unsentLimit {
			t.Errorf("%d, %v", n, err)
		}
	}
	shortQueue(newSocket(a, 0))
	p, q := tunneltest.Pipe()
	defer p.Close()
	defer q.Close()
	shortQueue(p)
}
