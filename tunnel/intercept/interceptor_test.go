package intercept

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestExactBytes looks at what goes over the wire, which others parse.
func TestExactBytes(t *testing.T) {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	reading := func(w *world, n int) (head []byte, client net.Conn) {
		client = w.dial()
		c, err := w.entry.Accept()
		must(t, err)
		t.Cleanup(func() { c.Close() })
		head = make([]byte, n)
		_, err = io.ReadFull(c, head)
		must(t, err)
		return head, client
	}
	port := func(c net.Conn) []byte {
		p := c.LocalAddr().(*net.TCPAddr).Port
		return []byte{byte(p >> 8), byte(p)}
	}
	t.Run("ProxyV2", func(t *testing.T) {
		w := newWorld(t, nil, &Interceptor{Destination: netip.MustParseAddrPort("240.1.2.3:443")})
		w.start()
		got, client := reading(w, 28)
		want := append([]byte(signature+"\x21\x11\x00\x0c\x7f\x00\x00\x01\xf0\x01\x02\x03"), port(client)...)
		want = append(want, 0x01, 0xbb)
		if !bytes.Equal(got, want) {
			t.Errorf("got  % x\nwant % x", got, want)
		}
	})
	t.Run("ProxyV2 of two families", func(t *testing.T) {
		w := newWorld(t, nil, &Interceptor{Destination: netip.MustParseAddrPort("[64:ff9b:1::c0a8:6617]:443")})
		w.start()
		got, client := reading(w, 52)
		want := []byte(signature + "\x21\x21\x00\x24" +
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01" +
			"\x00\x64\xff\x9b\x00\x01\x00\x00\x00\x00\x00\x00\xc0\xa8\x66\x17")
		want = append(append(want, port(client)...), 0x01, 0xbb)
		if !bytes.Equal(got, want) {
			t.Errorf("got  % x\nwant % x", got, want)
		}
	})
	t.Run("Connect", func(t *testing.T) {
		const want = "CONNECT 240.1.2.3:443 HTTP/1.1\r\nHost: 240.1.2.3:443\r\nReversed-VPN: outbound|443||kube-apiserver.shoot.svc.cluster.local\r\n\r\n"
		w := newWorld(t, nil, &Interceptor{Dialect: Connect, Destination: netip.MustParseAddrPort("240.1.2.3:443"),
			Header: http.Header{"Reversed-VPN": {"outbound|443||kube-apiserver.shoot.svc.cluster.local"}}})
		w.start()
		if got, _ := reading(w, len(want)); http.CanonicalHeaderKey("Reversed-VPN") != "Reversed-Vpn" || !bytes.EqualFold(got, []byte(want)) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

// TestDestination has the local address of the connection where none is given.
func TestDestination(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		w.dial()
		if _, got := w.accept(); got != w.front.Addr().String() {
			t.Errorf("the destination is %s, want %s", got, w.front.Addr())
		}
	})
	w := newWorld(t, nil, &Interceptor{Dialect: Connect, Authority: "api.a.dev.example.com:443"})
	w.start()
	w.dial()
	if _, got := w.accept(); got != "api.a.dev.example.com:443" {
		t.Errorf("the authority is %s", got)
	}
}

// TestConn has both ends of a forwarded connection behave as those of one do.
func TestConn(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		tunneltest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			c1, c2 = w.pair()
			return c1, c2, func() { c1.Close(); c2.Close() }, nil
		})
	})
}

func TestHalfClose(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		client, server := w.pair()
		roundTrip(t, client, server)
		server, client = w.pair() // the other way
		roundTrip(t, client, server)
		eventually(t, "all ended", func() bool { return w.i.Stats().Open == 0 })
		s := w.i.Stats()
		if s.Accepted != 2 || len(s.Failed) != 0 || len(s.Broken) != 0 || s.ToEntrypoint != 14 || s.FromEntrypoint != 16 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestReset(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		client, server := w.pair()
		must(t, relay.Reset(client))
		wantReset(t, server)
		client, server = w.pair()
		must(t, relay.Reset(server))
		wantReset(t, client)
		eventually(t, "all ended", func() bool { s := w.i.Stats(); return s.Open == 0 && s.Broken[relay.OpRead] == 2 })
	})
}

// TestTLS has the API server's own certificate arrive at the client.
func TestTLS(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		ca, err := tunneltest.NewCA("test")
		must(t, err)
		cert, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"kubernetes.default.svc"}})
		must(t, err)
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.start()
		raw, inner := w.pair()
		client := tls.Client(raw, &tls.Config{RootCAs: ca.Pool(), ServerName: "kubernetes.default.svc"})
		server := tls.Server(inner, &tls.Config{Certificates: []tls.Certificate{cert.TLS}})
		shaken := make(chan error, 1)
		go func() { shaken <- server.Handshake() }()
		must(t, errors.Join(client.Handshake(), <-shaken))
		roundTrip(t, client, server)
	})
}

// TestEarly has a client that speaks, more than is kept, and half-closes before
// the entrypoint is reached.
func TestEarly(t *testing.T) {
	for name, size := range map[string]int{"little": 1 << 10, "as much as is kept": guard.MaxEarly, "more": 3 * guard.MaxEarly} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil, &Interceptor{Dialect: Connect})
			w.start()
			c := w.dial()
			sent := bytes.Repeat([]byte("hello"), size/5)
			_, err := c.Write(sent)
			must(t, errors.Join(err, relay.CloseWrite(c)))
			e, err := w.entry.Accept()
			must(t, err)
			defer e.Close()
			_, err = connect.ReadRequest(e, nil)
			must(t, err)
			_, err = io.WriteString(e, "HTTP/1.1 200 OK\r\n\r\nearly answer")
			must(t, err)
			got, err := io.ReadAll(e)
			if !bytes.Equal(got, sent) || err != nil {
				t.Errorf("%d of %d bytes arrived, %v", len(got), len(sent), err)
			}
			must(t, e.Close())
			if got, err := io.ReadAll(c); string(got) != "early answer" || err != nil {
				t.Errorf("the answer is %q, %v", got, err)
			}
		})
	}
}

// TestUnix has a listener whose connections have no TCP address.
func TestUnix(t *testing.T) {
	start := func(t *testing.T, i *Interceptor) (w *world, client net.Conn) {
		t.Helper()
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		must(t, err)
		w = newWorld(t, nil, i)
		w.front.Close()
		w.front = l
		w.start()
		client, err = net.Dial("unix", l.Addr().String())
		must(t, err)
		t.Cleanup(func() { client.Close() })
		return w, client
	}
	t.Run("no destination", func(t *testing.T) {
		var logs logBuffer
		w, _ := start(t, &Interceptor{Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		w.failed(string(connect.ErrConfig), 1)
		if len(lines(logs.String(), "no destination for a connection")) != 1 {
			t.Errorf("the log:\n%s", logs.String())
		}
	})
	for destination, source := range map[string]string{"240.1.2.3:443": "0.0.0.0:0", "[64:ff9b:1::1]:443": "[::]:0"} {
		t.Run(destination, func(t *testing.T) {
			w, client := start(t, &Interceptor{Destination: netip.MustParseAddrPort(destination)})
			server, err := w.entry.Accept()
			must(t, err)
			defer server.Close()
			h, err := proxyproto.ReadHeader(server)
			must(t, err)
			if h.Local || h.Source.String() != source || h.Destination.String() != destination {
				t.Errorf("the header says %v to %v", h.Source, h.Destination)
			}
			roundTrip(t, client, server)
		})
		t.Run("Connect to "+destination, func(t *testing.T) {
			w, client := start(t, &Interceptor{Dialect: Connect, Destination: netip.MustParseAddrPort(destination)})
			server, got := w.accept()
			if got != destination {
				t.Errorf("the destination is %s", got)
			}
			roundTrip(t, client, server)
		})
	}
}

// nowhere is a connection without addresses.
type nowhere struct{ *net.TCPConn }

func (nowhere) LocalAddr() net.Addr  { return nil }
func (nowhere) RemoteAddr() net.Addr { return nil }

// nowhereListener accepts such connections.
type nowhereListener struct{ net.Listener }

func (l nowhereListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return nowhere{c.(*net.TCPConn)}, nil
}

// TestNoAddresses has connections without addresses on both sides.
func TestNoAddresses(t *testing.T) {
	start := func(t *testing.T, i *Interceptor) (w *world, logs *logBuffer) {
		t.Helper()
		logs = new(logBuffer)
		i.Logger = slog.New(slog.NewTextHandler(logs, nil))
		w = newWorld(t, nil, i)
		w.front = nowhereListener{w.front}
		w.i.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return nowhere{c.(*net.TCPConn)}, nil
		}
		w.start()
		return w, logs
	}
	inDialects(t, func(t *testing.T, d Dialect) {
		w, logs := start(t, &Interceptor{Dialect: d, MaxConns: 1, Destination: netip.MustParseAddrPort("240.1.2.3:443")})
		client, server := w.pair()
		w.wantReset()
		eventually(t, "logged", func() bool { return len(lines(logs.String(), "reason="+ReasonFull)) == 1 })
		roundTrip(t, client, server)

		w, logs = start(t, &Interceptor{Dialect: d})
		w.wantReset()
		w.failed(string(connect.ErrConfig), 1)
		eventually(t, "logged", func() bool { return len(lines(logs.String(), "no destination for a connection")) == 1 })
	})
}

// TestSelf has an entrypoint whose name leads back.
func TestSelf(t *testing.T) {
	inDialects(t, func(t *testing.T, d Dialect) {
		w := newWorld(t, nil, &Interceptor{Dialect: d})
		w.i.Entrypoint = w.front.Addr().String()
		w.start()
		w.wantReset()
		eventually(t, "all ended", func() bool { s := w.i.Stats(); return s.Open == 0 && s.Accepted > 1 })
		// One goes out from here before it is known where to.
		if s := w.i.Stats(); s.Failed[string(connect.ErrConfig)] == 0 || s.Accepted > 10 {
			t.Errorf("got %+v", s)
		}
		n := w.i.Stats().Accepted
		w.wantReset()
		eventually(t, "ended", func() bool { s := w.i.Stats(); return s.Open == 0 && s.Accepted == n+1 })
	})
}

// TestProxyListener has our own reader at the other end.
func TestProxyListener(t *testing.T) {
	w := newWorld(t, nil, &Interceptor{Destination: netip.MustParseAddrPort("240.1.2.3:443")})
	w.entry = &proxyproto.Listener{Listener: w.entry, Options: proxyproto.Options{Default: proxyproto.Require}}
	w.start()
	client := w.dial()
	server, err := w.entry.Accept()
	must(t, err)
	if server.RemoteAddr().String() != client.LocalAddr().String() || server.LocalAddr().String() != "240.1.2.3:443" {
		t.Errorf("the entrypoint sees %v to %v", server.RemoteAddr(), server.LocalAddr())
	}
	roundTrip(t, client, server)
}
