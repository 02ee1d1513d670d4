package mode

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/yamldoc"
	"sigs.k8s.io/yaml"
)

// Gate names a feature gate of the gardenlet.
type Gate string

const (
	// GateKonnectivityTunnel gives shoots the Konnectivity tunnel (alpha, off).
	GateKonnectivityTunnel Gate = "KonnectivityTunnel"
	// GateReversedVPN gives shoots the reversed VPN (alpha, off).
	GateReversedVPN Gate = "ReversedVPN"
	// GateAPIServerSNI exposes the kube-apiservers of a seed through one entrypoint
	// by their server names (beta, on).
	GateAPIServerSNI Gate = "APIServerSNI"

	// GateAllAlpha and GateAllBeta stand for every gate of that stage that is not set
	// by its own name.
	GateAllAlpha Gate = "AllAlpha"
	GateAllBeta  Gate = "AllBeta"
)

// Gates are the gates that are set. Nil is none. Gates of other names may be there and
// mean nothing here.
type Gates map[Gate]bool

// Enabled reports whether a gate is on: by its own value, else by that of its stage's
// group, else by its default. Defaults are those of Gardener v1.22 to v1.26:
// APIServerSNI is on, all others are off.
func (g Gates) Enabled(gate Gate) bool {
	group, value := Gate(""), false
	switch gate {
	case GateKonnectivityTunnel, GateReversedVPN:
		group = GateAllAlpha
	case GateAPIServerSNI:
		group, value = GateAllBeta, true
	}
	if v, ok := g[gate]; ok {
		return v
	}
	if v, ok := g[group]; ok && group != "" {
		return v
	}
	return value
}

// Validate returns the error with which the gardenlet refuses to start, or nil:
// ReversedVPN needs APIServerSNI, and excludes KonnectivityTunnel (in the gates;
// annotations may choose per shoot).
func (g Gates) Validate() error {
	if !g.Enabled(GateReversedVPN) {
		return nil
	}
	var why []string
	if !g.Enabled(GateAPIServerSNI) {
		why = append(why, "needs APIServerSNI, which is off")
	}
	if g.Enabled(GateKonnectivityTunnel) {
		why = append(why, "excludes KonnectivityTunnel, which is on too")
	}
	if len(why) == 0 {
		return nil
	}
	return errors.New("feature gates: ReversedVPN " + strings.Join(why, ", and "))
}

// gardenletKind is the kind of the document that ParseGates reads as a whole.
const gardenletKind = "GardenletConfiguration"

// ParseGates reads the feature gates from YAML or JSON: either a gardenlet's whole
// configuration (a document with featureGates, kind or apiVersion at the top) or
// the map of gates alone. A document without gates, or an empty one, gives none.
//
// It is strict where a slip would silently change the decision: a gate's value must be
// a YAML boolean (the string "true" is an error, as it is to the gardenlet), a key may
// appear once, a document of another kind is refused, and so is a second document,
// which the gardenlet would not read. The error names the gate. Gates that this package
// does not know are kept, since the gardenlet has more of them.
func ParseGates(data []byte) (Gates, error) {
	if yamldoc.Several(data) {
		return nil, errors.New("feature gates: there is more than one YAML document")
	}
	var top any
	if err := yaml.UnmarshalStrict(data, &top); err != nil {
		return nil, fmt.Errorf("feature gates: %w", err)
	}
	if top == nil {
		return Gates{}, nil
	}
	doc, ok := top.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("feature gates: the document is %s, want a map", describe(top))
	}
	_, isDoc := doc["featureGates"]
	for _, key := range []string{"kind", "apiVersion"} {
		value, ok := doc[key]
		if !ok {
			continue
		}
		isDoc = true
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("feature gates: %s is %s, want text", key, describe(value))
		}
		if key == "kind" && text != gardenletKind {
			return nil, fmt.Errorf("feature gates: the document is a %s, want a %s", text, gardenletKind)
		}
	}
	if !isDoc {
		return gatesOf("", doc)
	}
	switch gates := doc["featureGates"].(type) {
	case nil:
		return Gates{}, nil
	case map[string]any:
		return gatesOf("featureGates.", gates)
	default:
		return nil, fmt.Errorf("featureGates: it is %s, want a map of gates to true or false", describe(gates))
	}
}

func gatesOf(prefix string, values map[string]any) (Gates, error) {
	gates := make(Gates, len(values))
	var errs []error
	for name, value := range values {
		on, ok := value.(bool)
		if !ok {
			errs = append(errs, fmt.Errorf("%s%s: it is %s, want true or false", prefix, name, describe(value)))
			continue
		}
		gates[Gate(name)] = on
	}
	if len(errs) > 0 {
		return nil, joinSorted(errs)
	}
	return gates, nil
}

// describe names a YAML value in an error.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "empty"
	case string:
		return fmt.Sprintf("the text %.40q", v)
	case map[string]any:
		return "a map"
	case []any:
		return "a list"
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	default:
		return fmt.Sprintf("the number %v", v)
	}
}

// joinSorted joins errors in the order of their texts: those of a map come in any.
func joinSorted(errs []error) error {
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
