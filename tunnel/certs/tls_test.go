package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// shake runs one handshake and one echo over an in-memory conn, so that in
// TLS 1.3 the server's verdict on the client has arrived.
func shake(t testing.TB, client, server *tls.Config) (cs, ss tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	a, b := tunneltest.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		s := tls.Server(b, server)
		if serverErr = s.HandshakeContext(ctx); serverErr != nil {
			return
		}
		ss = s.ConnectionState()
		buf := make([]byte, 1)
		if _, serverErr = io.ReadFull(s, buf); serverErr == nil {
			_, serverErr = s.Write(buf)
		}
	}()
	c := tls.Client(a, client)
	clientErr = func() error {
		if err := c.HandshakeContext(ctx); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}()
	cs = c.ConnectionState()
	a.Close()
	<-done
	return cs, ss, clientErr, serverErr
}

// world is a server and a client that trust each other.
type world struct {
	ca                   *tunneltest.CA
	serverDir, clientDir string
	serverPair           *KeyPair
	clientPair           *KeyPair
	serverPool           *Pool // with which the server verifies clients
	clientPool           *Pool
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{ca: newCA(t, "ca"), serverDir: t.TempDir(), clientDir: t.TempDir()}
	w.serverPair = pairFor(t, w.serverDir, issue(t, w.ca, serverOptions))
	w.clientPair = pairFor(t, w.clientDir, issue(t, w.ca, clientOptions))
	w.serverPool = poolFor(t, w.serverDir, w.ca)
	w.clientPool = poolFor(t, w.clientDir, w.ca)
	return w
}

var (
	serverOptions = tunneltest.CertOptions{CommonName: "server", DNS: []string{"proxy.test"}, IPs: []string{"10.0.0.1", "fd00::1"}, Server: true}
	clientOptions = tunneltest.CertOptions{CommonName: "a", Client: true}
)

func (w *world) server() *tls.Config { return ServerTLS(w.serverPair, w.serverPool, true) }
func (w *world) client() *tls.Config { return ClientTLS(w.clientPair, w.clientPool, "proxy.test") }

func (w *world) load(t testing.TB) {
	t.Helper()
	if err := errors.Join(w.serverPair.Load(), w.clientPair.Load(), w.serverPool.Load(), w.clientPool.Load()); err != nil {
		t.Fatal(err)
	}
}

func TestHandshake(t *testing.T) {
	w := newWorld(t)
	cs, ss, cerr, serr := shake(t, w.client(), w.server())
	if err := errors.Join(cerr, serr); err != nil {
		t.Fatal(err)
	}
	if cs.NegotiatedProtocol != "http/1.1" || cs.Version != tls.VersionTLS13 {
		t.Errorf("negotiated %q, version %x", cs.NegotiatedProtocol, cs.Version)
	}
	id, err := w.serverPool.Identify(ss.VerifiedChains)
	if err != nil || id.Cluster != "a" {
		t.Errorf("%+v, %v", id, err)
	}
	h2 := w.client()
	h2.NextProtos = []string{"h2"}
	if _, _, err, _ := shake(t, h2, w.server()); err == nil {
		t.Error("the server speaks h2")
	}
	h2.NextProtos = []string{"h2", "http/1.1"}
	if cs, _, err, _ := shake(t, h2, w.server()); err != nil || cs.NegotiatedProtocol != "http/1.1" {
		t.Errorf("negotiated %q, %v", cs.NegotiatedProtocol, err)
	}
	old := w.client()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, _, err, _ := shake(t, old, w.server()); err == nil {
		t.Error("the server speaks TLS 1.1")
	}
}

// TestClientRefused has the server refuse what it must.
func TestClientRefused(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	stranger := newCA(t, "ca") // of the same name
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name string
			ca   *tunneltest.CA
			o    tunneltest.CertOptions
			ok   bool
		}{
			{"good", w.ca, clientOptions, true},
			{"for both uses", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true, Server: true}, true},
			{"expired", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(-time.Second)}, false},
			{"not yet valid", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true, NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}, false},
			{"wrong CA", stranger, clientOptions, false},
			{"wrong use", w.ca, tunneltest.CertOptions{CommonName: "a", Server: true}, false},
		} {
			client := ClientTLS(pairFor(t, t.TempDir(), issue(t, tt.ca, tt.o)), w.clientPool, "proxy.test")
			client.MaxVersion = version
			_, _, cerr, serr := shake(t, client, w.server())
			if (cerr == nil && serr == nil) != tt.ok {
				t.Errorf("%s, TLS %x: client %v, server %v", tt.name, version, cerr, serr)
			}
			// What is shown must be good also where nothing need be shown.
			_, _, cerr, serr = shake(t, client, ServerTLS(w.serverPair, w.serverPool, false))
			if (cerr == nil && serr == nil) != tt.ok {
				t.Errorf("%s, TLS %x, optional: client %v, server %v", tt.name, version, cerr, serr)
			}
		}
	}
	none := ClientTLS(nil, w.clientPool, "proxy.test")
	if _, _, _, err := shake(t, none, w.server()); err == nil {
		t.Error("admitted without a certificate")
	}
	if _, ss, cerr, serr := shake(t, none, ServerTLS(w.serverPair, w.serverPool, false)); cerr != nil || serr != nil || len(ss.VerifiedChains) != 0 {
		t.Errorf("without a certificate where none is required: %v, %v", cerr, serr)
	}
	if _, ss, cerr, serr := shake(t, w.client(), ServerTLS(w.serverPair, nil, false)); cerr != nil || serr != nil || len(ss.PeerCertificates) != 0 {
		t.Errorf("without a pool: %v, %v", cerr, serr)
	}
	for name, server := range map[string]*tls.Config{
		"no pool, certificates required": ServerTLS(w.serverPair, nil, true),
		"no key pair":                    ServerTLS(nil, w.serverPool, true),
		"no key pair, no pool":           ServerTLS(nil, nil, false),
		"bad pool":                       ServerTLS(w.serverPair, &Pool{}, false),
		"bad pair":                       ServerTLS(&KeyPair{}, w.serverPool, false),
	} {
		if _, _, _, err := shake(t, w.client(), server); err == nil {
			t.Errorf("%s: a client was admitted", name)
		}
	}
}

// TestServerRefused has the client refuse what it must: InsecureSkipVerify is
// set in its configuration.
func TestServerRefused(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	for _, tt := range []struct {
		name       string
		ca         *tunneltest.CA
		o          tunneltest.CertOptions
		serverName string
		ok         bool
	}{
		{"DNS name", w.ca, serverOptions, "proxy.test", true},
		{"IPv4 address", w.ca, serverOptions, "10.0.0.1", true},
		{"IPv6 address", w.ca, serverOptions, "fd00::1", true},
		{"other DNS name", w.ca, serverOptions, "other.test", false},
		{"other address", w.ca, serverOptions, "10.0.0.2", false},
		{"no name at all", w.ca, serverOptions, "", false},
		{"common name does not count", w.ca, tunneltest.CertOptions{CommonName: "proxy.test", Server: true}, "proxy.test", false},
		{"expired", w.ca, tunneltest.CertOptions{DNS: []string{"proxy.test"}, Server: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(-time.Second)}, "proxy.test", false},
		{"not yet valid", w.ca, tunneltest.CertOptions{DNS: []string{"proxy.test"}, Server: true, NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}, "proxy.test", false},
		{"wrong CA", newCA(t, "ca"), serverOptions, "proxy.test", false},
		{"wrong use", w.ca, tunneltest.CertOptions{DNS: []string{"proxy.test"}, Client: true}, "proxy.test", false},
	} {
		server := ServerTLS(pairFor(t, t.TempDir(), issue(t, tt.ca, tt.o)), w.serverPool, true)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			client := ClientTLS(w.clientPair, w.clientPool, tt.serverName)
			client.MaxVersion = version
			_, _, err, _ := shake(t, client, server)
			if (err == nil) != tt.ok {
				t.Errorf("%s, TLS %x: %v", tt.name, version, err)
			}
		}
	}
	// The name may be set later, as dialers do.
	later := ClientTLS(w.clientPair, w.clientPool, "").Clone()
	later.ServerName = "proxy.test"
	if _, _, err, _ := shake(t, later, w.server()); err != nil {
		t.Error(err)
	}
	later.ServerName = "other.test"
	if _, _, err, _ := shake(t, later, w.server()); err == nil {
		t.Error("a name that was set later is not verified")
	}
	// Later still does not weaken what was asked for.
	later = w.client().Clone()
	later.ServerName = "other.test"
	if _, _, err, _ := shake(t, later, ServerTLS(pairFor(t, t.TempDir(), issue(t, w.ca, tunneltest.CertOptions{DNS: []string{"other.test"}, Server: true})), w.serverPool, true)); err == nil {
		t.Error("serverName was overridden")
	}
	if c := ClientTLS(nil, nil, "proxy.test"); c.InsecureSkipVerify {
		t.Error("no verification with the host's roots")
	}
	if _, _, err, _ := shake(t, ClientTLS(w.clientPair, nil, "proxy.test"), w.server()); err == nil {
		t.Error("the host's roots know the test's authority")
	}
	if _, _, err, _ := shake(t, ClientTLS(w.clientPair, &Pool{}, "proxy.test"), w.server()); err == nil {
		t.Error("an empty pool admits")
	}
	if _, _, err, _ := shake(t, ClientTLS(&KeyPair{}, w.clientPool, "proxy.test"), w.server()); err == nil {
		t.Error("a key pair that cannot be read is no error")
	}
}

func TestIntermediates(t *testing.T) {
	w := newWorld(t)
	inter, err := w.ca.Intermediate(tunneltest.CertOptions{CommonName: "inter"})
	if err != nil {
		t.Fatal(err)
	}
	server := ServerTLS(pairFor(t, t.TempDir(), issue(t, inter, serverOptions)), w.serverPool, true)
	client := ClientTLS(pairFor(t, t.TempDir(), issue(t, inter, clientOptions)), w.clientPool, "proxy.test")
	_, ss, cerr, serr := shake(t, client, server)
	if err := errors.Join(cerr, serr); err != nil {
		t.Fatal(err)
	}
	if id, err := w.serverPool.Identify(ss.VerifiedChains); err != nil || id.Cluster != "a" {
		t.Errorf("%+v, %v", id, err)
	}
	// A bound intermediate and its free root in one pool: real chains, both.
	p := &Pool{CAs: []CA{
		{File: w.serverPool.CAs[0].File},
		{Cluster: "b", File: write(t, filepath.Join(t.TempDir(), "inter.crt"), inter.PEM())},
	}}
	_, ss, cerr, serr = shake(t, client, ServerTLS(w.serverPair, p, true))
	if err := errors.Join(cerr, serr); err != nil {
		t.Fatal(err)
	}
	if id, err := p.Identify(ss.VerifiedChains); err != nil || id.Cluster != "b" || !id.Bound {
		t.Errorf("%d chains: %+v, %v", len(ss.VerifiedChains), id, err)
	}
}

func TestCertificateWithheld(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	pair := pairFor(t, t.TempDir(), issue(t, newCA(t, "other"), clientOptions))
	pair.Logger = log.logger()
	server := ServerTLS(w.serverPair, w.serverPool, false)
	_, ss, cerr, serr := shake(t, ClientTLS(pair, w.clientPool, "proxy.test"), server)
	if cerr != nil || serr != nil || len(ss.PeerCertificates) != 0 {
		t.Errorf("%v, %v, %d certificates", cerr, serr, len(ss.PeerCertificates))
	}
	if log.count("withheld") != 1 {
		t.Error("nobody heard of it")
	}
}

// TestLiveRotation rotates both sides' pairs and CAs, one after the other,
// over a listener that stays, in fake time and with Run.
func TestLiveRotation(t *testing.T) {
	w := newWorld(t)
	ca2 := newCA(t, "ca2")
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		l, err := n.Listen("tcp", "10.0.0.1:9443")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for _, run := range []func(context.Context) error{w.serverPair.Run, w.serverPool.Run, w.clientPair.Run, w.clientPool.Run} {
			go run(ctx)
		}
		server, client := w.server(), w.client()
		go echoTLS(tls.NewListener(l, server))
		dial := func() (*tls.Conn, error) {
			c, err := n.Dial(ctx, "tcp", "10.0.0.1:9443")
			if err != nil {
				return nil, err
			}
			conn := tls.Client(c, client)
			return conn, talk(conn)
		}
		first, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		tick := func() {
			time.Sleep(DefaultInterval)
			synctest.Wait()
		}
		both := join(w.ca.PEM(), ca2.PEM())
		steps := []struct {
			name   string
			change func()
		}{
			{"server trusts both", func() { write(t, w.serverPool.CAs[0].File, both) }},
			{"client trusts both", func() { write(t, w.clientPool.CAs[0].File, both) }},
			{"server's pair", func() { pairFor(t, w.serverDir, issue(t, ca2, serverOptions)) }},
			{"client's pair", func() { pairFor(t, w.clientDir, issue(t, ca2, clientOptions)) }},
			{"server trusts the new one only", func() { write(t, w.serverPool.CAs[0].File, ca2.PEM()) }},
			{"client trusts the new one only", func() { write(t, w.clientPool.CAs[0].File, ca2.PEM()) }},
		}
		for _, s := range steps {
			s.change()
			tick()
			c, err := dial()
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			c.Close()
			if err := talk(first); err != nil {
				t.Fatalf("%s: the conn from before: %v", s.name, err)
			}
		}
		if _, err := w.serverPool.Identify(serverChains(w, first)); !errors.Is(err, ErrUntrusted) {
			t.Errorf("the certificate of the old CA is still good: %v", err)
		}
		pairFor(t, w.clientDir, issue(t, w.ca, clientOptions))
		tick()
		if c, err := dial(); err == nil {
			t.Error("a certificate of the old CA is admitted")
			c.Close()
		}
		first.Close()
		l.Close()
		cancel()
	})
}

// serverChains stands for what the server verified at the first handshake.
func serverChains(w *world, c *tls.Conn) [][]*x509.Certificate {
	return [][]*x509.Certificate{{c.ConnectionState().PeerCertificates[0], w.ca.Cert}}
}

func echoTLS(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func talk(c net.Conn) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// TestTickets resumes sessions as long as the pool stays the same and never
// across a change of it.
func TestTickets(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		w := newWorld(t)
		other := newCA(t, "other")
		tunneltest.Bubble(t, func(t *testing.T) {
			w.load(t)
			server, client := w.server(), w.client()
			client.MaxVersion = version
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			resumed := func() bool {
				t.Helper()
				cs, ss, cerr, serr := shake(t, client, server)
				if err := errors.Join(cerr, serr); err != nil {
					t.Fatal(err)
				}
				if _, err := w.serverPool.Identify(ss.VerifiedChains); err != nil {
					t.Fatal(err)
				}
				return cs.DidResume
			}
			check := func(what string, want bool) {
				t.Helper()
				if got := resumed(); got != want {
					t.Errorf("TLS %x, %s: resumed %v", version, what, got)
				}
			}
			check("first", false)
			check("second", true)
			o := serverOptions
			o.NotAfter = time.Now().AddDate(1, 0, 0)
			pairFor(t, w.serverDir, issue(t, w.ca, o))
			if err := w.serverPair.Load(); err != nil {
				t.Fatal(err)
			}
			check("the server's pair changed", true)
			write(t, w.serverPool.CAs[0].File, join(w.ca.PEM(), other.PEM()))
			if err := w.serverPool.Load(); err != nil {
				t.Fatal(err)
			}
			check("an authority was added", false)
			check("after that", true)
			time.Sleep(ticketLife - time.Minute)
			check("before the keys change", true)
			time.Sleep(2 * time.Minute)
			check("after the keys changed once", true)
			check("and again", true)
			time.Sleep(3 * ticketLife)
			check("after three days", false)

			// The client re-verifies on resumption, too.
			write(t, w.clientPool.CAs[0].File, other.PEM())
			if err := w.clientPool.Load(); err != nil {
				t.Fatal(err)
			}
			if _, _, err, _ := shake(t, client, server); err == nil {
				t.Error("the client resumed with a server of a CA that it does not trust any more")
			}
		})
	}
}

func TestAgentTLS(t *testing.T) {
	w := newWorld(t)
	bound := newCA(t, "bound")
	dir := t.TempDir()
	pool := &Pool{CAs: []CA{
		{File: write(t, filepath.Join(dir, "ca"), w.ca.PEM())},
		{Cluster: "b", File: write(t, filepath.Join(dir, "bound"), bound.PEM())},
	}}
	for _, tt := range []struct {
		name    string
		ca      *tunneltest.CA
		o       tunneltest.CertOptions
		cluster string
		ok      bool
	}{
		{"client certificate", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true}, "a", true},
		{"server certificate", w.ca, tunneltest.CertOptions{Cluster: "a", DNS: []string{"agent.test"}, Server: true}, "a", true},
		{"bound", bound, tunneltest.CertOptions{CommonName: "agent", Client: true}, "b", true},
		{"other cluster", w.ca, tunneltest.CertOptions{CommonName: "b", Client: true}, "a", false},
		{"bound to another", bound, tunneltest.CertOptions{CommonName: "a", Client: true}, "a", false},
		{"operator", w.ca, tunneltest.CertOptions{CommonName: "*", Client: true}, "a", false},
		{"no cluster asked for", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true}, "", false},
		{"no name", w.ca, tunneltest.CertOptions{CommonName: "no name", Client: true}, "a", false},
		{"wrong CA", newCA(t, "x"), tunneltest.CertOptions{CommonName: "a", Client: true}, "a", false},
		{"expired", w.ca, tunneltest.CertOptions{CommonName: "a", Client: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Second)}, "a", false},
	} {
		agent := ServerTLS(pairFor(t, t.TempDir(), issue(t, tt.ca, tt.o)), w.serverPool, true)
		_, _, err, _ := shake(t, AgentTLS(w.clientPair, pool, tt.cluster), agent)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	agent := ServerTLS(pairFor(t, t.TempDir(), issue(t, w.ca, tunneltest.CertOptions{CommonName: "a", Client: true})), w.serverPool, true)
	if _, _, err, _ := shake(t, AgentTLS(w.clientPair, nil, "a"), agent); err == nil {
		t.Error("no pool admits")
	}
	_, _, err, _ := shake(t, AgentTLS(w.clientPair, pool, "b"), agent)
	if !errors.Is(err, ErrWrongCluster) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("want the cluster in the error: %v", err)
	}
}
