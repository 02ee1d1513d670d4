package pathcontrol_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

// One of two paths dies, and the other takes over.
func ExampleController() {
	var dead atomic.Bool
	a := pathcontrol.ProberFunc(func(ctx context.Context) (time.Duration, error) {
		if dead.Load() {
			return 0, errors.New("unreachable")
		}
		return 20 * time.Millisecond, nil
	})
	b := pathcontrol.ProberFunc(func(ctx context.Context) (time.Duration, error) {
		return 30 * time.Millisecond, nil
	})

	used := make(chan string, 10)
	c := &pathcontrol.Controller{
		Paths: []pathcontrol.Path{
			{Name: "a", Preference: 0, Probers: []pathcontrol.Prober{pathcontrol.Named{Name: "far end", Prober: a}}},
			{Name: "b", Preference: 1, Probers: []pathcontrol.Prober{b}},
		},
		Hysteresis: pathcontrol.Hysteresis{Interval: 10 * time.Millisecond},
		Use: func(ctx context.Context, path string) error { // such as NetlinkRouter.Use
			used <- path
			return nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()

	fmt.Println(<-used)
	dead.Store(true)
	fmt.Println(<-used)
	cancel()
	fmt.Println(<-ended)
	status := c.Status()
	fmt.Println(status.Path, status.Switches, status.Reason)
	// Output:
	// a
	// b
	// context canceled
	// b 1 a is down (far end: unreachable); b is the only one that is up
}

// How long it takes to find out, by default and where probes are rarer.
func ExampleHysteresis() {
	var h pathcontrol.Hysteresis
	fmt.Println(h.FallWithin())
	h = pathcontrol.Hysteresis{Interval: 5 * time.Second, Timeout: time.Second, AfterMiss: time.Second, Fall: 3}
	fmt.Println(h.FallWithin())
	// Output:
	// 2.5s
	// 8s
}

// What a link knows of itself is a prober too.
func ExampleProberFunc() {
	link := func() (rtt time.Duration, alive bool) { return 12 * time.Millisecond, true }
	p := pathcontrol.Named{Name: "link", Prober: pathcontrol.ProberFunc(func(ctx context.Context) (time.Duration, error) {
		rtt, alive := link()
		if !alive {
			return 0, errors.New("the link is dead")
		}
		return rtt, nil
	})}
	rtt, err := p.Probe(context.Background())
	fmt.Println(p, rtt, err)
	// Output: link 12ms <nil>
}

// A prober of ICMP echo needs no privilege where the sysctl
// net.ipv4.ping_group_range includes a group of the process.
func ExampleICMP() {
	p := &pathcontrol.ICMP{Addr: netip.MustParseAddr("fd8f:6d53:b97a:1::b:1")}
	defer p.Close()
	fmt.Println(p, p.Validate())

	p = &pathcontrol.ICMP{Addr: netip.MustParseAddr("fe80::b:1")}
	fmt.Println(p.Validate())
	// Output:
	// icmp fd8f:6d53:b97a:1::b:1 <nil>
	// ICMP.Addr is fe80::b:1, which is link-local and needs a zone, as in fe80::b:1%eth0
}

// A port that is closed is a miss, unless it is only the host that counts.
func ExampleTCP() {
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	p := &pathcontrol.TCP{Addr: l.Addr().String()}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := p.Probe(ctx)
	fmt.Println(err)

	l.Close()
	_, err = p.Probe(ctx)
	fmt.Println(err != nil)
	p.Refused = true
	_, err = p.Probe(ctx)
	fmt.Println(err)
	// Output:
	// <nil>
	// true
	// <nil>
}

// A status of 200 to 399 is an answer.
func ExampleHTTP() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, path := range []string{"/healthz", "/readyz"} {
		_, err := (&pathcontrol.HTTP{URL: server.URL + path}).Probe(ctx)
		fmt.Println(err)
	}
	// Output:
	// <nil>
	// status 503 Service Unavailable
}
