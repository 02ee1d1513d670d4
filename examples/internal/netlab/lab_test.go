//go:build linux

package netlab_test

import (
	"errors"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// need skips the test where namespaces may not be made.
func need(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root, or as: unshare --user --map-root-user --net go test")
	}
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCut(t *testing.T) {
	lab, err := netlab.New()
	need(t, err)
	defer lab.Close()
	a, err := lab.Host("a")
	must(t, err)
	b, err := lab.Host("b")
	must(t, err)
	must(t, lab.Internet(a, b))

	var at, from *net.UDPConn
	must(t, b.Do(func() (err error) {
		at, err = net.ListenUDP("udp4", &net.UDPAddr{IP: b.Addr.AsSlice(), Port: 7})
		return err
	}))
	defer at.Close()
	must(t, a.Do(func() (err error) {
		from, err = net.DialUDP("udp4", nil, at.LocalAddr().(*net.UDPAddr))
		return err
	}))
	defer from.Close()
	number := byte(0)
	passes := func(patience time.Duration) bool {
		t.Helper()
		for end := time.Now().Add(patience); time.Now().Before(end); {
			number++
			if _, err := from.Write([]byte{number}); err != nil {
				t.Fatal(err)
			}
			must(t, at.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
			got := make([]byte, 1)
			for {
				if _, _, err := at.ReadFrom(got); err != nil {
					break
				}
				if got[0] == number { // and none that was late
					return true
				}
			}
		}
		return false
	}
	const sure, unsure = 20 * time.Second, 600 * time.Millisecond // an interface may be slow to begin
	if !passes(sure) {
		t.Fatal("nothing passes")
	}
	for name, cut := range map[string]func() error{
		"Cut":       func() error { return lab.Cut(b, a) },
		"OneWay":    func() error { return lab.CutOneWay(a, b) },
		"Blackhole": func() error { return lab.Blackhole(b) },
	} {
		must(t, cut())
		if passes(unsure) {
			t.Errorf("%s: still passes", name)
		}
		must(t, lab.Mend())
		if !passes(sure) {
			t.Errorf("%s: passes no more after Mend", name)
		}
	}
}

func TestProcess(t *testing.T) {
	lab, err := netlab.New()
	need(t, err)
	defer lab.Close()
	a, err := lab.Host("a")
	must(t, err)
	start := func(script string) *netlab.Process {
		t.Helper()
		p, err := a.Start(exec.Command("/bin/sh", "-c", script))
		must(t, err)
		return p
	}
	// Only loopback is there, and no route.
	p := start("test $(wc -l </proc/net/dev) = 3")
	<-p.Done()
	must(t, p.Stop(0))
	p = start("exec sleep 60")
	if err := p.Stop(10 * time.Second); err == nil {
		t.Error("a program that was terminated ended with 0")
	}
	p = start("trap '' TERM; echo; while :; do sleep 1; done")
	p.Kill()
	start("exec sleep 60") // Close ends it
}
