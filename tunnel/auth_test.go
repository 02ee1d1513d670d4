package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// shown is what a connection shows: a certificate of ca if it has options, and
// headers in pairs.
func shown(t testing.TB, ca *tunneltest.CA, o *tunneltest.CertOptions, sni string, header ...string) *Peer {
	t.Helper()
	p := &Peer{Request: &connect.Request{Header: make(http.Header)}}
	for i := 0; i < len(header); i += 2 {
		p.Request.Header.Add(header[i], header[i+1])
	}
	if o != nil || sni != "" {
		p.TLS = &tls.ConnectionState{ServerName: sni}
	}
	if o != nil {
		cert, err := ca.Issue(*o)
		if err != nil {
			t.Fatal(err)
		}
		p.TLS.VerifiedChains = [][]*x509.Certificate{{cert.TLS.Leaf, ca.Cert}}
	}
	return p
}

func statusOfErr(err error) int {
	var e *connect.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

func writeFile(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAuthFuncs(t *testing.T) {
	dir := t.TempDir()
	ca, err := tunneltest.NewCA("shared")
	if err != nil {
		t.Fatal(err)
	}
	caFile, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := tunneltest.NewCA("stranger")
	if err != nil {
		t.Fatal(err)
	}
	pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}}
	tokens := &certs.Tokens{File: filepath.Join(dir, "tokens.yaml")}
	writeFile(t, tokens.File, "- cluster: a\n  name: canary\n  sha256: "+certs.HashToken(tokenOfA)+
		"\n- cluster: b\n  sha256: "+certs.HashToken(tokenOfB)+"\n")

	ofA := &tunneltest.CertOptions{Cluster: "a"}
	operator := &tunneltest.CertOptions{CommonName: "*"}
	nameless := &tunneltest.CertOptions{CommonName: "not a cluster"}
	old := &tunneltest.CertOptions{Cluster: "a", NotAfter: time.Now().Add(-time.Minute)}
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for _, tt := range []struct {
		name   string
		auth   AuthFunc
		peer   *Peer
		want   string // cluster
		status int
	}{
		{"agent: certificate", AgentAuth(pool, tokens), shown(t, ca, ofA, ""), "a", 0},
		{"agent: certificate, no pool", AgentAuth(nil, nil), shown(t, ca, ofA, ""), "a", 0},
		{"agent: certificate, no tokens", AgentAuth(pool, nil), shown(t, ca, ofA, ""), "a", 0},
		{"agent: token", AgentAuth(pool, tokens), shown(t, nil, nil, "", bearer(tokenOfB)...), "b", 0},
		{"agent: token, no pool", AgentAuth(nil, tokens), shown(t, nil, nil, "x", bearer(tokenOfB)...), "b", 0},
		{"agent: token, scheme in capitals", AgentAuth(pool, tokens), shown(t, nil, nil, "", "Authorization", "BEARER  "+tokenOfA+" "), "a", 0},
		{"agent: both", AgentAuth(pool, tokens), shown(t, ca, ofA, "", bearer(tokenOfA)...), "a", 0},
		{"agent: both, at odds", AgentAuth(pool, tokens), shown(t, ca, ofA, "", bearer(tokenOfB)...), "", 403},
		{"agent: nothing", AgentAuth(pool, tokens), shown(t, nil, nil, ""), "", 401},
		{"agent: TLS without a certificate", AgentAuth(pool, tokens), shown(t, nil, nil, "x"), "", 401},
		{"agent: nothing, nothing accepted", AgentAuth(nil, nil), shown(t, nil, nil, ""), "", 401},
		{"agent: unknown token", AgentAuth(pool, tokens), shown(t, nil, nil, "", bearer("guess")...), "", 401},
		{"agent: certificate and unknown token", AgentAuth(pool, tokens), shown(t, ca, ofA, "", bearer("guess")...), "", 401},
		{"agent: token where none is taken", AgentAuth(pool, nil), shown(t, nil, nil, "", bearer(tokenOfA)...), "", 401},
		{"agent: certificate, token where none is taken", AgentAuth(pool, nil), shown(t, ca, ofA, "", bearer(tokenOfA)...), "", 401},
		{"agent: two tokens", AgentAuth(pool, tokens), shown(t, nil, nil, "", append(bearer(tokenOfA), bearer(tokenOfA)...)...), "", 401},
		{"agent: Basic", AgentAuth(pool, tokens), shown(t, nil, nil, "", "Authorization", "Basic "+tokenOfA), "", 401},
		{"agent: no scheme", AgentAuth(pool, tokens), shown(t, nil, nil, "", "Authorization", tokenOfA), "", 401},
		{"agent: operator", AgentAuth(pool, tokens), shown(t, ca, operator, ""), "", 403},
		{"agent: operator with a token", AgentAuth(pool, tokens), shown(t, ca, operator, "", bearer(tokenOfA)...), "", 403},
		{"agent: operator, no pool", AgentAuth(nil, nil), shown(t, ca, operator, ""), "", 403},
		{"agent: foreign certificate with a token", AgentAuth(pool, tokens), shown(t, stranger, ofA, "", bearer(tokenOfA)...), "", 403},
		{"agent: expired", AgentAuth(pool, tokens), shown(t, ca, old, ""), "", 403},
		{"agent: expired, no pool", AgentAuth(nil, nil), shown(t, ca, old, ""), "", 403},
		{"agent: no cluster", AgentAuth(pool, tokens), shown(t, ca, nameless, ""), "", 403},
		{"agent: no cluster, no pool", AgentAuth(nil, nil), shown(t, ca, nameless, ""), "", 403},

		{"client: certificate", ClientAuth(pool, nil), shown(t, ca, ofA, ""), "a", 0},
		{"client: certificate, no pool", ClientAuth(nil, nil), shown(t, ca, ofA, ""), "a", 0},
		{"client: token", ClientAuth(pool, nil), shown(t, nil, nil, "", bearer(tokenOfA)...), "", 401},
		{"client: operator, nothing selected", ClientAuth(pool, nil), shown(t, ca, operator, ""), "", 403},
		{"client: foreign", ClientAuth(pool, nil), shown(t, stranger, ofA, ""), "", 403},

		{"SNI", ClientAuth(pool, SelectSNI("")), shown(t, ca, ofA, "a"), "a", 0},
		{"SNI with suffix", ClientAuth(pool, SelectSNI(".tunnel.example.")), shown(t, ca, ofA, "A.Tunnel.Example"), "a", 0},
		{"SNI of another", ClientAuth(pool, SelectSNI("")), shown(t, ca, ofA, "b"), "", 403},
		{"SNI without the suffix", ClientAuth(pool, SelectSNI("tunnel.example")), shown(t, ca, ofA, "a"), "", 403},
		{"SNI is the suffix", ClientAuth(pool, SelectSNI("tunnel.example")), shown(t, ca, ofA, "tunnel.example"), "", 403},
		{"no SNI", ClientAuth(pool, SelectSNI("")), shown(t, ca, ofA, ""), "", 403},
		{"no TLS", SelectorAsAuth(SelectSNI("")), shown(t, nil, nil, ""), "", 403},
		{"operator by SNI", ClientAuth(pool, SelectSNI("")), shown(t, ca, operator, "b"), "b", 0},
		{"operator by SNI, no pool", ClientAuth(nil, SelectSNI("")), shown(t, ca, operator, "b"), "b", 0},
		{"operator, bad cluster", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, operator, "", wantHeader, "a/b"), "", 403},
		{"operator, empty cluster", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, operator, "", wantHeader, ""), "", 403},
		{"header", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, ofA, "", wantHeader, "a"), "a", 0},
		{"header of another", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, ofA, "", wantHeader, "b"), "", 403},
		{"header twice", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, ofA, "", wantHeader, "a", wantHeader, "a"), "", 403},
		{"no header", ClientAuth(pool, SelectHeader(wantHeader)), shown(t, ca, ofA, ""), "", 403},

		{"fixed", FixedCluster("a"), shown(t, nil, nil, ""), "a", 0},
		{"fixed to nothing", FixedCluster(""), shown(t, nil, nil, ""), "", 403},
		{"an error of one's own", func(*Peer) (Identity, error) { return Identity{}, errors.New("no") }, shown(t, nil, nil, ""), "", 401},
	} {
		id, err := authenticate(tt.auth, tt.peer)
		if id.Cluster != tt.want || statusOfErr(err) != tt.status || (err == nil) != (tt.want != "") {
			t.Errorf("%s: cluster %q, %v; want %q, status %d", tt.name, id.Cluster, err, tt.want, tt.status)
			continue
		}
		if err == nil {
			if id.Name == "" && !strings.Contains(tt.name, "no pool") || strings.Contains(id.Name, "token-of") {
				t.Errorf("%s: name %q", tt.name, id.Name)
			}
			if err := id.Check(); err != nil {
				t.Errorf("%s: Check right after: %v", tt.name, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "token-of") {
			t.Errorf("%s: the error tells the token: %v", tt.name, err)
		}
	}
}

// SelectorAsAuth lets a selector alone decide, for the table.
func SelectorAsAuth(s Selector) AuthFunc {
	return func(p *Peer) (Identity, error) {
		cluster, err := s(p)
		return Identity{Cluster: cluster, Name: "x"}, err
	}
}

// Check follows the files and the time.
func TestChecksFollowFiles(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		ca, err := tunneltest.NewCA("one")
		if err != nil {
			t.Fatal(err)
		}
		other, err := tunneltest.NewCA("two")
		if err != nil {
			t.Fatal(err)
		}
		caFile := filepath.Join(dir, "ca.pem")
		writeFile(t, caFile, string(ca.PEM()))
		tokenFile := filepath.Join(dir, "tokens.yaml")
		entry := func(cluster string) string {
			return "- cluster: " + cluster + "\n  sha256: " + certs.HashToken(tokenOfA) + "\n"
		}
		writeFile(t, tokenFile, entry("a"))
		pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}, Interval: time.Second}
		tokens := &certs.Tokens{File: tokenFile, Interval: time.Second}
		if err := errors.Join(pool.Load(), tokens.Load()); err != nil {
			t.Fatal(err)
		}
		admit := func(auth AuthFunc, p *Peer) func() error {
			t.Helper()
			id, err := auth(p)
			if err != nil {
				t.Fatal(err)
			}
			return id.Check
		}
		ofA := &tunneltest.CertOptions{Cluster: "a", NotAfter: time.Now().Add(time.Hour)}
		byCert := admit(AgentAuth(pool, tokens), shown(t, ca, ofA, ""))
		byToken := admit(AgentAuth(pool, tokens), shown(t, nil, nil, "", "Authorization", "Bearer "+tokenOfA))
		byBoth := admit(AgentAuth(pool, tokens), shown(t, ca, ofA, "", "Authorization", "Bearer "+tokenOfA))
		noPool := admit(ClientAuth(nil, nil), shown(t, ca, ofA, ""))
		check := func(when string, cert, token, both, bare error) {
			t.Helper()
			time.Sleep(2 * time.Second)
			if err := errors.Join(pool.Refresh(), tokens.Refresh()); err != nil {
				t.Fatal(err)
			}
			for name, c := range map[string]struct{ got, want error }{
				"certificate": {byCert(), cert}, "token": {byToken(), token}, "both": {byBoth(), both}, "no pool": {noPool(), bare},
			} {
				if !errors.Is(c.got, c.want) {
					t.Errorf("%s: %s: %v, want %v", when, name, c.got, c.want)
				}
			}
		}
		check("at first", nil, nil, nil, nil)
		writeFile(t, tokenFile, entry("b"))
		check("token of another cluster", nil, certs.ErrWrongCluster, nil, nil)
		writeFile(t, tokenFile, "[]\n")
		check("token removed", nil, certs.ErrUnknownToken, nil, nil)
		writeFile(t, tokenFile, entry("a"))
		writeFile(t, caFile, string(other.PEM()))
		check("CA removed", certs.ErrUntrusted, nil, nil, nil)
		writeFile(t, tokenFile, "[]\n")
		check("both removed", certs.ErrUntrusted, certs.ErrUnknownToken, certs.ErrUnknownToken, nil)
		writeFile(t, caFile, string(ca.PEM()))
		writeFile(t, tokenFile, entry("a"))
		check("all back", nil, nil, nil, nil)
		time.Sleep(time.Hour)
		check("expired", certs.ErrExpired, nil, nil, certs.ErrExpired)
	})
}

// A CA that is bound to another cluster than before no longer admits.
func TestCheckFollowsBinding(t *testing.T) {
	dir := t.TempDir()
	ca, err := tunneltest.NewCA("one")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	p := shown(t, ca, &tunneltest.CertOptions{CommonName: "x"}, "")
	id, err := certIdentity(&certs.Pool{CAs: []certs.CA{{File: file, Cluster: "a"}}}, p)
	if err != nil || id.Cluster != "a" || id.Check() != nil {
		t.Errorf("%+v, %v", id, err)
	}
}
