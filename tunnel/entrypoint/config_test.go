package entrypoint

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

const goodConfig = `
listeners:
- address: ":443"
  proxyFrom: [10.0.0.0/8]
  proxyMaybeFrom: [10.1.0.0/16]
- address: "[::1]:8443"
  by: [destination, header]
  proxyFrom: [10.8.0.0/16, "2001:db8::1"]
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
	if d := doors[0]; d.By != 0 || d.Unknown != Deny || len(d.Proxy) != 2 || d.Proxy[1].Policy != proxyproto.Accept {
		t.Errorf("%+v", d)
	}
	d := doors[1]
	if d.By != ByDestination|ByHeader || d.Unknown != Redirect || len(d.Headers) != 1 || len(d.Proxy) != 2 {
		t.Fatalf("%+v", d)
	}
	if d.Proxy[1] != (proxyproto.Rule{From: prefix("2001:db8::1/128"), Policy: proxyproto.Require}) {
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
	if next.Route("a") != before["a"] || next.Route("rest") != r.table.routes["rest"] || next.Route("none") != nil {
		t.Error("Route does not return what is in use")
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
		{"\":443\"", "\"[::1]:8443\"", `listener "[::1]:8443": it is there twice`},
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
		{"sendProxy: v2", "sendProxy: v3", `route "a": sendProxy "v3"`},
		{"sendProxy: v2", "sendProxy: 2", `route "a": sendProxy: want a text (a number is one in quotes), got 2`},
		{"deny: [192.0.2.1]", "Deny: [192.0.2.1]", `route "a": unknown field "Deny": it is spelled deny`},
		{"deny: [192.0.2.1]", "deny: [192.0.2.1]\n  Deny: []", `route "a": unknown field "Deny": it is spelled deny`},
		{"deny: [192.0.2.1]", "deny: [one]", `route "a": deny: prefix "one"`},
		{"deny: [192.0.2.1]", "deny: 192.0.2.1", `route "a": deny: want a list of texts (a number is one in quotes), got "192.0.2.1"`},
		{"maxConnections: 7", "maxConnections: seven", `route "a": maxConnections: want a whole number, got "seven"`},
		{"maxConnections: 7", "maxConnections: 7.5", `route "a": maxConnections: want a whole number, got 7.5`},
		{"default: true", "default: 1", `route "rest": default: want true or false, got 1`},
		{"- name: rest", "- name: 7", `route "#2": name: want a text`},
		{"- name: rest\n  ", "- ", `route "#2": it has no name`},
		{"- name: a\n", "- \n- name: a\n", `route "#1": want fields with values, got null`},
		{"by: [destination, header]", "by: header", `listener "[::1]:8443": by: want a list of texts`},
		{"by: [destination, header]", "By: [header]", `listener "[::1]:8443": unknown field "By": it is spelled by`},
		{"- address: \":443\"", "- Address: \":443\"", `listener "#1": unknown field "Address": it is spelled address`},
		{"[10.1.0.0/16]", "[10.0.0.0/8]", `listener ":443": proxyMaybeFrom: prefix 10.0.0.0/8 is in proxyFrom or proxyMaybeFrom already`},
		{"proxyFrom: [10.8.0.0/16,", "proxyMaybeFrom: [10.8.0.0/16,", "door by destination"},
		{"perClient: 3", "perClient: three", `entrypoint: limits: perClient: want a whole number, got "three"`},
		{"limits: {connections: 1, sniffing: 2, perClient: 3}", "limits: 3", `entrypoint: limits: want fields with values, got 3`},
		{"limits: {connections: 1, sniffing: 2, perClient: 3}", "limits:", ""},
		{"drainTimeout: 5s", "drainTimeout: 25", "entrypoint: drainTimeout: want a duration, a number with a unit as in 10s, got 25"},
		{"drainTimeout: 5s", "drainTimeout: 5 s", `entrypoint: drainTimeout: want a duration, as 250ms, 10s or 1h30m, of at most 292 years, got "5 s"`},
		{"drainTimeout: 5s", "drainTimeout: 9999999h", `got "9999999h"`},
		{"drainTimeout: 5s", "drainTimeout:", ""},
		{"drainTimeout: 5s", "drainTimeout: " + strings.Repeat("é", 100), `got "` + strings.Repeat("é", 39) + "…"},
		{"drainTimeout: 5s", "draintimeout: 5s", `entrypoint: unknown field "draintimeout": it is spelled drainTimeout`},
		{"10.0.0.1:443", "10.0.0.1", "backend"},
		{"10.0.0.1:443", ":443", "no host"},
		{"10.0.0.1:443", "kube-apiserver.shoot--dev--a:443", "twice"},
		{"unix:/run/a.sock", "unix:a.sock", "unix:/PATH"},
		{`backends: ["[fd00::1]:443"]`, "", "no backends"},
		{"default: true", "default: false", "nothing leads to it"},
		{"dialTimeout: 1s", "dialTimeout: 1", `route "a": dialTimeout: want a duration, a number with a unit as in 10s, got 1`},
		{"dialTimeout: 1s", "dialTimeout: soon", `route "a": dialTimeout: want a duration, as 250ms, 10s or 1h30m, of at most 292 years, got "soon"`},
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
	for text, want := range map[string]string{
		"":                      "entrypoint: the file is empty",
		"# all is out\n":        "entrypoint: the file is empty",
		"[]":                    "entrypoint: want fields with values, got []",
		"routes: []":            "entrypoint: there are no listeners",
		"listeners: 5":          `entrypoint: routes: they are missing; if there are none, write routes: []` + "\nentrypoint: listeners: want a list, got 5",
		noRoutes:                "entrypoint: routes: they are missing; if there are none, write routes: []",
		noRoutes + "routes:":    "entrypoint: routes: they are missing; if there are none, write routes: []",
		noRoutes + "routes: {}": "entrypoint: routes: want a list, got {}",
		noRoutes + "routes: []": "",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

const noRoutes = "listeners: [{address: ':443'}]\n"

// The error tells all that is wrong, one a line, and each line says where.
func TestParseConfigTellsAll(t *testing.T) {
	_, err := ParseConfig([]byte(`
listeners:
- {address: ":443", proxyFrom: [ten, eleven]}
- {address: ":443", by: header}
routes:
- name: a
  sni: [api.example.com]
  allow: [here, there]
  backends: ["10.0.0.1"]
- name: b
  sni: [api.example.com, "a..b"]
  dialTimeout: soon
  backends: 5
- name: c
  destinations: [everywhere]
  backends: ["10.0.0.1:443"]
- name: d
  headerValues: [x]
  backends: ["10.0.0.1:443"]
- name: d
  headerValues: [x]
- sni: [nameless.example.com]
  backends: ["10.0.0.1:443"]
drainTimeout: 1
`))
	want := []string{
		`entrypoint: drainTimeout: want a duration`,
		`entrypoint: listener ":443": by: want a list of texts`,
		`entrypoint: route "b": backends: want a list of texts`,
		`entrypoint: route "b": dialTimeout: want a duration`,
		`entrypoint: listener ":443": proxyFrom: prefix "ten"`,
		`entrypoint: listener ":443": proxyFrom: prefix "eleven"`,
		`entrypoint: listener ":443": it is there twice`,
		`entrypoint: route "a": allow: prefix "here"`,
		`entrypoint: route "a": allow: prefix "there"`,
		`entrypoint: route "c": destination "everywhere"`,
		`entrypoint: route "#6": it has no name`,
		`entrypoint: route "a": backend "10.0.0.1": want host:port`,
		`entrypoint: route "b": server name "a..b": label ""`,
		`server name api.example.com is route "a"'s already`,
		`entrypoint: route "d": it has no backends`,
		`the name is route "d"'s already`,
		`header value "x" is route "d"'s already`,
	}
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, w := range want {
		i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, w) })
		if i < 0 {
			t.Errorf("no line %s", w)
			continue
		}
		lines = slices.Delete(lines, i, i+1)
	}
	if t.Failed() || len(lines) > 0 {
		t.Errorf("%v\n\nnot expected: %q", err, lines)
	}
}

// What a Config means counts, not how it says it.
func TestSameFront(t *testing.T) {
	base := `
listeners:
- {address: ":443", proxyFrom: [10.0.0.0/8, 10.1.0.0/16]}
- {address: ":8132", by: [header]}
routes: []
`
	parse := func(text string) *Config {
		c, err := ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tc := range []struct {
		old, new string
		same     bool
	}{
		{"", "", true},
		{"routes: []", `routes: [{name: a, default: true, backends: ["a:1"]}]`, true},
		{`":443",`, `":443", by: [sni],`, true},
		{`":443",`, `":443", by: [], headers: [], unknown: "", proxyMaybeFrom: [],`, true},
		{`":443",`, `":443", by: [sni, destination],`, false},
		{`":443",`, `":444",`, false},
		{"[10.0.0.0/8, 10.1.0.0/16]", "[10.1.0.0/16, 10.0.0.0/8]", true},
		{"[10.0.0.0/8, 10.1.0.0/16]", "[10.0.0.0/8]", false},
		{"[10.0.0.0/8, 10.1.0.0/16]", "[10.0.0.0/8], proxyMaybeFrom: [10.1.0.0/16]", false},
		{"by: [header]", "by: [header, header], unknown: deny", true},
		{"by: [header]", "by: [header], headers: [x-gardener-destination, Reversed-VPN]", true},
		{"by: [header]", "by: [header], headers: [Reversed-VPN]", false},
		{"by: [header]", "by: [header], unknown: redirect", false},
		{"routes: []", "routes: []\nlimits: {connections: 20000, sniffing: 1024, perClient: 0}", true},
		{"routes: []", "routes: []\nlimits: {perClient: -1}", true},
		{"routes: []", "routes: []\nlimits: {perClient: 1}", false},
		{"routes: []", "routes: []\nheadTimeout: 10s\ndrainTimeout: 25s\nremovedTimeout: 0", true},
		{"routes: []", "routes: []\nheadTimeout: -1s", false},
		{"routes: []", "routes: []\ndrainTimeout: 24s", false},
		{"routes: []", "routes: []\nremovedTimeout: -1s", false},
	} {
		other := parse(strings.Replace(base, tc.old, tc.new, 1))
		if got := parse(base).SameFront(other); got != tc.same || other.SameFront(parse(base)) != got {
			t.Errorf("%q: %v", tc.new, got)
		}
	}
	swapped := parse(base)
	slices.Reverse(swapped.Listeners)
	if !swapped.SameFront(parse(base)) {
		t.Error("listeners in another order")
	}
	a, b := parse(base), parse(base)
	a.HeadTimeout, b.HeadTimeout = -1, -2
	if !a.SameFront(b) {
		t.Error("one negative timeout is not another")
	}
	if (&Config{}).SameFront(&Config{}) {
		t.Error("what has no doors is the same")
	}
}

// Null leaves a duration alone, and what is written is read again.
func TestDurationJSON(t *testing.T) {
	d := Duration(time.Second)
	if err := json.Unmarshal([]byte("null"), &d); err != nil || d != Duration(time.Second) {
		t.Errorf("null: %v, %v", d, err)
	}
	if err := json.Unmarshal([]byte(`"x"`), &d); err == nil || d != Duration(time.Second) {
		t.Errorf("x: %v, %v", d, err)
	}
	c, err := ParseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseConfig(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !reflect.DeepEqual(again.Routes, c.Routes) || !again.SameFront(c) {
		t.Errorf("%+v, want %+v", again, c)
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
