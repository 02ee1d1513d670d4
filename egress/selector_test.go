package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

var (
	proxyOptions  = tunneltest.CertOptions{CommonName: "proxy", DNS: []string{"proxy-server", "shoot--dev--a"}, IPs: []string{"127.0.0.1"}, Server: true}
	clientOptions = tunneltest.CertOptions{CommonName: "shoot--dev--a", Client: true}
)

// serve runs a CONNECT proxy on a listener until the test ends. It dials
// directly.
func serve(t testing.TB, l net.Listener, h *connect.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// target answers each line in upper case, and after the client's half-close
// with a good-bye.
func target(t testing.TB) string {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				s := bufio.NewScanner(c)
				for s.Scan() {
					fmt.Fprintln(c, strings.ToUpper(s.Text()))
				}
				fmt.Fprintln(c, "BYE")
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// talk checks both directions and a half-close, and closes the conn.
func talk(t testing.TB, c net.Conn) {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintln(c, "hello")
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if b, err := io.ReadAll(c); string(b) != "HELLO\nBYE\n" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

// secured is a proxy behind https that wants client certificates.
type secured struct {
	ca     *tunneltest.CA
	dir    string // with ca.crt, and tls.crt and tls.key of the client
	server *tls.Config
	pool   *certs.Pool // what the proxy admits
	addr   string
}

func newSecured(t testing.TB) *secured {
	t.Helper()
	s := &secured{ca: newCA(t, "ca"), dir: t.TempDir()}
	caName := caFile(t, s.ca, s.dir, "ca")
	certFiles(t, s.ca, s.dir, "tls", clientOptions)
	certName, keyName := certFiles(t, s.ca, s.dir, "proxy", proxyOptions)
	s.pool = &certs.Pool{CAs: []certs.CA{{File: caName}}}
	s.server = certs.ServerTLS(&certs.KeyPair{CertFile: certName, KeyFile: keyName}, s.pool, true)
	l := listen(t, "tcp", "127.0.0.1:0")
	s.addr = l.Addr().String()
	serve(t, tls.NewListener(l, s.server), &connect.Handler{})
	return s
}

// config names the proxy with the given lines for tlsConfig.
func (s *secured) config(t testing.TB, fields ...string) *Config {
	t.Helper()
	y := "    proxyProtocol: HTTPConnect\n    transport:\n      tcp:\n        url: https://" + s.addr + "\n        tlsConfig:\n"
	for _, f := range fields {
		y += "          " + strings.ReplaceAll(f, "$DIR", s.dir) + "\n"
	}
	return selection(t, y)
}

var full = []string{"caBundle: $DIR/ca.crt", "clientCert: $DIR/tls.crt", "clientKey: $DIR/tls.key"}

func dialContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHTTPS(t *testing.T) {
	s := newSecured(t)
	to := target(t)
	c := s.config(t, full...)
	if err := c.Validate().Err(); err != nil {
		t.Fatal(err)
	}
	sel := &Selector{Config: c}
	conn, err := sel.Dialer(Cluster)(dialContext(t), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(*tls.Conn); !ok {
		t.Errorf("the conn is a %T", conn)
	}
	talk(t, conn)

	for _, tt := range []struct {
		name   string
		fields []string
		stage  Stage
		err    error // nil: it works
	}{
		{"tlsServerName", append([]string{"tlsServerName: shoot--dev--a"}, full...), "", nil},
		{"wrong tlsServerName", append([]string{"tlsServerName: other"}, full...), StageConnect, connect.ErrTLS},
		{"host roots", full[1:], StageConnect, connect.ErrTLS},
		{"no client certificate", full[:1], StageProxy, nil},
		{"half a client certificate", full[:2], StageConnect, connect.ErrConfig},
		{"missing certificate", []string{full[0], "clientCert: $DIR/missing", "clientKey: $DIR/missing"}, StageConnect, connect.ErrConfig},
		{"missing CA", []string{"caBundle: $DIR/missing", full[1], full[2]}, StageConnect, connect.ErrConfig},
	} {
		sel := &Selector{Config: s.config(t, tt.fields...)}
		conn, err := sel.Dialer(Cluster)(dialContext(t), "tcp", to)
		if tt.stage == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			talk(t, conn)
			continue
		}
		var de *DialError
		if !errors.As(err, &de) || de.Stage != tt.stage || de.Selection != Cluster || tt.err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v (%+v), want %v in stage %s", tt.name, err, de, tt.err, tt.stage)
		}
		if conn != nil {
			t.Errorf("%s: a conn with an error", tt.name)
		}
	}
}

// TestTLS12Stage: the proxy's verdict on our certificate comes within the
// handshake there, and belongs to the stage connect.
func TestTLS12Stage(t *testing.T) {
	s := newSecured(t)
	old := s.server.Clone()
	old.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := s.server.GetConfigForClient(h)
		if err == nil {
			c = c.Clone()
			c.MaxVersion = tls.VersionTLS12
		}
		return c, err
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, tls.NewListener(l, old), &connect.Handler{})
	s.addr = l.Addr().String()
	for _, tt := range []struct {
		fields []string
		stage  Stage
	}{{full[:1], StageConnect}, {full, ""}} {
		sel := &Selector{Config: s.config(t, tt.fields...)}
		conn, err := sel.Dialer(Cluster)(dialContext(t), "tcp", target(t))
		var de *DialError
		if errors.As(err, &de); (err == nil) != (tt.stage == "") || de != nil && de.Stage != tt.stage {
			t.Errorf("%v: %v (%+v)", tt.fields, err, de)
		}
		if conn != nil {
			talk(t, conn)
		}
	}
}

// TestLenient dials what kube-apiserver refuses and what leaves no doubt, to a
// proxy over plain http and over a socket.
func TestLenient(t *testing.T) {
	to := target(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, l, &connect.Handler{})
	dir, err := os.MkdirTemp("", "e") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	serve(t, listen(t, "unix", socket), &connect.Handler{})
	for _, tt := range []struct{ name, connection string }{
		{"plain http", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'http://" + l.Addr().String() + "'}}"},
		{"case", "    proxyProtocol: httpConnect\n    transport: {tcp: {url: 'HTTP://" + l.Addr().String() + "/ignored'}}"},
		{"socket", "    proxyProtocol: HTTPConnect\n    transport: {uds: {udsName: " + socket + "}}"},
		{"direct", "    proxyProtocol: direct"},
		{"direct with transport", "    proxyProtocol: Direct\n    transport: {}"},
	} {
		sel := &Selector{Config: selection(t, tt.connection)}
		conn, err := sel.Dialer(Cluster)(dialContext(t), "tcp", to)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		talk(t, conn)
	}
}

// TestSeedDocument dials the founding document's own example: https without
// a tlsConfig, protocols and names as they were written then.
func TestSeedDocument(t *testing.T) {
	c := mustParse(t, strings.ReplaceAll(verdicts(t)[0].Config, "$DIR", ""))
	var logged strings.Builder
	var dialled []string
	sel := &Selector{
		Config: c,
		Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled = append(dialled, network+" "+address)
			return nil, errors.New("no network here")
		},
	}
	for _, s := range []Selection{Cluster, ControlPlane, Etcd} {
		dial, ok := sel.Lookup(s)
		if !ok {
			t.Errorf("%s is not selected", s)
			continue
		}
		if _, err := dial(t.Context(), "tcp", "10.0.0.7:10250"); err == nil || !strings.Contains(err.Error(), "no network here") {
			t.Errorf("%s: %v", s, err)
		}
	}
	if got, want := strings.Join(dialled, ", "), "tcp proxy-server:8131, tcp 10.0.0.7:10250, tcp 10.0.0.7:10250"; got != want {
		t.Errorf("dialled %s, want %s", got, want)
	}
	if n := strings.Count(logged.String(), "kube-apiserver would refuse"); n != 4 {
		t.Errorf("%d warnings, want 4:\n%s", n, logged.String())
	}
}

func TestNotDialable(t *testing.T) {
	for _, tt := range []struct{ name, connection, want string }{
		{"GRPC", "    proxyProtocol: grpc\n    transport: {uds: {udsName: /run/x}}", "GRPC is not supported"},
		{"unknown protocol", "    proxyProtocol: SOCKS5", "unknown proxyProtocol"},
		{"no protocol", "    transport: {}", "unknown proxyProtocol"},
		{"no transport", "    proxyProtocol: HTTPConnect", "one of tcp and uds"},
		{"both transports", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'https://h:1'}, uds: {udsName: /x}}", "one of tcp and uds"},
		{"no socket", "    proxyProtocol: HTTPConnect\n    transport: {uds: {}}", "udsName is missing"},
		{"no url", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {}}", "https://host:port"},
		{"bad url", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'https://u:password@h:port'}}", "invalid port"},
		{"other scheme", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'socks5://h:1'}}", "https://host:port"},
		{"http with TLS", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'http://h:1', tlsConfig: {}}}", "remove one"},
		{"two of a name", "    proxyProtocol: Direct\n- name: Cluster\n  connection: {proxyProtocol: Direct}", "several selections"},
	} {
		var events []Event
		sel := &Selector{Config: selection(t, tt.connection), Observe: func(e Event) { events = append(events, e) }}
		_, err := sel.Dialer(Cluster)(dialContext(t), "tcp", "127.0.0.1:1")
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, connect.ErrConfig) || strings.Contains(err.Error(), "password") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if errors.Is(err, errors.ErrUnsupported) != (tt.name == "GRPC") {
			t.Errorf("%s: unsupported: %v", tt.name, err)
		}
		if len(events) != 2 || events[1].Type != DialFailed || events[1].Stage != StageConnect {
			t.Errorf("%s: events %+v", tt.name, events)
		}
	}
}

func TestNotSelected(t *testing.T) {
	to := target(t)
	for _, sel := range []*Selector{{}, {Config: selection(t, "    proxyProtocol: GRPC")}} {
		for _, s := range []Selection{ControlPlane, Etcd, "nodes", ""} {
			if dial, ok := sel.Lookup(s); ok || dial != nil {
				t.Errorf("%q is selected", s)
			}
			conn, err := sel.Dialer(s)(dialContext(t), "tcp", to)
			if err != nil {
				t.Errorf("%q: %v", s, err)
				continue
			}
			talk(t, conn)
		}
	}
	// An entry with an unknown name is nobody's.
	c := &Config{EgressSelections: []Egress{{Name: "nodes", Connection: Connection{ProxyProtocol: Direct}}}}
	if _, ok := (&Selector{Config: c}).Lookup("nodes"); ok {
		t.Error("an unknown name is selected")
	}
}

// TestHTTPTransport is the use that the package is for: an HTTP client whose
// connections go where kube-apiserver's would.
func TestHTTPTransport(t *testing.T) {
	s := newSecured(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "kubelet") })}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	sel := &Selector{Config: s.config(t, full...)}
	tr := &http.Transport{DialContext: sel.Dialer(Cluster)}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://" + l.Addr().String() + "/logs")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "kubelet" {
		t.Errorf("%q", b)
	}
}

// TestConn runs the suite for conns over what the Selector returns.
func TestConn(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, l, &connect.Handler{})
	sel := &Selector{Config: selection(t, "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'http://"+l.Addr().String()+"'}}")}
	tunneltest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		to, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		defer to.Close()
		c1, err = sel.Dialer(Cluster)(context.Background(), "tcp", to.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		c2, err = to.Accept()
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}

// TestHalfClose ends the question and then hears the rest of the answer, over
// each kind of way to a proxy.
func TestHalfClose(t *testing.T) {
	s := newSecured(t)
	plain := listen(t, "tcp", "127.0.0.1:0")
	serve(t, plain, &connect.Handler{})
	dir, err := os.MkdirTemp("", "e") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	serve(t, listen(t, "unix", socket), &connect.Handler{})
	for name, config := range map[string]*Config{
		"https":  s.config(t, full...),
		"http":   selection(t, "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'http://"+plain.Addr().String()+"'}}"),
		"uds":    selection(t, "    proxyProtocol: HTTPConnect\n    transport: {uds: {udsName: "+socket+"}}"),
		"direct": selection(t, "    proxyProtocol: Direct"),
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, "tcp", "127.0.0.1:0")
			defer l.Close()
			c, err := (&Selector{Config: config}).Dialer(Cluster)(dialContext(t), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			to, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			for _, c := range []net.Conn{c, to} {
				c.SetDeadline(time.Now().Add(20 * time.Second))
			}
			// One way round, then the other: each end is an EOF and no more.
			for _, way := range []struct{ from, to net.Conn }{{c, to}, {to, c}} {
				io.WriteString(way.from, "question")
				if err := way.from.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(way.to); string(b) != "question" || err != nil {
					t.Fatalf("read %q, %v", b, err)
				}
			}
		})
	}
}
