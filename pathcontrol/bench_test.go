package pathcontrol

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkProbe is what one probe costs the loop, of the number of paths
// that there are: sending it, its verdict, and the decision.
func BenchmarkProbe(b *testing.B) {
	for _, paths := range []int{2, 10, 100} {
		b.Run(fmt.Sprint(paths, "paths"), func(b *testing.B) {
			c := &Controller{Use: func(context.Context, string) error { return nil }}
			for i := range paths {
				c.Paths = append(c.Paths, Path{Name: fmt.Sprint(i), Preference: i, Probers: []Prober{
					ProberFunc(func(context.Context) (time.Duration, error) { return time.Millisecond, nil }),
				}})
			}
			r := c.newRun(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				r.step()
				for !allJudged(r) {
					r.take(<-r.results)
				}
				for _, p := range r.paths { // so that all are due again
					for _, t := range p.trackers {
						t.last = t.last.Add(-r.h.Interval)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*paths), "ns/probe")
			for r.use.running {
				r.useReturned(<-r.used, time.Now())
			}
		})
	}
}

func allJudged(r *run) bool {
	for _, p := range r.paths {
		for _, t := range p.trackers {
			if len(t.flights) > 0 {
				return false
			}
		}
	}
	return true
}

func BenchmarkStatus(b *testing.B) {
	c := &Controller{Use: func(context.Context, string) error { return nil }}
	for i := range 10 {
		c.Paths = append(c.Paths, Path{Name: fmt.Sprint(i), Probers: []Prober{ProberFunc(nil)}})
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Status()
	}
}

func BenchmarkICMP(b *testing.B) {
	p := &ICMP{Addr: netip.MustParseAddr("127.0.0.1")}
	if err := p.Open(); err != nil {
		b.Skip(err)
	}
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Probe(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
