package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netfilter"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// TestGate has the seed reach the networks behind the shoot's client, and nothing else
// that this reaches, nor it; unless its own wall is off.
func TestGate(t *testing.T) {
	w := newWorld(t, packet.TAP, 1)
	a, b, pod := w.host("seed"), w.host("shoot"), w.host("pod")
	prefix := netip.MustParsePrefix
	must(t, w.lab.Cable(b, "pods", prefix("10.250.0.1/24"), pod, "eth0", prefix("10.250.0.2/24")))
	must(t, w.lab.Cable(b, "nodes", prefix("10.251.0.1/24"), pod, "eth1", prefix("10.251.0.2/24")))
	must(t, pod.Route(prefix("192.168.123.0/24"), netip.MustParseAddr("10.250.0.1")))
	w.start(a, "--address", seedAddress+"/96", "--address", "192.168.123.9/24", "--firewall=false",
		"--route", "10.250.0.0/24="+shootAddress, "--route", "10.251.0.0/24="+shootAddress)
	for _, tc := range []struct {
		args []string
		host bool
	}{
		{[]string{"--masquerade=true"}, false},
		{[]string{"--masquerade=false"}, false},
		{[]string{"--masquerade=false", "--firewall=false"}, true},
	} {
		if !limits(t, b) && tc.args[0] == "--masquerade=true" {
			continue
		}
		c := w.start(b, append(tc.args, "--address", shootAddress+"/96", "--address", "192.168.123.10/24", "--network", "10.250.0.0/24")...)
		w.ready(c, 2)
		w.pipe(a, pod, "10.250.0.2")
		w.pipe(a, b, "10.250.0.1") // its own address in the network
		if limits(t, b) {
			w.closed(a, pod, "10.251.0.2")
		}
		if tc.host || !limits(t, b) {
			w.pipe(a, b, "192.168.123.10")
		} else {
			w.closed(a, b, "192.168.123.10")
		}
		must(t, c.stop())
	}
}

// limits reports whether the kernel has nftables for it.
func limits(t *testing.T, h *netlab.Host) bool {
	t.Helper()
	try := &netfilter.Gate{Device: "try"}
	err := h.Do(try.Up)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	must(t, try.Close())
	return err == nil
}

// closed fails the test if a connection can be opened, for which somebody listens.
func (w *world) closed(from, to *netlab.Host, address string) {
	w.t.Helper()
	var l net.Listener
	must(w.t, to.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "7"))
		return err
	}))
	defer l.Close()
	must(w.t, from.Do(func() error {
		if c, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond); err == nil {
			c.Close()
			w.t.Errorf("%s reaches %s", from.Name, address)
		}
		return nil
	}))
}
