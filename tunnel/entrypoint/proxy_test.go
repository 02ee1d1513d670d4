package entrypoint

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// local is a header of version 2 without addresses.
const local = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// headerBackend reports the PROXY header that each connection begins with, and
// all that follows it until EOF.
func (w *world) headerBackend(address string) (headers chan *proxyproto.Header, data chan string) {
	headers, data = make(chan *proxyproto.Header, 100), make(chan string, 100)
	w.handle(w.listen(address), func(c net.Conn) {
		h, err := proxyproto.ReadHeader(c)
		if err != nil {
			w.Errorf("the backend gets %v", err)
		}
		headers <- h
		b, _ := io.ReadAll(c)
		data <- string(b)
	})
	return headers, data
}

// Who is not a load balancer of the door cannot name a client, and bad headers
// cost whoever sent them.
func TestProxyHeaderRefused(t *testing.T) {
	outer := wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))
	text := v1("192.0.2.7:1000", "203.0.113.1:443")
	key := wire(proxyHeader("192.0.2.8:1000", "240.0.99.99:443")) // nobody's
	unix := wire(&proxyproto.Header{Source: &net.UnixAddr{Net: "unix", Name: "a"}, Destination: &net.UnixAddr{Net: "unix", Name: "b"}})
	udp := wire(&proxyproto.Header{Source: &net.UDPAddr{IP: net.IPv4(1, 2, 3, 4), Port: 1}, Destination: &net.UDPAddr{IP: net.IPv4(240, 0, 10, 1), Port: 443}})
	oversized := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + strings.Repeat("x", 200)
	tls, head := hello(t, nameA), crlf(connectHead(HeaderReversedVPN+": "+headerA))
	const bad = ReasonProxyHeader
	all := []hostile{
		{"v2 from a stranger", doorSNI, "", outer + tls, false, bad, "reset"},
		{"v1 from a stranger", doorSNI, "", text + tls, false, bad, "reset"},
		{"LOCAL from a stranger", doorSNI, "", local + tls, false, bad, "reset"},
		{"UNIX from a stranger", doorSNI, "", unix + tls, false, bad, "reset"},
		{"v2 from a stranger", doorHeader, "", outer + head, false, bad, "reset"},
		{"v1 from a stranger", doorHeader, "", text + head, false, bad, "reset"},
		{"LOCAL from a stranger", doorHeader, "", local + head, false, bad, "reset"},

		{"none from the balancer", doorSNI, "balancer", tls, false, bad, "reset"},
		{"none from the balancer", doorHeader, "balancer", head, false, bad, "reset"},
		{"none from the balancer", doorDest, "balancer", tls, false, bad, "reset"},
		{"none from the balancer", doorAll, "balancer", tls, false, bad, "reset"},
		{"v2 cut off", doorSNI, "balancer", outer[:20], true, bad, "reset"},
		{"v1 cut off", doorSNI, "balancer", text[:20], true, bad, "reset"},
		{"v2 oversized", doorSNI, "balancer", oversized, false, bad, "reset"},
		{"v1 without end", doorSNI, "balancer", "PROXY TCP4 " + strings.Repeat("1", 100), false, bad, "reset"},
		{"v1 with LF alone", doorSNI, "balancer", strings.ReplaceAll(text, "\r", ""), false, bad, "reset"},
		{"v1 garbage", doorSNI, "balancer", "PROXY GARBAGE 1 2 3 4\r\n", false, bad, "reset"},
		{"v3", doorSNI, "balancer", strings.Replace(outer, "\x21\x11", "\x31\x11", 1), false, bad, "reset"},
		{"UDP", doorSNI, "balancer", udp, false, bad, "reset"},

		{"inner v2 cut off", doorDest, "", outer[:20], true, bad, "reset"},
		{"inner v1 cut off", doorDest, "", text[:20], true, bad, "reset"},
		{"inner oversized", doorDest, "", oversized, false, bad, "reset"},
		{"inner UDP", doorDest, "", udp, false, bad, "reset"},
		{"inner is none", doorDest, "balancer", outer + tls, false, bad, "reset"},
		{"inner cut off", doorDest, "balancer", outer + outer[:20], true, bad, "reset"},
		{"inner oversized, door for all", doorAll, "", oversized, false, bad, "reset"},

		// A second header behind the balancer's is data, of no kind that is served.
		{"stacked v2", doorSNI, "balancer", outer + outer + tls, false, ReasonMalformed, "reset"},
		{"stacked v1", doorSNI, "balancer", outer + text + tls, false, ReasonMalformed, "400"},
		{"stacked", doorHeader, "balancer", outer + outer + head, false, ReasonMalformed, "400"},

		{"inner is nobody's", doorDest, "", key, false, ReasonUnknown, "reset"},
		{"inner v1 is nobody's", doorDest, "", text, false, ReasonUnknown, "reset"},
		{"inner LOCAL", doorDest, "", local, false, ReasonUnknown, "reset"},
		{"inner v1 UNKNOWN", doorDest, "", "PROXY UNKNOWN\r\n", false, ReasonUnknown, "reset"},
		{"inner UNIX", doorDest, "", unix, false, ReasonUnknown, "reset"},
		{"inner is nobody's, behind an outer one", doorDest, "balancer", outer + key, false, ReasonUnknown, "reset"},
		// The outer one's destination is no key.
		{"inner LOCAL behind a key", doorDest, "balancer", wire(proxyHeader("192.0.2.7:1000", destA)) + local, false, ReasonUnknown, "reset"},
		{"outer only", doorDest, "balancer", wire(proxyHeader("192.0.2.7:1000", destA)), true, ReasonEmpty, "reset"},
	}
	refuseAll(t, all)
}

// The balancer's header names the client, for the route's ACL, for the log and
// for the backend. Of the client's own header only the destination counts, and as
// a key only.
func TestStackedHeaders(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		headers, data := w.headerBackend("backend-p:443")
		routes := w.routes()
		f := w.forward("backend-p:443")
		f.SendProxy = 2
		routes[0].Handler = f
		routes[0].Allow = append(routes[0].Allow, prefix("192.0.2.0/24"), prefix("2001:db8::/32"))
		routes[0].Deny = append(routes[0].Deny, prefix("192.0.2.66/32"))
		w.set(routes...)
		for _, tc := range []struct {
			outer, inner string // sources
			version      int
			served       bool
		}{
			{"192.0.2.7:1000", "198.51.100.9:9", 2, true},
			{"192.0.2.7:1000", "198.51.100.9:9", 1, true},
			{"192.0.2.7:1000", "192.0.2.66:9", 2, true},    // is not denied for what it says
			{"192.0.2.66:1000", "192.0.2.7:9", 2, false},   // nor let in
			{"198.51.100.1:1000", "192.0.2.7:9", 2, false}, //
			{"198.51.100.1:1000", "192.0.2.7:9", 1, false}, //
			{"[2001:db8::7]:1000", "198.51.100.9:9", 2, true},
			{"[2001:db9::7]:1000", "192.0.2.7:9", 1, false},
			{"[::ffff:192.0.2.7]:1000", "198.51.100.9:9", 2, true},
		} {
			local := "203.0.113.1:8443"
			if strings.HasPrefix(tc.outer, "[") {
				local = "[2001:db8::1]:8443"
			}
			denied := w.router.Stats().Refused[ReasonDenied]
			c := w.dial("balancer", doorDest)
			h := proxyHeader(tc.outer, local)
			h.Version = tc.version
			w.claim(c, h)
			w.claim(c, proxyHeader(tc.inner, destA))
			if !tc.served {
				if got := outcome(c); got != "reset" {
					t.Errorf("%s: %s", tc.outer, got)
				}
				w.refused(ReasonDenied, denied+1)
				continue
			}
			third := wire(proxyHeader("198.51.100.10:10", "203.0.113.77:443"))
			send(c, "data"+third)
			_ = c.(*tunneltest.Conn).CloseWrite()
			got := <-headers
			if want := tcpAddr(tc.outer); got.Source.String() != want.String() || got.Destination.String() != tcpAddr(local).String() {
				t.Errorf("the backend is told of %v to %v, want %v to %s", got.Source, got.Destination, want, local)
			}
			if got := <-data; got != "data"+third {
				t.Errorf("the backend gets %q", got)
			}
			if err := ended(c); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		log := w.log.String()
		for _, inner := range []string{"198.51.100.9", "client=192.0.2.7:9", "client=192.0.2.66:9", "198.51.100.10"} {
			if strings.Contains(log, inner) {
				t.Errorf("the log takes %s, the source of an inner header, for the client\n%s", inner, log)
			}
		}
		if !strings.Contains(log, "peer="+balancer) || !strings.Contains(log, "client=192.0.2.7:1000") || !strings.Contains(log, "client=[2001:db8::7]:1000") {
			t.Errorf("the log does not name the client\n%s", log)
		}
		// Without a balancer the socket's address is the client's, whatever it says.
		c := w.dial("client", doorDest)
		w.claim(c, proxyHeader("192.0.2.7:1000", destA))
		if got := outcome(c); got != "reset" {
			t.Error(got)
		}
		w.refused(ReasonDenied, 5)
		// And what comes behind its header is data, be it another one.
		w.net.SetHost("near", "192.0.2.99")
		c = w.dial("near", doorDest)
		third := wire(proxyHeader("[2001:db8::7]:1000", destB))
		send(c, wire(proxyHeader("192.0.2.7:1000", destA))+third)
		_ = c.(*tunneltest.Conn).CloseWrite()
		if got := <-headers; got.Source.String() != c.LocalAddr().String() {
			t.Errorf("the backend is told of %v", got.Source)
		}
		if got := <-data; got != third {
			t.Errorf("the backend gets %q", got)
		}
	})
}

// What the balancer cannot say is taken from the socket: with LOCAL the balancer
// speaks for itself, and a UNIX client has no address.
func TestOuterWithoutAddress(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		headers, data := w.headerBackend("backend-p:443")
		routes := w.routes()
		f := w.forward("backend-p:443")
		f.SendProxy = 2
		routes[0].Handler = f
		w.set(routes...)
		unix := wire(&proxyproto.Header{Source: &net.UnixAddr{Net: "unix", Name: "a"}, Destination: &net.UnixAddr{Net: "unix", Name: "b"}})
		inner := wire(proxyHeader("198.51.100.9:9", destA))
		for outer, want := range map[string]string{local: balancer, "PROXY UNKNOWN\r\n": balancer, unix: ""} {
			c := w.dial("balancer", doorDest)
			send(c, outer+inner+"data")
			_ = c.(*tunneltest.Conn).CloseWrite()
			got := <-headers
			if want == "" != got.Local {
				t.Errorf("%q: the backend is told %+v", outer, got)
			}
			if want != "" && got.Source.(*net.TCPAddr).IP.String() != want {
				t.Errorf("%q: the backend is told of %v", outer, got.Source)
			}
			<-data
		}
		// The ACL sees the balancer in the first two, and nobody in the third.
		routes = w.routes()
		routes[0].Allow = append(routes[0].Allow, prefix(balancer+"/32"))
		w.set(routes...)
		for outer, want := range map[string]bool{local: true, "PROXY UNKNOWN\r\n": true, unix: false} {
			c := w.dial("balancer", doorDest)
			send(c, outer+inner)
			if want {
				w.greeted(c, nameA).Close()
			} else if got := outcome(c); got != "reset" {
				t.Errorf("%q: %s", outer, got)
			}
		}
		w.onlyRefused(map[Reason]uint64{ReasonDenied: 1})
	})
}

// With Accept the balancer may leave its header out, and is then the client.
func TestProxyMayBe(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		rules := []proxyproto.Rule{{From: prefix(balancer + "/32"), Policy: proxyproto.Accept}}
		doors := map[string]By{"may:443": BySNI, "may:8132": ByHeader}
		for address, by := range doors {
			w.serve(address, &Door{By: by, Proxy: rules})
		}
		for address, by := range doors {
			for _, header := range []string{"", wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))} {
				c := w.dial("balancer", address)
				send(c, header)
				if by == ByHeader {
					w.connect(c, connectHead(HeaderReversedVPN+": "+headerA))
				}
				w.greeted(c, nameA).Close()
			}
		}
		w.until("all are logged", func() bool { return strings.Count(w.log.String(), "served") == 4 })
		if n := strings.Count(w.log.String(), "client=192.0.2.7:1000"); n != 2 {
			t.Errorf("%d clients are named\n%s", n, w.log)
		}
		// At a door by destination the client's own header could be taken for it.
		if err := w.router.Serve(w.listen("may:8443"), &Door{By: ByDestination, Proxy: rules}); err == nil || errors.Is(err, net.ErrClosed) {
			t.Errorf("a door by destination: %v", err)
		}
	})
}

// A header that is refused is found in whatever pieces it comes, before anything
// of it reaches a backend.
func TestRefusedHeaderInPieces(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		n := uint64(0)
		for _, h := range []string{wire(proxyHeader("192.0.2.7:1000", destA)), v1("192.0.2.7:1000", destA)} {
			for _, door := range []string{doorSNI, doorHeader} {
				c := w.dial("stranger", door)
				drip(c, h, time.Millisecond)
				send(c, "\r\n\r\n")
				got := outcome(c)
				c.Close()
				n++
				w.until("refused", func() bool {
					s := w.router.Stats()
					return s.Refused[ReasonProxyHeader]+s.Refused[ReasonMalformed] == n
				})
				if got != "reset" && got != "400" {
					t.Errorf("%s: %q: %s", door, h, got)
				}
			}
		}
		if s := w.router.Stats(); s.Routes[0].Total+s.Routes[1].Total > 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A server name that no DNS has may be as long as a hello, and a PROXY header may
// not: the name is left out, and neither the client nor the backend is to blame.
func TestLongNameToDefaultRoute(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		headers, data := w.headerBackend("backend-p:443")
		f := w.forward("backend-p:443")
		f.SendProxy = 2
		w.set(&Route{Name: "default", Default: true, Handler: f})
		for _, n := range []int{1, 253, 254, 4000, 5000, 60000} {
			name := strings.Repeat("x", n)
			say := records(renamed(payload(hello(t, nameA)), nameA, name), 1<<14)
			c := w.dial("client", doorSNI)
			send(c, say)
			_ = c.(*tunneltest.Conn).CloseWrite()
			h := <-headers
			if want := map[bool]string{true: name}[n <= 253]; h.Authority() != want {
				t.Errorf("the backend is told of %.20q for a name of %d bytes", h.Authority(), n)
			}
			if got := <-data; got != say {
				t.Errorf("the backend gets %d bytes of %d", len(got), len(say))
			}
		}
		w.onlyRefused(nil)
	})
}
