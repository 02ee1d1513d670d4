package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/intercept"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// onNode runs f in a network namespace that looks like a node's, once with the
// interface that the program makes and once with one that is there.
func onNode(t *testing.T, f func(t *testing.T, iface string, args ...string)) {
	t.Setenv(asProgram, "1")
	t.Run("own interface", func(t *testing.T) {
		tunneltest.InNetns(t, func(t *testing.T) {
			probe := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "probe"}}
			err := netlink.LinkAdd(probe)
			if errors.Is(err, syscall.EOPNOTSUPP) {
				t.Skip(`this kernel has no dummy interfaces: run it with go test -exec "$PWD/.ci/run-in-kernel"`)
			}
			must(t, err)
			f(t, intercept.DefaultInterface)
		})
	})
	t.Run("given interface", func(t *testing.T) {
		tunneltest.InNetns(t, func(t *testing.T) {
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "e0", Flags: net.FlagUp}, PeerName: "e1"}))
			f(t, "e0", "--interface", "e0")
		})
	})
}

// start starts the program in a process of the network namespace of this thread.
func start(t *testing.T, args ...string) *clitest.Process {
	t.Helper()
	return clitest.StartProcess(t, binary(t), append(args, "--listen-address", advertised, "--entrypoint", entrypoint(t, nil))...)
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

const advertised = "240.0.10.1"

// owner is the name of the interface that has the address, "" if none.
func owner(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		list, err := netlink.AddrList(l, netlink.FAMILY_V4)
		must(t, err)
		for _, a := range list {
			if a.IP.String() == advertised {
				return l.Attrs().Name
			}
		}
	}
	return ""
}

// TestNode has a pod ask, and SIGTERM while it does.
func TestNode(t *testing.T) {
	onNode(t, func(t *testing.T, iface string, args ...string) {
		p := start(t, args...)
		if addr := p.Addr("clients"); addr != advertised+":443" || owner(t) != iface {
			t.Fatalf("listens on %s, the address is on %q", addr, owner(t))
		}
		c, err := net.Dial("tcp", advertised+":443")
		must(t, err)
		greeted(t, c)
		code := make(chan int, 1)
		go func() { code <- p.Stop() }()
		p.Find("draining")
		if got := owner(t); got != iface {
			t.Errorf("while it drains the address is on %q", got)
		}
		if got, err := ask(c, "hello"); got != "hello to "+advertised+":443" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if n := <-code; n != 0 {
			t.Errorf("exit code %d", n)
		}
		if got := owner(t); got != "" {
			t.Errorf("the address is left on %s", got)
		}
	})
}

// TestNodeKilled starts again where a process was killed, and not where one is
// alive.
func TestNodeKilled(t *testing.T) {
	onNode(t, func(t *testing.T, iface string, args ...string) {
		p := start(t, args...)
		p.Addr("clients")
		out, err := exec.CommandContext(t.Context(), binary(t), append(args, "--listen-address", advertised, "--entrypoint", "h:1")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another process holds "+advertised) {
			t.Errorf("a second one: %v\n%s", err, out)
		}
		p.Kill()
		if got := owner(t); got != iface {
			t.Fatalf("a killed process has cleaned up; the address is on %q", got)
		}
		p = start(t, args...)
		p.Addr("clients")
		c, err := net.Dial("tcp", advertised+":443")
		must(t, err)
		greeted(t, c)
		if got, err := ask(c, "hello"); got != "hello to "+advertised+":443" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if n := p.Stop(); n != 0 || owner(t) != "" {
			t.Errorf("exit code %d, the address is on %q", n, owner(t))
		}
	})
}
