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

// contender is a way from the seed to the shoot.
type contender struct {
	name   string
	target string // the shoot's address on it
	start  func(w *world) error
}

const ours = "rhizome"

// contenders are the ways, which are all there at once.
var contenders = []contender{
	{"cable", "10.80.0.2", nil},
	{ours, "10.81.0.2", (*world).startTUN},
	{"rhizome-tap", "10.82.0.2", (*world).startTAP},
	{"openvpn", "10.83.0.2", (*world).startOpenVPN},
}

func names() (list []string) {
	for _, c := range contenders {
		list = append(list, c.name)
	}
	return list
}

// world is two hosts with a cable between them.
type world struct {
	dir         string
	lab         *netlab.Lab
	seed, shoot *netlab.Host
}

const cluster = "shoot--demo"

func newWorld(ctx context.Context, dir string) (_ *world, err error) {
	if err := build(ctx, dir); err != nil {
		return nil, err
	}
	w := &world{dir: dir}
	if w.lab, err = netlab.New(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.lab.Close()
		}
	}()
	if w.seed, err = w.lab.Host("seed"); err != nil {
		return nil, err
	}
	if w.shoot, err = w.lab.Host("shoot"); err != nil {
		return nil, err
	}
	if err = w.lab.Cable(w.seed, "eth0", netip.MustParsePrefix("10.80.0.1/24"), w.shoot, "eth0", netip.MustParsePrefix("10.80.0.2/24")); err != nil {
		return nil, err
	}
	return w, w.certificates()
}

// build compiles our programs, in the module that they are of.
func build(ctx context.Context, dir string) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/rhizome-tunnel/rhizome").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./examples/seed/vpn-server", "./examples/shoot/vpn-client")
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// certificates makes a CA and a certificate for each side.
func (w *world) certificates() error {
	ca, err := tunneltest.NewCA("packet")
	if err != nil {
		return err
	}
	if _, err := ca.WriteFile(w.dir, "ca"); err != nil {
		return err
	}
	for _, o := range []tunneltest.CertOptions{
		{CommonName: "server", Cluster: cluster, IPs: []string{"10.80.0.1"}, Server: true},
		{CommonName: "shoot", Cluster: cluster, Client: true},
		{CommonName: "seed", Cluster: cluster, Client: true},
	} {
		cert, err := ca.Issue(o)
		if err != nil {
			return err
		}
		if _, _, err := cert.WriteFiles(w.dir, o.CommonName); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// start starts a program whose words go to a file.
func (w *world) start(h *netlab.Host, program string, args ...string) error {
	log, err := os.CreateTemp(w.dir, filepath.Base(program)+".*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	_, err = h.Start(cmd)
	return err
}

func (w *world) logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(w.file("*.log"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		fmt.Fprintf(&b, "--- %s\n%s", filepath.Base(f), text)
	}
	return b.String()
}

// startAll starts everything and waits until each target answers.
func (w *world) startAll(ctx context.Context) error {
	for _, c := range contenders {
		if c.start != nil {
			if err := c.start(w); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	if err := w.start(w.shoot, "iperf3", "-s"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("no answer within 30 s"))
	defer cancel()
	for _, c := range contenders {
		for {
			_, err := output(ctx, w.seed, "ping", "-q", "-c", "1", "-W", "1", c.target)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %w: %w", c.name, context.Cause(ctx), err)
			}
		}
	}
	return nil
}

// startTUN is one leg without a switch between: the server has a device.
func (w *world) startTUN() error {
	err := w.start(w.seed, w.file("vpn-server"), append(w.server("4431"),
		"--mode", "tun", "--device", "tun1", "--address", "10.81.0.1/24",
		"--peer-addresses", "shoot=10.81.0.2/32")...)
	if err != nil {
		return err
	}
	return w.start(w.shoot, w.file("vpn-client"), append(w.client("shoot", "4431"),
		"--mode", "tun", "--device", "tun1", "--address", "10.81.0.2/24")...)
}

// startTAP is one leg of the highly available form.
func (w *world) startTAP() error {
	err := w.start(w.seed, w.file("vpn-server"), append(w.server("4432"), "--mode", "tap",
		"--peer-addresses", "seed=10.82.0.1/32", "--peer-addresses", "shoot=10.82.0.2/32")...)
	if err != nil {
		return err
	}
	for name, h := range map[string]*netlab.Host{"seed": w.seed, "shoot": w.shoot} {
		address := map[string]string{"seed": "10.82.0.1/24", "shoot": "10.82.0.2/24"}[name]
		err := w.start(h, w.file("vpn-client"), append(w.client(name, "4432"),
			"--mode", "tap", "--bond", "user", "--device", "tap1", "--address", address)...)
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) server(port string) []string {
	return []string{
		"--listen", "10.80.0.1:" + port, "--cluster", cluster,
		"--tls-cert", w.file("server.crt"), "--tls-key", w.file("server.key"), "--client-ca", w.file("ca.crt"),
	}
}

func (w *world) client(name, port string) []string {
	return []string{
		"--server", "https://10.80.0.1:" + port, "--server-ca", w.file("ca.crt"),
		"--tls-cert", w.file(name + ".crt"), "--tls-key", w.file(name + ".key"),
		"--firewall=false", // the load's server is on the host itself
	}
}

// startOpenVPN is OpenVPN over TCP with the cipher that its seeds use, and all else
// as it comes.
func (w *world) startOpenVPN() error {
	common := func(name string) []string {
		return []string{
			"--dev", "tun9", "--dev-type", "tun", "--data-ciphers", "AES-256-GCM", "--auth", "SHA256", "--verb", "3",
			"--ca", w.file("ca.crt"), "--cert", w.file(name + ".crt"), "--key", w.file(name + ".key"),
		}
	}
	err := w.start(w.seed, "openvpn", append(common("server"), "--proto", "tcp-server", "--local", "10.80.0.1", "--port", "1194",
		"--server", "10.83.0.0", "255.255.255.0", "--topology", "subnet", "--dh", "none")...)
	if err != nil {
		return err
	}
	return w.start(w.shoot, "openvpn", append(common("shoot"), "--client", "--nobind", "--proto", "tcp-client",
		"--remote", "10.80.0.1", "1194", "--connect-retry", "1", "1")...)
}
