// Package results keeps the figures of a comparison and prints them as ratios.
package results

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Results are figures by measurement, unit and contender. New makes them.
type Results struct {
	ours   string   // the contender that the others are compared with
	names  []string // of contenders
	rows   []row    // in the order of their first figure
	values map[row]map[string][]float64
}

type row struct{ measurement, unit string }

// New returns results of the named contenders, of which ours is what the others are
// compared with.
func New(ours string, contenders ...string) *Results {
	return &Results{ours: ours, names: contenders, values: make(map[row]map[string][]float64)}
}

// Add keeps a figure: one of a round.
func (r *Results) Add(measurement, unit, contender string, value float64) {
	k := row{measurement, unit}
	if r.values[k] == nil {
		r.values[k] = make(map[string][]float64)
		r.rows = append(r.rows, k)
	}
	r.values[k][contender] = append(r.values[k][contender], value)
}

// Print writes a table: median, spread, and the ratio of medians to ours.
func (r *Results) Print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "measurement\tunit\tcontender\tmedian\tfrom\tto\tratio to ours\t")
	for _, k := range r.rows {
		base := r.values[k][r.ours]
		for _, name := range r.names {
			v := r.values[k][name]
			if len(v) == 0 {
				continue
			}
			ratio := "-"
			if len(base) > 0 && median(base) > 0 {
				ratio = fmt.Sprintf("%.2f", median(v)/median(base))
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", k.measurement, k.unit, name,
				figure(median(v)), figure(slices.Min(v)), figure(slices.Max(v)), ratio)
		}
	}
	_ = t.Flush()
}

// figure has three digits or so.
func figure(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
