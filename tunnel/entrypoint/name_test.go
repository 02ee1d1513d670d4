package entrypoint

import "testing"

// A server name that is none does not become one by folding, and no wildcard is
// for it.
func TestOddNames(t *testing.T) {
	kube, any, rest := &Route{Name: "kube"}, &Route{Name: "any"}, &Route{Name: "rest"}
	table := &table{
		sni:      map[string]*Route{"kube.example.com": kube},
		wildcard: map[string]*Route{".example.com": any},
		fallback: rest,
	}
	for name, want := range map[string]*Route{
		"kube.example.com":      kube,
		"KUBE.Example.COM":      kube,
		"\u212aube.example.com": rest, // the sign for Kelvin, whose lower case is k
		"a.example.com":         any,
		"*.example.com":         rest,
		"a\x00b.example.com":    rest,
		"\xff.example.com":      rest,
		"a..example.com":        rest,
		"":                      rest,
	} {
		if got := table.byName(name); got != want {
			t.Errorf("%q leads to %s, want %s", name, got.Name, want.Name)
		}
	}
}
