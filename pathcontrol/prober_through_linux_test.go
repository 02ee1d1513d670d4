package pathcontrol

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Connections go through the interface, with the mark, and from the address.
func TestThrough(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		there := twoHosts(t)
		var l net.Listener
		within(t, there, func() {
			var err error
			if l, err = net.Listen("tcp", "10.1.0.2:0"); err != nil {
				t.Fatal(err)
			}
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // the prober that only connects sends nothing
					defer c.Close()
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}()
			}
		}()
		defer func() { l.Close(); <-done }()

		addr := l.Addr().String()
		for _, through := range []Through{
			{Interface: "near"}, {Mark: 7}, {Source: netip.MustParseAddr("10.1.0.1")},
			{Interface: "near", Mark: 8, Source: netip.MustParseAddr("10.1.0.1")},
		} {
			ctx, cancel := aWhile()
			for _, p := range []Prober{&TCP{Addr: addr, Through: through}, &HTTP{URL: "http://" + addr, Through: through}} {
				if _, err := p.Probe(ctx); err != nil {
					t.Errorf("%v through %+v: %v", p, through, err)
				}
			}
			c, err := through.Dialer().DialContext(ctx, "tcp", addr)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				mark, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
				name, _ := unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
				if uint32(mark) != through.Mark || name != through.Interface {
					t.Errorf("%+v: mark %d, interface %q", through, mark, name)
				}
			})
			c.Close()
		}
		for through, want := range map[Through]string{
			{Interface: "nothing"}:                     "bind to interface nothing: no such device",
			{Source: netip.MustParseAddr("10.77.0.1")}: "cannot assign requested address",
		} {
			ctx, cancel := aWhile()
			_, err := (&TCP{Addr: addr, Through: through}).Probe(ctx)
			cancel()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", through, err, want)
			}
		}
		if err := needs(unix.EPERM, "CAP_NET_ADMIN"); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "(needs CAP_NET_ADMIN)") {
			t.Error(err)
		}
	})
}
