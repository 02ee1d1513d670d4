//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Addresses. Those on the tunnel's network are in both families: routes lead over
// IPv6 to shoots that have IPv4.
const (
	cluster      = "shoot--demo"
	tunnelV6     = "fd8f:6d53:b97a:1::"
	podNetwork   = "10.250.0.0/24"
	podAddress   = "10.250.0.10"
	serverPort   = "8443"
	adminAddress = "127.0.0.1:9000"
	pathsAddress = "127.0.0.1:9001"
)

var target = netip.MustParseAddrPort(podAddress + ":7")

// world is the hosts and the programs on them.
type world struct {
	backend string // user or kernel
	dir     string // certificates and logs
	bin     string
	lab     *netlab.Lab

	seed, pod       *netlab.Host
	servers, shoots [2]*netlab.Host

	serverRuns, clientRuns [2]*netlab.Process
}

// newWorld makes the hosts:
//
//	seed ──┐             ┌── shoot-0 ──┐
//	       internet ─────┤             pod
//	server-0 ──┤         └── shoot-1 ──┘
//	server-1 ──┘
func newWorld(backend, bin, dir string) (_ *world, err error) {
	w := &world{backend: backend, bin: bin, dir: dir}
	if w.lab, err = netlab.New(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.lab.Close()
		}
	}()
	for _, h := range []struct {
		name string
		host **netlab.Host
	}{
		{"seed", &w.seed}, {"server-0", &w.servers[0]}, {"server-1", &w.servers[1]},
		{"shoot-0", &w.shoots[0]}, {"shoot-1", &w.shoots[1]}, {"pod", &w.pod},
	} {
		if *h.host, err = w.lab.Host(h.name); err != nil {
			return nil, err
		}
	}
	if err = w.lab.Internet(w.seed, w.servers[0], w.servers[1], w.shoots[0], w.shoots[1]); err != nil {
		return nil, err
	}
	var none netip.Prefix
	for i, s := range w.shoots {
		node := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 250, 0, byte(i + 1)}), 24)
		if err = w.lab.Cable(w.pod, fmt.Sprintf("node%d", i), none, s, "pods0", node); err != nil {
			return nil, err
		}
	}
	if err = w.pod.Bridge("pods0", netip.MustParsePrefix(podAddress+"/24"), "node0", "node1"); err != nil {
		return nil, err
	}
	// Without masquerade the pod must know the way back: a source for each path.
	for i := range w.shoots {
		if err = w.pod.Route(netip.PrefixFrom(source(i), 32), netip.AddrFrom4([4]byte{10, 250, 0, byte(i + 1)})); err != nil {
			return nil, err
		}
	}
	return w, w.certificates()
}

// source is the seed's address on the path through a shoot client.
func source(path int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 255, byte(1 + path)}) }

// memberV4 and memberV6 are a shoot client's addresses on the tunnel's network.
func memberV4(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 255, byte(10 + i)}) }
func memberV6(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("%sb:%x", tunnelV6, i)) }

const seedV6 = tunnelV6 + "a:1"

// certificates makes a CA and a key pair for each program.
func (w *world) certificates() error {
	ca, err := tunneltest.NewCA("ha")
	if err != nil {
		return err
	}
	if _, err := ca.WriteFile(w.dir, "ca"); err != nil {
		return err
	}
	for _, h := range []*netlab.Host{w.seed, w.servers[0], w.servers[1], w.shoots[0], w.shoots[1]} {
		cert, err := ca.Issue(tunneltest.CertOptions{CommonName: h.Name, Cluster: cluster, IPs: []string{h.Addr.String()}})
		if err != nil {
			return err
		}
		if _, _, err := cert.WriteFiles(w.dir, h.Name); err != nil {
			return err
		}
	}
	return nil
}

// start starts one of the programs on a host, with its certificate where it has
// one. What it says goes to a file.
func (w *world) start(h *netlab.Host, program string, args ...string) (*netlab.Process, error) {
	log, err := os.OpenFile(filepath.Join(w.dir, h.Name+"."+program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(w.bin, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	return h.Start(cmd)
}

func (w *world) startServer(i int) (err error) {
	h := w.servers[i]
	args := []string{
		"--listen", "0.0.0.0:" + serverPort, "--cluster", cluster, "--mode", "tap",
		"--tls-cert", w.file(h.Name + ".crt"), "--tls-key", w.file(h.Name + ".key"), "--client-ca", w.file("ca.crt"),
		"--peer-addresses", fmt.Sprintf("seed=%s/128,%s/32,%s/32", seedV6, source(0), source(1)),
		"--admin-listen", adminAddress,
	}
	for j, s := range w.shoots {
		args = append(args,
			"--peer-addresses", fmt.Sprintf("%s=%s/128,%s/32", s.Name, memberV6(j), memberV4(j)),
			"--peer-networks", s.Name+"="+podNetwork)
	}
	w.serverRuns[i], err = w.start(h, "vpn-server", args...)
	return err
}

// clientArgs are the flags that all vpn-clients have.
func (w *world) clientArgs(h *netlab.Host, addresses ...string) []string {
	args := []string{
		"--mode", "tap", "--bond", w.backend, "--device", "bond0", "--admin-listen", adminAddress,
		"--tls-cert", w.file(h.Name + ".crt"), "--tls-key", w.file(h.Name + ".key"), "--server-ca", w.file("ca.crt"),
	}
	for _, s := range w.servers {
		args = append(args, "--server", "https://"+s.Addr.String()+":"+serverPort)
	}
	for _, a := range addresses {
		args = append(args, "--address", a)
	}
	return args
}

func (w *world) startSeed() error {
	args := w.clientArgs(w.seed, seedV6+"/96", source(0).String()+"/24", source(1).String()+"/24")
	if _, err := w.start(w.seed, "vpn-client", append(args, w.filter("--firewall"))...); err != nil {
		return err
	}
	args = []string{
		"--network", podNetwork, "--device", "bond0", "--admin-listen", pathsAddress, "--members", adminAddress,
		"--probe", "icmp", "--probe-behind", "tcp://" + target.String(),
	}
	for j, s := range w.shoots {
		args = append(args, "--path", fmt.Sprintf("%s=%s,src=%s", s.Name, memberV6(j), source(j)))
	}
	_, err := w.start(w.seed, "path-controller", args...)
	return err
}

func (w *world) startShoot(i int) (err error) {
	args := append(w.clientArgs(w.shoots[i], memberV6(i).String()+"/96", memberV4(i).String()+"/24"),
		"--network", podNetwork, w.filter("--masquerade"))
	w.clientRuns[i], err = w.start(w.shoots[i], "vpn-client", args...)
	return err
}

// filter is a flag that needs nftables, which the small kernels that have bonding
// for tests lack: return routes stand in for masquerade there.
func (w *world) filter(flag string) string { return fmt.Sprintf("%s=%v", flag, w.backend == "user") }

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// startAll starts the programs and waits until traffic passes.
func (w *world) startAll(ctx context.Context) error {
	for i := range w.servers {
		if err := w.startServer(i); err != nil {
			return err
		}
	}
	for i := range w.shoots {
		if err := w.startShoot(i); err != nil {
			return err
		}
	}
	if err := w.startSeed(); err != nil {
		return err
	}
	return w.settled(ctx)
}

// close ends everything.
func (w *world) close() error { return w.lab.Close() }

// logs is what each program said last, in so many lines.
func (w *world) logs(most int) string {
	var b strings.Builder
	files, _ := filepath.Glob(w.file("*.log"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), strings.Join(lines[max(0, len(lines)-most):], "\n"))
	}
	return b.String()
}

var errUnsettled = errors.New("the programs did not find together")

// settled waits until every link is up, every server reaches every member, and
// the path that is preferred is in use.
func (w *world) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errUnsettled)
	defer cancel()
	var why string
	for {
		if why = w.unsettled(); why == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), why)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
