//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// vpnWorld is hosts with a router between them, and behind the shoot a pod that has
// no route but to its own network:
//
//	seed ─── internet ─── shoot ─── pod
//	10.9.2.2              10.9.3.2
//	                      10.250.0.1/24 ─ 10.250.0.2
type vpnWorld struct {
	*clitest.CA
	t     *testing.T
	bin   string
	lab   *netlab.Lab
	seed  *netlab.Host
	shoot *netlab.Host
	pod   *netlab.Host
}

const (
	podNetwork   = "10.250.0.0/24"
	podAddress   = "10.250.0.2"
	shootAddress = "10.250.0.1" // towards the pod
	podPort      = "8080"
	adminPort    = "9445"
)

// buildVPN compiles the programs.
func buildVPN(t *testing.T) (bin string) {
	if testing.Short() {
		t.Skip("starts processes: run without -short")
	}
	const examples = "github.com/rhizome-tunnel/rhizome/examples/"
	return clitest.Build(t, examples+"seed/vpn-server", examples+"shoot/vpn-client", examples+"seed/entrypoint")
}

// newVPNWorld makes the hosts; more is the names of other hosts of the seed.
func newVPNWorld(t *testing.T, bin string, more ...string) (w *vpnWorld, others []*netlab.Host) {
	lab, err := netlab.New()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root")
	}
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	w = &vpnWorld{CA: clitest.NewCA(t), t: t, bin: bin, lab: lab}
	host := func(name string) *netlab.Host {
		h, err := lab.Host(name)
		must(t, err)
		return h
	}
	w.seed, w.shoot, w.pod = host("seed"), host("shoot"), host("pod")
	must(t, w.seed.Do(func() error {
		probe := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "probe"}, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(probe); err != nil {
			t.Skipf("a TUN device: %v: run the test as root, with /dev/net/tun", err)
		}
		return netlink.LinkDel(probe)
	}))
	for _, name := range more {
		others = append(others, host(name))
	}
	must(t, lab.Internet(append([]*netlab.Host{w.seed, w.shoot}, others...)...))
	must(t, lab.Cable(w.shoot, "eth1", netip.MustParsePrefix(shootAddress+"/24"), w.pod, "eth0", netip.MustParsePrefix(podAddress+"/24")))
	w.serve()
	return w, others
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve has the pod say who asks, over HTTP, and echo at the port behind.
func (w *vpnWorld) serve() {
	l := w.listen(w.pod, podAddress+":"+podPort)
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(rw, "hello "+host)
	})}
	var work sync.WaitGroup
	work.Go(func() { _ = s.Serve(l) })
	w.t.Cleanup(func() { s.Close(); work.Wait() })
	w.echo(w.pod, podAddress+":7")
}

// echo starts a server that says what it hears, until that ends.
func (w *vpnWorld) echo(h *netlab.Host, address string) {
	l := w.listen(h, address)
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	w.t.Cleanup(func() { cancel(); l.Close(); work.Wait() })
}

func (w *vpnWorld) listen(h *netlab.Host, address string) (l net.Listener) {
	w.t.Helper()
	must(w.t, h.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	return l
}

// dial dials an address from a host.
func dialFrom(h *netlab.Host) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// start starts a program on a host; its admin pages are open when it returns.
func (w *vpnWorld) start(h *netlab.Host, program string, args ...string) (p *clitest.Process) {
	w.t.Helper()
	must(w.t, h.Do(func() error {
		p = clitest.StartProcess(w.t, filepath.Join(w.bin, program), append(args, "--admin-listen", "127.0.0.1:"+adminPort)...)
		return nil
	}))
	p.Addr("admin") // the last one that it opens
	return p
}

// admin is a client for the admin pages of a host's program.
func (w *vpnWorld) admin(h *netlab.Host) *http.Client {
	return clitest.Client(w.t, &http.Transport{DialContext: dialFrom(h), DisableKeepAlives: true})
}

// ready waits until a host's program says that it is.
func (w *vpnWorld) ready(h *netlab.Host) {
	w.t.Helper()
	c := w.admin(h)
	clitest.Eventually(w.t, func() error {
		status, body, err := clitest.TryGet(w.t.Context(), c, "http://127.0.0.1:"+adminPort+"/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s is not ready: %d %s", h.Name, status, body)
		}
		return err
	})
}

// server makes the flags of a vpn-server on a host.
func (w *vpnWorld) serverFlags(h *netlab.Host, more ...string) []string {
	cert, key := w.Files("server-of-"+h.Name, tunneltest.CertOptions{CommonName: "vpn-server", IPs: []string{h.Addr.String()}, DNS: []string{vpnHost(h)}})
	return append([]string{
		"--listen", ":9444", "--tls-cert", cert, "--tls-key", key, "--client-ca", w.File, "--cluster", cluster,
	}, more...)
}

// vpnHost is the name of a server, which nobody resolves.
func vpnHost(h *netlab.Host) string { return h.Name + "." + cluster + ".svc.cluster.local" }

// clientFlags makes those of a vpn-client whose certificate has a common name.
func (w *vpnWorld) clientFlags(name string, more ...string) []string {
	cert, key := w.Files("client-"+name, tunneltest.CertOptions{CommonName: name, Cluster: cluster, Client: true})
	return append([]string{"--tls-cert", cert, "--tls-key", key, "--server-ca", w.File}, more...)
}

// ping asks an address from a host.
func (w *vpnWorld) ping(h *netlab.Host, address string) error {
	program, err := exec.LookPath("ping")
	if err != nil {
		w.t.Log("no ping in PATH, left out: apt-get install iputils-ping")
		return nil
	}
	var out strings.Builder
	err = h.Do(func() error {
		cmd := exec.Command(program, "-n", "-c", "3", "-i", "0.2", "-W", "3", address)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Run()
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, &out)
	}
	return nil
}

// state is what the kernel has of a host: devices, addresses, routes, and tables of
// nftables. Link-local addresses come and go by themselves, with their devices.
func (w *vpnWorld) state(h *netlab.Host) map[string]bool {
	w.t.Helper()
	all := make(map[string]bool)
	must(w.t, h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			all["link "+l.Attrs().Name] = true
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				all["address "+a.IPNet.String()] = true
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
				continue
			}
			all[fmt.Sprintf("route of table %d: %s", r.Table, r)] = true
		}
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range rules {
			all["rule "+r.String()] = true
		}
		tables, err := nftTables()
		for _, name := range tables {
			all["nft table "+name] = true
		}
		return err
	}))
	return all
}

// nftTables names the tables of nftables in the namespace of this thread, without
// the tool.
func nftTables() (names []string, err error) {
	const getTable, tableName = 1, 1 // NFT_MSG_GETTABLE, NFTA_TABLE_NAME
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|getTable, unix.NLM_F_DUMP)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := r.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		attrs, err := nl.ParseRouteAttr(b[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type == tableName {
				names = append(names, strings.TrimRight(string(a.Value), "\x00"))
			}
		}
	}
	return names, nil
}

// has checks that a host's kernel has what a program should have made.
func (w *vpnWorld) has(h *netlab.Host, wants ...string) {
	w.t.Helper()
	state := w.state(h)
	for _, want := range wants {
		if !state[want] {
			w.t.Errorf("%s has no %s, but %v", h.Name, want, slices.Sorted(maps.Keys(state)))
		}
	}
}

// unchanged waits until a host's kernel is as it was.
func (w *vpnWorld) unchanged(h *netlab.Host, before map[string]bool) {
	w.t.Helper()
	clitest.Eventually(w.t, func() error {
		now := w.state(h)
		if maps.Equal(before, now) {
			return nil
		}
		var diff []string
		for s := range now {
			if !before[s] {
				diff = append(diff, "left over: "+s)
			}
		}
		for s := range before {
			if !now[s] {
				diff = append(diff, "missing: "+s)
			}
		}
		slices.Sort(diff)
		return errors.New(h.Name + ":\n" + strings.Join(diff, "\n"))
	})
}

// hold is a TCP connection through the tunnel that lives through what comes.
type hold struct {
	t *testing.T
	c net.Conn
	n int
}

// say sends a line and hears it again.
func (s *hold) say() {
	s.t.Helper()
	s.n++
	text := fmt.Sprintf("line %d\n", s.n)
	got := make([]byte, len(text))
	must(s.t, s.c.SetDeadline(time.Now().Add(clitest.Patience)))
	if _, err := io.WriteString(s.c, text); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	if _, err := io.ReadFull(s.c, got); err != nil || string(got) != text {
		s.t.Fatalf("%s: %q %v", text, got, err)
	}
}
