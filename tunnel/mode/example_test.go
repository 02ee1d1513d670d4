package mode_test

import (
	"fmt"

	"github.com/rhizome-tunnel/rhizome/tunnel/mode"
)

func ExampleResolve() {
	gates, err := mode.ParseGates([]byte(`
featureGates:
  KonnectivityTunnel: true
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	d := mode.Resolve(mode.Input{
		KubernetesVersion: "1.21.3",
		Gates:             gates,
		Annotations: map[string]string{
			mode.AnnotationReversedVPN: "maybe",
		},
	})
	fmt.Println(d.Mode)
	fmt.Println(d.Reason)
	for _, w := range d.Warnings {
		fmt.Println(w)
	}
	// Output:
	// Konnectivity
	// The gate KonnectivityTunnel asks for Konnectivity.
	// The annotation alpha.featuregates.shoot.gardener.cloud/reversed-vpn is ignored: "maybe" is neither true nor false.
}

// The string "true" is not the boolean.
func ExampleParseGates() {
	_, err := mode.ParseGates([]byte(`featureGates: {ReversedVPN: "true"}`))
	fmt.Println(err)
	// Output: featureGates.ReversedVPN: it is the text "true", want true or false
}

func ExampleGates_Validate() {
	fmt.Println(mode.Gates{mode.GateReversedVPN: true}.Validate())
	fmt.Println(mode.Gates{mode.GateReversedVPN: true, mode.GateAPIServerSNI: false}.Validate())
	// Output:
	// <nil>
	// feature gates: ReversedVPN needs APIServerSNI, which is off
}

func ExampleParseVersion() {
	for _, s := range []string{"1.17.9", "v1.18.0-alpha.1", "1.18.0", "1.21+"} {
		v, err := mode.ParseVersion(s)
		fmt.Println(v, v.AtLeast(1, 18), err)
	}
	// Output:
	// 1.17.9 false <nil>
	// 1.18.0-alpha.1 false <nil>
	// 1.18.0 true <nil>
	// 1.21.0 true <nil>
}
