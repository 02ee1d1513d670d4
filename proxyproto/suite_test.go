package proxyproto

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestConn runs the suite of connections over every way in which headers can
// come before, and stay away. In memory the header is still awaited when a
// subtest begins; a socket that is closed then resets its peer, as it should and
// the suite does not like.
func TestConn(t *testing.T) {
	both := wire(t, outerHeader, innerHeader)
	for _, tc := range []struct {
		name string
		pair func(t testing.TB) (c, s net.Conn)
		o    *Options
		head []byte
		wait bool
	}{
		{"require", tcpPair, &Options{Default: Require}, wire(t, outerHeader), false},
		{"requireBoth", unixPair, &Options{Default: Require, Inner: Require}, both, false},
		{"requireBoth memory", memoryPair, &Options{Default: Require, Inner: Require}, both, true},
		{"acceptBoth", tcpPair, &Options{Default: Accept, Inner: Accept}, both, false},
		{"acceptBoth memory", memoryPair, &Options{Default: Accept, Inner: Accept}, both, true},
		{"refuse", tcpPair, nil, nil, true},
		{"refuse memory", memoryPair, nil, nil, true},
		{"inner", tcpPair, &Options{Inner: Require}, wire(t, innerHeader), false},
		{"inner memory", memoryPair, &Options{Inner: Require}, wire(t, innerHeader), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c, s := tc.pair(t)
				mustWrite(t, c, string(tc.head))
				p := NewConn(s, tc.o)
				if !tc.wait {
					if err := p.ReadHeader(); err != nil {
						t.Error(err)
					}
				}
				return c, p, func() { c.Close(); p.Close() }, nil
			})
		})
	}
}

// TestConnUnread runs the suite where the data's first bytes were read with the
// header, or to see that there is none.
func TestConnUnread(t *testing.T) {
	for name, head := range map[string][]byte{"header": wire(t, outerHeader), "none": nil} {
		t.Run(name, func(t *testing.T) {
			tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c, s := tcpPair(t)
				mustWrite(t, c, string(head)+"0123456789")
				p := NewConn(s, &Options{Default: Accept})
				mustRead(t, p, "0123456789")
				return c, p, func() { c.Close(); p.Close() }, nil
			})
		})
	}
}

// TestConnBelowTLS puts TLS on a Conn, as a server behind a load balancer does.
func TestConnBelowTLS(t *testing.T) {
	ca, err := tunneltest.NewCA("proxyproto test")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}})
	if err != nil {
		t.Fatal(err)
	}
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c, s := tcpPair(t)
		mustWrite(t, c, string(wire(t, outerHeader)))
		tc := tls.Client(c, &tls.Config{RootCAs: ca.Pool(), ServerName: "server"})
		ts := tls.Server(NewConn(s, &Options{Default: Require}), &tls.Config{Certificates: []tls.Certificate{cert.TLS}})
		return tc, ts, func() { tc.Close(); ts.Close() }, nil
	})
}
