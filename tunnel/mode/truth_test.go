package mode

import (
	"slices"
	"strings"
	"testing"
)

// truth is the whole table for Kubernetes 1.18 and later, written down from the
// description of Gardener's behaviour and not from the code. Each block is one setting
// of the gates KonnectivityTunnel, ReversedVPN and APIServerSNI. Its rows are the
// annotation konnectivity-tunnel, its columns the annotation reversed-vpn, both in the
// order absent, true, false, unparsable. O is OpenVPN, K Konnectivity, R ReversedVPN.
var truth = []struct {
	konnectivity, reversed, sni bool
	startable                   bool // the gardenlet starts with these gates
	grid                        string
}{
	{false, false, true, true, `
		O R O O
		K R K K
		O R O O
		O R O O`},
	{true, false, true, true, `
		K R K K
		K R K K
		O R O O
		K R K K`},
	{false, true, true, true, `
		R R O R
		R R K R
		R R O R
		R R O R`},
	{true, true, true, false, `
		R R K R
		R R K R
		R R O R
		R R K R`},
	{false, false, false, true, `
		O O O O
		K K K K
		O O O O
		O O O O`},
	{true, false, false, true, `
		K K K K
		K K K K
		O O O O
		K K K K`},
	{false, true, false, false, `
		R R R R
		R R R R
		R R R R
		R R R R`},
	{true, true, false, false, `
		R R R R
		R R R R
		R R R R
		R R R R`},
}

// values of an annotation in the order of rows and columns; each variant of a value
// means the same.
var values = [4][]string{
	{""}, // stands for absent
	{"true", "1", "t", "T", "TRUE", "True"},
	{"false", "0", "f", "F", "FALSE", "False"},
	{"yes", " true", "tRUE", "2", ""},
}

// versions by whether the grid applies to them.
var versions = map[bool][]string{
	true: {"1.18.0", "1.18", "v1.18.20", "1.18+", "1.21.3+vendor.1", "1.26.0", "2.0.0"},
	false: {"1.17.17", "v1.17.9", "1.17", "1.0", "0.99.0",
		// Gardener's comparison takes every pre-release for older.
		"1.18.0-alpha.1", "1.21.0-rc.1", "v1.26.0-beta.0+x", "1.21.5-vendor.3",
		// Gardener does not take these at all.
		"", "latest"},
}

// ha is the truth about high availability for a shoot whose tunnel is ReversedVPN, by the
// failure tolerance and the annotation, in the order of values.
var ha = map[string][4]bool{
	"":        {false, true, false, false},
	"none":    {false, true, false, false},
	"node":    {true, true, false, true},
	"zone":    {true, true, false, true},
	"unheard": {true, true, false, true},
}

var modes = map[string]Mode{"O": OpenVPN, "K": Konnectivity, "R": ReversedVPN}

func TestTruthTable(t *testing.T) {
	if len(truth) != 8 {
		t.Fatalf("%d blocks, want all 8 settings of three gates", len(truth))
	}
	seen := make(map[[3]bool]bool)
	cases := 0
	for _, block := range truth {
		seen[[3]bool{block.konnectivity, block.reversed, block.sni}] = true
		gates := Gates{
			GateKonnectivityTunnel: block.konnectivity,
			GateReversedVPN:        block.reversed,
			GateAPIServerSNI:       block.sni,
		}
		if err := gates.Validate(); (err == nil) != block.startable {
			t.Errorf("%v: Validate: %v, want an error: %v", gates, err, !block.startable)
		}
		cells := strings.Fields(block.grid)
		if len(cells) != 16 {
			t.Fatalf("%v: %d cells, want 16", gates, len(cells))
		}
		for i, cell := range cells {
			for applies, vs := range versions {
				want := OpenVPN
				if applies {
					want = modes[cell]
				}
				for j, version := range vs {
					// All spellings of the values with one version, one with the others.
					for _, in := range inputs(version, gates, i/4, i%4, j == 0) {
						checkRow(t, in, want, block.startable)
						cases++
					}
				}
			}
		}
	}
	if len(seen) != 8 {
		t.Errorf("the blocks are about %d settings of the gates, want 8", len(seen))
	}
	t.Logf("%d cases", cases)
}

// inputs makes the variants of one cell: all, or one.
func inputs(version string, gates Gates, row, column int, every bool) []Input {
	ks, rs := values[row], values[column]
	if !every {
		ks, rs = ks[:1], rs[:1]
	}
	var all []Input
	for _, k := range ks {
		for _, r := range rs {
			in := Input{KubernetesVersion: version, Gates: gates, Annotations: map[string]string{"unrelated": "true"}}
			if row > 0 {
				in.Annotations[AnnotationKonnectivityTunnel] = k
			}
			if column > 0 {
				in.Annotations[AnnotationReversedVPN] = r
			}
			all = append(all, in)
		}
	}
	return all
}

func checkRow(t *testing.T, in Input, want Mode, startable bool) {
	t.Helper()
	for tolerance, byAnnotation := range ha {
		for i, haWant := range byAnnotation {
			in.FailureTolerance = tolerance
			delete(in.Annotations, AnnotationHighAvailabilityVPN)
			if i > 0 {
				in.Annotations[AnnotationHighAvailabilityVPN] = values[i][0]
			}
			d := Resolve(in)
			if d.Mode != want {
				t.Errorf("%+v: %s (%s), want %s", in, d.Mode, d.Reason, want)
			}
			if haWant = haWant && want == ReversedVPN; d.HighlyAvailable != haWant {
				t.Errorf("%+v: highly available is %v, want %v", in, d.HighlyAvailable, haWant)
			}
			checkTexts(t, in, d, startable)
		}
	}
}

// checkTexts asserts what holds for every decision: one sentence of reason, and a
// warning about each annotation that is not a boolean and about gates with which the
// gardenlet does not start.
func checkTexts(t *testing.T, in Input, d Decision, startable bool) {
	t.Helper()
	for _, s := range append([]string{d.Reason}, d.Warnings...) {
		if s == "" || !strings.HasSuffix(s, ".") || strings.Contains(s, "\n") || strings.Contains(s, "%!") {
			t.Errorf("%+v: %q is no sentence", in, s)
		}
	}
	warned := func(text string) bool {
		return slices.ContainsFunc(d.Warnings, func(w string) bool { return strings.Contains(w, text) })
	}
	for _, name := range []string{AnnotationKonnectivityTunnel, AnnotationReversedVPN, AnnotationHighAvailabilityVPN} {
		value, ok := in.Annotations[name]
		bad := ok && slices.Contains(values[3], value)
		if got := warned(name + " is ignored: \"" + value + "\" is neither"); got != bad {
			t.Errorf("%+v: warned about the value of %s: %v, want %v: %q", in, name, got, bad, d.Warnings)
		}
	}
	if warned("does not start") == startable {
		t.Errorf("%+v: warned about the gates: %v", in, startable)
	}
}
