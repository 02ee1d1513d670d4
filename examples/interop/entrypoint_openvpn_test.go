package interop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// testEntrypointOpenVPN runs a session of OpenVPN through port 8132 while the
// route table is replaced, and looks for a packet that is lost.
//
//	client 10.89.1.2 ── 10.89.1.1 entrypoint 10.89.2.1 ── 10.89.2.2 server
//	       10.90.0.2 ══════════════ OpenVPN ═════════════ 10.90.0.1
//
// The three are hosts of their own, and nobody routes between the two networks:
// what crosses has gone through the entrypoint.
func testEntrypointOpenVPN(t *testing.T, program string) {
	if runtime.GOOS != "linux" {
		t.Skip("network namespaces need linux, this is " + runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		missing(t, "a TUN device and network namespaces need root: run the test as root")
	}
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		missing(t, "no TUN devices: modprobe tun, and mknod /dev/net/tun c 10 200 if need be ("+err.Error()+")")
	} else {
		tun.Close()
	}
	openvpn := needDaemon(t, "openvpn", "apt-get install openvpn")
	need(t, "curl", "apt-get install curl")
	need(t, "ping", "apt-get install iputils-ping")
	files := newVPNFiles(t, openvpn)

	client, middle, server := newHost(t), newHost(t), newHost(t)
	client.connect(t, "10.89.1.2/24", middle, "10.89.1.1/24")
	server.connect(t, "10.89.2.2/24", middle, "10.89.2.1/24")

	// The routes beside the one of the session differ each time, in number too.
	config := func(generation int, session bool) string {
		c := `
listeners:
- address: 10.89.1.1:8132
  by: [header]
  headers: [Reversed-VPN]
routes:
`
		if session {
			c += fill(`- name: session
  headerValues: ["$VPN"]
  backends: ["10.89.2.2:1194"]
`, "$VPN", vpnAlpha)
		}
		for i := range 1 + generation%5 {
			c += fmt.Sprintf(`- name: generation-%d-%d
  headerValues: ["outbound|1194||vpn-seed-server.shoot--dev--%[1]d-%[2]d.svc.cluster.local"]
  backends: ["10.89.2.2:%[3]d"]
`, generation, i, 2000+i)
		}
		return c
	}
	serverLog := counterpart(t, nsenter, server.args(openvpn, files.server("10.89.2.2")...)...)
	waitFor(t, "OpenVPN's server", func() (bool, string) {
		log := serverLog.String()
		return strings.Contains(log, "Initialization Sequence Completed"), log
	})
	const admin = "127.0.0.1:8080"
	e := newEntry(t, admin, config(0, true), append([]string{nsenter}, middle.args(program)...)...)
	e.get = func(page string) ([]byte, error) {
		out, errs, code := middle.run(t, "curl", "-q", "-sS", "-f", "http://"+admin+page)
		if code != 0 {
			return nil, errors.New(errs)
		}
		return []byte(out), nil
	}
	waitFor(t, "the entrypoint", func() (bool, string) {
		page, err := e.get("/readyz")
		return err == nil, fmt.Sprintf("%s%v", page, err)
	})

	connected := func(t *testing.T, log *syncBuffer) {
		t.Helper()
		waitFor(t, "OpenVPN's client", func() (bool, string) {
			return strings.Contains(log.String(), "Initialization Sequence Completed"), log.String()
		})
	}
	t.Run("HTTP1.1", func(t *testing.T) {
		log := counterpart(t, nsenter, client.args(openvpn, files.client(vpnAlpha, "--http-proxy-option", "VERSION", "1.1")...)...)
		connected(t, log)
		if !strings.Contains(log.String(), ":1194 HTTP/1.1'") {
			t.Errorf("no HTTP/1.1 in\n%s", log)
		}
		noLoss(t, <-client.ping(t, "-c", "3"))
	})
	t.Run("Unknown", func(t *testing.T) {
		log := counterpart(t, nsenter, client.args(openvpn, files.client(vpnNobody)...)...)
		waitFor(t, "a refusal", func() (bool, string) {
			return strings.Contains(log.String(), " 403 "), log.String()
		})
	})
	t.Run("RoutesChange", func(t *testing.T) {
		log := counterpart(t, nsenter, client.args(openvpn, files.client(vpnAlpha)...)...)
		connected(t, log)
		if !strings.Contains(log.String(), ":1194 HTTP/1.0'") {
			t.Errorf("no HTTP/1.0 in\n%s", log)
		}
		noLoss(t, <-client.ping(t, "-c", "3", "-s", "8000"))
		sessions := strings.Count(serverLog.String(), "Peer Connection Initiated")

		// Until the entrypoint has had so many tables, and ten times that have
		// been offered.
		const tables = 8
		seen := make(map[string]bool)
		written, sent := 0, 0
		for deadline := time.Now().Add(2 * time.Minute); len(seen) < tables || written < 10*tables; {
			if time.Now().After(deadline) {
				t.Fatalf("after 2 min the entrypoint has had %d tables of %d: %v", len(seen), written, seen)
			}
			pings := client.ping(t, "-i", "0.05", "-c", "40")
			for out := ""; out == ""; {
				written++
				e.replace(t, config(written, true))
				select {
				case out = <-pings:
					sent += noLoss(t, out)
				case <-time.After(100 * time.Millisecond):
				}
				_, routes := e.stats(t)
				for name := range routes {
					if strings.HasSuffix(name, "-0") { // the first of each table
						seen[name] = true
					}
				}
			}
		}
		t.Logf("%d packets while the routes were replaced %d times, of which the entrypoint was seen to have %d", sent, written, len(seen))

		// Even without its route the session goes on; only a new one does not
		// come about.
		e.replace(t, config(written+1, false))
		e.waitRoute(t, "session", false)
		noLoss(t, <-client.ping(t, "-i", "0.05", "-c", "20"))
		if _, routes := e.stats(t); routes["session"].Conns != 1 {
			t.Errorf("the route that was removed: %+v, want its one connection", routes["session"])
		}
		status, errs, _ := client.run(t, "curl", "-q", "-sS", "-o", "/dev/null", "-w", "%{http_connect}", "--proxytunnel",
			"--proxy", "http://10.89.1.1:8132", "--proxy-header", "Reversed-VPN: "+vpnAlpha, "https://any.example/")
		if status != "403" {
			t.Errorf("CONNECT without a route was answered %s, want 403\n%s", status, errs)
		}

		for _, once := range []string{"Initialization Sequence Completed", "Send to HTTP proxy: 'CONNECT "} {
			if n := strings.Count(log.String(), once); n != 1 {
				t.Errorf("the client says %q %d times, want once", once, n)
			}
		}
		if n := strings.Count(serverLog.String(), "Peer Connection Initiated") - sessions; n != 0 {
			t.Errorf("the server has had %d more sessions", n)
		}
	})
}

// vpnFiles is the PKI of an OpenVPN network.
type vpnFiles struct {
	ca, key    string // key: of tls-auth
	own, their certFiles
}

func newVPNFiles(t *testing.T, openvpn string) *vpnFiles {
	t.Helper()
	dir := t.TempDir()
	ca := must(tunneltest.NewCA("CA of the VPN"))
	files := &vpnFiles{ca: must(ca.WriteFile(dir, "ca")), key: filepath.Join(dir, "ta.key")}
	for name, to := range map[string]*certFiles{"vpn-seed-server": &files.own, "vpn-shoot-client": &files.their} {
		cert := must(ca.Issue(tunneltest.CertOptions{CommonName: name, Server: to == &files.own, Client: to == &files.their}))
		var err error
		if to.cert, to.key, err = cert.WriteFiles(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	if out, errs, code := run(t, nil, openvpn, "--genkey", "secret", files.key); code != 0 {
		t.Fatalf("openvpn --genkey: %s%s", out, errs)
	}
	return files
}

// server are the arguments of a server as a seed runs it, and client those of a
// client that comes to it through the entrypoint.
func (f *vpnFiles) server(addr string) []string {
	return append(f.args(f.own, "0"), "--proto", "tcp-server", "--local", addr, "--port", "1194",
		"--server", "10.90.0.0", "255.255.255.0", "--topology", "subnet", "--dh", "none")
}

func (f *vpnFiles) client(value string, more ...string) []string {
	args := append(f.args(f.their, "1"), "--client", "--nobind", "--remote-cert-tls", "server",
		"--proto", "tcp-client", "--remote", "vpn-seed-server", "1194", "--connect-retry", "1", "5",
		"--http-proxy", "10.89.1.1", "8132", "--http-proxy-option", "CUSTOM-HEADER", "Reversed-VPN", value)
	return append(args, more...)
}

func (f *vpnFiles) args(own certFiles, direction string) []string {
	return []string{"--dev", "tun", "--ca", f.ca, "--cert", own.cert, "--key", own.key,
		"--tls-auth", f.key, direction, "--auth", "SHA256", "--data-ciphers", "AES-256-GCM",
		"--keepalive", "10", "30", "--verb", "3"}
}

// nsenter runs a program in another namespace, and becomes it.
const nsenter = "nsenter"

// host is a network namespace: its network and nothing else is its own.
type host struct{ path string }

// newHost makes a host that lasts as long as the test or something on it.
func newHost(t *testing.T) *host {
	t.Helper()
	need(t, nsenter, "apt-get install util-linux")
	need(t, "ip", "apt-get install iproute2")
	var ns *os.File
	tunneltest.InNetns(t, func(t *testing.T) {
		ns = must(os.Open("/proc/thread-self/ns/net"))
	})
	t.Cleanup(func() { ns.Close() })
	return &host{path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())}
}

// args are the arguments of nsenter for a program on h.
func (h *host) args(program string, args ...string) []string {
	return append([]string{"--net=" + h.path, "--", program}, args...)
}

// run runs a program on h to its end.
func (h *host) run(t *testing.T, program string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return run(t, nil, nsenter, h.args(program, args...)...)
}

// connect lays a cable between h and another host.
func (h *host) connect(t *testing.T, addr string, other *host, otherAddr string) {
	t.Helper()
	ip := func(on *host, args string) {
		t.Helper()
		if out, errs, code := on.run(t, "ip", strings.Fields(args)...); code != 0 {
			t.Fatalf("ip %s: %s%s", args, out, errs)
		}
	}
	// By the address: one host may have several.
	far := "to" + strings.NewReplacer(".", "", "/", "").Replace(addr)
	ip(h, "link add eth0 type veth peer name "+far+" netns "+other.path)
	ip(h, "addr add "+addr+" dev eth0")
	ip(h, "link set eth0 up")
	ip(other, "addr add "+otherAddr+" dev "+far)
	ip(other, "link set "+far+" up")
}

// ping pings the server in the tunnel and gives what the program has to say in
// the end, when it has waited long enough for the last answer.
func (h *host) ping(t *testing.T, args ...string) <-chan string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), nsenter, h.args("ping", append([]string{"-n", "-q", "-W", "20", "10.90.0.1"}, args...)...)...)
	result := make(chan string, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			out = fmt.Append(out, err)
		}
		result <- string(out) + "\n"
	}()
	return result
}

// noLoss checks the last words of ping and returns how many packets it has sent.
func noLoss(t *testing.T, out string) (sent int) {
	t.Helper()
	i := strings.LastIndex(out, "statistics ---\n")
	if i < 0 {
		t.Fatalf("ping: %s", out)
	}
	var received int
	if n, _ := fmt.Sscanf(out[i:], "statistics ---\n%d packets transmitted, %d received", &sent, &received); n != 2 || sent == 0 {
		t.Fatalf("ping: %s", out)
	}
	if received != sent {
		t.Errorf("%d of %d packets were lost:\n%s", sent-received, sent, out)
	}
	return sent
}
