package egress

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestVerdicts compares with what a real kube-apiserver said of each
// configuration.
func TestVerdicts(t *testing.T) {
	dir := verdictDir(t)
	for _, v := range verdicts(t) {
		c, err := Parse([]byte(strings.ReplaceAll(v.Config, "$DIR", dir)))
		if (err != nil) != (v.Verdict == "decode" || v.Refused) {
			t.Errorf("%s: Parse says %v, kube-apiserver %s", v.Name, err, v.Verdict)
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), "egress: ") {
				t.Errorf("%s: error without our name: %v", v.Name, err)
			}
			continue
		}
		r := c.Validate()
		got := "ok"
		if len(r.Errors) > 0 {
			got = string(r.Errors[0].Phase)
		}
		if got != v.Verdict || (r.Err() == nil) != (got == "ok") {
			t.Errorf("%s: verdict %s, kube-apiserver says %s", v.Name, got, v.Verdict)
		}
		fields := func(ps []Problem) (list []string) {
			for _, p := range ps {
				list = append(list, p.Field)
				if p.Detail == "" || p.Fix == "" || p.Phase == "" {
					t.Errorf("%s: incomplete: %+v", v.Name, p)
				}
				if strings.Contains(p.String(), "password") {
					t.Errorf("%s: shows a password: %s", v.Name, p)
				}
			}
			return list
		}
		if d := cmp.Diff(v.Errors, fields(r.Errors)); d != "" {
			t.Errorf("%s: errors:\n%s", v.Name, d)
		}
		if d := cmp.Diff(v.Warnings, fields(r.Warnings)); d != "" {
			t.Errorf("%s: warnings:\n%s", v.Name, d)
		}
		// kube-apiserver's own errors come in our order, none left out.
		if v.Verdict == "validate" {
			ours := slices.Clone(r.Errors)
			for _, reason := range v.Reason {
				path, _, _ := strings.Cut(reason, ": ")
				last := path[strings.LastIndex(path, ".")+1:]
				i := slices.IndexFunc(ours, func(p Problem) bool { return sameField(last, p.Field) })
				if i < 0 {
					t.Errorf("%s: kube-apiserver's %q is missing or out of order", v.Name, reason)
					break
				}
				ours = ours[i+1:]
			}
		}
		offline := c.ValidateOffline()
		if len(offline.Errors) > len(r.Errors) {
			t.Errorf("%s: more errors without files", v.Name)
		}
	}
}

// sameField compares the last name of kube-apiserver's path with ours, which
// is the path in the file.
func sameField(theirs, ours string) bool {
	last := ours[strings.LastIndex(ours, ".")+1:]
	switch {
	case theirs == "protocol":
		return last == "proxyProtocol"
	case strings.HasPrefix(theirs, "connection"): // connection[1] for a duplicate
		return last == "name"
	case theirs == "tcp":
		return last == "transport"
	}
	return theirs == last
}

func TestYAMLRoundTrip(t *testing.T) {
	dir := verdictDir(t)
	for _, v := range verdicts(t) {
		c, err := Parse([]byte(strings.ReplaceAll(v.Config, "$DIR", dir)))
		if err != nil {
			continue
		}
		again, err := Parse(c.YAML())
		if err != nil {
			t.Errorf("%s: %v in:\n%s", v.Name, err, c.YAML())
			continue
		}
		if d := cmp.Diff(c, again, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s:\n%s", v.Name, d)
		}
	}
	if got, want := string((&Config{}).YAML()), "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections: []\n"; got != want {
		t.Errorf("zero value: %s", got)
	}
}

func TestScalar(t *testing.T) {
	for _, s := range []string{"", "yes", "No", "~", "null", "123", "1e3", "0x1f", ".inf", "-", "- a", "a: b", "a:", "a #b", "#a",
		"/run/x.sock", "https://h:1", "@abstract", "a b", "\u00fc", "\u2028", "\x7f", "\u0085", "\U0001f600", "\ufeff", "\"q\"", "a\nb\t\r\x00", "*a", "&a", "!a", "|", ">", "%a", "2020-01-01", "1:20"} {
		c := &Config{EgressSelections: []Egress{{Name: s}}}
		got, err := Parse(c.YAML())
		if err != nil {
			t.Errorf("%q: %v in\n%s", s, err, c.YAML())
		} else if got.EgressSelections[0].Name != s {
			t.Errorf("%q comes back as %q", s, got.EgressSelections[0].Name)
		}
	}
	if got := scalar("https://proxy-server:9443"); got != "https://proxy-server:9443" {
		t.Errorf("needless quotes: %s", got)
	}
}

func TestParseErrors(t *testing.T) {
	_, err := Parse([]byte(`
apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
Selections: []
egressSelections:
- name: cluster
  Connection: {}
- name: 7
  connection:
    transport:
      tcp: {url: [], tlsConfig: {caBundle: {}, insecure: true}}
      uds: socket
`))
	for _, want := range []string{
		"Selections: unknown field; there are apiVersion, kind, egressSelections",
		"egressSelections[0].Connection: unknown field; write connection",
		"egressSelections[1].name: want a string, found a number; put it in quotes",
		"egressSelections[1].connection.transport.tcp.url: want a string, found a list",
		"egressSelections[1].connection.transport.tcp.tlsConfig.caBundle: want a string, found fields",
		"egressSelections[1].connection.transport.tcp.tlsConfig.insecure: unknown field",
		"egressSelections[1].connection.transport.uds: want fields, found a string",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	long := strings.Repeat("x", 1000)
	_, err = Parse([]byte("apiVersion: " + V1Beta1 + "\nkind: " + Kind + "\n" + long + ": 1\n"))
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("a long name is repeated in full: %v", err)
	}
	if _, err := Parse([]byte("a: 1\n? {b: c}\n: d\n")); err == nil {
		t.Error("a key that is no string")
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "egress.yaml")
	if _, err := Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("directory: %v", err)
	}
	if runtime.GOOS == "linux" {
		if _, err := Load("/dev/zero"); err == nil {
			t.Error("/dev/zero was read")
		}
	}
	os.WriteFile(file, make([]byte, MaxFileSize+1), 0o600)
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("large: %v", err)
	}
	os.WriteFile(file, []byte("kind: x"), 0o600)
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("bad: %v", err)
	}
	os.WriteFile(file, (&Config{APIVersion: V1Alpha1}).YAML(), 0o600)
	if c, err := Load(file); err != nil || c.APIVersion != V1Alpha1 {
		t.Errorf("good: %v, %v", c, err)
	}
}

func TestProblemString(t *testing.T) {
	for _, tt := range []struct {
		p    Problem
		want string
	}{
		{Problem{Field: "a.b", Value: "v", Detail: "wrong", Fix: "write w"}, `a.b: "v": wrong; write w`},
		{Problem{Detail: "wrong"}, "wrong"},
	} {
		if got := tt.p.String(); got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
}

// TestUnusualProblems are rules that the table has no row for.
func TestUnusualProblems(t *testing.T) {
	dir := verdictDir(t)
	for _, tt := range []struct {
		name, connection string
		want             string // part of the first error or warning
	}{
		{"relative socket", "    proxyProtocol: HTTPConnect\n    transport: {uds: {udsName: proxy.sock}}", "relative to the working directory"},
		{"socket as url", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'unix:///run/x.sock'}}", "udsName: /run/x.sock"},
		{"host and port", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'proxy:1'}}", "write https://proxy:1"},
		{"bad url with password", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'https://u:password@h:port', tlsConfig: {clientCert: $DIR/tls.crt, clientKey: $DIR/tls.key}}}", "invalid port"},
		{"certificate is a directory", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'https://h:1', tlsConfig: {clientCert: $DIR, clientKey: $DIR/tls.key}}}", "not a regular file"},
		{"expired", "    proxyProtocol: HTTPConnect\n    transport: {tcp: {url: 'https://h:1', tlsConfig: {clientCert: $DIR/old.crt, clientKey: $DIR/old.key}}}", "expired at 2001-01-01"},
	} {
		certFiles(t, newCA(t, "ca"), dir, "old", expiredOptions)
		r := selection(t, strings.ReplaceAll(tt.connection, "$DIR", dir)).Validate()
		all := append(r.Errors, r.Warnings...)
		if len(all) == 0 || !strings.Contains(all[0].String(), tt.want) || strings.Contains(all[0].String(), "password") {
			t.Errorf("%s: %v, want %q", tt.name, all, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range verdicts(f) {
		f.Add([]byte(v.Config))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		r := c.ValidateOffline()
		if r.Err() == nil {
			for _, e := range c.EgressSelections {
				if _, ok := e.Selection(); !ok {
					t.Errorf("valid with name %q", e.Name)
				}
			}
		}
		again, err := Parse(c.YAML())
		if err != nil {
			t.Fatalf("%v in:\n%s", err, c.YAML())
		}
		if d := cmp.Diff(c, again, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); d != "" {
			t.Error(d)
		}
		s := &Selector{Config: c}
		for _, sel := range []Selection{Cluster, ControlPlane, Etcd} {
			s.Lookup(sel)
		}
	})
}
