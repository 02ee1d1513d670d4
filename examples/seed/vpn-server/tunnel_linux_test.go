package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// tunWorld is a server with --mode tun on a host of a lab, and a client of it on
// another host, which is all of the shoot.
type tunWorld struct {
	*clitest.CA
	*clitest.Output
	t           *testing.T
	seed, shoot *netlab.Host
	target      string // on the shoot's host
	args        []string
	drain       context.CancelFunc
	done        chan error
}

func newTunWorld(t *testing.T) *tunWorld {
	lab, err := netlab.New()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root")
	}
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	w := &tunWorld{CA: clitest.NewCA(t), t: t}
	w.seed, err = lab.Host("seed")
	must(t, err)
	w.shoot, err = lab.Host("shoot")
	must(t, err)
	cert, key := w.Files("server", tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
	w.args = []string{
		"--mode", "tun", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
		"--client-ca", w.File, "--cluster", cluster, "--address", "192.168.123.1/24",
		"--peer-addresses", "shoot=192.168.123.2", "--peer-networks", "shoot=10.250.0.0/16", "--log-format", "json",
	}
	return w
}

// start runs the server on its host.
func (w *tunWorld) start(more ...string) {
	abort, abortNow := context.WithCancel(context.Background())
	ctx, drain := context.WithCancel(cli.WithAbort(context.Background(), abort))
	w.Output, w.drain, w.done = clitest.NewOutput(w.t), drain, make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.done <- w.seed.Do(func() error { return run(ctx, append(w.args, more...), io.Discard, w.Output) })
	}()
	w.t.Cleanup(func() { abortNow(); drain(); <-ended })
}

// dial dials on a host.
func dial(h *netlab.Host) connect.DialFunc {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// join connects the shoot, with a device on its host, until the result is called.
func (w *tunWorld) join(mtu int) (leave func()) {
	w.t.Helper()
	var d *packet.Device
	must(w.t, w.shoot.Do(func() (err error) {
		d, err = packet.OpenTUN(&packet.DeviceOptions{Name: "tun0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.123.2/24"), netip.MustParsePrefix("10.250.0.1/32")}})
		return err
	}))
	door := w.Addr("clients")
	cert := w.Issue(tunneltest.CertOptions{CommonName: "shoot", Cluster: cluster, Client: true}).TLS
	k := &packet.Client{
		Dial: func(ctx context.Context) (net.Conn, error) { return dial(w.seed)(ctx, "tcp", door) },
		TLS:  &tls.Config{RootCAs: w.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{cert}},
		Hello: packet.Hello{
			MTU: mtu, Offload: d.Offload(),
			Addresses: []netip.Addr{netip.MustParseAddr("192.168.123.2")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.250.0.0/24")},
		},
		Serve: func(ctx context.Context, c *packet.Conn) error { return packet.Pump(ctx, d, c, nil) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = k.Run(ctx) })
	leave = sync.OnceFunc(func() { cancel(); run.Wait(); d.Close() })
	w.t.Cleanup(leave)
	return leave
}

// serve has the shoot's host answer at an address behind the client.
func (w *tunWorld) serve() {
	var l net.Listener
	must(w.t, w.shoot.Do(func() (err error) {
		l, err = net.Listen("tcp", "10.250.0.1:0")
		return err
	}))
	w.target = l.Addr().String()
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.RemoteAddr) })}
	var run sync.WaitGroup
	run.Go(func() { _ = s.Serve(l) })
	w.t.Cleanup(func() { s.Close(); run.Wait() })
}

func (w *tunWorld) status() (s statusPage) {
	w.t.Helper()
	c := clitest.Client(w.t, &http.Transport{DialContext: dial(w.seed), DisableKeepAlives: true})
	_, body := clitest.Get(w.t, c, "http://"+w.Addr("admin")+"/status")
	must(w.t, json.Unmarshal([]byte(body), &s))
	return s
}

func TestTunnel(t *testing.T) {
	w := newTunWorld(t)
	w.start("--shoot-network", "10.250.0.0/24", "--connect-listen", "127.0.0.1:0", "--connect-client-ca", w.File, "--mtu", "1600")
	leave := w.join(1400)
	w.serve()
	apiserver := &connect.Dialer{Address: w.Addr("connect"), Forward: dial(w.seed), TLS: &tls.Config{
		RootCAs: w.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{w.Issue(tunneltest.CertOptions{Cluster: cluster}).TLS},
	}}
	// What the proxy dials in this process it dials on another host: the right one is
	// TestVPN's, of the binaries.
	into := &dialer{networks: []netip.Prefix{netip.MustParsePrefix("10.250.0.0/24")}, bind: bindTo("tun0"), behind: func(netip.Addr) bool { return true }}
	c := clitest.Client(t, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = w.seed.Do(func() (err error) {
			c, err = into.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}})
	clitest.Eventually(t, func() error {
		if len(w.status().Links) == 0 {
			return errors.New("no link")
		}
		return nil
	})
	if status, body := clitest.Get(t, c, "http://"+w.target+"/"); status != http.StatusOK || !strings.HasPrefix(body, "192.168.123.1:") {
		t.Errorf("through the tunnel: %d %q", status, body)
	}
	if _, err := apiserver.DialContext(t.Context(), "tcp", w.target); err == nil || !strings.Contains(err.Error(), "bind to tun0") {
		t.Errorf("the proxy dials elsewhere: %v", err)
	}
	if _, err := apiserver.DialContext(t.Context(), "tcp", "10.250.1.1:80"); !errors.Is(err, connect.ErrProhibited) {
		t.Errorf("beside --shoot-network: %v", err)
	}
	s := w.status()
	if d := s.Device; s.Mode != "tun" || d == nil || d.Name != "tun0" || d.MTU != 1400 || d.Routes != 1 || d.Problem != "" || d.Stats.ReadPackets == 0 {
		t.Errorf("/status: %+v %+v", s, s.Device)
	}
	if len(s.Links) != 1 || len(s.Switch.Ports) != 2 {
		t.Errorf("/status: %+v", s)
	}
	leave()
	clitest.Eventually(t, func() error {
		if d := w.status().Device; d.MTU != 1600 {
			return fmt.Errorf("without links: %+v", d)
		}
		return nil
	})
	w.drain()
	must(t, <-w.done)
	must(t, w.seed.Do(func() error {
		links, err := netlink.LinkList()
		if len(links) != 1 {
			t.Errorf("left over: %v", links)
		}
		return err
	}))
}

// TestTunnelWithout has neither routes nor a proxy nor a wall.
func TestTunnelWithout(t *testing.T) {
	w := newTunWorld(t)
	w.start("--firewall=false")
	w.join(0)
	var l net.Listener
	w.Addr("admin")
	must(t, w.seed.Do(func() (err error) {
		l, err = net.Listen("tcp", "192.168.123.1:80")
		return err
	}))
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), clitest.Patience)
	defer cancel()
	clitest.Eventually(t, func() error {
		if len(w.status().Links) == 0 {
			return errors.New("no link")
		}
		return nil
	})
	c, err := dial(w.shoot)(ctx, "tcp", "192.168.123.1:80")
	if err != nil {
		t.Errorf("without a wall: %v", err)
	} else {
		c.Close()
	}
	w.drain()
	must(t, <-w.done)
}

// TestTunnelFails takes back what was made.
func TestTunnelFails(t *testing.T) {
	w := newTunWorld(t)
	must(t, w.seed.Bridge("tun0", netip.Prefix{}))
	w.start()
	if err := <-w.done; err == nil || !strings.Contains(err.Error(), "--device tun0") {
		t.Errorf("a device that is there already: %v", err)
	}
	must(t, w.seed.Bridge("br0", netip.MustParsePrefix("10.250.0.1/24")))
	w.start("--device", "tun1", "--connect-listen", "192.0.2.1:1", "--connect-client-ca", w.File, "--shoot-network", "10.250.0.0/24")
	if err := <-w.done; err == nil || !strings.Contains(err.Error(), "--connect-listen: listen") {
		t.Errorf("an address of somebody else: %v", err)
	}
	must(t, w.seed.Do(func() error {
		links, err := netlink.LinkList()
		if len(links) != 3 {
			t.Errorf("left over: %v", links)
		}
		return err
	}))
}
