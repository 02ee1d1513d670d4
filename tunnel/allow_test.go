package tunnel

import (
	"net/netip"
	"strings"
	"testing"
)

// target is what an agent asks its rules about.
func target(host string, port uint16, addr string) Target {
	return Target{Host: host, Port: port, Addr: unmap(netip.MustParseAddr(addr))}
}

func mustRules(t testing.TB, texts ...string) (rules Rules) {
	t.Helper()
	for _, text := range texts {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return rules
}

func TestParseRule(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		text string
		want Rule
		back string // if it is not text
	}{
		{"10.0.0.0/8", Rule{Prefix: prefix("10.0.0.0/8")}, ""},
		{"10.1.2.3/8", Rule{Prefix: prefix("10.0.0.0/8")}, "10.0.0.0/8"},
		{"100.64.0.0/10:10250", Rule{Prefix: prefix("100.64.0.0/10"), Port: 10250}, ""},
		{"10.0.0.7", Rule{Prefix: prefix("10.0.0.7/32")}, "10.0.0.7/32"},
		{"10.0.0.7:9100", Rule{Prefix: prefix("10.0.0.7/32"), Port: 9100}, "10.0.0.7/32:9100"},
		{"2001:db8::/32", Rule{Prefix: prefix("2001:db8::/32")}, ""},
		{"[2001:db8::/32]:443", Rule{Prefix: prefix("2001:db8::/32"), Port: 443}, ""},
		{"[2001:db8::7]:443", Rule{Prefix: prefix("2001:db8::7/128"), Port: 443}, "[2001:db8::7/128]:443"},
		{"[2001:db8::7]", Rule{Prefix: prefix("2001:db8::7/128")}, "2001:db8::7/128"},
		{"::1", Rule{Prefix: prefix("::1/128")}, "::1/128"},
		{"::ffff:10.0.0.7", Rule{Prefix: prefix("10.0.0.7/32")}, "10.0.0.7/32"},
		{"0.0.0.0/0", Rule{Prefix: prefix("0.0.0.0/0")}, ""},
		{"metrics-server.kube-system.svc:443", Rule{Host: "metrics-server.kube-system.svc", Port: 443}, ""},
		{".svc.cluster.local", Rule{Host: ".svc.cluster.local"}, ""},
		{".svc:65535", Rule{Host: ".svc", Port: 65535}, ""},
		{"Node-1.Example.", Rule{Host: "node-1.example"}, "node-1.example"},
	} {
		r, err := ParseRule(tt.text)
		if err != nil || r != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.text, r, err, tt.want)
			continue
		}
		back := tt.back
		if back == "" {
			back = tt.text
		}
		if got := r.String(); got != back {
			t.Errorf("%s: written %s, want %s", tt.text, got, back)
		}
		if again, err := ParseRule(r.String()); err != nil || again != r {
			t.Errorf("%s: read again: %+v, %v", tt.text, again, err)
		}
	}
	for _, text := range []string{
		"", " ", ":", ":80", "host:", "host:0", "host:65536", "host:-1", "host:http", "10.0.0.0/33", "10.0.0/8",
		"10.0.0.0/8:0", "[2001:db8::/32:443", "[2001:db8::/32]:", "[]:80", "[[::1]]", "*", "*.example.com", "a b",
		"::ffff:0:0/96", "[::ffff:10.0.0.0/104]:80", "fe80::1%eth0", "2001:db8::/32:443", "host:80:80", "http://host",
		strings.Repeat("a", 254),
	} {
		if r, err := ParseRule(text); err == nil {
			t.Errorf("%q was read as %+v", text, r)
		} else if !strings.Contains(err.Error(), "rule") {
			t.Errorf("%q: the error does not say what is wrong: %v", text, err)
		}
	}
}

func TestRules(t *testing.T) {
	list := func(texts ...string) []string { return texts }
	for _, tt := range []struct {
		rules []string
		host  string
		port  uint16
		addr  string // where it is not host
		allow bool
	}{
		// No list: all but the classes, each at its ends.
		{nil, "10.0.0.7", 80, "", true},
		{nil, "node.example", 80, "192.0.2.1", true},
		{nil, "2001:db8::1", 80, "", true},
		{nil, "126.255.255.255", 80, "", true},
		{nil, "127.0.0.0", 80, "", false},
		{nil, "127.255.255.255", 80, "", false},
		{nil, "128.0.0.0", 80, "", true},
		{nil, "::1", 80, "", false},
		{nil, "::2", 80, "", true},
		{nil, "169.253.255.255", 80, "", true},
		{nil, "169.254.0.0", 80, "", false},
		{nil, "169.254.169.254", 80, "", false},
		{nil, "169.255.0.0", 80, "", true},
		{nil, "fe80::1", 80, "", false},
		{nil, "febf::1", 80, "", false},
		{nil, "fec0::1", 80, "", true},
		{nil, "0.0.0.0", 80, "", false},
		{nil, "0.255.255.255", 80, "", false},
		{nil, "1.0.0.0", 80, "", true},
		{nil, "::", 80, "", false},
		{nil, "224.0.0.1", 80, "", false},
		{nil, "239.255.255.255", 80, "", false},
		{nil, "ff02::1", 80, "", false},
		{nil, "255.255.255.255", 80, "", false},
		{nil, "100.100.100.200", 80, "", false},
		{nil, "100.100.100.201", 80, "", true},
		{nil, "168.63.129.16", 80, "", false},
		{nil, "fd00:ec2::254", 80, "", false},
		{nil, "fd20:ce::254", 80, "", false},
		{nil, "fd00:ec2::253", 80, "", true},
		{nil, "innocent.example", 80, "169.254.169.254", false},

		// The same, spelt otherwise.
		{nil, "::ffff:127.0.0.1", 80, "", false},
		{nil, "::ffff:10.0.0.7", 80, "", true},
		{nil, "::127.0.0.1", 80, "", false},
		{nil, "::a9fe:a9fe", 80, "", false},
		{nil, "::10.0.0.7", 80, "", true},
		{nil, "64:ff9b::7f00:1", 80, "", false},
		{nil, "64:ff9b::169.254.169.254", 80, "", false},
		{nil, "64:ff9b::10.0.0.7", 80, "", true},
		{nil, "64:ff9b:1::169.254.169.254", 80, "", false},
		{nil, "64:ff9b:1:ffff:ffff:ffff:a9fe:a9fe", 80, "", false},
		{nil, "64:ff9b:1::10.0.0.7", 80, "", true},
		{nil, "fe80::1%eth0", 80, "", false},

		// A list allows what it covers, on the ports that it names.
		{list("10.0.0.0/8"), "10.0.0.7", 80, "", true},
		{list("10.0.0.0/8"), "11.0.0.7", 80, "", false},
		{list("10.0.0.0/8"), "::ffff:10.0.0.7", 80, "", true},
		{list("10.0.0.0/8"), "64:ff9b::10.0.0.7", 80, "", true},
		{list("10.0.0.0/8:443"), "10.0.0.7", 443, "", true},
		{list("10.0.0.0/8:443"), "10.0.0.7", 80, "", false},
		{list("10.0.0.0/8:443", "10.0.0.0/8:80"), "10.0.0.7", 80, "", true},
		{list("10.0.0.0/8"), "name.example", 80, "10.0.0.7", true},
		{list("10.0.0.0/8"), "name.example", 80, "192.0.2.1", false},
		{list("0.0.0.0/0"), "2001:db8::1", 80, "", false},
		{list("::/0"), "10.0.0.7", 80, "", false},
		{list("::/0"), "2001:db8::1", 80, "", true},

		// Names, with their subdomains behind a dot.
		{list("metrics.svc"), "metrics.svc", 443, "10.0.0.7", true},
		{list("metrics.svc:443"), "metrics.svc", 80, "10.0.0.7", false},
		{list("metrics.svc"), "x.metrics.svc", 443, "10.0.0.7", false},
		{list("metrics.svc"), "xmetrics.svc", 443, "10.0.0.7", false},
		{list("metrics.svc"), "10.0.0.7", 443, "", false},
		{list(".svc"), "a.b.svc", 443, "10.0.0.7", true},
		{list(".svc"), "asvc", 443, "10.0.0.7", false},
		{list(".svc"), "svc.example", 443, "10.0.0.7", false},

		// A class is opened by a rule inside it, and by nothing else.
		{list("0.0.0.0/0"), "127.0.0.1", 80, "", false},
		{list("::/0"), "::1", 80, "", false},
		{list("126.0.0.0/7"), "127.0.0.1", 80, "", false},
		{list("127.0.0.0/8"), "127.0.0.1", 80, "", true},
		{list("127.0.0.1:9100"), "127.0.0.1", 9100, "", true},
		{list("127.0.0.1:9100"), "127.0.0.1", 9101, "", false},
		{list("127.0.0.1:9100"), "127.0.0.2", 9100, "", false},
		{list("127.0.0.1"), "::ffff:127.0.0.1", 80, "", true},
		{list("127.0.0.1"), "local.example", 80, "127.0.0.1", true},
		{list("169.254.169.254/32"), "169.254.169.254", 80, "", true},
		{list("169.254.169.254/32"), "169.254.169.253", 80, "", false},
		{list("168.63.129.0/24"), "168.63.129.16", 80, "", false},
		{list("168.63.129.16"), "168.63.129.16", 80, "", true},
		{list("100.64.0.0/10"), "100.100.100.200", 80, "", false},
		{list("fe80::/10"), "fe80::1", 80, "", true},
		{list("fd00::/8"), "fd00:ec2::254", 80, "", false},
		{list("local.example"), "local.example", 80, "127.0.0.1", false},
		{list(".example"), "meta.example", 80, "169.254.169.254", false},
		{list("0.0.0.0/0", "127.0.0.0/8:80"), "127.0.0.1", 80, "", true},
	} {
		addr := tt.addr
		if addr == "" {
			addr = tt.host
		}
		err := mustRules(t, tt.rules...).Allow(target(tt.host, tt.port, addr))
		if (err == nil) != tt.allow {
			t.Errorf("%q: %s:%d at %s: %v, want allowed: %v", tt.rules, tt.host, tt.port, addr, err, tt.allow)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "[2001:db8::/32]:443", ".svc:80", "host", "[::1", "a:0", "::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		if r.Prefix.IsValid() == (r.Host != "") {
			t.Fatalf("%q is about an address and a name, or neither: %+v", s, r)
		}
		if _, err := netip.ParseAddr(r.Host); err == nil || strings.HasSuffix(r.Host, ".") {
			t.Skip("TestBugRuleDoesNotRoundTrip")
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %+v, written %q, read again %+v, %v", s, r, r, again, err)
		}
	})
}

// However an IPv4 address is spelt in IPv6, it is judged as itself.
func FuzzUnmap(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte{169, 254, 169, 254})
	f.Add([]byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := netip.AddrFromSlice(b); ok && a.Is6() {
			u := unmap(a)
			if u.Is4In6() || unmap(u) != u || u.Is6() && u != a {
				t.Fatalf("%v becomes %v", a, u)
			}
		}
		if len(b) < 4 {
			return
		}
		v4 := netip.AddrFrom4([4]byte(b))
		for _, head := range []string{
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff",
			"\x00\x64\xff\x9b\x00\x00\x00\x00\x00\x00\x00\x00",
			"\x00\x64\xff\x9b\x00\x01\x00\x00\x00\x00\x00\x00",
			"\x00\x64\xff\x9b\x00\x01\x12\x34\x56\x78\x9a\xbc",
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		} {
			a := netip.AddrFrom16([16]byte([]byte(head + string(b[:4]))))
			if got := unmap(a); got != v4 && !(a == netip.IPv6Unspecified() || strings.Trim(head, "\x00") == "" && got == a && b[0] == 0 && b[1] == 0 && b[2] == 0) {
				t.Fatalf("%v becomes %v, want %v", a, got, v4)
			}
		}
	})
}
