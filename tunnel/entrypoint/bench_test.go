package entrypoint

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// manyRoutes are n routes as those of n clusters, each with a whole name, a
// wildcard, an address and a header value.
func manyRoutes(n int) []*Route {
	routes := make([]*Route, n)
	for i := range routes {
		routes[i] = &Route{
			Name:         fmt.Sprintf("shoot--dev--c%d/kube-apiserver", i),
			SNI:          []string{benchName(i), fmt.Sprintf("*.ingress.c%d.dev.example.com", i)},
			Destinations: []Destination{{netip.PrefixFrom(benchAddr(i), 32), 443}},
			HeaderValues: []string{benchHeader(i)},
			Handler:      deaf{},
		}
	}
	return routes
}

func benchName(i int) string { return fmt.Sprintf("api.c%d.dev.example.com", i) }
func benchHeader(i int) string {
	return fmt.Sprintf("outbound|443||kube-apiserver.shoot--dev--c%d.svc.cluster.local", i)
}
func benchAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)})
}

// BenchmarkLookup takes the same time for any number of routes, but for what the
// caches of the machine make of it.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000} {
		table := mustTable(b, manyRoutes(n)...)
		// 64 routes among all, so that it is not one that is looked up.
		var by [4][64]Info
		for k := range 64 {
			i := k * n / 64
			by[0][k] = Info{By: BySNI, ServerName: benchName(i)}
			by[1][k] = Info{By: BySNI, ServerName: fmt.Sprintf("grafana.ingress.c%d.dev.example.com", i)}
			by[2][k] = Info{By: ByDestination, Destination: netip.AddrPortFrom(benchAddr(i), 443)}
			by[3][k] = Info{By: ByHeader, HeaderValue: benchHeader(i)}
		}
		for k, name := range []string{"name", "wildcard", "destination", "header"} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if table.lookup(&by[k][i%64]) == nil {
						b.Fatal("not found")
					}
				}
			})
		}
		b.Run(fmt.Sprintf("unknown/%d", n), func(b *testing.B) {
			for b.Loop() {
				if table.lookup(&Info{By: BySNI, ServerName: "www.elsewhere.example.com"}) != nil {
					b.Fatal("found")
				}
			}
		})
	}
}

// BenchmarkSetRoutes replaces the whole table.
func BenchmarkSetRoutes(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			routes := manyRoutes(n)
			r := new(Router)
			b.ReportAllocs()
			for b.Loop() {
				if err := r.SetRoutes(routes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConn is a connection from its dial to its end, in memory: what the
// router costs without sockets.
func BenchmarkConn(b *testing.B) {
	w := newWorld(b, nil)
	w.handle(w.listen("echo:1"), func(c net.Conn) {
		c.Write([]byte("x"))
		ended(c)
	})
	w.only(&Forward{Backends: []string{"echo:1"}})
	first := []byte(hello(b, "only.example.com"))
	b.ReportAllocs()
	for b.Loop() {
		c, err := w.net.Dial(b.Context(), "tcp", doorSNI)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write(first); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
