package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// prepared is a listener of one connection.
type prepared struct {
	net.Listener
	conn chan net.Conn
}

func prepare(t testing.TB, c net.Conn) *prepared {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // for its address and its end
	if err != nil {
		t.Fatal(err)
	}
	p := &prepared{l, make(chan net.Conn, 1)}
	p.conn <- c
	return p
}

func (p *prepared) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	default:
		return p.Listener.Accept()
	}
}

// verdict is a Handler that tells how another one ended.
type verdict struct {
	Handler
	err chan error
}

func (v verdict) ServeConn(ctx context.Context, c *Incoming) error {
	err := v.Handler.ServeConn(ctx, c)
	v.err <- err
	return err
}

// between serves one connection, from a client to a backend of which the near
// ends are given, and returns how Forward ends.
func between(t testing.TB, client, backend net.Conn) <-chan error {
	t.Helper()
	dial := func(context.Context, string, string) (net.Conn, error) { return backend, nil }
	v := verdict{&Forward{Backends: []string{"backend:1"}, Dial: dial}, make(chan error, 1)}
	r := new(Router)
	if err := r.SetRoutes([]*Route{{Name: "only", HeaderValues: []string{"only"}, Handler: v}}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.Serve(prepare(t, client), &Door{By: ByHeader}) }()
	t.Cleanup(func() {
		r.Close()
		<-served
	})
	return v.err
}

// ask sends a request and reads the answer.
func ask(t testing.TB, c net.Conn) {
	t.Helper()
	w := &world{TB: t, log: new(logBuffer)}
	if status, _ := w.connect(c, connectHead(HeaderReversedVPN+": only")); status != 200 {
		t.Fatal(status)
	}
}

// Both legs have keep-alive, and neither has TCP_USER_TIMEOUT (see
// relay.KeepAlive).
func TestForwardKeepAlive(t *testing.T) {
	pair := func() (far, near net.Conn) {
		l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if near, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { far.Close(); near.Close() })
		return far, near
	}
	client, a := pair()
	backend, b := pair()
	between(t, a, b)
	ask(t, client)
	go io.Copy(backend, backend)
	say(t, client, "served")
	for name, c := range map[string]net.Conn{"client": a, "backend": b} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for option, o := range map[string]struct{ level, option, want int }{
			"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
			"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
			"TCP_KEEPCNT":      {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
			"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
		} {
			var got int
			if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.option) }); cerr != nil || err != nil || got != o.want {
				t.Errorf("%s: %s is %d, %v, %v; want %d", name, option, got, err, cerr, o.want)
			}
		}
	}
}

// TestForwardDeadPeer pulls the plug of the client or of the backend, while data
// goes both ways and while nothing does. Either is found, and the other one is
// told by a reset.
func TestForwardDeadPeer(t *testing.T) {
	if os.Getenv("RHIZOME_LONG") != "1" {
		t.Skip("takes 75 s: set RHIZOME_LONG=1")
	}
	var all sync.WaitGroup
	defer all.Wait() // at once: t.Parallel would have two of them at a time
	for _, dead := range []string{"client", "backend"} {
		for _, how := range []string{"busy", "idle"} {
			client, a, unplugClient := cable(t)
			backend, b, unplugBackend := cable(t)
			forwarded := between(t, a, b)
			ask(t, client)
			for _, c := range [][2]net.Conn{{client, backend}, {backend, client}} {
				fmt.Fprintln(c[0], "hello")
				if got := line(c[1]); got != "hello" {
					t.Fatalf("%q", got)
				}
			}
			if how == "busy" {
				moved := make(chan struct{}, 2)
				go flow(client, backend, moved)
				go flow(backend, client, moved)
				<-moved
				<-moved
			} else {
				acknowledged(t, a)
				acknowledged(t, b)
			}
			start := time.Now()
			survivor, leg := client, "b"
			if dead == "client" {
				survivor, leg = backend, "a"
				unplugClient()
			} else {
				unplugBackend()
			}
			all.Go(func() {
				err := <-forwarded
				t.Logf("%s %s: after %v: %v", how, dead, time.Since(start).Round(time.Second), err)
				var e *relay.Error
				if !errors.As(err, &e) || e.Leg != leg || !errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, relay.ErrSilent) != (how == "busy") {
					t.Errorf("%s %s: Forward ended with %v", how, dead, err)
				}
				if err := reset(survivor); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%s %s: the survivor sees %v, want a reset", how, dead, err)
				}
			})
		}
	}
}

// flow sends without end from one end to the other, and tells when a MiB has
// arrived.
func flow(from, to net.Conn, moved chan<- struct{}) {
	go func() {
		for b := make([]byte, 1<<10); ; {
			if _, err := from.Write(b); err != nil {
				return
			}
		}
	}()
	io.CopyN(io.Discard, to, 1<<20)
	moved <- struct{}{}
	io.Copy(io.Discard, to)
}

// acknowledged waits until the peer of c has acknowledged everything.
func acknowledged(t testing.TB, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	(&world{TB: t, log: new(logBuffer), router: new(Router)}).until("all is acknowledged", func() bool {
		var info *unix.TCPInfo
		if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		return info.Unacked == 0 && info.Notsent_bytes == 0
	})
}

// reset returns how c ends: the error of a read, or that of a write where somebody
// else has read it already.
func reset(c net.Conn) error {
	if err := ended(c); err != nil {
		return err
	}
	_, err := c.Write([]byte("x"))
	return err
}

// cable connects two hosts with a cable, and returns the two ends of a connection
// between them, and what pulls the cable.
func cable(t *testing.T) (far, near *net.TCPConn, unplug func()) {
	t.Helper()
	tunneltest.InNetns(t, func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		up := func(name, cidr string) {
			t.Helper()
			l, err := netlink.LinkByName(name)
			must(err)
			addr, err := netlink.ParseAddr(cidr)
			must(err)
			must(netlink.AddrAdd(l, addr))
			must(netlink.LinkSetUp(l))
		}
		here, err := netns.Get()
		must(err)
		defer here.Close()
		var listener net.Listener
		tunneltest.InNetns(t, func(t *testing.T) {
			must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far"}, PeerName: "near", PeerNamespace: netlink.NsFd(here)}))
			up("far", "10.9.0.2/24")
			listener, err = net.Listen("tcp", "10.9.0.2:0")
			must(err)
			there, err := netns.Get()
			must(err)
			defer there.Close()
			h, err := netlink.NewHandleAt(there)
			must(err)
			t.Cleanup(h.Close)
			unplug = func() {
				l, err := h.LinkByName("far")
				must(err)
				must(h.LinkSetDown(l))
			}
		})
		defer listener.Close()
		up("near", "10.9.0.1/24")
		// A SYN that is sent too early is lost, and the kernel then waits before
		// it sends another one.
		(&world{TB: t, log: new(logBuffer), router: new(Router)}).until("the cable works", func() bool {
			l, err := netlink.LinkByName("near")
			must(err)
			return l.Attrs().OperState == netlink.OperUp
		})
		c, err := net.Dial("tcp", listener.Addr().String())
		must(err)
		s, err := listener.Accept()
		must(err)
		far, near = s.(*net.TCPConn), c.(*net.TCPConn)
		t.Cleanup(func() { far.Close(); near.Close() })
	})
	return far, near, unplug
}
