package entrypoint_test

import (
	"fmt"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

const exampleConfig = `
listeners:
- address: ":443"
- address: ":8132"
  by: [header]
  headers: [Reversed-VPN]
routes:
- name: shoot--dev--a/kube-apiserver
  sni: [api.a.dev.example.com]
  backends: ["10.0.0.1:443", "10.0.0.2:443"]
- name: shoot--dev--a/proxy-server
  headerValues: ["outbound|8132||proxy-server.shoot--dev--a.svc.cluster.local"]
  backends: ["10.0.0.3:8132"]
`

// All that is wrong with a file is told at once, and where.
func ExampleParseConfig() {
	_, err := entrypoint.ParseConfig([]byte(`
listeners: [{address: ":443", by: [name]}]
routes:
- name: a
  sni: [api.a.dev.example.com]
  dialTimeout: 5
  backends: ["10.0.0.1:443"]
- name: b
  sni: [api.a.dev.example.com]
  allow: [192.0.2.1/24]
  Deny: []
  backends: ["10.0.0.2:443"]
`))
	fmt.Println(err)
	// Output:
	// entrypoint: route "a": dialTimeout: want a duration, a number with a unit as in 10s, got 5
	// entrypoint: route "b": unknown field "Deny": it is spelled deny
	// entrypoint: listener ":443": by "name": want sni, destination or header
	// entrypoint: route "b": allow: prefix "192.0.2.1/24": there are bits behind the prefix, want 192.0.2.0/24
	// entrypoint: route "b": server name api.a.dev.example.com is route "a"'s already
}

// A file is made into a Router and its doors, and the next one replaces the
// routes. One that stays the same keeps its Route, and so what is known of its
// backends.
func ExampleConfig() {
	config, err := entrypoint.ParseConfig([]byte(exampleConfig))
	if err != nil {
		fmt.Println(err)
		return
	}
	router, err := config.NewRouter()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer router.Close()
	doors, err := config.Doors()
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, l := range config.Listeners {
		_ = doors[i] // for go router.Serve(listener, doors[i])
		fmt.Println(l.Address, "by", l.Kind())
	}

	next, err := entrypoint.ParseConfig([]byte(strings.Replace(exampleConfig, "10.0.0.3", "10.0.0.4", 1)))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("no restart needed:", next.SameFront(config))
	if err := next.Apply(router, config); err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range router.Stats().Routes {
		fmt.Println(r.Name, "is as before:", next.Route(r.Name) == config.Route(r.Name))
	}
	// Output:
	// :443 by sni
	// :8132 by header
	// no restart needed: true
	// shoot--dev--a/kube-apiserver is as before: true
	// shoot--dev--a/proxy-server is as before: false
}
