package egress

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
	"sigs.k8s.io/yaml"
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

// certFiles writes name.crt and name.key.
func certFiles(t testing.TB, ca *tunneltest.CA, dir, name string, o tunneltest.CertOptions) (certFile, keyFile string) {
	t.Helper()
	c, err := ca.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err = c.WriteFiles(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func caFile(t testing.TB, ca *tunneltest.CA, dir, name string) string {
	t.Helper()
	file, err := ca.WriteFile(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// verdict is an entry of testdata/verdicts.yaml.
type verdict struct {
	Name, Config, Verdict    string
	Reason, Errors, Warnings []string
	Refused                  bool
}

func verdicts(t testing.TB) []verdict {
	t.Helper()
	data, err := os.ReadFile("testdata/verdicts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var list []verdict
	if err := yaml.UnmarshalStrict(data, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// verdictDir makes the files that $DIR stands for.
func verdictDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	ca := newCA(t, "ca")
	caFile(t, ca, dir, "ca")
	certFiles(t, ca, dir, "tls", tunneltest.CertOptions{CommonName: "kube-apiserver", Client: true})
	certFiles(t, ca, dir, "other", tunneltest.CertOptions{CommonName: "other", Client: true})
	if err := os.WriteFile(filepath.Join(dir, "empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustParse(t testing.TB, s string) *Config {
	t.Helper()
	c, err := Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// selection returns a configuration of one entry, cluster, with the given
// connection, indented by four.
func selection(t testing.TB, connection string) *Config {
	t.Helper()
	return mustParse(t, "apiVersion: "+V1Beta1+"\nkind: "+Kind+"\negressSelections:\n- name: cluster\n  connection:\n"+strings.Trim(connection, "\n"))
}
