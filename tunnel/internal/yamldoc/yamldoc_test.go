package yamldoc

import (
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

func TestSeveral(t *testing.T) {
	for text, want := range map[string]bool{
		"":                         false,
		"a: 1":                     false,
		"---\na: 1\n":              false,
		"# text\n---\na: 1\n---\n": false,
		"a: 1\n...\n# end\n":       false,
		"\ufeff--- []\n":           false,
		"a: |\n  ---\n  b\n":       false,
		"a: 1\n---\nb: 2\n":        true,
		"---\n---\nb: 2\n":         true, // the first one is empty
		"a: 1\r\n---\r\nb: 2\r\n":  true,
		"--- []\n--- []":           true,
		"---\t[]\n---\tb":          true,
		"[]\n...\nb":               true,
		"a: 1\n---\n---\nb: 2":     true,
	} {
		if got := Several([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
