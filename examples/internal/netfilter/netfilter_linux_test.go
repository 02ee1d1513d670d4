package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
)

// world is a host on each side of a tunnel, which is a cable here, and what lies
// behind them.
//
//	control ── seed ══ tunnel ══ shoot ── pod
type world struct {
	t                         *testing.T
	control, seed, shoot, pod *netlab.Host
}

const device = "tunnel"

func newWorld(t *testing.T) *world {
	t.Helper()
	lab, err := netlab.New()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root, or as: unshare --user --map-root-user --net go test")
	}
	must(t, err)
	t.Cleanup(func() { lab.Close() })
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close() // IPv6 can be a module that is loaded when it is used
	}
	w := &world{t: t}
	for name, h := range map[string]**netlab.Host{"control": &w.control, "seed": &w.seed, "shoot": &w.shoot, "pod": &w.pod} {
		*h, err = lab.Host(name)
		must(t, err)
	}
	prefix := netip.MustParsePrefix
	for i, family := range []struct{ control, seedIn, seed, shoot, shootOut, pod, rest string }{
		{"10.1.0.2/24", "10.1.0.1/24", "10.2.0.1/24", "10.2.0.2/24", "10.3.0.1/24", "10.3.0.2/24", "10.0.0.0/8"},
		{"fd01::2/64", "fd01::1/64", "fd02::1/64", "fd02::2/64", "fd03::1/64", "fd03::2/64", "fd00::/8"},
	} {
		name := func(s string) string {
			if i == 0 {
				return s
			}
			return s + "6"
		}
		must(t, lab.Cable(w.control, name("eth"), prefix(family.control), w.seed, name("in"), prefix(family.seedIn)))
		must(t, lab.Cable(w.seed, name(device), prefix(family.seed), w.shoot, name(device), prefix(family.shoot)))
		must(t, lab.Cable(w.shoot, name("out"), prefix(family.shootOut), w.pod, name("eth"), prefix(family.pod)))
		addr := func(s string) netip.Addr { return prefix(s).Addr() }
		rest := prefix(family.rest)
		must(t, w.control.Route(rest, addr(family.seedIn)))
		must(t, w.seed.Route(rest, addr(family.shoot)))
		must(t, w.shoot.Route(rest, addr(family.seed)))
	}
	must(t, w.seed.Do(func() error { return Forward([]netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/8")}, nil) }))
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers a connection with the address of who opened it.
func (w *world) serve(h *netlab.Host, address string) {
	w.t.Helper()
	var l net.Listener
	var u net.PacketConn
	must(w.t, h.Do(func() (err error) {
		if l, err = net.Listen("tcp", address); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", address)
		return err
	}))
	w.t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = u.WriteTo([]byte(host), from)
		}
	}()
}

// ask returns what a server says, from a host: empty if nothing comes in time.
func (w *world) ask(h *netlab.Host, network, address string, patience time.Duration) string {
	w.t.Helper()
	answer := ""
	must(w.t, h.Do(func() error {
		c, err := (&net.Dialer{Timeout: patience}).Dial(network, address)
		if err != nil {
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			if _, err := c.Write([]byte("who am I?")); err != nil {
				return nil
			}
		}
		b := make([]byte, 100)
		n, _ := c.Read(b)
		answer = string(b[:n])
		return nil
	}))
	return answer
}

// pings reports whether an echo request is answered, if want says so, or not.
func (w *world) pings(h *netlab.Host, address string, want bool) bool {
	w.t.Helper()
	ping, err := exec.LookPath("ping")
	if err != nil {
		w.t.Log("no ping: install iputils-ping to test with it")
		return true
	}
	patience := unsure
	if want {
		patience = sure
	}
	answered := false
	must(w.t, h.Do(func() error {
		answered = exec.Command(ping, "-c", "1", "-W", fmt.Sprint(patience.Seconds()), address).Run() == nil
		return nil
	}))
	return answered == want
}

const (
	sure   = 5 * time.Second        // for what must come
	unsure = 300 * time.Millisecond // for what must not
)

// list is what nft makes of the rules, without the numbers that change.
func (w *world) list(h *netlab.Host) string {
	w.t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		w.t.Skip("nft is not installed: apt install nftables")
	}
	var out []byte
	must(w.t, h.Do(func() (err error) {
		out, err = exec.Command(nft, "--stateless", "list", "ruleset").CombinedOutput()
		return err
	}))
	return string(out)
}

func (w *world) nft(h *netlab.Host, command string) {
	w.t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		w.t.Skip("nft is not installed: apt install nftables")
	}
	must(w.t, h.Do(func() error {
		out, err := exec.Command(nft, command).CombinedOutput()
		if err != nil {
			w.t.Logf("nft %s: %s", command, out)
		}
		return err
	}))
}

// TestMasquerade: the pod, which has no route back, answers the seed by way of the
// shoot's address; what comes from elsewhere, or goes elsewhere, keeps its source.
func TestMasquerade(t *testing.T) {
	w := newWorld(t)
	networks := []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("10.3.0.0/16"), netip.MustParsePrefix("10.4.0.0/16"), netip.MustParsePrefix("fd03::/64")}
	w.serve(w.pod, "10.3.0.2:80")
	w.serve(w.pod, "[fd03::2]:80")
	if got := w.ask(w.control, "tcp", "10.3.0.2:80", unsure); got != "" {
		t.Fatalf("before: %q", got)
	}
	must(t, w.shoot.Do(func() error { return Forward(networks, nil) }))
	w.nft(w.shoot, "add table inet other { chain c { type filter hook forward priority 5; accept; }; }")
	others := w.list(w.shoot)
	for i := range 2 { // the second as after a kill
		m4 := &Masquerade{Device: device, Networks: networks}
		m6 := &Masquerade{Device: device + "6", Networks: networks}
		must(t, w.shoot.Do(m4.Up))
		must(t, w.shoot.Do(m6.Up))
		for address, want := range map[string]string{"10.3.0.2": "10.3.0.1", "fd03::2": "fd03::1"} {
			for _, network := range []string{"tcp", "udp"} {
				if got := w.ask(w.control, network, net.JoinHostPort(address, "80"), sure); got != want {
					t.Errorf("%s to %s from %q, want %q", network, address, got, want)
				}
			}
			if !w.pings(w.control, address, true) {
				t.Errorf("no echo from %s", address)
			}
		}
		if i == 0 {
			continue
		}
		list := w.list(w.shoot)
		if n := strings.Count(list, "masquerade\n"); n != 4 {
			t.Errorf("%d rules masquerade:\n%s", n, list)
		}
		for _, want := range []string{"10.3.0.0-10.4.255.255", `iifname "tunnel" oifname != "tunnel"`, "table inet rhizome-masquerade-tunnel6 {", "hook postrouting priority srcnat"} {
			if !strings.Contains(list, want) {
				t.Errorf("no %s in\n%s", want, list)
			}
		}
		must(t, m4.Up()) // anew, wherever it is called
		for range 2 {
			must(t, m4.Close())
			must(t, m6.Close())
		}
	}
	if list := w.list(w.shoot); list != others {
		t.Errorf("rules\n%s\nwant\n%s", list, others)
	}
	// With a route the pod sees who asks.
	must(t, w.pod.Route(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("10.3.0.1")))
	other := &Masquerade{Device: device, Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4")}}
	must(t, w.shoot.Do(other.Up))
	defer other.Close()
	if got := w.ask(w.control, "tcp", "10.3.0.2:80", sure); got != "10.1.0.2" {
		t.Errorf("to a network that is not named: from %q", got)
	}
	all := &Masquerade{Device: device, Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
	must(t, w.shoot.Do(all.Up))
	if got := w.ask(w.control, "tcp", "10.3.0.2:80", sure); got != "10.3.0.1" {
		t.Errorf("to anywhere: from %q", got)
	}
	if got := w.ask(w.shoot, "tcp", "10.3.0.2:80", sure); got != "10.3.0.1" {
		t.Errorf("from the shoot itself: %q", got)
	}
	must(t, all.Close())
}

// TestFirewall: answers come in, and echo; whatever the far side begins does not,
// not to the host and not through it.
func TestFirewall(t *testing.T) {
	w := newWorld(t)
	must(t, w.shoot.Do(func() error {
		return Forward([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}, nil)
	}))
	must(t, w.pod.Route(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("10.3.0.1")))
	must(t, w.pod.Route(netip.MustParsePrefix("fd00::/8"), netip.MustParseAddr("fd03::1")))
	for h, addresses := range map[*netlab.Host][]string{
		w.control: {"10.1.0.2:80", "[fd01::2]:80"},
		w.seed:    {"10.2.0.1:80", "[fd02::1]:80"},
		w.shoot:   {"10.2.0.2:80", "[fd02::2]:80"},
		w.pod:     {"10.3.0.2:80", "[fd03::2]:80"},
	} {
		for _, a := range addresses {
			w.serve(h, a)
		}
	}
	// far reports for each way in whether it is open.
	far := func(open bool) {
		t.Helper()
		patience := unsure
		if open {
			patience = sure
		}
		for _, from := range []*netlab.Host{w.shoot, w.pod} {
			for _, address := range []string{"10.1.0.2:80", "10.2.0.1:80", "[fd01::2]:80", "[fd02::1]:80"} {
				for _, network := range []string{"tcp", "udp"} {
					if got := w.ask(from, network, address, patience); (got != "") != open {
						t.Errorf("%s from %s to %s: answer %q", network, from.Name, address, got)
					}
				}
			}
		}
	}
	near := func(open bool) {
		t.Helper()
		for _, from := range []*netlab.Host{w.control, w.seed} {
			for _, address := range []string{"10.2.0.2", "10.3.0.2", "fd02::2", "fd03::2"} {
				for _, network := range []string{"tcp", "udp"} {
					if got := w.ask(from, network, net.JoinHostPort(address, "80"), sure); got == "" {
						t.Errorf("%s from %s to %s: no answer", network, from.Name, address)
					}
				}
				if !w.pings(from, address, true) {
					t.Errorf("no echo from %s to %s", address, from.Name)
				}
			}
		}
		// To the host, but through it only if all is open.
		for address, want := range map[string]bool{"10.1.0.2": open, "10.2.0.1": true, "fd01::2": open, "fd02::1": true} {
			if !w.pings(w.pod, address, want) {
				t.Errorf("the pod asks %s for an echo, and that it comes is %v", address, !want)
			}
		}
	}
	far(true)
	near(true)
	w.nft(w.seed, "add table inet other { chain c { type filter hook input priority 5; accept; }; }")
	others := w.list(w.seed)
	var log bytes.Buffer
	f4 := &Firewall{Device: device, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	f6 := &Firewall{Device: device + "6"}
	must(t, w.seed.Do(f4.Up))
	must(t, w.seed.Do(f6.Up))
	far(false)
	near(false)
	list := w.list(w.seed)
	for _, want := range []string{"ct state established,related accept", "icmp type echo-request accept", "icmpv6 type nd-neighbor-solicit accept", `iifname "tunnel" jump to-this-host`, `iifname "tunnel" jump from-tunnel`, "counter drop"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %s in\n%s", want, list)
		}
	}
	must(t, f4.Up())
	must(t, f6.Up()) // or their order is another
	if again := w.list(w.seed); again != list {
		t.Errorf("the second time\n%s\nthe first time\n%s", again, list)
	}
	must(t, f4.Close())
	must(t, f6.Close())
	if list := w.list(w.seed); list != others {
		t.Errorf("rules\n%s\nwant\n%s", list, others)
	}
	far(true)
	for _, want := range []string{`msg="packet filter up" table="inet rhizome-firewall-tunnel"`, `msg="packet filter removed"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in the log:\n%s", want, &log)
		}
	}
}

// TestRemovedFromOutside: a table that somebody has deleted is no error.
func TestRemovedFromOutside(t *testing.T) {
	w := newWorld(t)
	f := &Firewall{Device: device}
	must(t, w.seed.Do(f.Up))
	w.nft(w.seed, "delete table inet rhizome-firewall-tunnel")
	must(t, f.Close())
}

// TestForbidden: without the right to, the error says which is missing.
func TestForbidden(t *testing.T) {
	w := newWorld(t)
	up := &Firewall{Device: device + "6"}
	must(t, w.seed.Do(up.Up))
	must(t, w.seed.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var had, less [2]unix.CapUserData
		if err := unix.Capget(&header, &had[0]); err != nil {
			return err
		}
		less = had
		less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &less[0]); err != nil {
			return err
		}
		err := (&Firewall{Device: device}).Up()
		again := up.Up()
		if err := unix.Capset(&header, &had[0]); err != nil {
			panic(err)
		}
		for _, err := range []error{err, again} {
			if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
				t.Errorf("error %v", err)
			}
		}
		return nil
	}))
	if !strings.Contains(w.list(w.seed), "rhizome-firewall-tunnel6") {
		t.Error("the rules that were there are gone")
	}
	must(t, up.Close())
}

// TestMissing: what the kernel refuses is named, by trying each need alone.
func TestMissing(t *testing.T) {
	w := newWorld(t)
	must(t, w.seed.Do(func() error {
		k, err := openKernel()
		if err != nil {
			return err
		}
		defer k.close()
		lacking := need{"a chain of a kind that no kernel has", "CONFIG_X", func(b *batch) {
			b.conn.AddChain(&nftables.Chain{Table: b.table, Name: "c", Type: "strange", Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
		}}
		rules := func(b *batch) {
			b.firewall(device)
			b.needs = append(b.needs, needNAT, needMasq, lacking)
			lacking.try(b)
		}
		err = k.replace("rhizome-firewall-x", rules)
		if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "lacks a chain of a kind that no kernel has (CONFIG_X): without it turn the firewall off (--firewall=false)") {
			t.Errorf("error %v", err)
		}
		if err := k.explain(unix.EBUSY, &batch{needs: []need{needCt, needNAT, needMasq}}); err != unix.EBUSY {
			t.Errorf("error %v", err)
		}
		return nil
	}))
	if list := w.list(w.seed); list != "" {
		t.Errorf("left:\n%s", list)
	}
}

// TestKernelWithout: a kernel without nftables, or without its family inet, is told
// from one that has them, with the way out.
func TestKernelWithout(t *testing.T) {
	w := newWorld(t)
	must(t, w.seed.Do(func() error {
		networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		for _, tc := range []struct {
			filter interface {
				Up() error
				Close() error
			}
			wayOut string
		}{
			{&Firewall{Device: device}, "--firewall=false"},
			{&Masquerade{Device: device, Networks: networks}, "--masquerade=false"},
			{&Gate{Device: device, Networks: networks}, "--masquerade=false"},
		} {
			err := tc.filter.Up()
			t.Logf("%T: %v", tc.filter, err)
			if err != nil && (!errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "CONFIG_NF_TABLES") || !strings.Contains(err.Error(), tc.wayOut)) {
				t.Errorf("%T: %v", tc.filter, err)
			}
			must(t, tc.filter.Close())
		}
		return nil
	}))
}

// TestVersions: masquerading needs a kernel that matches where a packet came from
// when it leaves.
func TestVersions(t *testing.T) {
	for release, want := range map[string]bool{"5.7.0": true, "5.6.19-amd64": false, "4.19.0": false, "6.1.176": true, "10.0": true, "strange": true} {
		if got := atLeast(release, 5, 7); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}

// TestForwardForReal: both variables, in the namespace of the thread, and
// advertisements of routers are listened to as before.
func TestForwardForReal(t *testing.T) {
	w := newWorld(t)
	must(t, w.pod.Do(func() error {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth6/accept_ra", []byte("1"), 0))
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth/accept_ra", []byte("0"), 0))
		if err := Forward([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, nil); err != nil {
			return err
		}
		read := func(name string) string {
			value, err := readSysctl("/proc/sys/net", name)
			must(t, err)
			return value
		}
		if v4, v6 := read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding"); v4 != "1" || v6 != "0" {
			t.Errorf("for IPv4 alone: %s %s", v4, v6)
		}
		if err := Forward([]netip.Prefix{netip.MustParsePrefix("fd00::/8")}, nil); err != nil {
			return err
		}
		if v6, listening, deaf := read("ipv6/conf/all/forwarding"), read("ipv6/conf/eth6/accept_ra"), read("ipv6/conf/eth/accept_ra"); v6 != "1" || listening != "2" || deaf != "0" {
			t.Errorf("for IPv6: %s %s %s", v6, listening, deaf)
		}
		return nil
	}))
}
