package proxyproto

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestPolicyByPeer(t *testing.T) {
	o := &Options{
		Rules: []Rule{
			{prefix("10.0.0.0/8"), Require},
			{prefix("10.1.0.0/16"), Accept},
			{prefix("10.1.2.3/16"), Refuse}, // the same prefix, too late
			{prefix("10.1.2.3/32"), Refuse},
			{prefix("::ffff:172.16.0.0/108"), Require},
			{prefix("fd00::/8"), Require},
			{prefix("::/0"), Accept},
			{netip.Prefix{}, Require},
		},
		Default: Refuse,
	}
	for peer, want := range map[string]Policy{
		"10.0.0.1":         Require,
		"::ffff:10.0.0.1":  Require,
		"10.1.9.9":         Accept,
		"10.1.2.3":         Refuse,
		"::ffff:10.1.2.3":  Refuse,
		"172.31.0.1":       Require,
		"172.32.0.1":       Refuse,
		"192.0.2.1":        Refuse,
		"::ffff:192.0.2.1": Refuse, // not in ::/0, which is IPv6
		"fd00::1":          Require,
		"2001:db8::1":      Accept,
		"fe80::1%eth0":     Accept,
	} {
		a := netip.MustParseAddr(peer)
		addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 1))
		if got := o.policy(addr); got != want {
			t.Errorf("%s: %v, want %v", peer, got, want)
		}
	}
	o = &Options{Rules: []Rule{{prefix("0.0.0.0/0"), Refuse}, {prefix("::/0"), Refuse}}, Default: Require}
	for _, addr := range []net.Addr{unixStream(""), (*net.UDPAddr)(client), nil, &net.TCPAddr{}} {
		if got := o.policy(addr); got != Require {
			t.Errorf("%v: %v, want the default", addr, got)
		}
	}
	if got := o.policy(client); got != Refuse {
		t.Errorf("%v: %v", client, got)
	}
	all := &Options{Rules: []Rule{{prefix("::ffff:0:0/96"), Accept}}}
	if got := all.policy(client); got != Accept {
		t.Errorf("mapped prefix of length 0: %v", got)
	}
}

func TestPolicyString(t *testing.T) {
	for p, want := range map[Policy]string{Refuse: "refuse", Require: "require", Accept: "accept", 7: "refuse", -1: "refuse"} {
		if p.String() != want || p.reads() != (p == Require || p == Accept) {
			t.Errorf("%d: %s, reads %v", int(p), p, p.reads())
		}
	}
	for in, want := range map[time.Duration]time.Duration{0: 10 * time.Second, -1: -1, 5: 5} {
		if got := (&Options{Timeout: in}).timeout(); got != want {
			t.Errorf("timeout %v, want %v", got, want)
		}
	}
}

// TestPeerBelowWrappers lets nobody choose his rule by what a wrapper claims:
// the second Conn believes the first one's peer, not the first one's header.
func TestPeerBelowWrappers(t *testing.T) {
	trustClient := &Options{Rules: []Rule{{prefix("192.0.2.0/24"), Require}}}
	first := NewConn(&scripted{data: wire(t, outerHeader, innerHeader, "data"), piece: 4096}, &Options{Default: Require})
	second := NewConn(first, trustClient)
	if second.outer.policy != Refuse {
		t.Error("trusts an address from a header")
	}
	if _, err := second.Read(make([]byte, 99)); err == nil {
		t.Error("honours a header of nobody")
	} else {
		wantHeaderError(t, err, ErrRefused)
	}
	if got := peerOf(withNetConn{first, nil}); got.String() != client.String() {
		t.Errorf("NetConn of nil: peer %v", got)
	}
}

type withNetConn struct {
	net.Conn
	below net.Conn
}

func (w withNetConn) NetConn() net.Conn { return w.below }
