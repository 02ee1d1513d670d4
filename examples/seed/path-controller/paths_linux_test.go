package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// service is behind both paths, in a network of either family.
var service = [2]netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:80"), netip.MustParseAddrPort("[fd10::10]:80")}

// seed is a network namespace with two shoot clients, each in one of its own, on
// one link:
//
//	seed  br0 fd00::1 ─┬─ cable a ── fd00::a  10.96.0.10  fd10::10   client a
//	                   └─ cable b ── fd00::b  10.96.0.10  fd10::10   client b
type seed struct {
	*testing.T
	listeners map[string][2]net.Listener
	work      sync.WaitGroup
}

func inSeed(t *testing.T, f func(s *seed)) {
	t.Setenv(asProgram, "1")
	tunneltest.InNetns(t, func(t *testing.T) {
		s := &seed{T: t, listeners: make(map[string][2]net.Listener)}
		// With an address of its own, or it has one of a cable that may go.
		s.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", Flags: net.FlagUp, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}))
		s.give("br0", "fd00::1/64", "192.168.9.1/24")
		s.client("a", "fd00::a/64", "192.168.9.10/24")
		s.client("b", "fd00::b/64", "192.168.9.11/24")
		defer s.work.Wait()
		defer func() {
			for name := range s.listeners {
				s.shut(name)
			}
		}()
		f(s)
	})
}

// client makes a client, which serves until the end or shut.
func (s *seed) client(name string, addresses ...string) {
	s.Helper()
	s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Flags: net.FlagUp}, PeerName: "e0"}))
	s.must(netlink.LinkSetMaster(s.link(name), s.link("br0")))
	home, err := netlink.NewHandle()
	s.must(err)
	defer home.Close()
	outer := s.T
	tunneltest.InNetns(outer, func(*testing.T) {
		own, err := netns.Get()
		s.must(err)
		outer.Cleanup(func() { own.Close() }) // it stays until then
		cable, err := home.LinkByName("e0")
		s.must(err)
		s.must(home.LinkSetNsFd(cable, int(own)))
		s.must(netlink.LinkSetUp(s.link("e0")))
		s.give("e0", addresses...)
		s.give("lo", "10.96.0.10/32", "fd10::10/128")
		var list [2]net.Listener
		for i, addr := range service {
			list[i], err = net.Listen("tcp", addr.String())
			s.must(err)
		}
		s.listeners[name] = list
	})
	for _, l := range s.listeners[name] {
		s.work.Go(func() { serveName(l, name) })
	}
}

// serveName tells whoever connects the name.
func serveName(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, name)
		c.Close()
	}
}

// shut ends the service of a client, whose far end still answers.
func (s *seed) shut(name string) {
	for _, l := range s.listeners[name] {
		l.Close()
	}
}

func (s *seed) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *seed) link(name string) netlink.Link {
	s.Helper()
	l, err := netlink.LinkByName(name)
	s.must(err)
	return l
}

func (s *seed) give(name string, addresses ...string) {
	s.Helper()
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		s.must(err)
		if a.IP.To4() == nil {
			a.Flags = syscall.IFA_F_NODAD
		}
		s.must(netlink.AddrAdd(s.link(name), a))
	}
}

// cable plugs the cable of a client in or out.
func (s *seed) cable(name string, in bool) {
	s.Helper()
	set := netlink.LinkSetDown
	if in {
		set = netlink.LinkSetUp
	}
	s.must(set(s.link(name)))
}

// start starts the program with quick probes.
func (s *seed) start(args ...string) *clitest.Process {
	s.Helper()
	return clitest.StartProcess(s.T, s.binary(), s.args(args...)...)
}

func (s *seed) args(args ...string) []string {
	return append(strings.Fields("--device br0 --path a=fd00::a,src=fd00::1 --path b=fd00::b --network 10.96.0.0/16 --network fd10::/64"+
		" --probe-interval 50ms --fall 3 --rise 200ms --admin-listen 127.0.0.1:0"), args...)
}

func (s *seed) binary() string {
	s.Helper()
	path, err := os.Executable()
	s.must(err)
	return path
}

// page asks for a page of the program, from this thread and so in the namespace.
func (s *seed) page(p *clitest.Process, path string) (status int, body string) {
	s.Helper()
	c, err := net.Dial("tcp", p.Addr("admin"))
	s.must(err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n", path)
	s.must(err)
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	s.must(err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	s.must(err)
	return r.StatusCode, string(b)
}

func (s *seed) status(p *clitest.Process) *statusPage {
	s.Helper()
	_, body := s.page(p, "/status")
	page := new(statusPage)
	s.must(json.Unmarshal([]byte(body), page))
	return page
}

// arrives waits until connections to the service arrive at a client, and the program
// says so.
func (s *seed) arrives(p *clitest.Process, client string) {
	s.Helper()
	clitest.Eventually(s.T, func() error {
		if page := s.status(p); page.Chosen != client || !page.InUse || page.Routes.Path != client || page.Routes.Count != 2 {
			return fmt.Errorf("status: %+v", page)
		}
		return s.reach(client)
	})
	if status, body := s.page(p, "/readyz"); status != 200 {
		s.Errorf("not ready: %s", body)
	}
}

// reach connects to the service.
func (s *seed) reach(client string) error {
	for _, addr := range service {
		c, err := net.DialTimeout("tcp", addr.String(), time.Second)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		c.Close()
		if string(b) != client || err != nil {
			return fmt.Errorf("%v is answered by %q, %v, want %s", addr, b, err, client)
		}
	}
	return nil
}

// routes are those that are ours.
func (s *seed) routes() (list []string) {
	s.Helper()
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: pathcontrol.DefaultRouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	s.must(err)
	for _, r := range all {
		list = append(list, r.String())
	}
	return list
}

// TestSwitch breaks the path in use in each way, and mends it.
func TestSwitch(t *testing.T) {
	inSeed(t, func(s *seed) {
		p := s.start("--probe-behind", "tcp://10.96.0.10:80", "--probe-behind", "icmp://[fd10::10]")
		s.arrives(p, "a")
		if status, body := s.page(p, "/healthz"); status != 200 || body != "ok\n" {
			t.Errorf("/healthz: %d %q", status, body)
		}
		page := s.status(p)
		if len(page.Paths) != 2 || page.Paths[0].Via != "fd00::a" || !page.Paths[0].Chosen || page.Paths[0].State != "up" || page.Paths[0].RTT <= 0 ||
			len(page.Paths[0].Probes) != 3 || page.Paths[0].Probes[1].Name != "behind: tcp://10.96.0.10:80" || page.Reason == "" || page.Since.IsZero() {
			t.Errorf("status: %+v", page)
		}
		switches := page.Switches
		s.cable("a", false)
		s.arrives(p, "b")
		page = s.status(p)
		if page.Switches != switches+1 || page.Paths[0].State != "down" || page.Paths[0].Falls == 0 || page.Paths[0].LastError == "" {
			t.Errorf("status: %+v", page)
		}
		s.cable("a", true)
		s.arrives(p, "a") // once it is clean
		// Its far end goes on to answer when what is behind it does not.
		s.shut("a")
		s.arrives(p, "b")
		s.shut("b")
		clitest.Eventually(t, func() error {
			if status, body := s.page(p, "/readyz"); status != 503 || !strings.Contains(body, "no path is up; the routes stay on b, which is down") {
				return fmt.Errorf("/readyz: %d %s", status, body)
			}
			return nil
		})
		if page := s.status(p); page.Chosen != "b" || page.Routes.Count != 2 {
			t.Errorf("status: %+v", page)
		}
		if n := p.Stop(); n != 0 {
			t.Errorf("exit code %d", n)
		}
		if left := s.routes(); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// TestNoFailback stays where it is, and puts back what somebody removes.
func TestNoFailback(t *testing.T) {
	inSeed(t, func(s *seed) {
		s.cable("a", false)
		p := s.start("--failback", "never", "--probe", "icmp")
		s.arrives(p, "b")
		s.cable("a", true)
		clitest.Eventually(t, func() error {
			if page := s.status(p); page.Paths[0].State != "up" {
				return fmt.Errorf("status: %+v", page)
			}
			return nil
		})
		s.arrives(p, "b")
		_, network, err := net.ParseCIDR("10.96.0.0/16")
		s.must(err)
		s.must(netlink.RouteDel(&netlink.Route{Dst: network, Protocol: pathcontrol.DefaultRouteProtocol, Priority: pathcontrol.DefaultRouteMetric}))
		clitest.Eventually(t, func() error {
			if page := s.status(p); page.Routes.PutBack == 0 {
				return fmt.Errorf("status: %+v", page)
			}
			return s.reach("b")
		})
	})
}

// TestMembers has the vpn-client know better than probes, which all are answered.
func TestMembers(t *testing.T) {
	inSeed(t, func(s *seed) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		s.must(err)
		var gone atomic.Bool
		client := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/members/fd00::a" && gone.Load() {
				w.WriteHeader(http.StatusGone)
			}
		})}
		defer client.Close()
		s.work.Go(func() { _ = client.Serve(l) })
		p := s.start("--members", l.Addr().String(), "--fall", "1000")
		s.arrives(p, "a")
		gone.Store(true)
		s.arrives(p, "b")
		gone.Store(false)
		s.arrives(p, "a")
	})
}

// TestKilled has routes stay in use when the program is killed, and gone when its
// successor ends; and a second one refused meanwhile.
func TestKilled(t *testing.T) {
	inSeed(t, func(s *seed) {
		s.cable("a", false)
		p := s.start("--failback", "never", "--network", "10.97.0.0/16")
		clitest.Eventually(t, func() error { return s.reach("b") })
		p.Addr("admin")
		out, err := exec.CommandContext(t.Context(), s.binary(), s.args()...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "@rhizome-pathcontrol/") {
			t.Errorf("a second one: %v\n%s", err, out)
		}
		p.Kill()
		s.cable("a", true)
		if left := s.routes(); len(left) < 3 {
			t.Fatalf("a killed process has cleaned up: %q", left)
		}
		s.must(s.reach("b"))
		p = s.start("--failback", "never")
		s.arrives(p, "b") // where its predecessor was
		if page := s.status(p); page.Switches != 0 {
			t.Errorf("status: %+v", page)
		}
		if slices.ContainsFunc(s.routes(), func(r string) bool { return strings.Contains(r, "10.97.0.0/16") }) {
			t.Errorf("a network that nobody wants any more: %q", s.routes())
		}
		if n := p.Stop(); n != 0 || len(s.routes()) > 0 {
			t.Errorf("exit code %d, left behind: %q", n, s.routes())
		}
	})
}

// TestInTheWay has somebody else's route where ours is to be. It stays, and the
// program says so until it is gone.
func TestInTheWay(t *testing.T) {
	inSeed(t, func(s *seed) {
		_, network, err := net.ParseCIDR("10.96.0.0/16")
		s.must(err)
		other := &netlink.Route{Dst: network, Gw: net.IPv4(192, 168, 9, 11), Protocol: 99, Priority: pathcontrol.DefaultRouteMetric}
		s.must(netlink.RouteAdd(other))
		p := s.start("--probe", "tcp:1") // a closed port: nobody is up
		clitest.Eventually(t, func() error {
			if status, body := s.page(p, "/readyz"); status != 503 || !strings.Contains(body, "no path has answered yet") {
				return fmt.Errorf("/readyz: %d %s", status, body)
			}
			return nil
		})
		if n := p.Stop(); n != 0 {
			t.Errorf("exit code %d", n)
		}
		p = s.start()
		clitest.Eventually(t, func() error {
			if status, body := s.page(p, "/readyz"); status != 503 || !strings.Contains(body, "path a is not in use: ") {
				return fmt.Errorf("/readyz: %d %s", status, body)
			}
			return nil
		})
		s.must(netlink.RouteDel(other))
		s.arrives(p, "a")
	})
}

// TestPortInUse removes what was made when nothing can come of it.
func TestPortInUse(t *testing.T) {
	inSeed(t, func(s *seed) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		s.must(err)
		defer l.Close()
		out, err := exec.CommandContext(t.Context(), s.binary(), s.args("--admin-listen", l.Addr().String(), "--probe-behind", "icmp://10.96.0.10")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "path-controller: --admin-listen: ") {
			t.Errorf("%v\n%s", err, out)
		}
		if rules, err := netlink.RuleList(netlink.FAMILY_ALL); err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Mark != 0 }) {
			t.Errorf("rules: %v, %v", rules, err)
		}
	})
}
