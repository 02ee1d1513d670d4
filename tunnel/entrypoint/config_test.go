package entrypoint

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

const goodConfig = `
listeners:
- address: ":443"
- address: "[::1]:8443"
  by: [destination, header]
  proxyFrom: [10.0.0.0/8, "2001:db8::1"]
  proxyMaybeFrom: [10.1.0.0/16]
  headers: [Reversed-VPN]
  unknown: redirect
routes:
- name: a
  sni: [api.a.example.com]
  destinations: ["240.0.10.1:443", "fd00::/64"]
  headerValues: ["outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"]
  allow: [192.0.2.0/24]
  deny: [192.0.2.1]
  maxConnections: 7
  backends: ["10.0.0.1:443", "kube-apiserver.shoot--dev--a:443", "unix:/run/a.sock", "unix:@kube-apiservers/a"]
  sendProxy: v2
  dialTimeout: 1s
  idleTimeout: 1h
  maxDuration: 24h
- name: rest
  default: true
  backends: ["[fd00::1]:443"]
limits: {connections: 1, sniffing: 2, perClient: 3}
headTimeout: 4s
drainTimeout: 5s
removedTimeout: 0
`

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.NewRouter()
	if err != nil {
		t.Fatal(err)
	}
	if r.Limits != (Limits{1, 2, 3}) || r.HeadTimeout != 4*time.Second || r.DrainTimeout != 5*time.Second || r.RemovedTimeout != 0 {
		t.Errorf("%+v", r)
	}
	a := r.table.routes["a"]
	f := a.Handler.(*Forward)
	if len(a.Destinations) != 2 || len(a.Allow) != 1 || len(a.Deny) != 1 || a.Deny[0].String() != "192.0.2.1/32" || a.MaxConns != 7 {
		t.Errorf("%+v", a)
	}
	if len(f.Backends) != 4 || f.SendProxy != 2 || f.DialTimeout != time.Second || f.IdleTimeout != time.Hour || f.MaxDuration != 24*time.Hour {
		t.Errorf("%+v", f)
	}
	if !r.table.routes["rest"].Default {
		t.Error("no default")
	}
	doors, err := c.Doors()
	if err != nil {
		t.Fatal(err)
	}
	if d := doors[0]; d.By != 0 || d.Unknown != Deny || len(d.Proxy) != 0 {
		t.Errorf("%+v", d)
	}
	d := doors[1]
	if d.By != ByDestination|ByHeader || d.Unknown != Redirect || len(d.Headers) != 1 || len(d.Proxy) != 3 {
		t.Fatalf("%+v", d)
	}
	if d.Proxy[1] != (proxyproto.Rule{From: prefix("2001:db8::1/128"), Policy: proxyproto.Require}) || d.Proxy[2].Policy != proxyproto.Accept {
		t.Errorf("%+v", d.Proxy)
	}
}

// A route that stays the same keeps what it knows of its backends.
func TestConfigApply(t *testing.T) {
	old, err := ParseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	r, err := old.NewRouter()
	if err != nil {
		t.Fatal(err)
	}
	before := r.table.routes
	next, err := ParseConfig([]byte(strings.Replace(goodConfig, "[fd00::1]:443", "[fd00::2]:443", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Apply(r, old); err != nil {
		t.Fatal(err)
	}
	if r.table.routes["a"] != before["a"] || r.table.routes["rest"] == before["rest"] {
		t.Error("the wrong route is new")
	}
	// Names that are there twice are an error, also where both are as before.
	next.Routes = append(next.Routes, next.Routes[0])
	if err := next.Apply(r, old); err == nil || r.table.routes["a"] != before["a"] {
		t.Errorf("a name twice: %v", err)
	}
}

// Every mistake is an error that names it.
func TestParseConfigErrors(t *testing.T) {
	for _, tc := range []struct{ old, new, want string }{
		{"maxConnections", "maxConnection", `unknown field "maxConnection"`},
		{"- name: rest", "- name: a", `route "a": the name is route "a"'s already`},
		{"limits:", "---\nlimits:", "more than one YAML document"},
		{"sni: [api.a.example.com]", "sni: [api.a.example.com]\n  sni: [b]", `"sni" already set`},
		{"by: [destination, header]", "by: [destination, host]", `listener "[::1]:8443": by "host"`},
		{"by: [destination, header]", "by: [destination]", "headers and unknown are for by: [header]"},
		{"unknown: redirect", "unknown: 404", `unknown`},
		{"unknown: redirect", "unknown: drop", `unknown "drop": want deny or redirect`},
		{":443\"\n- address: \"[::1]:8443", "[::1]:8443\"\n- address: \"[::1]:8443", "it is there twice"},
		{"[::1]:8443", "[::1]", "want host:port"},
		{"[::1]:8443", "[::1]:http", `port "http"`},
		{"10.0.0.0/8", "10.0.0.1/8", "want 10.0.0.0/8"},
		{"10.1.0.0/16", "ten", `prefix "ten"`},
		{"10.1.0.0/16", `"::ffff:10.1.0.0/112"`, "IPv4 as such"},
		{"headers: [Reversed-VPN]", `headers: ["a b"]`, "no header name"},
		{"fd00::/64", "fd00::1/64", "want fd00::/64"},
		{"fd00::/64", "fd00::1:443:", "port"},
		{"fd00::/64", "::ffff:10.0.0.1", "IPv4 address as such"},
		{"[api.a.example.com]", "[api..example.com]", "label"},
		{"[api.a.example.com]", "[10.0.0.1]", "no server name"},
		{"[api.a.example.com]", "[]", ""},
		{"192.0.2.1]", "192.0.2.1/24]", "bits behind"},
		{"sendProxy: v2", "sendProxy: v3", "sendProxy"},
		{"10.0.0.1:443", "10.0.0.1", "backend"},
		{"10.0.0.1:443", ":443", "no host"},
		{"10.0.0.1:443", "kube-apiserver.shoot--dev--a:443", "twice"},
		{"unix:/run/a.sock", "unix:a.sock", "unix:/PATH"},
		{`backends: ["[fd00::1]:443"]`, "", "no backends"},
		{"default: true", "default: false", "nothing leads to it"},
		{"dialTimeout: 1s", "dialTimeout: 1", "a duration is a number with a unit"},
		{"dialTimeout: 1s", "dialTimeout: soon", "soon"},
		{"headTimeout: 4s", "headTimeout: [", "entrypoint:"},
	} {
		if !strings.Contains(goodConfig, tc.old) {
			t.Fatalf("no %q", tc.old)
		}
		c, err := ParseConfig([]byte(strings.Replace(goodConfig, tc.old, tc.new, 1)))
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%q: %v", tc.new, err)
		case tc.want != "" && (err == nil || c != nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%q: %v, want %q", tc.new, err, tc.want)
		}
	}
	if _, err := ParseConfig(nil); err == nil || !strings.Contains(err.Error(), "no listeners") {
		t.Errorf("an empty file: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(`{"listeners":[{"address":":1"}],"routes":[]}`))
	if b, err := os.ReadFile("../../examples/seed/entrypoint/example.yaml"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if _, err := c.NewRouter(); err != nil {
			t.Errorf("ParseConfig took what NewRouter refuses: %v", err)
		}
	})
}
