package tunneltest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func mustListen(t *testing.T, listen func(network, address string) (net.Listener, error), address string) net.Listener {
	t.Helper()
	l, err := listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect dials and accepts.
func connect(t *testing.T, h *Host, l net.Listener) (client, server *Conn) {
	t.Helper()
	a, err := h.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*Conn), b.(*Conn)
}

func TestNetworkAddresses(t *testing.T) {
	var n Network
	server, client := n.Host("server"), n.Host("client")
	l := mustListen(t, server.Listen, ":0")
	if got := l.Addr().String(); got != "10.0.0.1:49152" {
		t.Errorf("the listener is at %s", got)
	}
	a, b := connect(t, client, l)
	for what, pair := range map[string][2]net.Addr{
		"server's address": {a.RemoteAddr(), b.LocalAddr()},
		"client's address": {a.LocalAddr(), b.RemoteAddr()},
	} {
		if pair[0].String() != pair[1].String() {
			t.Errorf("%s: one end says %v, the other %v", what, pair[0], pair[1])
		}
		if _, ok := pair[0].(*net.TCPAddr); !ok {
			t.Errorf("%s is a %T", what, pair[0])
		}
	}
	if got := a.LocalAddr().String(); got != "10.0.0.2:49153" {
		t.Errorf("the client is at %s", got)
	}
	if open := n.Conns(); len(open) != 2 {
		t.Errorf("%d ends are open, want 2", len(open))
	}
	a.Close()
	if open := n.Conns(); len(open) != 1 || open[0] != b {
		t.Errorf("after one Close %v are open", open)
	}
	b.Close()
	if open := n.Conns(); len(open) != 0 {
		t.Errorf("after both Closes %v are open", open)
	}
}

func TestNetworkRefuses(t *testing.T) {
	var n Network
	n.SetHost("v6.example", "2001:db8::1")
	mustListen(t, n.Listen, "server:443")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name, network, address string
		ctx                    context.Context
		want                   error
		text                   string
	}{
		{"nobody listens", "tcp", "server:80", nil, syscall.ECONNREFUSED, "dial tcp 10.0.0.1:80: connect: connection refused"},
		{"no such host", "tcp", "nowhere:80", nil, nil, "dial tcp: lookup nowhere: no such host"},
		{"no such socket", "unix", "/run/x", nil, syscall.ENOENT, "dial unix /run/x: connect: "},
		{"canceled", "tcp", "server:443", canceled, context.Canceled, "dial tcp: operation was canceled"},
		{"other family", "tcp4", "v6.example:80", nil, nil, "no suitable address"},
		{"other network", "udp", "server:443", nil, nil, "unknown network udp"},
		{"no port", "tcp", "server", nil, nil, "missing port"},
		{"bad port", "tcp", "server:https", nil, nil, "invalid port"},
		{"port out of range", "tcp", "server:65536", nil, nil, "invalid port"},
		{"no path", "unix", "", nil, nil, "missing path"},
	} {
		ctx := tt.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		c, err := n.Dial(ctx, tt.network, tt.address)
		if err == nil {
			t.Errorf("%s: connected to %v", tt.name, c.RemoteAddr())
			continue
		}
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "dial" {
			t.Errorf("%s: %T is no *net.OpError of a dial", tt.name, err)
		}
		if tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v is not %v", tt.name, err, tt.want)
		}
		if !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.text)
		}
	}
	var dns *net.DNSError
	if _, err := n.Dial(t.Context(), "tcp", "nowhere:80"); !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("no such host: %#v", err)
	}
}

func TestListenErrors(t *testing.T) {
	var n Network
	server := n.Host("server")
	l := mustListen(t, server.Listen, ":443")
	for _, address := range []string{"server:443", "10.0.0.1:443"} {
		_, err := n.Listen("tcp", address)
		wantErr(t, "Listen on "+address, err, syscall.EADDRINUSE)
	}
	if _, err := n.Listen("udp", "server:53"); err == nil {
		t.Error("Listen on udp succeeded")
	}
	l.Close()
	wantErr(t, "second Close", l.Close(), net.ErrClosed)
	_, err := l.Accept()
	wantErr(t, "Accept after Close", err, net.ErrClosed)
	wantErr(t, "SetDeadline after Close", l.(*listener).SetDeadline(time.Now()), net.ErrClosed)
	mustListen(t, n.Listen, "server:443") // free again
}

// Every port is handed out once, and there is an end.
func TestEphemeralPortsEnd(t *testing.T) {
	var n Network
	var ls []net.Listener
	for {
		l, err := n.Listen("tcp", "server:0")
		if err != nil {
			wantErr(t, "Listen without a free port", err, syscall.EADDRINUSE)
			break
		}
		ls = append(ls, l)
	}
	if want := lastEphemeral - firstEphemeral + 1; len(ls) != want {
		t.Errorf("%d ports, want %d", len(ls), want)
	}
	// A dial may use a port that somebody listens on, but no pair of addresses twice.
	seen := make(map[string]bool)
	for range 3 {
		c, err := n.Dial(t.Context(), "tcp", ls[0].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if seen[c.LocalAddr().String()] {
			t.Errorf("%v twice", c.LocalAddr())
		}
		seen[c.LocalAddr().String()] = true
		n.nextPort-- // the counter came round
	}
	for _, l := range ls {
		l.Close()
	}
}

func TestHosts(t *testing.T) {
	var n Network
	n.SetHost("server", "192.0.2.1", "2001:db8::1")
	n.SetHost("client", "192.0.2.2", "2001:db8::2")
	l := mustListen(t, n.Host("server").Listen, "[::]:443")
	for _, tt := range []struct{ network, address, source string }{
		{"tcp", "server:443", "192.0.2.2"},
		{"tcp4", "server:443", "192.0.2.2"},
		{"tcp6", "server:443", "2001:db8::2"},
		{"tcp", "[2001:db8::1]:443", "2001:db8::2"},
	} {
		c, err := n.Host("client").Dial(t.Context(), tt.network, tt.address)
		if err != nil {
			t.Errorf("%v: %v", tt, err)
			continue
		}
		if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != tt.source {
			t.Errorf("%v: comes from %s", tt, got)
		}
		s, _ := l.Accept()
		s.Close()
		c.Close()
	}

	// The first address that answers counts; without one the first error does.
	n.SetHost("server", "192.0.2.9", "192.0.2.1")
	c, err := n.Dial(t.Context(), "tcp", "server:443")
	if err != nil || c.RemoteAddr().String() != "192.0.2.1:443" {
		t.Errorf("the second address: %v, %v", c, err)
	}
	c.Close()
	n.SetHost("server", "192.0.2.9", "192.0.2.8")
	if _, err := n.Dial(t.Context(), "tcp", "server:443"); err == nil || !strings.Contains(err.Error(), "192.0.2.9:443") {
		t.Errorf("no address answers: %v", err)
	}
	if got, err := n.LookupHost(t.Context(), "server"); err != nil || fmt.Sprint(got) != "[192.0.2.9 192.0.2.8]" {
		t.Errorf("LookupHost: %v, %v", got, err)
	}
	n.SetHost("server", "192.0.2.1", "2001:db8::1")
	for network, want := range map[string]string{"ip": "[192.0.2.1 2001:db8::1]", "ip4": "[192.0.2.1]", "ip6": "[2001:db8::1]"} {
		if got, err := n.LookupNetIP(t.Context(), network, "server"); err != nil || fmt.Sprint(got) != want {
			t.Errorf("LookupNetIP %s: %v, %v; want %s", network, got, err, want)
		}
	}
	n.SetHost("server")
	var dns *net.DNSError
	if _, err := n.LookupHost(t.Context(), "server"); !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("LookupHost of a forgotten name: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.LookupHost(canceled, "client")
	wantErr(t, "LookupHost with a context that ended", err, context.Canceled)

	// A name that SetHost took away gets a new address when it dials.
	n.SetHost("client")
	c, err = n.Host("client").Dial(t.Context(), "tcp", "192.0.2.1:443")
	if err != nil || !strings.HasPrefix(c.LocalAddr().String(), "10.") {
		t.Errorf("a host without an address: %v, %v", c, err)
	}
	c.Close()
}

func TestAcceptDeadline(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l := mustListen(t, n.Listen, "server:443").(*listener)
		l.SetDeadline(time.Now().Add(time.Minute))
		elapsed(t, time.Minute, func() {
			_, err := l.Accept()
			wantErr(t, "Accept", err, os.ErrDeadlineExceeded)
		})
		l.SetDeadline(time.Time{})
		errs := make(chan error)
		go func() { _, err := l.Accept(); errs <- err }()
		synctest.Wait()
		l.Close()
		wantErr(t, "an Accept that Close interrupts", <-errs, net.ErrClosed)
	})
}

func TestBacklog(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		n := &Network{Backlog: 2}
		l := mustListen(t, n.Listen, "server:443")
		var cs []net.Conn
		for range 2 {
			c, err := n.Dial(t.Context(), "tcp", "server:443")
			if err != nil {
				t.Fatal(err)
			}
			cs = append(cs, c)
		}
		// The third waits for room, as long as its context lets it.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		elapsed(t, time.Second, func() {
			_, err := n.Dial(ctx, "tcp", "server:443")
			wantErr(t, "Dial to a full backlog", err, context.DeadlineExceeded)
			if !isTimeout(err) || err.Error() != "dial tcp 10.0.0.1:443: i/o timeout" {
				t.Errorf("%v is no timeout of a dial", err)
			}
		})
		elapsed(t, synTimeout, func() {
			_, err := n.Dial(t.Context(), "tcp", "server:443")
			wantErr(t, "Dial that nobody ends", err, syscall.ETIMEDOUT)
		})
		done := make(chan net.Conn)
		go func() { c, _ := n.Dial(t.Context(), "tcp", "server:443"); done <- c }()
		synctest.Wait()
		s, _ := l.Accept()
		cs = append(cs, s, <-done)
		l.Close() // resets what was not accepted
		_, err := cs[1].Read(make([]byte, 1))
		wantErr(t, "Read of a connection that was never accepted", err, syscall.ECONNRESET)
		for _, c := range cs {
			c.Close()
		}
		if open := n.Conns(); len(open) != 0 {
			t.Errorf("%v are open", open)
		}
	})
}

func TestDialThatIsRefusedWhileItWaits(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l := mustListen(t, n.Listen, "server:443")
		n.Freeze("server")
		errs := make(chan error)
		go func() { _, err := n.Dial(t.Context(), "tcp", "server:443"); errs <- err }()
		synctest.Wait()
		l.Close()
		synctest.Wait()
		n.Thaw("server")
		wantErr(t, "Dial", <-errs, syscall.ECONNREFUSED)
	})
}
