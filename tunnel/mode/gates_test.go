package mode

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseGates(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Gates
	}{
		{"empty", "", Gates{}},
		{"only a comment", "# none\n", Gates{}},
		{"bare map", "KonnectivityTunnel: true\nAPIServerSNI: false\n", Gates{GateKonnectivityTunnel: true, GateAPIServerSNI: false}},
		{"as the documentation shows it", "featureGates:\n  KonnectivityTunnel: true\n", Gates{GateKonnectivityTunnel: true}},
		{"whole configuration", `
apiVersion: gardenlet.config.gardener.cloud/v1alpha1
kind: GardenletConfiguration
controllers:
  shoot:
    concurrentSyncs: 20
featureGates:
  Logging: true # of the gardenlet's many
  ReversedVPN: true
`, Gates{"Logging": true, GateReversedVPN: true}},
		{"configuration without gates", "kind: GardenletConfiguration\ncontrollers: {}\n", Gates{}},
		{"configuration with an empty map", "apiVersion: v1\nfeatureGates:\n", Gates{}},
		{"one document with its markers", "%YAML 1.1\n---\nReversedVPN: true\n---\n# nothing behind\n", Gates{GateReversedVPN: true}},
		{"hyphens that are no marker", "---a: true\n", Gates{"---a": true}},
		{"JSON", `{"featureGates": {"ReversedVPN": false}}`, Gates{GateReversedVPN: false}},
		{"YAML 1.1 booleans, as Kubernetes reads them", "ReversedVPN: yes\nKonnectivityTunnel: off\n", Gates{GateReversedVPN: true, GateKonnectivityTunnel: false}},
	} {
		got, err := ParseGates([]byte(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.name, diff)
		}
	}
}

func TestParseGatesErrors(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"text", "featureGates:\n  ReversedVPN: \"true\"\n", `featureGates.ReversedVPN: it is the text "true", want true or false`},
		{"number", "ReversedVPN: 1", "ReversedVPN: it is the number 1, want true or false"},
		{"no value", "ReversedVPN:", "ReversedVPN: it is empty"},
		{"list", "ReversedVPN: [true]", "ReversedVPN: it is a list"},
		{"map", "ReversedVPN: {enabled: true}", "ReversedVPN: it is a map"},
		{"all of them", "B: 1\nA: 2", "A: it is the number 2, want true or false\nB: it is the number 1, want true or false"},
		{"twice", "ReversedVPN: true\nReversedVPN: false", "already set"},
		{"gates as a list", "featureGates: [ReversedVPN]", "featureGates: it is a list"},
		{"gates as a flag has them", "featureGates: ReversedVPN=true", `featureGates: it is the text "ReversedVPN=true"`},
		{"gates as a boolean", "featureGates: true", "featureGates: it is the boolean true"},
		{"a list", "- ReversedVPN", "the document is a list, want a map"},
		{"a text", "ReversedVPN=true", "the document is the text"},
		{"another kind", "kind: Shoot\nspec: {}", "the document is a Shoot, want a GardenletConfiguration"},
		{"no kind", "kind: 3", "kind is the number 3, want text"},
		{"a second document", "ReversedVPN: true\n---\nReversedVPN: false\n", "more than one YAML document"},
		{"an empty document before", "---\n# none\n--- {ReversedVPN: true}", "more than one YAML document"},
		{"no YAML", "featureGates: {", "feature gates: "},
	} {
		got, err := ParseGates([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
		if got != nil {
			t.Errorf("%s: %v beside an error", tt.name, got)
		}
	}
}

func TestEnabled(t *testing.T) {
	for _, tt := range []struct {
		name                        string
		gates                       Gates
		konnectivity, reversed, sni bool
	}{
		{"nil", nil, false, false, true},
		{"others", Gates{"Logging": true}, false, false, true},
		{"set", Gates{GateKonnectivityTunnel: true, GateReversedVPN: true, GateAPIServerSNI: false}, true, true, false},
		{"all alpha", Gates{GateAllAlpha: true}, true, true, true},
		{"all alpha but one", Gates{GateAllAlpha: true, GateReversedVPN: false}, true, false, true},
		{"no beta", Gates{GateAllBeta: false}, false, false, false},
		{"no beta but one", Gates{GateAllBeta: false, GateAPIServerSNI: true}, false, false, true},
	} {
		got := [3]bool{tt.gates.Enabled(GateKonnectivityTunnel), tt.gates.Enabled(GateReversedVPN), tt.gates.Enabled(GateAPIServerSNI)}
		if want := [3]bool{tt.konnectivity, tt.reversed, tt.sni}; got != want {
			t.Errorf("%s: KonnectivityTunnel, ReversedVPN, APIServerSNI are %v, want %v", tt.name, got, want)
		}
	}
	if (Gates{"": true}).Enabled("Unheard") {
		t.Error("a gate that nobody knows takes the value of one without a name")
	}
}

func TestValidateErrors(t *testing.T) {
	err := Gates{GateReversedVPN: true, GateAPIServerSNI: false, GateKonnectivityTunnel: true}.Validate()
	const want = "feature gates: ReversedVPN needs APIServerSNI, which is off, and excludes KonnectivityTunnel, which is on too"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := (Gates{GateAllAlpha: true}).Validate(); err == nil {
		t.Error("AllAlpha turns on what excludes each other, and nobody minds")
	}
}

func FuzzParseGates(f *testing.F) {
	f.Add([]byte("featureGates:\n  KonnectivityTunnel: true\n"))
	f.Add([]byte("ReversedVPN: \"true\""))
	f.Add([]byte("kind: GardenletConfiguration\nfeatureGates: {AllAlpha: on}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		gates, err := ParseGates(data)
		if (gates == nil) == (err == nil) {
			t.Fatalf("gates %v beside error %v", gates, err)
		}
		if err != nil && err.Error() == "" {
			t.Fatal("an error without a text")
		}
		gates.Validate()
		Resolve(Input{KubernetesVersion: "1.21.3", Gates: gates})
	})
}
