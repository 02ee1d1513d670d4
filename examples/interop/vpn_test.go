package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// vpn is a packet tunnel with one leg, and a pod behind it:
//
//	kube-apiserver's code, curl ─ CONNECT, mTLS ─► vpn-server ─ tun0 ◄─ TLS ─ vpn-client ─► pod
//	(seed)                                         (seed)                     (shoot)
type vpn struct {
	dir               string
	seed, shoot, node *netlab.Host
}

const (
	vpnPod  = "10.250.0.10"
	vpnDoor = "10.88.0.1:9443"
)

func newVPN(t *testing.T) *vpn {
	t.Helper()
	lab, err := netlab.New()
	if err != nil {
		missing(t, err.Error())
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	v := &vpn{dir: t.TempDir(), seed: must(lab.Host("seed")), shoot: must(lab.Host("shoot")), node: must(lab.Host("node"))}
	cable := func(a *netlab.Host, aName, aAddr string, b *netlab.Host, bName, bAddr string) {
		t.Helper()
		if err := lab.Cable(a, aName, netip.MustParsePrefix(aAddr), b, bName, netip.MustParsePrefix(bAddr)); err != nil {
			t.Fatal(err)
		}
	}
	cable(v.seed, "eth0", "10.88.0.1/24", v.shoot, "eth0", "10.88.0.2/24")
	cable(v.shoot, "pods0", "10.250.0.1/24", v.node, "eth0", vpnPod+"/24")
	build(t, v.dir, "./examples/seed/vpn-server", "./examples/shoot/vpn-client")
	ca := must(tunneltest.NewCA("vpn"))
	must(ca.WriteFile(v.dir, "ca"))
	for _, name := range []string{"server", "shoot", "apiserver"} {
		cert := must(ca.Issue(tunneltest.CertOptions{CommonName: name, Cluster: "alpha", IPs: []string{"10.88.0.1"}}))
		if _, _, err := cert.WriteFiles(v.dir, name); err != nil {
			t.Fatal(err)
		}
	}
	v.run(t, v.seed, "vpn-server", "server", "--client-ca", v.file("ca.crt"), "--cluster", "alpha",
		"--mode", "tun", "--listen", "10.88.0.1:9444", "--address", "192.168.123.1/24", "--shoot-network", "10.250.0.0/24",
		"--peer-addresses", "shoot=192.168.123.2", "--peer-networks", "shoot=10.250.0.0/24",
		"--connect-listen", vpnDoor, "--connect-client-ca", v.file("ca.crt"))
	v.run(t, v.shoot, "vpn-client", "shoot", "--server-ca", v.file("ca.crt"), "--server", "https://10.88.0.1:9444",
		"--mode", "tun", "--address", "192.168.123.2/24", "--network", "10.250.0.0/24")
	return v
}

func (v *vpn) file(name string) string { return filepath.Join(v.dir, name) }

// run starts a program with its certificate until the end of the test, when
// SIGTERM has to end it without an error.
func (v *vpn) run(t *testing.T, h *netlab.Host, program, certificate string, args ...string) {
	t.Helper()
	cmd := exec.Command(v.file(program), append(args, "--tls-cert", v.file(certificate+".crt"), "--tls-key", v.file(certificate+".key"))...)
	log := new(syncBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(20 * time.Second); err != nil {
			t.Errorf("%s: %v", program, err)
		}
		if t.Failed() {
			t.Logf("%s said\n%s", program, log)
		}
	})
}

// serve has the pod answer over HTTP with the address that asks.
func (v *vpn) serve(t *testing.T) {
	t.Helper()
	var l net.Listener
	if err := v.node.Do(func() (err error) {
		l, err = net.Listen("tcp", vpnPod+":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RemoteAddr)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { s.Close(); <-done })
}

// TestVPN: what enters the packet tunnel by its CONNECT port.
func TestVPN(t *testing.T) {
	curl := need(t, "curl", "apt-get install curl")
	v := newVPN(t)
	v.serve(t)
	dial := lookup(t, &egress.Options{
		Mode: egress.VPNServer, URL: "https://" + vpnDoor,
		CABundle: v.file("ca.crt"), ClientCert: v.file("apiserver.crt"), ClientKey: v.file("apiserver.key"),
	})
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = v.seed.Do(func() error { // where kube-apiserver runs
				c, err = dial(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	t.Run("APIServer", func(t *testing.T) {
		waitFor(t, "the tunnel", func() (bool, string) {
			res, err := client.Get("http://" + vpnPod + "/")
			if err != nil {
				return false, err.Error()
			}
			res.Body.Close()
			return true, ""
		})
		if from := get(t, client, "http://"+vpnPod+"/"); !strings.HasPrefix(from, "10.250.0.1:") {
			t.Errorf("the pod was asked by %s, want the shoot client", from)
		}
		// Nobody listens there, and it says so in kube-apiserver's words.
		if _, err := client.Get("http://" + vpnPod + ":81/"); err == nil || !strings.Contains(err.Error(), "502") {
			t.Errorf("a closed port: %v, want status 502", err)
		}
		// It is no way to anywhere else.
		if _, err := client.Get("http://10.88.0.2/"); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("outside of the shoot's networks: %v, want status 403", err)
		}
	})
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), curl, append([]string{"-q", "-sS", "--max-time", "20", "--proxy", "https://" + vpnDoor, "--proxytunnel"}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		p, err := v.seed.Start(cmd)
		if err == nil {
			err = p.Wait()
		}
		return out.String(), err
	}
	t.Run("curl", func(t *testing.T) {
		out, err := run("--proxy-cacert", v.file("ca.crt"), "--proxy-cert", v.file("apiserver.crt"), "--proxy-key", v.file("apiserver.key"), "http://"+vpnPod+"/")
		if err != nil || !strings.HasPrefix(out, "10.250.0.1:") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("NoCertificate", func(t *testing.T) {
		var exit *exec.ExitError
		if out, err := run("--proxy-cacert", v.file("ca.crt"), "http://"+vpnPod+"/"); !errors.As(err, &exit) {
			t.Errorf("%v: %s", err, out)
		}
	})
}
