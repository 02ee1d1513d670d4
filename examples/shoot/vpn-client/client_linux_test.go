package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// world is servers on this host, and a lab for hosts of clients. A client's device
// is in its host's network namespace, and its links are in the one of the test.
type world struct {
	*clitest.CA
	t       *testing.T
	lab     *netlab.Lab
	servers []*packet.Server
	urls    []string
}

func newWorld(t *testing.T, mode packet.Mode, servers int) *world {
	lab, err := netlab.New()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root")
	}
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	w := &world{CA: clitest.NewCA(t), t: t, lab: lab}
	cert := w.Issue(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}}).TLS
	for range servers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		sw := &packet.Switch{Mode: mode}
		srv := &packet.Server{
			TLS:   &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: w.Pool(), ClientAuth: tls.RequireAndVerifyClientCert},
			Hello: packet.Hello{Mode: mode, Offload: packet.OffloadAll},
			Admit: func(_ context.Context, id packet.Identity, remote packet.Hello) (packet.ServeFunc, error) {
				o := packet.PortOptions{
					Member:    packet.Member{ID: remote.ID, Name: id.Name, Addresses: remote.Addresses, Networks: remote.Networks, MTU: remote.MTU},
					Addresses: []netip.Prefix{netip.MustParsePrefix("fd8f:6d53:b97a:1::/96"), netip.MustParsePrefix("192.168.123.0/24")},
					Networks:  remote.Networks,
				}
				return func(ctx context.Context, c *packet.Conn) error { return sw.Serve(ctx, c, o) }, nil
			},
		}
		var run sync.WaitGroup
		run.Go(func() { _ = srv.Serve(l) })
		t.Cleanup(func() { srv.Close(); run.Wait() })
		w.servers = append(w.servers, srv)
		w.urls = append(w.urls, "https://"+l.Addr().String())
	}
	return w
}

func (w *world) host(name string) *netlab.Host {
	w.t.Helper()
	h, err := w.lab.Host(name)
	must(w.t, err)
	return h
}

func (w *world) args(name string, more ...string) []string {
	cert, key := w.Files(name, tunneltest.CertOptions{CommonName: name, Cluster: cluster})
	args := []string{"--tls-cert", cert, "--tls-key", key, "--server-ca", w.File}
	for _, url := range w.urls {
		args = append(args, "--server", url)
	}
	return append(args, more...)
}

// client is a program that runs, but for its admin pages.
type client struct {
	*program
	*clitest.Output
	stop func() error // ends it, once
}

// start starts a client whose device is on h.
func (w *world) start(h *netlab.Host, args ...string) *client {
	w.t.Helper()
	c, err := w.try(h, args...)
	must(w.t, err)
	return c
}

func (w *world) try(h *netlab.Host, args ...string) (*client, error) {
	o, err := parse(w.args(h.Name, args...), io.Discard)
	must(w.t, err)
	out := clitest.NewOutput(w.t)
	c := &client{program: newProgram(o, slog.New(slog.NewJSONHandler(out, nil))), Output: out}
	must(w.t, c.files.Load())
	if err := h.Do(c.up); err != nil {
		return nil, errors.Join(err, c.down())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(c.serve(ctx, nil), c.down()) }()
	c.stop = sync.OnceValue(func() error { cancel(); return <-done })
	w.t.Cleanup(func() { _ = c.stop() })
	return c, nil
}

// ready waits until the links of a client are up and know so many members.
func (w *world) ready(c *client, members int) {
	w.t.Helper()
	clitest.Eventually(w.t, func() error {
		s := c.status()
		for _, l := range s.Links {
			if l.State != stateUp || len(l.Members) != members {
				return fmt.Errorf("%+v", l)
			}
		}
		return c.program.ready(nil)
	})
}

// pipe opens a TCP connection from a host to an address of another, and passes a
// line over it.
func (w *world) pipe(from, to *netlab.Host, address string) (a, b net.Conn) {
	w.t.Helper()
	var l net.Listener
	must(w.t, to.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "7"))
		return err
	}))
	defer l.Close()
	must(w.t, from.Do(func() (err error) {
		a, err = net.DialTimeout("tcp", l.Addr().String(), clitest.Patience)
		return err
	}))
	b, err := l.Accept()
	must(w.t, err)
	w.t.Cleanup(func() { a.Close(); b.Close() })
	pass(w.t, a, b)
	return a, b
}

func pass(t *testing.T, a, b net.Conn) {
	t.Helper()
	got := make([]byte, 5)
	must(t, a.SetDeadline(time.Now().Add(clitest.Patience)))
	must(t, b.SetDeadline(time.Now().Add(clitest.Patience)))
	_, err := io.WriteString(a, "hello")
	must(t, err)
	_, err = io.ReadFull(b, got)
	must(t, err)
	_, err = b.Write(got)
	must(t, err)
	_, err = io.ReadFull(a, got)
	must(t, err)
}

// linkOf returns what the kernel says of a device on a host; nil if it is not there.
func linkOf(t *testing.T, h *netlab.Host, name string) (l netlink.Link) {
	t.Helper()
	err := h.Do(func() (err error) {
		l, err = netlink.LinkByName(name)
		return err
	})
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) {
		t.Fatal(err)
	}
	return l
}

const (
	seedAddress  = "fd8f:6d53:b97a:1::a:1"
	shootAddress = "fd8f:6d53:b97a:1::b:0"
)

// TestBonded has two clients with two servers, of which one goes away.
func TestBonded(t *testing.T) {
	for name, tc := range map[string]struct {
		mode packet.Mode
		args []string
	}{
		"tap":           {packet.TAP, nil},
		"tap redundant": {packet.TAP, []string{"--redundant"}},
		"tap kernel":    {packet.TAP, []string{"--bond", "kernel"}},
		"tun":           {packet.TUN, []string{"--mode", "tun"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.mode, 2)
			a, b := w.host("seed"), w.host("shoot")
			one, err := w.try(a, append(tc.args, "--address", seedAddress+"/96", "--firewall=false")...)
			if errors.Is(err, bond.ErrUnsupported) {
				t.Skip(`this kernel has no bonding: run it with go test -exec "$PWD/.ci/run-in-kernel"`)
			}
			must(t, err)
			two := w.start(b, append(tc.args, "--address", shootAddress+"/96", "--firewall=false")...)
			w.ready(one, 2)
			w.ready(two, 2)
			x, y := w.pipe(a, b, shootAddress)
			s := one.status()
			if len(s.Members) != 2 || s.Members[0].Name != "seed" || s.Links[0].RTT == 0 || s.Bond.Device.ReadPackets == 0 {
				t.Errorf("status: %+v", s)
			}
			if want := linkName(one.options, 0); name != "tap redundant" {
				clitest.Eventually(t, func() error {
					if got := one.status().Active; got != want {
						return fmt.Errorf("active: %q, want %q", got, want)
					}
					return nil
				})
			}
			if _, err := json.Marshal(s); err != nil {
				t.Error(err)
			}
			must(t, w.servers[0].Close())
			pass(t, x, y)
			clitest.Eventually(t, func() error {
				if s := one.status(); s.Links[0].State != stateDown || s.Links[0].Error == "" || s.Links[0].Lost == 0 || s.Links[1].State != stateUp {
					return fmt.Errorf("%+v", s.Links)
				}
				return one.program.ready(nil)
			})
			must(t, one.stop())
			must(t, two.stop())
			for _, device := range []string{"bond0", "tun0", "tap0", "tap1"} {
				if linkOf(t, a, device) != nil {
					t.Errorf("%s is left over", device)
				}
			}
		})
	}
}

// TestReady: a link alone is not enough, the device must be as it should be, too.
func TestReady(t *testing.T) {
	w := newWorld(t, packet.TUN, 2)
	c := w.start(w.host("seed"), "--mode", "tun", "--address", "192.168.123.9/24", "--firewall=false")
	w.ready(c, 1)
	device := c.backend.(*userBond).device
	if err := device.SetMTU(1 << 20); err == nil {
		t.Fatal("the kernel takes any MTU")
	}
	if err := c.program.ready(nil); err == nil || !strings.Contains(err.Error(), "device tun0: MTU: ") {
		t.Errorf("with a device that refuses its MTU: %v", err)
	}
	must(t, device.SetMTU(1500))
	must(t, c.program.ready(nil))
}

// TestRoutes has the seed's routes by a client of the shoot, over an IPv6 next hop.
func TestRoutes(t *testing.T) {
	w := newWorld(t, packet.TAP, 1)
	a, b := w.host("seed"), w.host("shoot")
	one := w.start(a, "--address", seedAddress+"/96", "--address", "192.168.123.9/24", "--firewall=false",
		"--route", "10.250.0.0/24="+shootAddress+",src=192.168.123.9", "--route", "fd01::/64="+shootAddress, "--route", "10.251.0.0/24="+shootAddress)
	must(t, b.Bridge("pods", netip.MustParsePrefix("10.250.0.2/24")))
	two := w.start(b, "--address", shootAddress+"/96", "--address", "192.168.123.10/24", "--network", "10.250.0.0/24", "--masquerade=false")
	w.ready(one, 2)
	w.ready(two, 2)
	if n := strings.Count(two.String(), `"msg":"nothing limits`); n > 1 || n == 1 == limits(t, b) {
		t.Errorf("the log says %d times that nothing is limited:\n%s", n, two)
	}
	x, _ := w.pipe(a, b, "10.250.0.2")
	if got := x.LocalAddr().(*net.TCPAddr).IP.String(); got != "192.168.123.9" {
		t.Errorf("the source is %s", got)
	}
	wanted, there := 0, 0
	for _, r := range one.status().Routes {
		wanted, there = wanted+r.Wanted, there+r.There
		if r.Via != shootAddress || r.Problem != "" {
			t.Errorf("%+v", r)
		}
	}
	if wanted != 3 || there != 3 {
		t.Errorf("%d of %d routes", there, wanted)
	}
	must(t, one.stop())
	must(t, a.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Protocol > 4 }) {
			t.Errorf("left over: %v", routes)
		}
		return err
	}))
}

// TestRouteByDevice leaves it to the server which client a network is behind.
func TestRouteByDevice(t *testing.T) {
	w := newWorld(t, packet.TUN, 1)
	a, b := w.host("seed"), w.host("shoot")
	one := w.start(a, "--mode", "tun", "--address", "192.168.123.9/24", "--firewall=false", "--route", "10.250.0.0/24")
	must(t, b.Bridge("pods", netip.MustParsePrefix("10.250.0.2/24")))
	two := w.start(b, "--mode", "tun", "--address", "192.168.123.10/24", "--network", "10.250.0.0/24", "--masquerade=false")
	w.ready(one, 2)
	w.ready(two, 2)
	w.pipe(a, b, "10.250.0.2")
}

// TestMember asks who is reached before and after a server had the time to know.
func TestMember(t *testing.T) {
	w := newWorld(t, packet.TUN, 1)
	c := w.start(w.host("seed"), "--mode", "tun", "--address", "192.168.123.9/24", "--firewall=false")
	w.ready(c, 1)
	page := c.pages()["GET /members/{address}"]
	for _, tc := range []struct {
		address string
		since   time.Duration
		want    int
	}{
		{"192.168.123.9", 0, http.StatusOK},
		{"192.168.123.10", 0, http.StatusServiceUnavailable},
		{"192.168.123.10", time.Minute, http.StatusGone},
		{"nobody", time.Minute, http.StatusBadRequest},
	} {
		c.links[0].mu.Lock()
		c.links[0].since = time.Now().Add(-tc.since)
		c.links[0].mu.Unlock()
		answer := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.SetPathValue("address", tc.address)
		if page(answer, r); answer.Code != tc.want {
			t.Errorf("%s after %v: %d %s, want %d", tc.address, tc.since, answer.Code, answer.Body, tc.want)
		}
	}
	must(t, w.servers[0].Close())
	clitest.Eventually(t, func() error {
		if err := c.program.ready(nil); err == nil || !strings.Contains(err.Error(), "no link to 127.0.0.1:") {
			return fmt.Errorf("ready: %v", err)
		}
		return nil
	})
}

// TestMTU tells the servers what the way to the networks takes, and gives the
// device the least of both ends.
func TestMTU(t *testing.T) {
	w := newWorld(t, packet.TUN, 1)
	h, pod := w.host("shoot"), w.host("pod")
	must(t, w.lab.Cable(h, "eth1", netip.MustParsePrefix("10.250.0.1/24"), pod, "eth0", netip.MustParsePrefix("10.250.0.2/24")))
	must(t, h.Do(func() error {
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1400)
	}))
	c := w.start(h, "--mode", "tun", "--address", "192.168.123.2/24", "--network", "10.250.0.0/24", "--masquerade=false")
	w.ready(c, 1)
	if got := w.servers[0].Links(); len(got) != 1 || got[0].Remote.MTU != 1400 || c.status().Links[0].MTU != 1400 || c.status().Active != "link0" {
		t.Errorf("the server was told %+v", got)
	}
	if got := linkOf(t, h, "tun0").Attrs().MTU; got != 1400 {
		t.Errorf("the device has %d", got)
	}
	must(t, c.stop())
	// Without a way there it is worth an end.
	if _, err := w.try(w.host("alone"), "--mode", "tun", "--address", "192.168.123.2/24", "--network", "10.250.0.0/24", "--masquerade=false"); err == nil || !strings.Contains(err.Error(), "--network 10.250.0.0/24: the way there") {
		t.Errorf("without a way: %v", err)
	}
}

// TestOwnAddress asks for the way to a network whose first addresses are this
// host's.
func TestOwnAddress(t *testing.T) {
	w := newWorld(t, packet.TUN, 0)
	h, pod := w.host("shoot"), w.host("pod")
	must(t, w.lab.Cable(h, "eth1", netip.MustParsePrefix("fd02::1/64"), pod, "eth0", netip.MustParsePrefix("fd02::2/64")))
	must(t, h.Do(func() error {
		for network, want := range map[string]int{"fd02::/64": 1500, "127.0.0.0/8": 65536} {
			if got, err := egressMTU([]netip.Prefix{netip.MustParsePrefix(network)}); err != nil || got != min(want, maxMTU) {
				t.Errorf("%s: %d %v, want %d", network, got, err, want)
			}
		}
		return nil
	}))
}

// TestDeviceDeleted ends the program, which the next start mends.
func TestDeviceDeleted(t *testing.T) {
	for name, args := range map[string][]string{
		"pumped": {"--mode", "tun", "--device", "t0"},
		"bond":   {"--mode", "tun", "--device", "t0", "--server", "https://127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, packet.TUN, 1)
			h := w.host("shoot")
			c := w.start(h, append(args, "--address", "192.168.123.2/24", "--firewall=false")...)
			clitest.Eventually(t, func() error { return c.program.ready(nil) })
			must(t, h.Do(func() error { return netlink.LinkDel(linkOf(t, h, "t0")) }))
			c.Find("ending")
			if err := c.stop(); !errors.Is(err, packet.ErrGone) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestDeviceTaken takes back what it has made before it finds a name taken.
func TestDeviceTaken(t *testing.T) {
	w := newWorld(t, packet.TAP, 1)
	h := w.host("shoot")
	must(t, h.Bridge("bond0", netip.Prefix{}))
	if _, err := w.try(h, "--address", shootAddress+"/96", "--firewall=false"); err == nil || !strings.Contains(err.Error(), "bond0") {
		t.Errorf("got %v", err)
	}
}

// TestRun is the program as a whole, on this thread.
func TestRun(t *testing.T) {
	w := newWorld(t, packet.TUN, 1)
	h := w.host("shoot")
	out := clitest.NewOutput(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() {
		defer cancel()
		clitest.Eventually(t, func() error {
			if !strings.Contains(out.String(), `"link up"`) {
				return errors.New("no link")
			}
			return nil
		})
	})
	args := w.args("shoot", "--mode", "tun", "--address", "192.168.123.2/24", "--firewall=false", "--admin-listen", "127.0.0.1:0", "--log-format", "json")
	must(t, h.Do(func() error { return run(ctx, args, io.Discard, out) }))
	watch.Wait()
	// A port that is taken is found only when all else is there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	must(t, h.Do(func() error {
		taken, err := net.Listen("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer taken.Close()
		args := append(args, "--admin-listen", l.Addr().String())
		if err := run(t.Context(), args, io.Discard, out); err == nil || !strings.Contains(err.Error(), "--admin-listen: listen") {
			t.Errorf("got %v", err)
		}
		return nil
	}))
	if linkOf(t, h, "tun0") != nil {
		t.Error("tun0 is left over")
	}
}
