package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func certWith(t testing.TB, cn string, dns []string, uris ...string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, DNSNames: dns}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

func TestClusterOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		cn   string
		dns  []string
		uris []string
		want string // empty: ErrNoCluster
	}{
		{"common name", "a", nil, nil, "a"},
		{"only DNS SAN before common name", "a", []string{"b"}, nil, "b"},
		{"two DNS SANs leave the common name", "a", []string{"b", "c"}, nil, "a"},
		{"URI before DNS SAN", "a", []string{"b"}, []string{"rhizome://cluster/c"}, "c"},
		{"foreign URI is no name", "a", nil, []string{"spiffe://x/y"}, "a"},
		{"URI among foreign ones", "a", nil, []string{"spiffe://x/y", "rhizome://cluster/c"}, "c"},
		{"scheme is case-insensitive", "a", nil, []string{"RHIZOME://cluster/c"}, "c"},
		{"the same URI twice", "a", nil, []string{"rhizome://cluster/c", "rhizome://cluster/c"}, "c"},
		{"two URIs", "a", nil, []string{"rhizome://cluster/c", "rhizome://cluster/d"}, ""},
		{"URI without a name", "a", nil, []string{"rhizome://cluster/"}, ""},
		{"URI without a path", "a", nil, []string{"rhizome://cluster"}, ""},
		{"URI of another host", "a", nil, []string{"rhizome://agent/c"}, ""},
		{"URI with another path", "a", nil, []string{"rhizome://cluster/c/d"}, ""},
		{"URI with a query", "a", nil, []string{"rhizome://cluster/c?x"}, ""},
		{"URI with an empty query", "a", nil, []string{"rhizome://cluster/c?"}, ""},
		{"URI with a fragment", "a", nil, []string{"rhizome://cluster/c#x"}, ""},
		{"URI with a user", "a", nil, []string{"rhizome://u@cluster/c"}, ""},
		{"URI with a port", "a", nil, []string{"rhizome://cluster:1/c"}, ""},
		{"URI with escapes", "a", nil, []string{"rhizome://cluster/%63"}, ""},
		{"opaque URI", "a", nil, []string{"rhizome:cluster"}, ""},
		{"operator by common name", "*", nil, nil, "*"},
		{"operator by DNS SAN", "a", []string{"*"}, nil, "*"},
		{"operator by URI", "a", nil, []string{"rhizome://cluster/*"}, "*"},
		{"wildcard DNS SAN", "a", []string{"*.example.com"}, nil, ""},
		{"nothing", "", nil, nil, ""},
		{"blank", " ", nil, nil, ""},
		{"organisation-like name", "system:node:a", nil, nil, ""},
	} {
		got, err := ClusterOf(certWith(t, tt.cn, tt.dns, tt.uris...))
		if got != tt.want || (err != nil) != (tt.want == "") || (err != nil && !errors.Is(err, ErrNoCluster)) {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestValidCluster(t *testing.T) {
	for _, name := range []string{"a", "0", "shoot--dev--a", "a.b_C-9", strings.Repeat("x", 253)} {
		if err := ValidCluster(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "*", "-a", "a-", ".a", "a.", "_", "a b", "a/b", "a\n", "ä", "a\x00b", strings.Repeat("x", 254)} {
		if ValidCluster(name) == nil {
			t.Errorf("%q is valid", name)
		}
	}
}

// TestIdentify has one row for each rule of DESIGN's tenancy. The pool knows
// two authorities that are bound, to a and b, and one that is not.
func TestIdentify(t *testing.T) {
	free, a, b, foreign := newCA(t, "free"), newCA(t, "a"), newCA(t, "b"), newCA(t, "foreign")
	subA, err := free.Intermediate(tunneltest.CertOptions{CommonName: "sub of free"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, pems ...[]byte) string {
		return write(t, filepath.Join(dir, name), join(pems...))
	}
	p := &Pool{CAs: []CA{
		{File: file("free", free.PEM())},
		{Cluster: "a", File: file("a", a.PEM())},
		{Cluster: "b", File: file("b", b.PEM())},
	}}
	withSub := &Pool{CAs: []CA{
		{File: file("free2", free.PEM())},
		{Cluster: "a", File: file("sub", subA.PEM())},
	}}
	now := time.Now()
	cn := func(name string) tunneltest.CertOptions { return tunneltest.CertOptions{CommonName: name} }
	cluster := func(name string) tunneltest.CertOptions {
		return tunneltest.CertOptions{CommonName: "x", Cluster: name}
	}
	for _, tt := range []struct {
		name  string
		pool  *Pool
		chain []*x509.Certificate
		want  Identity // without Subject and NotAfter
		err   error
	}{
		{"free: common name", p, chain(t, free, cn("c")), Identity{Cluster: "c"}, nil},
		{"free: URI", p, chain(t, free, cluster("c")), Identity{Cluster: "c"}, nil},
		{"free: may name a bound cluster", p, chain(t, free, cn("a")), Identity{Cluster: "a"}, nil},
		{"free: operator", p, chain(t, free, cn("*")), Identity{Operator: true}, nil},
		{"free: operator by URI", p, chain(t, free, tunneltest.CertOptions{URIs: []string{"rhizome://cluster/*"}}), Identity{Operator: true}, nil},
		{"free: no name", p, chain(t, free, cn("no name")), Identity{}, ErrNoCluster},
		{"bound: whatever it says", p, chain(t, a, cn("no name")), Identity{Cluster: "a", Bound: true}, nil},
		{"bound: other common name", p, chain(t, a, cn("b")), Identity{Cluster: "a", Bound: true}, nil},
		{"bound: other DNS SAN", p, chain(t, a, tunneltest.CertOptions{DNS: []string{"b"}}), Identity{Cluster: "a", Bound: true}, nil},
		{"bound: own URI", p, chain(t, a, cluster("a")), Identity{Cluster: "a", Bound: true}, nil},
		{"bound: other URI", p, chain(t, a, cluster("b")), Identity{}, ErrWrongCluster},
		{"bound: malformed URI", p, chain(t, a, tunneltest.CertOptions{URIs: []string{"rhizome://cluster/a/b"}}), Identity{}, ErrNoCluster},
		{"bound: no operator", p, chain(t, a, cn("*")), Identity{Cluster: "a", Bound: true}, nil},
		{"bound: no operator by DNS SAN", p, chain(t, b, tunneltest.CertOptions{DNS: []string{"*"}}), Identity{Cluster: "b", Bound: true}, nil},
		{"bound: no operator by URI", p, chain(t, a, tunneltest.CertOptions{URIs: []string{"rhizome://cluster/*"}}), Identity{}, ErrWrongCluster},
		{"nearest authority: bound intermediate as root", withSub, chain(t, subA, cn("b"))[:2], Identity{Cluster: "a", Bound: true}, nil},
		{"nearest authority: bound intermediate below a free root", withSub, append(chain(t, subA, cn("b"))[:2], free.Cert), Identity{Cluster: "a", Bound: true}, nil},
		{"nearest authority: not below the intermediate", withSub, chain(t, free, cn("b")), Identity{Cluster: "b"}, nil},
		{"foreign authority", p, chain(t, foreign, cn("a")), Identity{}, ErrUntrusted},
		{"foreign authority of the same name", p, chain(t, newCA(t, "a"), cn("a")), Identity{}, ErrUntrusted},
		{"empty chain", p, nil, Identity{}, ErrUntrusted},
		{"expired", p, chain(t, free, tunneltest.CertOptions{CommonName: "c", NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Second)}), Identity{}, ErrExpired},
		{"not yet valid", p, chain(t, free, tunneltest.CertOptions{CommonName: "c", NotBefore: now.Add(time.Hour), NotAfter: now.Add(2 * time.Hour)}), Identity{}, ErrNotYetValid},
	} {
		got, err := tt.pool.Identify([][]*x509.Certificate{tt.chain})
		if !errors.Is(err, tt.err) || (tt.err == nil) != (err == nil) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.err)
			continue
		}
		if err == nil && (got.Subject == "" || got.NotAfter.IsZero()) {
			t.Errorf("%s: no subject or end: %+v", tt.name, got)
		}
		got.Subject, got.NotAfter = "", time.Time{}
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	if _, err := p.Identify(nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("no chains: %v", err)
	}

	// Several chains of one certificate.
	good, gone := chain(t, free, cn("c")), chain(t, foreign, cn("c"))
	if id, err := p.Identify([][]*x509.Certificate{gone, good}); err != nil || id.Cluster != "c" {
		t.Errorf("one of two chains is good: %+v, %v", id, err)
	}
	if _, err := p.Identify([][]*x509.Certificate{chain(t, a, cn("c")), chain(t, b, cn("c"))}); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("chains to two clusters: %v", err)
	}
	expired := chain(t, free, tunneltest.CertOptions{CommonName: "c", NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Second)})
	if _, err := p.Identify([][]*x509.Certificate{gone, expired}); !errors.Is(err, ErrExpired) {
		t.Errorf("expired should win over untrusted: %v", err)
	}
}

// chain is what verification gives: leaf, intermediates, root.
func chain(t testing.TB, ca *tunneltest.CA, o tunneltest.CertOptions) []*x509.Certificate {
	t.Helper()
	return []*x509.Certificate{leaf(t, issue(t, ca, o)), ca.Cert}
}

// TestIdentifyAgain asks again for a chain that was verified once: when the
// authority has left the pool, was bound meanwhile, or the time has passed.
func TestIdentifyAgain(t *testing.T) {
	ca, other := newCA(t, "ca"), newCA(t, "other")
	inter, err := ca.Intermediate(tunneltest.CertOptions{CommonName: "inter", NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := poolFor(t, dir, ca, other)
	c := [][]*x509.Certificate{{leaf(t, issue(t, inter, tunneltest.CertOptions{CommonName: "c"})), inter.Cert, ca.Cert}}
	id, err := p.Identify(c)
	if err != nil {
		t.Fatal(err)
	}
	if !id.NotAfter.Equal(inter.Cert.NotAfter) {
		t.Errorf("NotAfter %v, want the intermediate's %v", id.NotAfter, inter.Cert.NotAfter)
	}
	a := p.f.value.Load()
	if _, err := a.identify(c, inter.Cert.NotAfter.Add(time.Second)); !errors.Is(err, ErrExpired) {
		t.Errorf("expired intermediate: %v", err)
	}
	write(t, p.CAs[0].File, other.PEM())
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Identify(c); !errors.Is(err, ErrUntrusted) {
		t.Errorf("authority removed: %v", err)
	}
	write(t, p.CAs[0].File, []byte("garbage"))
	if p.Load() == nil {
		t.Error("garbage loads")
	}
	if !p.Roots().Equal(other.Pool()) {
		t.Error("the old set is not in use")
	}
}

// TestRenewedAuthority replaces an authority by one with the same key: what it
// signed stays good.
func TestRenewedAuthority(t *testing.T) {
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := func(name string, notAfter time.Time) *x509.Certificate {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(notAfter.Unix()), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	pemOf := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	old, renewed, longer := authority("ca", now.Add(time.Minute)), authority("ca", now.Add(time.Hour)), authority("ca", now.Add(2*time.Hour))
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"},
		Raw: []byte("leaf"), RawSubjectPublicKeyInfo: []byte("key"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(3 * time.Hour)}
	chains := [][]*x509.Certificate{{leaf, old}}
	file := filepath.Join(t.TempDir(), "ca.crt")
	for _, tt := range []struct {
		name     string
		bundle   []*x509.Certificate
		notAfter time.Time // zero: untrusted
	}{
		{"the same", []*x509.Certificate{renewed, old}, old.NotAfter},
		{"renewed", []*x509.Certificate{renewed}, renewed.NotAfter},
		{"renewed twice", []*x509.Certificate{renewed, longer, renewed}, longer.NotAfter},
		{"another subject", []*x509.Certificate{authority("other", now.Add(time.Hour))}, time.Time{}},
	} {
		var bundle []byte
		for _, c := range tt.bundle {
			bundle = append(bundle, pemOf(c)...)
		}
		id, err := (&Pool{CAs: []CA{{File: write(t, file, bundle)}}}).Identify(chains)
		if !id.NotAfter.Equal(tt.notAfter) || errors.Is(err, ErrUntrusted) != tt.notAfter.IsZero() {
			t.Errorf("%s: %+v, %v", tt.name, id, err)
		}
	}
}

func TestPoolFiles(t *testing.T) {
	a, b := newCA(t, "a"), newCA(t, "b")
	c := issue(t, a, tunneltest.CertOptions{CommonName: "c"})
	dir := t.TempDir()
	n := 0
	file := func(content ...[]byte) string {
		n++
		return write(t, filepath.Join(dir, string(rune('a'+n))), join(content...))
	}
	cut := a.PEM()
	for _, tt := range []struct {
		name string
		cas  []CA
		want string // part of the error, empty for none
	}{
		{"one", []CA{{File: file(a.PEM())}}, ""},
		{"bundle with text and a key", []CA{{File: file([]byte("# ours\n"), a.PEM(), c.KeyPEM, b.PEM())}}, ""},
		{"the same authority twice", []CA{{File: file(a.PEM())}, {File: file(a.PEM(), a.PEM())}}, ""},
		{"the same authority for one cluster twice", []CA{{"x", file(a.PEM())}, {"x", file(a.PEM())}}, ""},
		{"the same authority for two clusters", []CA{{"x", file(a.PEM())}, {"y", file(b.PEM(), a.PEM())}}, `bound to cluster "y" here and to cluster "x"`},
		{"bound and not bound", []CA{{"x", file(a.PEM())}, {"", file(a.PEM())}}, "bound to no cluster here"},
		{"bad cluster", []CA{{"*", file(a.PEM())}}, "bad cluster name"},
		{"empty", []CA{{File: file()}}, "no PEM certificate"},
		{"only a key", []CA{{File: file(c.KeyPEM)}}, "no PEM certificate"},
		{"cut short", []CA{{File: file(a.PEM(), cut[:len(cut)/2])}}, "cut short"},
		{"damaged", []CA{{File: file([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))}}, "PEM block 1"},
		{"one file of two is missing", []CA{{File: file(a.PEM())}, {File: filepath.Join(dir, "missing")}}, "no such file"},
	} {
		err := (&Pool{CAs: tt.cas}).Load()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestAllows(t *testing.T) {
	for _, tt := range []struct {
		id      Identity
		cluster string
		want    bool
	}{
		{Identity{Cluster: "a"}, "a", true},
		{Identity{Cluster: "a"}, "b", false},
		{Identity{Cluster: "a"}, "A", false},
		{Identity{Operator: true}, "b", true},
		{Identity{Operator: true}, "", false},
		{Identity{}, "", false},
	} {
		if got := tt.id.Allows(tt.cluster); got != tt.want {
			t.Errorf("%+v allows %q: %v", tt.id, tt.cluster, got)
		}
	}
}

func FuzzClusterOf(f *testing.F) {
	ca := newCA(f, "ca")
	for _, o := range []tunneltest.CertOptions{
		{CommonName: "a"},
		{CommonName: "a", DNS: []string{"b"}, Cluster: "c"},
		{URIs: []string{"rhizome://cluster/*", "spiffe://x/y"}},
		{URIs: []string{"rhizome://cluster/%63?#"}},
	} {
		f.Add(leaf(f, issue(f, ca, o)).Raw)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		name, err := ClusterOf(cert)
		switch {
		case err != nil:
			if name != "" || !errors.Is(err, ErrNoCluster) {
				t.Errorf("%q with %v", name, err)
			}
		case name != Operator && ValidCluster(name) != nil:
			t.Errorf("not a cluster name: %q", name)
		}
		a := &anchors{}
		if _, err := a.identify([][]*x509.Certificate{{cert}}, time.Now()); err == nil {
			t.Error("identified by an empty pool")
		}
	})
}
