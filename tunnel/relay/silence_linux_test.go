package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hasty shortens the silence that is tolerated. It must be well above the
// kernel's first retransmission, after 200 ms.
func hasty(r *relay) { r.silence.limit, r.silence.every = time.Second, 50*time.Millisecond }

func TestDebtOf(t *testing.T) {
	for name, c := range map[string]struct {
		info unix.TCPInfo
		want debt
	}{
		"idle":             {unix.TCPInfo{Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{false, 90 * time.Second}},
		"just sent":        {unix.TCPInfo{Unacked: 3, Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{false, 90 * time.Second}},
		"sent again":       {unix.TCPInfo{Unacked: 3, Retransmits: 1, Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{true, 90 * time.Second}},
		"and still sends":  {unix.TCPInfo{Unacked: 3, Retransmits: 1, Last_ack_recv: 90_000, Last_data_recv: 10}, debt{true, 10 * time.Millisecond}},
		"closed window":    {unix.TCPInfo{Notsent_bytes: 3, Probes: 1, Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{false, 90 * time.Second}},
		"probes come back": {unix.TCPInfo{Notsent_bytes: 3, Probes: 3, Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{true, 90 * time.Second}},
		"keep-alive":       {unix.TCPInfo{Probes: 3, Last_ack_recv: 90_000, Last_data_recv: 95_000}, debt{false, 90 * time.Second}},
	} {
		if got := debtOf(&c.info); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestPausedReader stops reading for three times the silence that is tolerated:
// he acknowledges every probe, and gets every byte.
func TestPausedReader(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{{name: "tcp", pair: tcpPair}, {name: "tls", pair: func(t testing.TB) (net.Conn, net.Conn) { c, s := tlsPair(t); return c, s }}} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			pa, a := tcpPair(t)
			pb, b := k.pair(t)
			limit(pa, pb)
			r := start(t.Context(), t, a, b, 0, hasty)
			shake(t, pa, pb)
			const total = 16 << 20
			sent := make(chan error, 1)
			go func() { sent <- errors.Join(sendPattern(pa, 0, total), CloseWrite(pa)) }()
			select {
			case err := <-r.done:
				t.Fatalf("Relay = %v while the reader pauses", err)
			case <-time.After(3 * time.Second):
			}
			if err := errors.Join(checkPattern(pb, 0, total), <-sent); err != nil {
				t.Fatal(err)
			}
			mustEOF(t, pb)
			mustCloseWrite(t, pb)
			r.wantNil()
		})
	}
}

// TestDeadPeer pulls the plug of the host of b, with data in flight, or with data
// behind a window that the peer had closed before.
func TestDeadPeer(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"in flight", "closed window", "behind half-close"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pb, b, unplug := cable(t)
			pa, a := tcpPair(t)
			limit(pa, pb)
			var leg net.Conn = b
			if name == "in flight" {
				leg = NewPrefixed(b, nil) // found below it, too
			}
			r := start(context.Background(), t, a, leg, 0, hasty)
			mustWrite(t, pa, "hello")
			mustRead(t, pb, "hello")
			switch name {
			case "closed window":
				_ = fill(t, pa)
				unplug()
			case "behind half-close":
				mustCloseWrite(t, pb)
				mustEOF(t, pa)
				unplug()
				mustWrite(t, pa, "lost")
			default:
				unplug()
				mustWrite(t, pa, "lost")
			}
			e := r.wantError(OpAcknowledge, "b", ErrSilent)
			if !errors.Is(e, os.ErrDeadlineExceeded) || !errors.Is(e, syscall.ETIMEDOUT) {
				t.Errorf("%v is no timeout", e)
			}
			if name != "behind half-close" { // pa has had its EOF
				mustReset(t, pa)
			}
		})
	}
}

// cable connects two hosts with a cable, and returns the two ends of a connection
// between them, and what pulls the cable.
func cable(t *testing.T) (far, near *net.TCPConn, unplug func()) {
	t.Helper()
	tunneltest.InNetns(t, func(t *testing.T) {
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		up := func(name, cidr string) {
			t.Helper()
			l, err := netlink.LinkByName(name)
			must(err)
			addr, err := netlink.ParseAddr(cidr)
			must(err)
			must(netlink.AddrAdd(l, addr))
			must(netlink.LinkSetUp(l))
		}
		here, err := netns.Get()
		must(err)
		defer here.Close()
		var listener net.Listener
		tunneltest.InNetns(t, func(t *testing.T) {
			must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far"}, PeerName: "near", PeerNamespace: netlink.NsFd(here)}))
			up("far", "10.9.0.2/24")
			listener, err = net.Listen("tcp", "10.9.0.2:0")
			must(err)
			there, err := netns.Get()
			must(err)
			defer there.Close()
			h, err := netlink.NewHandleAt(there)
			must(err)
			t.Cleanup(h.Close)
			unplug = func() {
				l, err := h.LinkByName("far")
				must(err)
				must(h.LinkSetDown(l))
			}
		})
		defer listener.Close()
		up("near", "10.9.0.1/24")
		// A SYN that is sent too early is lost, and the kernel then waits 3 s
		// before it sends anything again.
		eventually(t, func() bool {
			l, err := netlink.LinkByName("near")
			must(err)
			return l.Attrs().OperState == netlink.OperUp
		})
		c, err := net.Dial("tcp", listener.Addr().String())
		must(err)
		s, err := listener.Accept()
		must(err)
		far, near = s.(*net.TCPConn), c.(*net.TCPConn)
		t.Cleanup(func() { far.Close(); near.Close() })
	})
	return far, near, unplug
}
