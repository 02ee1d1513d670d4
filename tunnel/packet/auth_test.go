package packet

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Who comes with what, and who that is.
func TestAuth(t *testing.T) {
	dir := t.TempDir()
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	pool := &certs.Pool{CAs: []certs.CA{{File: file}}, Interval: -1}
	tokenFile := filepath.Join(dir, "tokens")
	write := func(text string) {
		if err := os.WriteFile(tokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(token, cluster, name string) string {
		return "- {cluster: " + cluster + ", name: '" + name + "', sha256: " + certs.HashToken(token) + "}\n"
	}
	write(entry("one", "a", "peer") + entry("two", "b", "peer") + entry("anon", "a", ""))
	tokens := &certs.Tokens{File: tokenFile, Interval: time.Nanosecond}
	chain := func(o tunneltest.CertOptions) *tls.ConnectionState {
		cert, err := ca.Issue(o)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.ConnectionState{VerifiedChains: [][]*x509Certificate{{cert.TLS.Leaf, ca.Cert}}}
	}
	peer := chain(tunneltest.CertOptions{CommonName: "peer", Cluster: "a"})
	for _, tt := range []struct {
		name    string
		auth    AuthFunc
		tls     *tls.ConnectionState
		bearers []string
		status  int // 0: peer of a
	}{
		{"certificate", Auth("a", pool, tokens), peer, nil, 0},
		{"certificate, no pool", Auth("a", nil, nil), peer, nil, 0},
		{"certificate of any cluster", Auth("", pool, nil), peer, nil, 0},
		{"token", Auth("a", nil, tokens), nil, []string{"Bearer one"}, 0},
		{"token, any case", Auth("a", nil, tokens), nil, []string{"bearer  one"}, 0},
		{"both", Auth("a", pool, tokens), peer, []string{"Bearer one"}, 0},
		{"nothing", Auth("a", pool, tokens), nil, nil, 401},
		{"unknown token", Auth("a", pool, tokens), nil, []string{"Bearer three"}, 401},
		{"not a bearer", Auth("a", pool, tokens), nil, []string{"Basic one"}, 401},
		{"two of them", Auth("a", pool, tokens), nil, []string{"Bearer one", "Bearer one"}, 401},
		{"certificate and bad token", Auth("a", pool, tokens), peer, []string{"Bearer three"}, 401},
		{"token where there are none", Auth("a", pool, nil), peer, []string{"Bearer one"}, 401},
		{"they disagree on the cluster", Auth("", pool, tokens), peer, []string{"Bearer two"}, 403},
		{"they disagree on the name", Auth("a", pool, tokens), chain(tunneltest.CertOptions{CommonName: "other", Cluster: "a"}), []string{"Bearer one"}, 403},
		{"another cluster", Auth("a", nil, tokens), nil, []string{"Bearer two"}, 403},
		{"no name", Auth("a", nil, tokens), nil, []string{"Bearer anon"}, 403},
		{"operator", Auth("", pool, nil), chain(tunneltest.CertOptions{CommonName: "peer", Cluster: "*"}), nil, 403},
		{"operator, no pool", Auth("", nil, nil), chain(tunneltest.CertOptions{CommonName: "peer", Cluster: "*"}), nil, 403},
		{"expired", Auth("", nil, nil), chain(tunneltest.CertOptions{CommonName: "peer", Cluster: "a", NotAfter: time.Now().Add(-time.Hour)}), nil, 403},
		{"expired, bad token", Auth("", nil, tokens), chain(tunneltest.CertOptions{CommonName: "peer", Cluster: "a", NotAfter: time.Now().Add(-time.Hour)}), []string{"Bearer one"}, 403},
	} {
		id, err := tt.auth(&Peer{TLS: tt.tls, Request: &connect.Request{Header: http.Header{"Authorization": tt.bearers}}})
		var e *connect.Error
		switch {
		case tt.status == 0 && (err != nil || id.Cluster != "a" || id.Name != "peer" || id.Check() != nil):
			t.Errorf("%s: %+v %v", tt.name, id, err)
		case tt.status != 0 && (!errors.As(err, &e) || e.Status != tt.status):
			t.Errorf("%s: %+v %v, want %d", tt.name, id, err, tt.status)
		}
	}

	// Credentials are taken back.
	request := func(bearer string) *connect.Request {
		return &connect.Request{Header: http.Header{"Authorization": {"Bearer " + bearer}}}
	}
	byToken, err := Auth("a", nil, tokens)(&Peer{Request: request("one")})
	if err != nil {
		t.Fatal(err)
	}
	both, err := Auth("a", pool, tokens)(&Peer{TLS: peer, Request: request("one")})
	if err != nil {
		t.Fatal(err)
	}
	write(entry("one", "b", "peer"))
	if err := tokens.Refresh(); err != nil {
		t.Fatal(err)
	}
	if err := byToken.Check(); !errors.Is(err, certs.ErrWrongCluster) {
		t.Errorf("the token is of another cluster now: %v", err)
	}
	write("[]")
	if err := tokens.Refresh(); err != nil {
		t.Fatal(err)
	}
	if err := byToken.Check(); !errors.Is(err, certs.ErrUnknownToken) {
		t.Errorf("the token is gone: %v", err)
	}
	if err := both.Check(); err != nil {
		t.Errorf("the certificate still holds: %v", err)
	}
	other, err := tunneltest.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteFile(dir, "ca"); err != nil {
		t.Fatal(err)
	}
	if err := pool.Load(); err != nil {
		t.Fatal(err)
	}
	if err := both.Check(); err == nil {
		t.Error("the authority is gone, too")
	}
}

// A client by token, with TLS that is the listener's and configurations that are made for
// each handshake, over real sockets.
func TestTokenOverTCP(t *testing.T) {
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokenFile, []byte("- {cluster: a, name: one, sha256: "+certs.HashToken("secret")+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}})
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err := issued.WriteFiles(dir, "server")
	if err != nil {
		t.Fatal(err)
	}
	caFile, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	pair := &certs.KeyPair{CertFile: certFile, KeyFile: keyFile}
	pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}}
	config := certs.ServerTLS(pair, pool, false)
	for name, ours := range map[string]bool{"the server's TLS": true, "the listener's TLS": false} {
		t.Run(name, func(t *testing.T) {
			w := &linkWorld{T: t}
			links := make(chan *Conn, 10)
			s := &Server{
				Auth: Auth("a", nil, &certs.Tokens{File: tokenFile}), Hello: tunHello(),
				Admit: func(context.Context, Identity, Hello) (ServeFunc, error) {
					return func(ctx context.Context, c *Conn) error {
						links <- c
						return w.sendBack(ctx, c)
					}, nil
				},
			}
			l := listenTCP(t)
			address := l.Addr().String()
			if ours {
				s.TLS = config
			} else {
				l = tls.NewListener(l, config)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			var resumed, gathered bool
			marks := make(chan uint32, 10)
			k := &Client{
				Dial: dialTCP(address), Host: "server",
				TLS: &tls.Config{RootCAs: ca.Pool(), ClientSessionCache: tls.NewLRUClientSessionCache(1), VerifyConnection: func(cs tls.ConnectionState) error {
					resumed = cs.DidResume
					return nil
				}},
				Token: func(context.Context) (string, error) { return "secret", nil },
				Hello: tunHello(),
				Serve: func(ctx context.Context, c *Conn) error {
					return w.wait(ctx, c, func(f Frame) { marks <- markOf(f) })
				},
			}
			for range 2 {
				st := newStates(k)
				stop, _ := w.start(k)
				c := soon(t, st.up)
				if err := c.WriteBatch(linkBatch(1, 1400, 3)); err != nil {
					t.Fatal(err)
				}
				if m := soon(t, marks); m != 3 {
					t.Error(m)
				}
				gathered = soon(t, links).below != nil
				stop()
			}
			if !resumed {
				t.Error("the second connection does not resume the session of the first")
			}
			if gathered != ours {
				t.Errorf("gathered: %v", gathered)
			}
			_ = s.Close()
			if err := soon(t, served); err != ErrServerClosed {
				t.Error(err)
			}
		})
	}
}
