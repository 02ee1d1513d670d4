package certs

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.yaml")
	tunneltest.Bubble(t, func(t *testing.T) {
		end := time.Now().Add(time.Hour).UTC()
		write(t, file, fmt.Appendf(nil, `
# two clusters
- cluster: a
  sha256: %s
  name: canary
- cluster: b
  sha256: "%s"
  notAfter: %s
`, HashToken("secret-a"), strings.ToUpper(HashToken("secret-b")), end.Format(time.RFC3339)))
		tok := &Tokens{File: file}
		if err := tok.Load(); err != nil {
			t.Fatal(err)
		}
		if got, err := tok.Lookup("secret-a"); err != nil || got.Cluster != "a" || got.Name != "canary" || got.SHA256 != HashToken("secret-a") {
			t.Errorf("%+v, %v", got, err)
		}
		if got, err := tok.Lookup("secret-b"); err != nil || got.Cluster != "b" || !got.NotAfter.Equal(end) {
			t.Errorf("%+v, %v", got, err)
		}
		for _, bad := range []string{"", "secret", "secret-a ", HashToken("secret-a")} {
			if got, err := tok.Lookup(bad); !errors.Is(err, ErrUnknownToken) || got != (Token{}) {
				t.Errorf("%q: %+v, %v", bad, got, err)
			}
		}
		time.Sleep(time.Hour + 1)
		got, err := tok.Lookup("secret-b")
		if !errors.Is(err, ErrExpired) || got.Cluster != "b" {
			t.Errorf("expired: %+v, %v", got, err)
		}
		if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), HashToken("secret-b")) {
			t.Errorf("the error tells too much: %v", err)
		}
	})
}

func TestTokensFile(t *testing.T) {
	h := HashToken("x")
	for _, tt := range []struct {
		name, file string
		want       []string // parts of the error, none for no error
	}{
		{"nobody", "[]", nil},
		{"JSON", `[{"cluster":"a","sha256":"` + h + `"}]`, nil},
		{"document mark", "---\n- cluster: a\n  sha256: " + h, nil},
		{"quoted time", "- cluster: a\n  sha256: " + h + "\n  notAfter: '2027-01-31T00:00:00+01:00'", nil},
		{"empty", "", []string{"no list"}},
		{"comment", "# later", []string{"no list"}},
		{"null", "null", []string{"no list"}},
		{"map", "cluster: a", []string{"want a YAML list"}},
		{"list of words", "- a", []string{"want a YAML list"}},
		{"not YAML", "- a: [", []string{"yaml"}},
		{"two documents", "- cluster: a\n  sha256: " + h + "\n---\n[]", []string{"several YAML documents"}},
		{"byte order mark", "\ufeff# tokens\n---\n[]", nil},
		{"end mark", "[]\n...\n# end\n", nil},
		{"behind the end mark", "[]\n...\n- cluster: a\n", []string{"several YAML documents"}},
		{"UTF-16", "\xff\xfe[\x00]\x00", []string{"not UTF-8"}},
		{"inline document", "--- []\n--- []", []string{"several YAML documents"}},
		{"unknown field", "- cluster: a\n  sha256: " + h + "\n  expires: 1", []string{`[0]."expires": unknown field`}},
		{"field in another case", "- Cluster: a\n  sha256: " + h, []string{`[0]."Cluster": unknown field`, "[0].cluster"}},
		{"duplicate field", "- cluster: a\n  cluster: b\n  sha256: " + h, []string{"line 2", "already set"}},
		{"no cluster", "- sha256: " + h, []string{"[0].cluster"}},
		{"operator", "- cluster: '*'\n  sha256: " + h, []string{"[0].cluster", "bad cluster name"}},
		{"cluster is a number", "- cluster: 1\n  sha256: " + h, []string{"[0].cluster: want a string"}},
		{"no hash", "- cluster: a", []string{"[0].sha256"}},
		{"token for a hash", "- cluster: a\n  sha256: s3cr3t", []string{"[0].sha256: want the 64"}},
		{"hash of nothing", "- cluster: a\n  sha256: " + HashToken(""), []string{"[0].sha256", "empty token"}},
		{"bad time", "- cluster: a\n  sha256: " + h + "\n  notAfter: 2027-01-31", []string{"[0].notAfter", "RFC 3339"}},
		{"empty time", "- cluster: a\n  sha256: " + h + "\n  notAfter: ''", []string{"[0].notAfter: empty"}},
		{"null time", "- cluster: a\n  sha256: " + h + "\n  notAfter:", []string{"[0].notAfter: want a string"}},
		{"the same token twice", "- cluster: a\n  sha256: " + h + "\n- cluster: b\n  sha256: " + strings.ToUpper(h), []string{"[1].sha256: the same token as in [0]"}},
		{"all at once", "- cluster: a\n  sha256: " + h + "\n- {}\n- cluster: ä\n  sha256: 1", []string{"[1].cluster", "[1].sha256", "[2].cluster", "[2].sha256"}},
	} {
		list, err := parseTokens([]byte(tt.file))
		if len(tt.want) == 0 && err != nil || len(tt.want) > 0 && (err == nil || list != nil) {
			t.Errorf("%s: %v, %v", tt.name, list, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in: %v", tt.name, want, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: the error repeats a token: %v", tt.name, err)
		}
	}
}

func FuzzTokens(f *testing.F) {
	h := HashToken("x")
	for _, s := range []string{
		"[]", "- cluster: a\n  sha256: " + h + "\n  notAfter: 2027-01-31T00:00:00Z\n  name: n",
		`[{"cluster":"a","sha256":"` + h + `"}]`, "---\n- {}\n---\n", "- &a {cluster: a}\n- *a", "- <<: {cluster: a}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseTokens(data)
		if err != nil {
			if list != nil {
				t.Error("a list with an error")
			}
			return
		}
		seen := make(map[string]bool)
		for _, tok := range list {
			if ValidCluster(tok.Cluster) != nil || len(tok.SHA256) != 64 || tok.SHA256 != strings.ToLower(tok.SHA256) || seen[tok.SHA256] {
				t.Errorf("bad entry %+v", tok)
			}
			seen[tok.SHA256] = true
		}
	})
}
