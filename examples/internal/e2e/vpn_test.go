//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestVPN has packets go from kube-apiserver's host to a pod behind the shoot, in
// both arrangements that there are.
func TestVPN(t *testing.T) {
	bin := buildVPN(t)
	t.Run("one server", func(t *testing.T) { testVPN(t, bin) })
	t.Run("two servers", func(t *testing.T) { testVPNHighlyAvailable(t, bin) })
}

// testVPN is one server with a device and a CONNECT proxy, and one client in the
// shoot.
func testVPN(t *testing.T, bin string) {
	w, _ := newVPNWorld(t, bin)
	before := map[string]map[string]bool{"seed": w.state(w.seed), "shoot": w.state(w.shoot)}
	serverFlags := w.serverFlags(w.seed, "--mode", "tun", "--address", "192.168.123.1/24", "--shoot-network", podNetwork,
		"--peer-addresses", "shoot=192.168.123.2", "--peer-networks", "shoot="+podNetwork,
		"--connect-listen", ":9443", "--connect-client-ca", w.File)
	clientFlags := w.clientFlags("shoot", "--mode", "tun", "--server", "https://"+w.seed.Addr.String()+":9444",
		"--address", "192.168.123.2/24", "--network", podNetwork)
	server := w.start(w.seed, "vpn-server", serverFlags...)
	client := w.start(w.shoot, "vpn-client", clientFlags...)
	w.ready(w.shoot)

	apiserver := w.selector().Dialer(egress.Cluster)
	w.mustHello(apiserver)
	w.has(w.seed, "link tun0", "address 192.168.123.1/24", "nft table rhizome-firewall-tun0")
	w.has(w.shoot, "link tun0", "address 192.168.123.2/24", "nft table rhizome-masquerade-tun0", "nft table rhizome-gate-tun0")
	if err := w.ping(w.seed, podAddress); err != nil {
		t.Error(err)
	}
	w.mustNotEnter(w.shoot, w.seed, "192.168.123.1")
	w.mustNotEnter(w.seed, w.shoot, "192.168.123.2") // nothing but --network
	for target, want := range map[string]connect.Reason{
		w.shoot.Addr.String() + ":80": connect.ErrProhibited, // what is reached without the tunnel
		"127.0.0.1:" + adminPort:      connect.ErrProhibited,
		podAddress + ":9":             connect.ErrRefused, // the pod's own answer
	} {
		if c, err := apiserver(t.Context(), "tcp", target); !errors.Is(err, want) {
			t.Errorf("CONNECT %s: %v %v, want %v", target, c, err, want)
		}
	}

	// A client that is killed leaves its tables, and starts again over them. Neither
	// end of a connection learns of it.
	stream := w.hold(apiserver, podAddress+":7")
	stream.say()
	client.Kill()
	w.has(w.shoot, "nft table rhizome-masquerade-tun0", "nft table rhizome-gate-tun0")
	asked := make(chan error, 1)
	go func() { asked <- w.hello(apiserver) }() // waits for the client
	client = w.start(w.shoot, "vpn-client", clientFlags...)
	if err := <-asked; err != nil {
		t.Errorf("a request while the client was away: %v", err)
	}
	stream.say()

	// So does a server.
	server.Kill()
	server = w.start(w.seed, "vpn-server", serverFlags...)
	w.mustHello(apiserver)
	if code := server.Stop(); code != 0 {
		t.Errorf("server: exit code %d", code)
	}
	w.unchanged(w.seed, before["seed"])
	server = w.start(w.seed, "vpn-server", serverFlags...)
	w.mustHello(apiserver)

	if code := client.Stop(); code != 0 {
		t.Errorf("client: exit code %d", code)
	}
	if code := server.Stop(); code != 0 {
		t.Errorf("server: exit code %d", code)
	}
	w.unchanged(w.seed, before["seed"])
	w.unchanged(w.shoot, before["shoot"])
}

// selector is what kube-apiserver would dial by: the configuration that egress
// makes for a vpn-server, read back.
func (w *vpnWorld) selector() *egress.Selector {
	w.t.Helper()
	cert, key := w.Files("kube-apiserver", tunneltest.CertOptions{CommonName: "kube-apiserver", Cluster: cluster, Client: true})
	made, err := egress.Generate(&egress.Options{
		Mode: egress.VPNServer, URL: "https://" + w.seed.Addr.String() + ":9443",
		CABundle: w.File, ClientCert: cert, ClientKey: key,
	})
	must(w.t, err)
	config, err := egress.Parse(made.YAML())
	must(w.t, err)
	must(w.t, config.Validate().Err())
	return &egress.Selector{Config: config, Dial: dialFrom(w.seed)}
}

// hello asks the pod, which must see the shoot's end of the tunnel ask.
func (w *vpnWorld) hello(dial connect.DialFunc) error {
	c := clitest.Client(w.t, &http.Transport{DialContext: dial, DisableKeepAlives: true})
	status, body, err := clitest.TryGet(w.t.Context(), c, "http://"+podAddress+":"+podPort+"/")
	if err == nil && (status != http.StatusOK || body != "hello "+shootAddress) {
		err = fmt.Errorf("got %d %q", status, body)
	}
	return err
}

// mustHello is hello as soon as there is a way, after a restart.
func (w *vpnWorld) mustHello(dial connect.DialFunc) {
	w.t.Helper()
	clitest.Eventually(w.t, func() error { return w.hello(dial) })
}

// mustNotEnter has a host try to open a connection to an address of the other in the
// tunnel, where somebody listens.
func (w *vpnWorld) mustNotEnter(from, to *netlab.Host, address string) {
	w.t.Helper()
	w.echo(to, "0.0.0.0:7777")
	open, err := dialFrom(from)(w.t.Context(), "tcp", to.Addr.String()+":7777")
	if err != nil {
		w.t.Fatalf("beside the tunnel: %v", err)
	}
	open.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 1500*time.Millisecond) // with one SYN sent again
	defer cancel()
	if c, err := dialFrom(from)(ctx, "tcp", address+":7777"); err == nil {
		c.Close()
		w.t.Errorf("%s opens a connection to %s", from.Name, to.Name)
	}
}

// hold opens a connection that lives through what comes.
func (w *vpnWorld) hold(dial connect.DialFunc, address string) *hold {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), clitest.Patience)
	defer cancel()
	c, err := dial(ctx, "tcp", address)
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return &hold{t: w.t, c: c}
}

// testVPNHighlyAvailable is two servers, one client beside kube-apiserver and one in
// the shoot, which comes in by the entrypoint and is told to the servers by a
// header.
func testVPNHighlyAvailable(t *testing.T, bin string) {
	w, servers := newVPNWorld(t, bin, "vpn-server-0", "vpn-server-1", "front")
	front := servers[2]
	servers = servers[:2]
	before := map[string]map[string]bool{"seed": w.state(w.seed), "shoot": w.state(w.shoot), "server": w.state(servers[0])}

	const seedAddress, shootBond = "fd8f:6d53:b97a:1::a:1", "fd8f:6d53:b97a:1::b:0"
	var running []*clitest.Process
	start := func(i int) *clitest.Process {
		return w.start(servers[i], "vpn-server", w.serverFlags(servers[i],
			"--peer-addresses", "seed=fd8f:6d53:b97a:1::a:0/112,192.168.123.9", "--peer-addresses", "shoot=fd8f:6d53:b97a:1::b:0/112,192.168.123.10",
			"--peer-networks", "shoot="+podNetwork)...)
	}
	var routes strings.Builder
	routes.WriteString("listeners:\n- {address: \":8132\", by: [header], headers: [Reversed-VPN]}\nroutes:\n")
	seedFlags := w.clientFlags("seed", "--address", seedAddress+"/96", "--address", "192.168.123.9/24",
		"--route", podNetwork+"="+shootBond+",src=192.168.123.9")
	shootFlags := w.clientFlags("shoot", "--address", shootBond+"/96", "--address", "192.168.123.10/24",
		"--network", podNetwork, "--proxy", "http://"+front.Addr.String()+":8132")
	for i, h := range servers {
		running = append(running, start(i))
		value := "outbound|9444||" + vpnHost(h)
		routes.WriteString("- {name: " + h.Name + ", headerValues: [\"" + value + "\"], backends: [\"" + h.Addr.String() + ":9444\"]}\n")
		seedFlags = append(seedFlags, "--server", "https://"+h.Addr.String()+":9444")
		shootFlags = append(shootFlags, "--server", "https://"+vpnHost(h)+":9444", "--proxy-header", entrypoint.HeaderReversedVPN+": "+value)
	}
	config := w.Path("front.yaml")
	must(t, os.WriteFile(config, []byte(routes.String()), 0o600))
	w.start(front, "entrypoint", "--config", config)
	seed := w.start(w.seed, "vpn-client", seedFlags...)
	shoot := w.start(w.shoot, "vpn-client", shootFlags...)
	w.links(w.seed, 2)
	w.links(w.shoot, 2)

	direct := dialFrom(w.seed)
	w.mustHello(direct)
	if err := w.ping(w.seed, shootBond); err != nil {
		t.Error(err)
	}
	w.has(w.seed, "link bond0", "address "+seedAddress+"/96", "nft table rhizome-firewall-bond0")
	w.has(w.shoot, "link bond0", "nft table rhizome-gate-bond0")
	w.mustNotEnter(w.shoot, w.seed, "192.168.123.9")
	w.mustNotEnter(w.seed, w.shoot, "192.168.123.10")
	stream := w.hold(direct, podAddress+":7")
	stream.say()
	// A server is killed, and comes back; then the other one is rolled.
	running[0].Kill()
	stream.say()
	w.links(w.seed, 1)
	w.links(w.shoot, 1)
	running[0] = start(0)
	w.links(w.seed, 2)
	w.links(w.shoot, 2)
	stream.say()
	if code := running[1].Stop(); code != 0 {
		t.Errorf("server: exit code %d", code)
	}
	stream.say()
	w.mustHello(direct)
	running[1] = start(1)
	w.links(w.shoot, 2)

	for _, p := range append(running, seed, shoot) {
		if code := p.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	w.unchanged(w.seed, before["seed"])
	w.unchanged(w.shoot, before["shoot"])
	w.unchanged(servers[0], before["server"])
}

// links waits until a client has so many links that are up.
func (w *vpnWorld) links(h *netlab.Host, want int) {
	w.t.Helper()
	c := w.admin(h)
	clitest.Eventually(w.t, func() error {
		_, body, err := clitest.TryGet(w.t.Context(), c, "http://127.0.0.1:"+adminPort+"/status")
		if n := strings.Count(body, `"state": "up"`); err == nil && n != want {
			err = errors.New(body)
		}
		return err
	})
}
