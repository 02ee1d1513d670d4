package pathcontrol_test

import (
	"fmt"
	"net/netip"

	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

// What a router makes of its fields can be seen without the right to do it.
func ExampleNetlinkRouter() {
	r := &pathcontrol.NetlinkRouter{
		Networks: []netip.Prefix{
			netip.MustParsePrefix("100.96.0.0/11"),
			netip.MustParsePrefix("fd00:10:2::/64"),
		},
		Hops: map[string]pathcontrol.NextHop{
			"client-0": {Via: netip.MustParseAddr("fd8f:6d53:b97a:1::b:0"), Interface: "bond0"},
			"client-1": {Via: netip.MustParseAddr("fd8f:6d53:b97a:1::b:1"), Interface: "bond0"},
		},
	}
	fmt.Println(r.Check())
	for _, route := range r.Routes("client-1") {
		fmt.Println(route)
	}

	r.Networks = append(r.Networks, netip.MustParsePrefix("10.1.2.3/16"))
	fmt.Println(r.Check())
	// Then a Controller moves them: Controller{Use: r.Use, …}.

	// Output:
	// <nil>
	// 100.96.0.0/11 via inet6 fd8f:6d53:b97a:1::b:1 dev bond0 proto 215 metric 50
	// fd00:10:2::/64 via fd8f:6d53:b97a:1::b:1 dev bond0 proto 215 metric 50
	// pathcontrol: routes: network 10.1.2.3/16: has host bits, the network is 10.1.0.0/16
}

// A prober reaches what is behind a path whichever path is in use.
func ExampleNetlinkRouter_Mark() {
	r := &pathcontrol.NetlinkRouter{
		Networks: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/13")},
		Hops: map[string]pathcontrol.NextHop{
			"client-0": {Interface: "tun0"},
			"client-1": {Interface: "tun1"},
		},
		PerPath: true,
	}
	mark, err := r.Mark("client-1")
	probe := &pathcontrol.TCP{Addr: "100.64.0.1:443", Through: pathcontrol.Through{Mark: mark}}
	fmt.Printf("%#x %v %s\n", probe.Through.Mark, err, probe.Addr)
	// Output: 0xd1 <nil> 100.64.0.1:443
}
