package entrypoint

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// What a backend is told with SendProxy.
func TestForwardSendProxy(t *testing.T) {
	tlvs := func(pairs ...any) (ts []proxyproto.TLV) {
		for i := 0; i < len(pairs); i += 2 {
			ts = append(ts, proxyproto.TLV{Type: pairs[i].(proxyproto.TLVType), Value: []byte(pairs[i+1].(string))})
		}
		return ts
	}
	claimed := func(source, destination string, ts ...proxyproto.TLV) *proxyproto.Header {
		h := proxyHeader(source, destination)
		h.TLVs = ts
		return h
	}
	v6 := claimed("[2001:db8::7]:1000", "[2001:db8::1]:443", tlvs(proxyproto.TypeUniqueID, "id-1", proxyproto.TypeAuthority, "claimed.example.com", proxyproto.TypeALPN, "h2")...)
	mixed := claimed("[::ffff:192.0.2.7]:1000", "[2001:db8::1]:443")
	for name, c := range map[string]struct {
		version int
		claim   *proxyproto.Header // of the balancer in front
		sni     bool
		want    proxyproto.Header // with no address where it is that of the connection
	}{
		"v1":               {1, nil, false, proxyproto.Header{Version: 1}},
		"v2":               {2, nil, false, proxyproto.Header{Version: 2}},
		"v1, name":         {1, nil, true, proxyproto.Header{Version: 1}},
		"v2, name":         {2, nil, true, proxyproto.Header{Version: 2, TLVs: tlvs(proxyproto.TypeAuthority, "only.example.com")}},
		"v1, claimed v6":   {1, v6, false, proxyproto.Header{Version: 1, Source: v6.Source, Destination: v6.Destination}},
		"v2, claimed v6":   {2, v6, false, proxyproto.Header{Version: 2, Source: v6.Source, Destination: v6.Destination, TLVs: tlvs(proxyproto.TypeUniqueID, "id-1")}},
		"v2, claimed both": {2, v6, true, proxyproto.Header{Version: 2, Source: v6.Source, Destination: v6.Destination, TLVs: tlvs(proxyproto.TypeAuthority, "only.example.com", proxyproto.TypeUniqueID, "id-1")}},
		"v1, mixed":        {1, mixed, false, proxyproto.Header{Version: 1, Source: mixed.Source, Destination: mixed.Destination}},
		"v2, mixed":        {2, mixed, false, proxyproto.Header{Version: 2, Source: mixed.Source, Destination: mixed.Destination}},
		"v2, LOCAL":        {2, &proxyproto.Header{Local: true}, false, proxyproto.Header{Version: 2}}, // the balancer itself
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				w := newWorld(t, nil)
				type told struct {
					header *proxyproto.Header
					err    error
				}
				tell := make(chan told, 1)
				w.handle(w.listen("b1:1"), func(c net.Conn) {
					h, err := proxyproto.ReadHeader(c)
					tell <- told{h, err}
					io.Copy(c, c)
				})
				w.only(&Forward{Backends: []string{"b1:1"}, SendProxy: c.version})
				host, door := "client", doorHeader
				if c.sni {
					door = doorSNI
				}
				if c.claim != nil {
					host = "balancer"
				}
				conn := w.dial(host, door)
				if c.claim != nil {
					w.claim(conn, c.claim)
				}
				if c.sni {
					w.wait.Go(func() { w.tls(conn, "only.example.com") })
				} else if status, _ := w.connect(conn, connectHead(HeaderReversedVPN+": only")); status != 200 {
					t.Fatal(status)
				}
				got := <-tell
				if got.err != nil {
					t.Fatal(got.err)
				}
				if c.want.Source == nil {
					c.want.Source, c.want.Destination = conn.LocalAddr(), conn.RemoteAddr()
				}
				if fmt.Sprintf("%+v", *got.header) != fmt.Sprintf("%+v", c.want) {
					t.Errorf("the backend is told\n%+v, want\n%+v", *got.header, c.want)
				}
				if !c.sni {
					say(t, conn, "nothing is lost behind it")
				}
				conn.Close()
			})
		})
	}
}

// A client without an IP address is one of which nothing is told.
func TestForwardSendProxyUnix(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.handle(w.listen("b1:1"), func(c net.Conn) {
			h, err := proxyproto.ReadHeader(c)
			fmt.Fprintf(c, "%d %v %v\n", h.Version, h.Local, err)
		})
		l, err := w.net.Listen("unix", "/run/door")
		if err != nil {
			t.Fatal(err)
		}
		w.wait.Go(func() { w.router.Serve(l, &Door{By: ByHeader}) })
		for version, want := range map[int]string{1: "1 true <nil>", 2: "2 true <nil>"} {
			w.only(&Forward{Backends: []string{"b1:1"}, SendProxy: version})
			c, err := w.net.Dial(t.Context(), "unix", "/run/door")
			if err != nil {
				t.Fatal(err)
			}
			w.connect(c, connectHead(HeaderReversedVPN+": only"))
			if got := line(c); got != want {
				t.Errorf("v%d: the backend is told %q, want %q", version, got, want)
			}
			c.Close()
		}
	})
}

// The zero Dial reaches real sockets: TCP of both families, Unix and abstract
// ones.
func TestForwardRealSockets(t *testing.T) {
	backends := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(t.TempDir(), "s")}
	if runtime.GOOS == "linux" {
		backends["abstract"] = fmt.Sprintf("@rhizome-entrypoint-%d", os.Getpid())
	}
	for name, address := range backends {
		t.Run(name, func(t *testing.T) {
			network := strings.Replace(name, "abstract", "unix", 1)
			l, err := net.Listen(network, address)
			if err != nil {
				t.Skipf("no such sockets here: set up %s: %v", name, err)
			}
			defer l.Close()
			backend := l.Addr().String()
			if network == "unix" {
				backend = "unix:" + backend
			}
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprintln(c, name)
				io.Copy(c, c)
			}()
			r := new(Router)
			defer r.Close()
			if err := r.SetRoutes([]*Route{{Name: "only", HeaderValues: []string{"only"}, Handler: &Forward{Backends: []string{backend}}}}); err != nil {
				t.Fatal(err)
			}
			front, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- r.Serve(front, &Door{By: ByHeader}) }()
			c, err := net.Dial("tcp", front.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			w := &world{TB: t, log: new(logBuffer), router: r}
			if status, _ := w.connect(c, connectHead(HeaderReversedVPN+": only")); status != 200 {
				t.Fatal(status)
			}
			if got := line(c); got != name {
				t.Errorf("greeted by %q", got)
			}
			say(t, c, "hello")
			relay.CloseWrite(c)
			if err := ended(c); err != nil {
				t.Error(err)
			}
			r.Close()
			if err := <-served; err != ErrRouterClosed {
				t.Errorf("Serve = %v", err)
			}
		})
	}
}
