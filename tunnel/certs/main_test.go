package certs

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

func newCA(t testing.TB, name string) *tunneltest.CA {
	t.Helper()
	ca, err := tunneltest.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca *tunneltest.CA, o tunneltest.CertOptions) *tunneltest.Cert {
	t.Helper()
	c, err := ca.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// write replaces a file the way a Secret mount does, atomically.
func write(t testing.TB, file string, content []byte) string {
	t.Helper()
	tmp := file + ".new"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func pairFor(t testing.TB, dir string, c *tunneltest.Cert) *KeyPair {
	t.Helper()
	return &KeyPair{
		CertFile: write(t, filepath.Join(dir, "tls.crt"), c.CertPEM),
		KeyFile:  write(t, filepath.Join(dir, "tls.key"), c.KeyPEM),
	}
}

func poolFor(t testing.TB, dir string, cas ...*tunneltest.CA) *Pool {
	t.Helper()
	var bundle []byte
	for _, ca := range cas {
		bundle = append(bundle, ca.PEM()...)
	}
	return &Pool{CAs: []CA{{File: write(t, filepath.Join(dir, "ca.crt"), bundle)}}}
}

func join(pems ...[]byte) (all []byte) {
	for _, p := range pems {
		all = append(all, p...)
	}
	return all
}

func leaf(t testing.TB, c *tunneltest.Cert) *x509.Certificate {
	t.Helper()
	return c.TLS.Leaf
}
