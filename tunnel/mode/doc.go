// Package mode decides which tunnel connects a shoot's control plane with the shoot,
// as Gardener decides it: from feature gates of the gardenlet, annotations of the
// shoot, and the shoot's Kubernetes version.
//
//	gates, err := mode.ParseGates(gardenletConfig)
//	...
//	d := mode.Resolve(mode.Input{
//		KubernetesVersion: "1.21.3",
//		Gates:             gates,
//		Annotations:       shoot.Annotations,
//	})
//	log.Info(d.Reason, "mode", d.Mode)
//
// # The rules
//
// They are those of Gardener v1.22 to v1.26, the releases in which all three tunnels
// existed side by side. In this order:
//
//  1. Below Kubernetes 1.18 the tunnel is [OpenVPN], whatever gates and annotations
//     say, since API aggregation there does not heed the egress selection.
//  2. The gate ReversedVPN asks for [ReversedVPN]. The annotation
//     [AnnotationReversedVPN] overrides it both ways, but only where the gate
//     APIServerSNI is on, since the reversed VPN enters through the same entrypoint.
//  3. The gate KonnectivityTunnel asks for [Konnectivity]. The annotation
//     [AnnotationKonnectivityTunnel] overrides it both ways.
//  4. Where both are asked for, ReversedVPN wins. Where neither is, the tunnel is
//     OpenVPN.
//
// An annotation whose value is not a boolean (as strconv.ParseBool reads one) counts
// as absent, and [Decision] has a warning about it.
//
// Gardener v1.27 dropped Konnectivity: its gate and annotation mean nothing there. The
// version rule is gone since v1.61, when no older shoots were left.
//
// # Gates that are not set
//
// [Gates.Enabled] says what an absent gate means: KonnectivityTunnel and ReversedVPN
// are off, APIServerSNI is on, which are their defaults in those releases. The groups
// AllAlpha and AllBeta are honoured, since the gardenlet honours them.
//
// # Versions
//
// The comparison is Gardener's "1.18 or later" in the semantics of the library that it
// uses, in which a pre-release is never "or later" than a constraint without one: not
// only 1.18.0-alpha.1 but 1.21.0-rc.1 counts as below 1.18, and so does a vendor's
// 1.21.5-vendor.3. Build metadata (1.21.5+vendor.3) makes no difference.
//
// # What it does not do
//
// It reads no cluster and deploys nothing. It does not know other gates than these
// three, and checks no shoot for validity beyond what the decision needs.
package mode
