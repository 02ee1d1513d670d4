package tunneltest

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

func newTestCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test CA")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, o CertOptions) *Cert {
	t.Helper()
	c, err := ca.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIssue(t *testing.T) {
	ca := newTestCA(t)
	c := issue(t, ca, CertOptions{
		CommonName: "server", DNS: []string{"server.example"}, IPs: []string{"192.0.2.1", "2001:db8::1"},
		URIs: []string{"spiffe://example/x"}, Cluster: "shoot--dev--a",
	})
	leaf := c.TLS.Leaf
	if err := leaf.VerifyHostname("server.example"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("2001:db8::1"); err != nil {
		t.Error(err)
	}
	if len(leaf.URIs) != 2 || leaf.URIs[1].String() != "rhizome://cluster/shoot--dev--a" {
		t.Errorf("URI SANs: %v", leaf.URIs)
	}
	if want := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}; !slices.Equal(leaf.ExtKeyUsage, want) {
		t.Errorf("usages: %v, want %v", leaf.ExtKeyUsage, want)
	}
	if got := time.Until(leaf.NotAfter).Round(time.Hour); got != 24*time.Hour {
		t.Errorf("expires in %v, want a day", got)
	}
	pair, err := tls.X509KeyPair(c.CertPEM, c.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(pair.Certificate[0], c.TLS.Certificate[0]) {
		t.Error("the PEM form holds another certificate")
	}

	if got := issue(t, ca, CertOptions{Client: true}).TLS.Leaf.ExtKeyUsage; !slices.Equal(got, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("usages of a client: %v", got)
	}
	if got := issue(t, ca, CertOptions{Server: true}).TLS.Leaf.ExtKeyUsage; !slices.Equal(got, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("usages of a server: %v", got)
	}
	expired := time.Now().Add(-time.Minute)
	if got := issue(t, ca, CertOptions{NotBefore: expired.Add(-time.Hour), NotAfter: expired}).TLS.Leaf; !got.NotAfter.Before(time.Now()) {
		t.Errorf("expires at %v, want a minute ago", got.NotAfter)
	}
}

func TestIssueErrors(t *testing.T) {
	ca := newTestCA(t)
	for name, o := range map[string]CertOptions{
		"IP":  {IPs: []string{"server.example"}},
		"URI": {URIs: []string{"http://[::1"}},
	} {
		if _, err := ca.Issue(o); err == nil {
			t.Errorf("a bad %s was accepted", name)
		}
		if _, err := ca.Intermediate(o); err == nil {
			t.Errorf("a bad %s of an intermediate was accepted", name)
		}
	}
}

func verify(ca *CA, c *Cert, at time.Time) error {
	o := x509.VerifyOptions{Roots: ca.Pool(), Intermediates: x509.NewCertPool(), CurrentTime: at}
	for _, der := range c.TLS.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		o.Intermediates.AddCert(cert)
	}
	_, err := c.TLS.Leaf.Verify(o)
	return err
}

func TestIntermediate(t *testing.T) {
	root := newTestCA(t)
	below, err := root.Intermediate(CertOptions{CommonName: "below", NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	lowest, err := below.Intermediate(CertOptions{CommonName: "lowest"})
	if err != nil {
		t.Fatal(err)
	}
	c := issue(t, lowest, CertOptions{})
	if len(c.TLS.Certificate) != 3 {
		t.Errorf("the chain has %d certificates, want 3", len(c.TLS.Certificate))
	}
	if err := verify(root, c, time.Now()); err != nil {
		t.Error(err)
	}
	if err := verify(root, c, time.Now().Add(2*time.Hour)); err == nil {
		t.Error("an expired intermediate passes")
	}
	if err := verify(newTestCA(t), c, time.Now()); err == nil {
		t.Error("another root passes")
	}
}

// What was made outside of a bubble is valid inside, and the other way round.
func TestCertificatesInBubble(t *testing.T) {
	outside := newTestCA(t)
	c := issue(t, outside, CertOptions{})
	Bubble(t, func(t *testing.T) {
		if err := verify(outside, c, time.Now()); err != nil {
			t.Error(err)
		}
		ca := newTestCA(t)
		if err := verify(ca, issue(t, ca, CertOptions{}), time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	})
}

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	ca := newTestCA(t)
	caFile, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(caFile); string(got) != string(ca.PEM()) {
		t.Errorf("%s holds something else", caFile)
	}
	for range 2 { // the second time over the first
		crt, key, err := issue(t, ca, CertOptions{}).WriteFiles(dir, "server")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tls.LoadX509KeyPair(crt, key); err != nil {
			t.Error(err)
		}
		if info, _ := os.Stat(key); runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("the key has mode %v", info.Mode())
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 3 {
		t.Errorf("%d files, want 3", len(files))
	}
	if _, err := ca.WriteFile(filepath.Join(dir, "nowhere"), "ca"); err == nil {
		t.Error("writing into no directory succeeded")
	}
	if err := os.Mkdir(filepath.Join(dir, "taken.crt"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.WriteFile(dir, "taken"); err == nil {
		t.Error("replacing a directory succeeded")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
