package mode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The whole answers for inputs that people meet.
func TestResolve(t *testing.T) {
	const yes, no = "true", "false"
	for _, tt := range []struct {
		name string
		in   Input
		want Decision
	}{
		{"nothing is known", Input{}, Decision{
			Mode:     OpenVPN,
			Reason:   "The Kubernetes version is unknown, and OpenVPN is the only tunnel for versions below 1.18.",
			Warnings: []string{`Gardener does not reconcile such a shoot: "" is not a Kubernetes version: it is empty.`},
		}},
		{"nobody asks", Input{KubernetesVersion: "1.21.3"}, Decision{
			Mode:   OpenVPN,
			Reason: "Neither gate nor annotation asks for Konnectivity or the reversed VPN.",
		}},
		{"the gate", Input{KubernetesVersion: "1.21.3", Gates: Gates{GateKonnectivityTunnel: true}}, Decision{
			Mode:   Konnectivity,
			Reason: "The gate KonnectivityTunnel asks for Konnectivity.",
		}},
		{"old", Input{
			KubernetesVersion: "1.17.9", Gates: Gates{GateKonnectivityTunnel: true},
			Annotations: map[string]string{AnnotationKonnectivityTunnel: yes, AnnotationReversedVPN: no},
		}, Decision{
			Mode:   OpenVPN,
			Reason: "Kubernetes 1.17.9 is below 1.18, where OpenVPN is the only tunnel.",
			Warnings: []string{
				"The annotation alpha.featuregates.shoot.gardener.cloud/konnectivity-tunnel is ignored: the Kubernetes version decides.",
				"The annotation alpha.featuregates.shoot.gardener.cloud/reversed-vpn is ignored: the Kubernetes version decides.",
			},
		}},
		{"pre-release", Input{KubernetesVersion: "v1.21.0-rc.1", Gates: Gates{GateReversedVPN: true}, FailureTolerance: FailureToleranceZone}, Decision{
			Mode:   OpenVPN,
			Reason: "Kubernetes v1.21.0-rc.1 counts as below 1.18, where OpenVPN is the only tunnel.",
			Warnings: []string{
				"Kubernetes v1.21.0-rc.1 is a pre-release, and Gardener's comparison takes every pre-release for older than 1.18.",
				`The failure tolerance "zone" asks for a highly available tunnel, which only the reversed VPN can be.`,
			},
		}},
		{"pre-release of an old one", Input{KubernetesVersion: "1.17.0-rc.1"}, Decision{
			Mode:   OpenVPN,
			Reason: "Kubernetes 1.17.0-rc.1 is below 1.18, where OpenVPN is the only tunnel.",
		}},
		{"both", Input{
			KubernetesVersion: "1.21.3", Gates: Gates{GateKonnectivityTunnel: true}, FailureTolerance: FailureToleranceNode,
			Annotations: map[string]string{AnnotationReversedVPN: yes},
		}, Decision{
			Mode: ReversedVPN, HighlyAvailable: true,
			Reason:   "The annotation alpha.featuregates.shoot.gardener.cloud/reversed-vpn asks for the reversed VPN.",
			Warnings: []string{"The gate KonnectivityTunnel asks for Konnectivity, but the reversed VPN takes precedence."},
		}},
		{"the entrypoint is not there", Input{
			KubernetesVersion: "1.21.3", Gates: Gates{GateAPIServerSNI: false},
			Annotations: map[string]string{AnnotationReversedVPN: yes},
		}, Decision{
			Mode:     OpenVPN,
			Reason:   "Neither gate nor annotation asks for Konnectivity or the reversed VPN.",
			Warnings: []string{"The annotation alpha.featuregates.shoot.gardener.cloud/reversed-vpn is ignored: the gate APIServerSNI is off."},
		}},
		{"one is turned off", Input{
			KubernetesVersion: "1.21.3", Gates: Gates{GateReversedVPN: true},
			Annotations: map[string]string{AnnotationReversedVPN: no},
		}, Decision{
			Mode:   OpenVPN,
			Reason: "Neither Konnectivity nor the reversed VPN is left: the annotation alpha.featuregates.shoot.gardener.cloud/reversed-vpn turns the one off, and the gate KonnectivityTunnel is off.",
		}},
		{"the other is turned off", Input{
			KubernetesVersion: "1.21.3", Gates: Gates{GateKonnectivityTunnel: true},
			Annotations: map[string]string{AnnotationKonnectivityTunnel: no},
		}, Decision{
			Mode:   OpenVPN,
			Reason: "Neither Konnectivity nor the reversed VPN is left: the annotation alpha.featuregates.shoot.gardener.cloud/konnectivity-tunnel turns the one off, and the gate ReversedVPN is off.",
		}},
		{"both are turned off", Input{
			KubernetesVersion: "1.21.3", Gates: Gates{GateReversedVPN: true, GateKonnectivityTunnel: true},
			Annotations: map[string]string{AnnotationKonnectivityTunnel: "0", AnnotationReversedVPN: "F"},
		}, Decision{
			Mode:     OpenVPN,
			Reason:   "Neither Konnectivity nor the reversed VPN is left: both annotations turn theirs off.",
			Warnings: []string{"The gardenlet does not start with these gates: feature gates: ReversedVPN excludes KonnectivityTunnel, which is on too."},
		}},
		{"a tolerance that does not exist", Input{
			KubernetesVersion: "1.26.1", Gates: Gates{GateReversedVPN: true}, FailureTolerance: "rack",
			Annotations: map[string]string{AnnotationHighAvailabilityVPN: no},
		}, Decision{
			Mode: ReversedVPN, Reason: "The gate ReversedVPN asks for the reversed VPN.",
			Warnings: []string{`"rack" is no failure tolerance type; it counts as one.`},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Resolve(tt.in)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(Resolve(tt.in), Resolve(tt.in)); diff != "" {
				t.Errorf("two answers to one question:\n%s", diff)
			}
		})
	}
}
