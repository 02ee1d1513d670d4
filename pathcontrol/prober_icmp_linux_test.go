package pathcontrol

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// allowPing lets all groups, or none, open datagram sockets of ICMP in the
// network namespace of this thread.
func allowPing(t *testing.T, allow bool) {
	t.Helper()
	groups := "1 0"
	if allow {
		groups = "0 2147483647"
	}
	sysctl(t, "ipv4/ping_group_range", groups)
}

// sysctl sets one of the network namespace of this thread.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		t.Skipf("%v: run it as root with a writable /proc/sys", err)
	}
}

// kinds runs a test with a datagram socket and with a raw one.
func kinds(t *testing.T, f func(t *testing.T)) {
	for name, datagram := range map[string]bool{"datagram": true, "raw": false} {
		t.Run(name, func(t *testing.T) {
			tunneltest.InNetns(t, func(t *testing.T) {
				allowPing(t, datagram)
				f(t)
			})
		})
	}
}

func opened(t *testing.T, p *ICMP) *ICMP {
	t.Helper()
	if err := p.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestICMPLoopback(t *testing.T) {
	kinds(t, func(t *testing.T) {
		for _, addr := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1"} {
			for _, size := range []int{0, 16, 1400, 65000} {
				p := opened(t, &ICMP{Addr: netip.MustParseAddr(addr), Size: size})
				ctx, cancel := aWhile()
				rtt, err := p.Probe(ctx)
				cancel()
				if err != nil || rtt <= 0 {
					t.Errorf("%v, %d bytes: %v, %v", p, size, rtt, err)
				}
			}
		}
	})
}

// Many goroutines share the socket, and whoever reads does it for all.
func TestICMPTogether(t *testing.T) {
	kinds(t, func(t *testing.T) {
		p := opened(t, &ICMP{Addr: netip.MustParseAddr("127.0.0.1")})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				for range 50 {
					ctx, cancel := aWhile()
					if _, err := p.Probe(ctx); err != nil {
						t.Error(err)
					}
					cancel()
				}
			})
		}
		all.Wait()
	})
}

// twoHosts makes a namespace with a veth to the one of this thread, and returns
// it. Here is 10.1.0.1 and fd01::1, there .2 and ::2.
func twoHosts(t *testing.T) (there netns.NsHandle) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err = netns.New() // this thread is in it now
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	loopbackUp(t)
	if err := netns.Set(here); err != nil {
		t.Fatal(err)
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far", PeerNamespace: netlink.NsFd(there)}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	address(t, "near", "10.1.0.1/24", "fd01::1/64")
	within(t, there, func() { address(t, "far", "10.1.0.2/24", "fd01::2/64") })
	return there
}

func within(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
	defer netns.Set(here)
	f()
}

func loopbackUp(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func address(t *testing.T, name string, prefixes ...string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range prefixes {
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// route adds one to the namespace of this thread.
func route(t *testing.T, to, via string, kind int) {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{Dst: dst, Type: kind}
	if via != "" {
		r.Gw = netip.MustParseAddr(via).AsSlice()
	}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
}

// probeUntilTold probes until something comes back: the kernel limits how many
// errors it sends.
func probeUntilTold(p Prober) error {
	all, cancel := aWhile()
	defer cancel()
	for {
		ctx, cancel := context.WithTimeout(all, 300*time.Millisecond)
		_, err := p.Probe(ctx)
		cancel()
		if err != context.DeadlineExceeded || all.Err() != nil {
			return err
		}
	}
}

// A router that says that there is no way ends the probe at once, and the error
// is typed and says who found out.
func TestICMPUnreachable(t *testing.T) {
	kinds(t, func(t *testing.T) {
		there := twoHosts(t)
		route(t, "10.9.0.0/16", "10.1.0.2", syscall.RTN_UNICAST)
		route(t, "fd09::/32", "fd01::2", syscall.RTN_UNICAST)
		within(t, there, func() {
			sysctl(t, "ipv4/ip_forward", "1")
			sysctl(t, "ipv6/conf/all/forwarding", "1")
			sysctl(t, "ipv4/icmp_ratelimit", "0")
			route(t, "10.9.1.0/24", "", syscall.RTN_UNREACHABLE)
			route(t, "10.9.2.0/24", "", syscall.RTN_PROHIBIT)
			route(t, "fd09:0:1::/48", "", syscall.RTN_PROHIBIT)
		})
		for addr, want := range map[string]UnreachableError{
			"10.9.1.1":    {From: netip.MustParseAddr("10.1.0.2"), Type: 3, Code: 1, Err: syscall.EHOSTUNREACH},
			"10.9.2.1":    {From: netip.MustParseAddr("10.1.0.2"), Type: 3, Code: 13, Err: syscall.EHOSTUNREACH},
			"10.9.3.1":    {From: netip.MustParseAddr("10.1.0.2"), Type: 3, Code: 0, Err: syscall.ENETUNREACH},
			"fd09:0:1::1": {From: netip.MustParseAddr("fd01::2"), Type: 1, Code: 1, Err: syscall.EACCES},
			"fd09:0:2::1": {From: netip.MustParseAddr("fd01::2"), Type: 1, Code: 0, Err: syscall.ENETUNREACH},
		} {
			p := opened(t, &ICMP{Addr: netip.MustParseAddr(addr)})
			err := probeUntilTold(p)
			var got *UnreachableError
			if !errors.As(err, &got) || *got != want || !errors.Is(err, want.Err) {
				t.Errorf("%v: %v, want %v", addr, err, &want)
			}
		}
		// And a host that answers goes on doing so.
		for _, addr := range []string{"10.1.0.2", "fd01::2"} {
			p := opened(t, &ICMP{Addr: netip.MustParseAddr(addr)})
			ctx, cancel := aWhile()
			if _, err := p.Probe(ctx); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
}

// The source is the one that the routes of the moment ask for.
func TestICMPThrough(t *testing.T) {
	kinds(t, func(t *testing.T) {
		twoHosts(t)
		link, err := netlink.LinkByName("near")
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr("10.1.0.2")
		for _, through := range []Through{
			{Interface: "near"}, {Mark: 7}, {Source: netip.MustParseAddr("10.1.0.1")},
			{Interface: "near", Mark: 8, Source: netip.MustParseAddr("::ffff:10.1.0.1")},
		} {
			p := opened(t, &ICMP{Addr: addr, Through: through})
			ctx, cancel := aWhile()
			if _, err := p.Probe(ctx); err != nil {
				t.Errorf("%+v: %v", through, err)
			}
			cancel()
		}

		p := &ICMP{Addr: addr, Through: Through{Interface: "lo"}}
		opened(t, p)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if _, err := p.Probe(ctx); err == nil {
			t.Error("answered through lo")
		}
		cancel()
		for through, want := range map[Through]string{
			{Interface: "nothing"}:                     "bind to interface nothing: no such device",
			{Source: netip.MustParseAddr("10.77.0.1")}: "bind to 10.77.0.1: cannot assign requested address",
		} {
			p := &ICMP{Addr: addr, Through: through}
			if err := p.Open(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", through, err, want)
			}
		}

		// An interface that comes back is another one: the next probe but one
		// has a new socket.
		p = opened(t, &ICMP{Addr: addr, Through: Through{Source: netip.MustParseAddr("10.1.0.1")}})
		old, err := netlink.ParseAddr("10.1.0.1/24")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrDel(link, old); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = aWhile()
		defer cancel()
		_, err = p.Probe(ctx)
		if err == nil || p.echo != nil {
			t.Errorf("%v, and the socket is kept: %t", err, p.echo != nil)
		}
		address(t, "near", "10.1.0.1/24")
		if _, err := p.Probe(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestICMPLinkLocal(t *testing.T) {
	kinds(t, func(t *testing.T) {
		there := twoHosts(t)
		within(t, there, func() { address(t, "far", "fe80::2/64") })
		address(t, "near", "fe80::1/64")
		for _, p := range []*ICMP{
			{Addr: netip.MustParseAddr("fe80::2%near")},
			{Addr: netip.MustParseAddr("fe80::2"), Through: Through{Interface: "near"}},
			{Addr: netip.MustParseAddr("fe80::2%near"), Through: Through{Source: netip.MustParseAddr("fe80::1")}},
		} {
			opened(t, p)
			ctx, cancel := aWhile()
			if _, err := p.Probe(ctx); err != nil {
				t.Errorf("%v: %v", p, err)
			}
			cancel()
		}
	})
}

// A probe ends with its context, and with Close, also the one that reads for
// others.
func TestICMPEnds(t *testing.T) {
	kinds(t, func(t *testing.T) {
		there := twoHosts(t)
		within(t, there, func() {
			sysctl(t, "ipv4/icmp_echo_ignore_all", "1")
		})
		p := opened(t, &ICMP{Addr: netip.MustParseAddr("10.1.0.2")})
		short, cancelShort := context.WithCancel(context.Background())
		ended := make(chan error, 3)
		probe := func(ctx context.Context) {
			_, err := p.Probe(ctx)
			ended <- err
		}
		timeout, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		go probe(timeout)
		if err := <-ended; err != context.DeadlineExceeded {
			t.Error(err)
		}
		go probe(short)
		for len(p.echo.reading) == 0 { // until it is the one that reads
			time.Sleep(time.Millisecond)
		}
		go probe(context.Background())
		cancelShort()
		if err := <-ended; err != context.Canceled {
			t.Error(err)
		}
		p.Close()
		if err := <-ended; !errors.Is(err, ErrICMPClosed) {
			t.Error(err)
		}
		if _, err := p.Probe(timeout); err != ErrICMPClosed {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// withoutRaw runs f without CAP_NET_RAW.
func withoutRaw(t *testing.T, f func()) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatal(err)
	}
	less := before
	less[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	defer unix.Capset(&header, &before[0])
	f()
}

func TestICMPForbidden(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		allowPing(t, false)
		for _, addr := range []string{"127.0.0.1", "::1"} {
			p := &ICMP{Addr: netip.MustParseAddr(addr)}
			defer p.Close()
			withoutRaw(t, func() {
				ctx, cancel := aWhile()
				defer cancel()
				_, err := p.Probe(ctx)
				if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "net.ipv4.ping_group_range") ||
					!strings.Contains(err.Error(), "CAP_NET_RAW") {
					t.Errorf("%v", err)
				}
			})
			if err := p.Open(); err != nil { // with it, it works
				t.Error(err)
			}
		}
	})
}

func FuzzParseFailure(f *testing.F) {
	f.Add([]byte("\x30\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0b\x00\x00\x00" +
		"\x71\x00\x00\x00\x02\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x02\x00\x00\x00\x0a\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if e := parseFailure(oob); e != nil && e.Err == nil {
			t.Errorf("%+v has no error", e)
		}
	})
}
