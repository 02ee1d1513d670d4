package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

const (
	seedAddress  = "fd8f:6d53:b97a:1::a:1"
	shootAddress = "fd8f:6d53:b97a:1::b:0"
)

// world is a CA and a server with --mode tap.
type world struct {
	*clitest.CA
	t *testing.T
	p *clitest.Program
}

func newWorld(t *testing.T, args ...string) *world {
	w := &world{CA: clitest.NewCA(t), t: t}
	cert, key := w.Files("server", tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
	w.p = clitest.Start(t, run, append([]string{
		"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
		"--client-ca", w.File, "--cluster", cluster,
		"--peer-addresses", "seed=fd8f:6d53:b97a:1::a:0/112", "--peer-addresses", "shoot=" + shootAddress,
		"--peer-networks", "shoot=10.250.0.0/16",
	}, args...)...)
	return w
}

// member is a client of the server whose device is the test.
type member struct {
	t     *testing.T
	link  chan *packet.Conn // each link that begins
	in    chan packet.Frame
	drain chan struct{}
	fails chan error
}

// join connects a client with a certificate that has a common name.
func (w *world) join(name, clusterName, address string) *member {
	w.t.Helper()
	m := &member{t: w.t, link: make(chan *packet.Conn, 1), in: make(chan packet.Frame, 100), drain: make(chan struct{}, 1), fails: make(chan error, 100)}
	door := w.p.Addr("clients")
	cert := w.Issue(tunneltest.CertOptions{CommonName: name, Cluster: clusterName, Client: true}).TLS
	k := &packet.Client{
		Dial: func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", door) },
		TLS:  &tls.Config{RootCAs: w.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{cert}},
		Hello: packet.Hello{
			Mode: packet.TAP, Addresses: []netip.Addr{netip.MustParseAddr(address)},
			Networks: []netip.Prefix{netip.MustParsePrefix("10.250.0.0/24")},
		},
		Serve: m.serve,
		OnState: func(_ *packet.Conn, err error) {
			if err != nil {
				m.fails <- err
			}
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = k.Run(ctx) })
	w.t.Cleanup(func() { cancel(); run.Wait() })
	return m
}

func (m *member) serve(ctx context.Context, c *packet.Conn) error {
	defer c.Close()
	c.OnDrain(func() { m.drain <- struct{}{} })
	var run sync.WaitGroup
	run.Go(func() { _ = c.Run(ctx) })
	defer run.Wait()
	m.link <- c
	var b packet.Batch
	for {
		if err := c.ReadBatch(&b); err != nil {
			return err
		}
		for f := range b.Frames() {
			f.Data = append([]byte(nil), f.Data...)
			m.in <- f
		}
	}
}

// frame makes an IPv6 packet in an Ethernet frame, with no next header.
func frame(to, from, fromMAC string) packet.Frame {
	dst, src := netip.MustParseAddr(to), netip.MustParseAddr(from)
	data := make([]byte, packet.HeaderLen, 100)
	data = append(data, packet.MAC(dst, 0)...)
	data = append(data, packet.MAC(netip.MustParseAddr(fromMAC), 0)...)
	data = append(data, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64)
	data = append(data, src.AsSlice()...)
	return packet.Frame{Data: append(data, dst.AsSlice()...)}
}

func send(t *testing.T, c *packet.Conn, f packet.Frame) {
	t.Helper()
	var b packet.Batch
	if !b.Append(f) {
		t.Fatal("no frame")
	}
	must(t, c.WriteBatch(&b))
}

// statusPage is what the tests look at of the page /status.
type statusPage struct {
	Mode   string
	Device *deviceStatus
	Links  []struct{ Name, Addr string }
	Switch struct {
		Frames uint64
		Drops  map[string]uint64
		Ports  []struct{ Name string }
	}
}

func (w *world) status() (s statusPage) {
	w.t.Helper()
	code, body := w.page("/status")
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != http.StatusOK {
		w.t.Fatalf("/status: %d %v %s", code, err, body)
	}
	return s
}

func (w *world) page(path string) (code int, body string) {
	w.t.Helper()
	return clitest.Get(w.t, clitest.Client(w.t, &http.Transport{DisableKeepAlives: true}), "http://"+w.p.Addr("admin")+path)
}

// TestSwitch has two clients send each other frames, and drains.
func TestSwitch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404} {
		if code, body := w.page(path); code != want {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
	}
	seed, shoot := w.join("seed", cluster, seedAddress), w.join("shoot", cluster, shootAddress)
	a, b := <-seed.link, <-shoot.link
	clitest.Eventually(t, func() error {
		if len(a.Reach()) != 2 || len(b.Reach()) != 2 {
			return errors.New("the members are not told of each other")
		}
		return nil
	})
	send(t, b, frame(seedAddress, seedAddress, shootAddress)) // in the name of the other
	send(t, b, frame(seedAddress, shootAddress, shootAddress))
	if got := <-seed.in; netip.AddrFrom16([16]byte(got.Packet()[22:38])) != netip.MustParseAddr(shootAddress) {
		t.Errorf("got %x", got.Packet())
	}
	s := w.status()
	if s.Mode != "tap" || s.Device != nil || len(s.Links) != 2 || s.Links[0].Name != "seed" || s.Links[1].Name != "shoot" ||
		len(s.Switch.Ports) != 2 || s.Switch.Frames != 2 || s.Switch.Drops["source"] != 1 {
		t.Errorf("/status: %+v", s)
	}

	w.p.Drain()
	<-seed.drain
	<-shoot.drain
	if code, _ := w.page("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz while it drains: %d", code)
	}
	must(t, w.p.Wait())
	var bye *packet.ByeError
	if err := <-seed.fails; !errors.As(err, &bye) || bye.Code != packet.ByeShutdown {
		t.Errorf("a link ended with %v", err)
	}
}

// TestRefused is about clients that may not come in.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--drain-timeout", "1h") // which is not waited for without links
	for _, tc := range []struct{ name, cluster, want string }{
		{"stranger", cluster, `no --peer-addresses of "stranger"`},
		{"shoot", "shoot--dev--b", "shoot--dev--b"},
		{"shoot", "*", "operator"},
	} {
		err := <-w.join(tc.name, tc.cluster, shootAddress).fails
		var refused *connect.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusForbidden || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s of %s: %v, want 403 and %q", tc.name, tc.cluster, err, tc.want)
		}
	}
	if s := w.status(); len(s.Links) != 0 {
		t.Errorf("links: %+v", s.Links)
	}
	must(t, w.p.Stop())
}

// TestIsolate keeps clients apart.
func TestIsolate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--isolate", "--drain-timeout", "0")
	seed, shoot := w.join("seed", cluster, seedAddress), w.join("shoot", cluster, shootAddress)
	<-seed.link
	b := <-shoot.link
	clitest.Eventually(t, func() error {
		send(t, b, frame(seedAddress, shootAddress, shootAddress)) // the first may come before the other has a port
		if w.status().Switch.Drops["isolated"] == 0 {
			return errors.New("nothing was dropped")
		}
		return nil
	})
	if len(seed.in) > 0 {
		t.Error("the frame has arrived")
	}
	must(t, w.p.Stop())
}

// TestPortTaken is a port that somebody else has.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	ca := clitest.NewCA(t)
	cert, key := ca.Files("server", tunneltest.CertOptions{})
	for _, flag := range []string{"--listen", "--admin-listen"} {
		args := []string{"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
			"--client-ca", ca.File, "--cluster", cluster, "--peer-addresses", "a=::1", flag, l.Addr().String()}
		if err := clitest.Start(t, run, args...).Wait(); err == nil || !strings.Contains(err.Error(), flag+": listen") {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// TestRotation replaces the server's certificate and both authorities in their files.
// A link of before stays.
func TestRotation(t *testing.T) {
	t.Parallel()
	if os.Getenv("RHIZOME_LONG") != "1" {
		t.Skip("takes 10 s: set RHIZOME_LONG=1")
	}
	w := newWorld(t)
	seed := w.join("seed", cluster, seedAddress)
	before := <-seed.link
	next := clitest.NewCA(t)
	_, _, err := next.Issue(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}}).WriteFiles(w.Dir, "server")
	must(t, err)
	must(t, os.WriteFile(w.File, append(w.PEM(), next.PEM()...), 0o600))
	old := w.CA
	w.CA = next
	shoot := w.join("shoot", cluster, shootAddress) // trusts the new authority only
	after := <-shoot.link
	w.CA = old
	send(t, after, frame(seedAddress, shootAddress, shootAddress))
	<-seed.in
	select {
	case <-before.Done():
		t.Error("the link of before has ended")
	default:
	}
	must(t, w.p.Stop())
}
