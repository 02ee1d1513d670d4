package pathcontrol

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// BenchmarkRouterUse moves networks, half of them IPv6, to another next hop. The
// metric window is the part of it in which some go the new way and others the old.
func BenchmarkRouterUse(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			inBenchHost(b, func(self *routeHost) {
				r := newTwoPaths(self).router()
				r.Networks = many(n)
				defer r.Close()
				self.must(r.Use(b.Context(), "a"))
				var window time.Duration
				k, i := r.kernel, 0
				for b.Loop() {
					i++
					want, err := r.resolve(k, r.wanted([]string{"a", "b"}[i%2]))
					self.must(err)
					have, err := k.routes(r.table(), 0)
					self.must(err)
					plan := planRoutes(want, have, r.owns)
					start := time.Now()
					refused := k.change(plan.changes)
					window += time.Since(start)
					self.must(summary(plan.changes, refused))
					if len(plan.changes) != n && i > 1 {
						b.Fatalf("%d changes", len(plan.changes))
					}
				}
				b.ReportMetric(float64(window.Microseconds())/float64(b.N)/1000, "window-ms")
			})
		})
	}
}

// inBenchHost is inHost for a benchmark.
func inBenchHost(b *testing.B, f func(self *routeHost)) {
	b.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		b.Fatal(err)
	}
	defer home.Close()
	own, err := netns.New()
	if err != nil {
		runtime.UnlockOSThread()
		b.Skipf("a network namespace needs CAP_SYS_ADMIN, run it as root: %v", err)
	}
	defer own.Close()
	defer func() {
		if netns.Set(home) == nil { // else the thread ends with the goroutine
			runtime.UnlockOSThread()
		}
	}()
	self := &routeHost{b, own}
	self.settings()
	f(self)
}
