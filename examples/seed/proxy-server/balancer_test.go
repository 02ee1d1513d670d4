package main

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel"
)

// Behind an entrypoint that says for whom it comes, the agent's own address is
// known, and who comes past it is not let in.
func TestProxyFrom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start("--listen", "127.0.0.1:0", "--client-ca", w.File, "--agent-listen", "127.0.0.1:0", "--agent-ca", w.File,
		"--proxy-from", "127.0.0.0/8", "--proxy-from", "::1")
	balancer := &proxyproto.Dialer{Header: func(context.Context, net.Conn) (*proxyproto.Header, error) {
		return &proxyproto.Header{
			Source:      net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.7:1000")),
			Destination: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.1:8132")),
		}, nil
	}}
	w.agent(p, clusterA, func(a *tunnel.Agent) { a.Dial = balancer.DialContext })
	admin := clitest.Client(t, &http.Transport{})
	if _, body := clitest.Get(t, admin, "http://"+p.Addr("admin")+"/clusters"); !strings.Contains(body, `"192.0.2.7:1000"`) {
		t.Errorf("/clusters does not name the agent's address: %s", body)
	}
	for _, door := range []string{"clients", "agents"} {
		c, err := net.Dial("tcp", p.Addr(door))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte{22, 3, 1, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%s: TLS without a PROXY header is answered", door)
		}
	}
}
