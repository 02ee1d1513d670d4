package mode

import (
	"fmt"
	"strconv"
)

// Mode is a kind of tunnel between a control plane and its shoot.
type Mode string

const (
	// OpenVPN is the classic one: the seed dials the shoot, which has a load
	// balancer for it (port 4314).
	OpenVPN Mode = "OpenVPN"
	// Konnectivity is the reverse stream tunnel: agents in the shoot dial a proxy
	// server beside the kube-apiserver, which reaches it by egress selection.
	Konnectivity Mode = "Konnectivity"
	// ReversedVPN is a VPN whose client is in the shoot and enters the seed through
	// the shared entrypoint.
	ReversedVPN Mode = "ReversedVPN"
)

// Annotations of a shoot that override the gates for it.
const (
	AnnotationKonnectivityTunnel = "alpha.featuregates.shoot.gardener.cloud/konnectivity-tunnel"
	AnnotationReversedVPN        = "alpha.featuregates.shoot.gardener.cloud/reversed-vpn"

	// AnnotationHighAvailabilityVPN overrides what follows from the failure tolerance.
	AnnotationHighAvailabilityVPN = "alpha.control-plane.shoot.gardener.cloud/high-availability-vpn"
)

// Failure tolerances of a highly available control plane: the values of the shoot's
// spec.controlPlane.highAvailability.failureTolerance.type.
const (
	FailureToleranceNode = "node"
	FailureToleranceZone = "zone"
)

// Input is what the decision follows from. The zero value has no Kubernetes version,
// which is decided as OpenVPN with a warning.
type Input struct {
	// KubernetesVersion is the shoot's spec.kubernetes.version: see [ParseVersion].
	KubernetesVersion string

	// Gates are the gardenlet's. Nil means that none is set: see [Gates.Enabled].
	Gates Gates

	// Annotations are the shoot's; all but the three of this package are ignored.
	Annotations map[string]string

	// FailureTolerance is the shoot's failure tolerance type. Empty and "none" mean
	// that its control plane is not highly available.
	FailureTolerance string
}

// Decision is which tunnel a shoot gets.
type Decision struct {
	Mode Mode

	// HighlyAvailable says that the tunnel itself is doubled: two servers and two
	// clients, bonded. Only ReversedVPN can be.
	HighlyAvailable bool

	// Reason is one sentence about why it is this mode.
	Reason string

	// Warnings are about what was ignored or will not work, in a fixed order: one
	// sentence each.
	Warnings []string
}

// Resolve decides which tunnel a shoot gets. It is a pure function: equal inputs give
// equal decisions. It always decides; what it could not heed is in the warnings.
func Resolve(in Input) Decision {
	var d Decision
	if err := in.Gates.Validate(); err != nil {
		d.warn("The gardenlet does not start with these gates: %v.", err)
	}
	konnectivity := d.annotation(in.Annotations, AnnotationKonnectivityTunnel)
	reversed := d.annotation(in.Annotations, AnnotationReversedVPN)
	if old := d.tooOld(in.KubernetesVersion); old != "" {
		d.Mode, d.Reason = OpenVPN, old
		konnectivity.ignored(&d, "the Kubernetes version decides")
		reversed.ignored(&d, "the Kubernetes version decides")
	} else {
		d.choose(in.Gates, konnectivity, reversed)
	}
	d.highAvailability(in)
	return d
}

// tooOld returns the reason why only OpenVPN is possible, or "".
func (d *Decision) tooOld(version string) string {
	v, err := ParseVersion(version)
	if err != nil {
		d.warn("Gardener does not reconcile such a shoot: %v.", err)
		return "The Kubernetes version is unknown, and OpenVPN is the only tunnel for versions below 1.18."
	}
	if v.AtLeast(1, 18) {
		return ""
	}
	if v.Pre != "" && (Version{Major: v.Major, Minor: v.Minor}).AtLeast(1, 18) {
		d.warn("Kubernetes %s is a pre-release, and Gardener's comparison takes every pre-release for older than 1.18.", version)
		return fmt.Sprintf("Kubernetes %s counts as below 1.18, where OpenVPN is the only tunnel.", version)
	}
	return fmt.Sprintf("Kubernetes %s is below 1.18, where OpenVPN is the only tunnel.", version)
}

// choose decides for a shoot of Kubernetes 1.18 or later.
func (d *Decision) choose(gates Gates, konnectivity, reversed override) {
	if !gates.Enabled(GateAPIServerSNI) {
		reversed.ignored(d, "the gate APIServerSNI is off")
		reversed.set = false
	}
	byKonnectivity, why := konnectivity.over(gates, GateKonnectivityTunnel)
	byReversed, whyReversed := reversed.over(gates, GateReversedVPN)
	switch {
	case byReversed:
		d.Mode, d.Reason = ReversedVPN, whyReversed+" asks for the reversed VPN."
		if byKonnectivity {
			d.warn("%s asks for Konnectivity, but the reversed VPN takes precedence.", why)
		}
	case byKonnectivity:
		d.Mode, d.Reason = Konnectivity, why+" asks for Konnectivity."
	case konnectivity.set || reversed.set:
		// At least one annotation says no, which is worth telling where a gate says yes.
		d.Mode, d.Reason = OpenVPN, "Neither Konnectivity nor the reversed VPN is left: "
		switch {
		case konnectivity.set && reversed.set:
			d.Reason += "both annotations turn theirs off."
		case konnectivity.set:
			d.Reason += "the annotation " + konnectivity.name + " turns the one off, and the gate ReversedVPN is off."
		default:
			d.Reason += "the annotation " + reversed.name + " turns the one off, and the gate KonnectivityTunnel is off."
		}
	default:
		d.Mode, d.Reason = OpenVPN, "Neither gate nor annotation asks for Konnectivity or the reversed VPN."
	}
}

// highAvailability decides whether the tunnel is doubled.
func (d *Decision) highAvailability(in Input) {
	wanted, why := false, ""
	switch in.FailureTolerance {
	case "", "none":
	default:
		// Gardener heeds only that there is one.
		d.warn("%q is no failure tolerance type; it counts as one.", in.FailureTolerance)
		fallthrough
	case FailureToleranceNode, FailureToleranceZone:
		wanted, why = true, "The failure tolerance "+strconv.Quote(in.FailureTolerance)
	}
	if a := d.annotation(in.Annotations, AnnotationHighAvailabilityVPN); a.set {
		wanted, why = a.value, "The annotation "+a.name
	}
	d.HighlyAvailable = wanted && d.Mode == ReversedVPN
	if wanted && !d.HighlyAvailable {
		d.warn("%s asks for a highly available tunnel, which only the reversed VPN can be.", why)
	}
}

func (d *Decision) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// override is what an annotation says.
type override struct {
	name       string
	set, value bool
}

// annotation reads a boolean annotation; one that is none counts as absent.
func (d *Decision) annotation(annotations map[string]string, name string) override {
	text, ok := annotations[name]
	if !ok {
		return override{name: name}
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		d.warn("The annotation %s is ignored: %q is neither true nor false.", name, text)
		return override{name: name}
	}
	return override{name: name, set: true, value: value}
}

func (o override) ignored(d *Decision, why string) {
	if o.set {
		d.warn("The annotation %s is ignored: %s.", o.name, why)
	}
}

// over returns what counts, the annotation or else the gate, and how to call it.
func (o override) over(gates Gates, gate Gate) (value bool, why string) {
	if o.set {
		return o.value, "The annotation " + o.name
	}
	return gates.Enabled(gate), "The gate " + string(gate)
}
