package entrypoint

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// recordingDial notes what is dialled.
type recordingDial struct {
	mu     sync.Mutex
	dialed []string
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

func (d *recordingDial) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.dialed = append(d.dialed, address)
	d.mu.Unlock()
	return d.dial(ctx, network, address)
}

// Whatever stands in a request, or in a hello or a PROXY header, is a key of the
// table: the only addresses that are dialled are those of routes.
func TestHeaderIsLookedUpNeverDialled(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.backend("victim:443", "victim")
		d := &recordingDial{dial: w.net.Host("lb").Dial}
		w.set(&Route{
			Name: "a", SNI: []string{nameA}, Destinations: []Destination{dest(destA)}, HeaderValues: []string{headerA},
			Handler: &Forward{Backends: []string{"backend-a:443"}, Dial: d.Dial},
		})
		ip, _ := w.net.LookupHost(t.Context(), "victim")
		for _, value := range []string{
			"victim:443", ip[0] + ":443", ip[0], "outbound|443||victim", "outbound|443||" + ip[0], "https://victim:443/",
			"outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local.victim", headerA + ":443", headerA + "/", " ", "",
			strings.ToUpper(headerA), "outbound|0443||kube-apiserver.shoot--dev--a.svc.cluster.local", "unix:/run/x",
			"outbound|8443||kube-apiserver.shoot--dev--a.svc.cluster.local", headerA + "," + headerA, "*", "localhost:443",
		} {
			for _, name := range []string{HeaderReversedVPN, HeaderGardenerDestination} {
				c := w.dial("stranger", doorHeader)
				head := "CONNECT victim:443 HTTP/1.1\nHost: victim:443\n" + name + ": " + value + "\n\n"
				if status, _ := w.connect(c, head); status != 403 {
					t.Errorf("%s: %q: %d", name, value, status)
				}
				c.Close()
			}
		}
		// The authority of a request that is served says nothing either.
		for _, authority := range []string{"victim:443", ip[0] + ":443", "[::1]:1", "localhost:6443"} {
			c := w.dial("client", doorHeader)
			w.connect(c, "CONNECT "+authority+" HTTP/1.1\nHost: victim\n"+HeaderReversedVPN+": "+headerA+"\n\n")
			w.greeted(c, nameA).Close()
		}
		c := w.dial("client", doorSNI)
		send(c, hello(t, "victim"))
		outcome(c)
		c = w.dial("client", doorDest)
		w.claim(c, proxyHeader("192.0.2.1:1000", ip[0]+":443"))
		outcome(c)
		w.onlyRefused(map[Reason]uint64{ReasonUnknown: 38})
		d.mu.Lock()
		defer d.mu.Unlock()
		if want := slices.Repeat([]string{"backend-a:443"}, 4); !slices.Equal(d.dialed, want) {
			t.Errorf("dialled %q", d.dialed)
		}
	})
}

// A request has one routing header, and no two readers understand it in two ways.
func TestRequestRefused(t *testing.T) {
	a := HeaderReversedVPN + ": " + headerA
	other := HeaderGardenerDestination + ": " + headerA
	req := func(lines ...string) string { return crlf(connectHead(lines...)) }
	method := func(m, target string) string {
		return m + " " + target + " HTTP/1.1\r\nHost: " + nameA + "\r\n" + a + "\r\n\r\n"
	}
	const bad, unknown, large = ReasonMalformed, ReasonUnknown, ReasonTooLarge
	h := func(name, say string, reason Reason, want string) hostile {
		return hostile{name, doorHeader, "", say, false, reason, want}
	}
	refuseAll(t, []hostile{
		h("no header", req(), unknown, "403"),
		h("an empty one", req(HeaderReversedVPN+":"), unknown, "403"),
		h("an unknown value", req(HeaderReversedVPN+": outbound|443||x"), unknown, "403"),
		h("an unknown name", req("X-Other: "+headerA), unknown, "403"),
		h("the same twice", req(a, a), bad, "400"),
		h("the same twice, another value", req(a, HeaderReversedVPN+": "+headerB), bad, "400"),
		h("the same twice, another case", req(a, "reversed-vpn: "+headerB), bad, "400"),
		h("the same twice, one empty", req(a, HeaderReversedVPN+":"), bad, "400"),
		h("both", req(a, other), bad, "400"),
		h("both, in the other order", req(other, a), bad, "400"),

		h("a folded line", req(a, "X-Folded: a", " b"), bad, "400"),
		h("a folded routing header", req(HeaderReversedVPN+":", " "+headerA), bad, "400"),
		h("a folded first line", req(" "+a), bad, "400"),
		h("a blank before the colon", req(HeaderReversedVPN+" : "+headerA), bad, "400"),
		h("a line without colon", req(a, "nonsense"), bad, "400"),
		h("two lengths", req(a, "Content-Length: 0", "Content-Length: 5"), bad, "400"),
		h("two equal lengths", req(a, "Content-Length: 0", "Content-Length: 0"), bad, "400"),
		h("lengths in a list", req(a, "Content-Length: 0, 5"), bad, "400"),
		h("a negative length", req(a, "Content-Length: -1"), bad, "400"),
		h("length and coding", req(a, "Content-Length: 5", "Transfer-Encoding: chunked"), bad, "400"),
		h("length 0 and coding", req(a, "Content-Length: 0", "Transfer-Encoding: chunked"), bad, "400"),
		h("a body", req(a, "Content-Length: 5")+"hello", bad, "400"),
		h("a chunked body", req(a, "Transfer-Encoding: chunked")+"0\r\n\r\n", bad, "400"),
		h("a coding that is none", req(a, "Transfer-Encoding: x"), bad, "400"),
		h("LF alone", connectHead(a), bad, "400"),
		h("CR alone", strings.ReplaceAll(connectHead(a), "\n", "\r")+"\r\n\r\n", bad, "400"),
		h("NUL", req(a, "X: \x00"), bad, "400"),
		h("no host", "CONNECT x:1 HTTP/1.1\r\n"+a+"\r\n\r\n", bad, "400"),
		h("two hosts", req("Host: y", a), bad, "400"),
		h("an authority without port", strings.Replace(req(a), ":443 ", " ", 1), bad, "400"),
		h("a path for an authority", strings.Replace(req(a), "ignored.example.com:443 ", "/ ", 1), bad, "400"),
		h("HTTP/3", strings.Replace(req(a), "HTTP/1.1", "HTTP/3.0", 1), bad, "505"),
		h("HTTP/1.2", strings.Replace(req(a), "HTTP/1.1", "HTTP/1.2", 1), bad, "505"),
		h("HTTP/0.9", "GET /\r\n\r\n", bad, "400"),

		h("GET", method("GET", "/"), unknown, "403"),
		h("POST", method("POST", "/api"), unknown, "403"),
		h("a body that waits", strings.Replace(method("POST", "/"), "\r\n\r\n", "\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 1), unknown, "403"),
		h("OPTIONS", method("OPTIONS", "*"), unknown, "403"),
		h("through a proxy", method("GET", "http://victim/"), unknown, "403"),
		h("in lower case", method("connect", "/"), unknown, "403"),

		h("a head above 64 KiB", req(a, "X: "+strings.Repeat("x", 64<<10)), large, "431"),
		h("a line without end", "CONNECT x:1 HTTP/1.1\r\nX: "+strings.Repeat("x", 70<<10), large, "431"),
		h("a target without end", "CONNECT "+strings.Repeat("x", 70<<10), large, "431"),
		h("ten thousand fields", req(slices.Repeat([]string{"a: b"}, 10000)...), large, "431"),
		h("a thousand fields", req(slices.Repeat([]string{"a: b"}, 1000)...), large, "431"),
	})
}

// What looks odd and is legal is served.
func TestRequestServed(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := HeaderReversedVPN + ": " + headerA
		for _, head := range []string{
			connectHead(a),
			"CONNECT x:1 HTTP/1.0\n" + a + "\n\n",
			"CONNECT x:1 HTTP/1.0\nHost: y\n" + a + "\n\n",
			"\nCONNECT [::1]:65535 HTTP/1.1\nHost:\n" + a + "\n\n",
			connectHead("reVERSED-vpn:\t " + headerA + " \t"),
			connectHead(a, "Content-Length: 0"),
			connectHead(a, "X-Padding: "+strings.Repeat("x", 15<<10)),
			connectHead(append(slices.Repeat([]string{"a: b"}, 500), a)...),
			connectHead(a, "Proxy-Authorization: Basic eDp5", "User-Agent: x", "Connection: keep-alive"),
		} {
			c := w.dial("client", doorHeader)
			if status, h := w.connect(c, head); status != 200 || h.Get("Content-Length")+h.Get("Transfer-Encoding") != "" {
				t.Fatalf("%.100q: %d %v", head, status, h)
			}
			w.greeted(c, nameA).Close()
		}
		w.onlyRefused(nil)
	})
}

// A door has the headers that it has, and the others still count as routing
// headers, because who stands in front may look at these.
func TestOwnHeader(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.serve("own:1", &Door{By: ByHeader, Headers: []string{"reversed-vpn"}})
		w.serve("own:2", &Door{By: ByHeader, Headers: []string{"X-Own", "x-own-2"}, Unknown: Redirect})
		own, rvpn, xgd := "X-Own: "+headerA, HeaderReversedVPN+": "+headerA, HeaderGardenerDestination+": "+headerA
		for _, tc := range []struct {
			door  string
			lines []string
			want  int
		}{
			{"own:1", []string{rvpn}, 200},
			{"own:1", []string{xgd}, 403},
			{"own:1", []string{rvpn, xgd}, 400},
			{"own:1", []string{rvpn, own}, 200},
			{"own:2", []string{own}, 200},
			{"own:2", []string{"X-Own-2: " + headerA}, 200},
			{"own:2", []string{own, "X-Own-2: " + headerA}, 400},
			{"own:2", []string{own, rvpn}, 400},
			{"own:2", []string{own, xgd}, 400},
			{"own:2", []string{rvpn, xgd}, 400},
			{"own:2", []string{rvpn}, 301},
			{"own:2", nil, 301},
		} {
			c := w.dial("client", tc.door)
			if status, _ := w.connect(c, connectHead(tc.lines...)); status != tc.want {
				t.Errorf("%s: %q: %d, want %d", tc.door, tc.lines, status, tc.want)
			}
			c.Close()
		}
	})
	for _, bad := range [][]string{{""}, {"a b"}, {"a:"}, {"A", "a"}, {"ä"}} {
		l, err := new(tunneltest.Network).Listen("tcp", "x:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := new(Router).Serve(l, &Door{By: ByHeader, Headers: bad}); err == nil || !strings.Contains(err.Error(), "header") {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := l.Accept(); err == nil {
			t.Error("the listener is open")
		}
	}
}

// A redirect leads to the host that the request names, and to no other.
func TestRedirect(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.serve("redirect:80", &Door{By: ByHeader, Unknown: Redirect})
		n := uint64(0)
		for _, tc := range [][3]string{
			// first line, Host, Location
			{"CONNECT api.example.com:80", "other", "https://api.example.com:443"},
			{"CONNECT 192.0.2.1:80", "x", "https://192.0.2.1:443"},
			{"CONNECT [2001:db8::1]:80", "x", "https://[2001:db8::1]:443"},
			{"GET /", "api.example.com", "https://api.example.com:443/"},
			{"GET /a/b?c=d&e=%2F", "api.example.com:8132", "https://api.example.com:443/a/b?c=d&e=%2F"},
			{"GET /a%2Fb", "[2001:db8::1]", "https://[2001:db8::1]:443/a%2Fb"},
			{"GET //evil.example.com/", "api.example.com", "https://api.example.com:443//evil.example.com/"},
			{"GET http://evil.example.com/", "api.example.com", "https://api.example.com:443"},
			{"OPTIONS *", "api.example.com", "https://api.example.com:443"},
			{"GET /", "", "https://localhost:443/"},
			{"GET /", "user:password@evil.example.com", "https://localhost:443/"},
			{"GET /", "evil.example.com/x", "https://localhost:443/"},
			{"GET /", "*.example.com", "https://localhost:443/"},
			{"GET /", "a\"b", "https://localhost:443/"},
			{"GET /%0d%0aSet-Cookie:x", "x", "https://x:443/%0d%0aSet-Cookie:x"},
			{"GET /" + strings.Repeat("x", 10000), "x", "https://x:443/" + strings.Repeat("x", 10000)},
		} {
			c := w.dial("client", "redirect:80")
			send(c, tc[0]+" HTTP/1.1\r\nHost: "+tc[1]+"\r\n\r\n")
			if got := outcome(c); got != "301 "+tc[2] {
				t.Errorf("%.50q, Host: %q: %.100s", tc[0], tc[1], got)
			}
			c.Close()
			n++
			w.refused(ReasonUnknown, n)
		}
		// Nothing else is redirected.
		for _, say := range []string{
			crlf(connectHead(HeaderReversedVPN+": a", HeaderGardenerDestination+": b")),
			crlf(connectHead(HeaderReversedVPN + " : a")), "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			c := w.dial("client", "redirect:80")
			send(c, say)
			if got := outcome(c); got != "400" {
				t.Errorf("%q: %s", say, got)
			}
			c.Close()
		}
	})
}

// Bytes that come with the head, whole or in pieces, reach the backend once and
// in order, and so do those behind them. (With none, EOF during the dial means that
// the client is gone.)
func TestEarlyData(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		data := make(chan string)
		w.handle(w.listen("backend-raw:1"), func(c net.Conn) {
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d", len(b))
			data <- string(b)
		})
		w.set(&Route{Name: "raw", HeaderValues: []string{"raw"}, Destinations: []Destination{dest(destA)}, Handler: w.forward("backend-raw:1")})
		head := crlf(connectHead(HeaderReversedVPN + ": raw"))
		long := crlf(connectHead("X-Padding: "+strings.Repeat("x", 5000), HeaderReversedVPN+": raw"))
		key := wire(proxyHeader("192.0.2.1:1000", destA))
		text := strings.Repeat("0123456789abcdef\r\n\r\n", 20000)
		for _, n := range []int{1, 100, 511, 512, 513, 1024, 2048, 2049, 4096, 70000, len(text)} {
			for _, first := range []string{head, long, key} {
				for _, step := range []int{1, 7, 512, 1024, 2048, 1 << 20} {
					if step == 1 && n > 5000 {
						continue
					}
					door := doorHeader
					if first == key {
						door = doorDest
					}
					c := w.dial("client", door)
					w.wait.Go(func() {
						for part := range slices.Chunk([]byte(first+text[:n]), step) {
							send(c, string(part))
						}
						_ = c.(*tunneltest.Conn).CloseWrite()
					})
					if got := <-data; got != text[:n] {
						t.Errorf("%s, %d bytes in steps of %d: the backend gets %d, %.50q", door, n, step, len(got), got)
					}
					b, err := io.ReadAll(c)
					if err != nil || !strings.HasSuffix(string(b), fmt.Sprint(n)) || first != key && !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
						t.Errorf("the client gets %q, %v", b, err)
					}
					c.Close()
				}
			}
		}
		w.onlyRefused(nil)
	})
}

// The values of Gardener's clients are values like others: with one dash or two
// in the namespace, and the name of a socket, which may be one.
func TestHeaderValues(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		const socket = "shoot--dev--a--kube-apiserver-socket"
		l, err := w.net.Host("lb").Listen("unix", "/run/"+socket)
		if err != nil {
			t.Fatal(err)
		}
		w.handle(l, func(c net.Conn) {
			fmt.Fprintln(c, "socket")
			_, _ = io.Copy(c, c)
		})
		values := map[string]string{
			socket: "unix:/run/" + socket,
			"outbound|1194||vpn-seed-server.shoot--dev--a.svc.cluster.local":   "backend-a:443",
			"outbound|1194||vpn-seed-server.shoot-b.svc.cluster.local":         "backend-b:443",
			"outbound|1194||vpn-seed-server-0.shoot--dev--a.svc.cluster.local": "backend-b:443",
			"outbound|443||kube-apiserver.shoot--a-b.svc.cluster.local":        "backend-a:443",
			"outbound|443||kube-apiserver.shoot--a--b.svc.cluster.local":       "backend-b:443",
		}
		var routes []*Route
		for value, backend := range values {
			routes = append(routes, &Route{Name: value, HeaderValues: []string{value}, Handler: w.forward(backend)})
		}
		w.set(routes...)
		for value, backend := range values {
			c := w.dial("client", doorHeader)
			if status, _ := w.connect(c, connectHead(HeaderGardenerDestination+": "+value)); status != 200 {
				t.Fatalf("%s: %d", value, status)
			}
			switch backend {
			case "backend-a:443":
				w.greeted(c, nameA).Close()
			case "backend-b:443":
				w.greeted(c, nameB).Close()
			default:
				if got := line(c); got != "socket" {
					t.Errorf("%s: %q", value, got)
				}
				send(c, "question")
				_ = c.(*tunneltest.Conn).CloseWrite()
				if b, err := io.ReadAll(c); string(b) != "question" || err != nil {
					t.Errorf("%q %v", b, err)
				}
			}
		}
	})
}
