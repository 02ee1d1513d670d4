package interop

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

const (
	vpnAlpha  = "outbound|1194||vpn-seed-server.shoot--dev--a.svc.cluster.local"
	vpnBeta   = "outbound|1194||vpn-seed-server.shoot--dev--b.svc.cluster.local"
	vpnGone   = "outbound|1194||vpn-seed-server-1.shoot--dev--c.svc.cluster.local"
	vpnNobody = "outbound|1194||vpn-seed-server.shoot--dev--nobody.svc.cluster.local"
)

// testEntrypointCurl sends the headers that curl can write: PROXY v1 in front of
// TLS, as a load balancer does for its client, and CONNECT with a routing header.
func testEntrypointCurl(t *testing.T, program string) {
	curl := need(t, "curl", "apt-get install curl")
	needLoopbacks(t)
	var (
		alpha = newBackend(t, proxyproto.Require, "alpha", "alpha.example", "allowed.example", "denied.example")
		beta  = newBackend(t, proxyproto.Require, "beta", "beta.example")
		plain = newBackend(t, proxyproto.Refuse, "plain", "plain.example")
		ports = freePorts(t, 8)
	)
	required, maybe, untrusted, destination := ports[0], ports[1], ports[2], ports[3]
	deny, redirect, behind, gone := ports[4], ports[5], ports[6], ports[7]
	throughDestination := forwardTo(t, "tcp", destination)
	startEntry(t, program, fill(`
listeners:
- address: $REQUIRED
  by: [sni]
  proxyFrom: [127.0.0.0/8]
- address: $MAYBE
  by: [sni]
  proxyMaybeFrom: [127.0.0.1/32]
- address: $UNTRUSTED
  by: [sni]
  proxyFrom: [192.0.2.0/24]
- address: $DESTINATION
  by: [destination]
- address: $DENY
  by: [header]
  headers: [Reversed-VPN, X-Gardener-Destination]
  unknown: deny
- address: $REDIRECT
  by: [header]
  headers: [Reversed-VPN, X-Gardener-Destination]
  unknown: redirect
- address: $BEHIND
  by: [header]
  headers: [Reversed-VPN]
  proxyFrom: [127.0.0.0/8]
routes:
- name: alpha
  sni: [alpha.example]
  headerValues: ["$VPN-ALPHA"]
  backends: ["$ALPHA"]
  sendProxy: v2
- name: beta
  sni: [beta.example]
  backends: ["$BETA"]
  sendProxy: v1
- name: plain
  sni: [plain.example]
  backends: ["$PLAIN"]
- name: allowed
  sni: [allowed.example]
  destinations: ["$DESTINATION", "$THROUGH-DESTINATION"]
  headerValues: ["$VPN-BETA"]
  backends: ["$ALPHA"]
  sendProxy: v2
  allow: [127.0.0.9/32]
- name: denied
  sni: [denied.example]
  backends: ["$ALPHA"]
  sendProxy: v2
  allow: [127.0.0.0/8]
  deny: [127.0.0.8/32]
- name: gone
  headerValues: ["$VPN-GONE"]
  backends: ["$GONE"]
`,
		"$REQUIRED", required, "$MAYBE", maybe, "$UNTRUSTED", untrusted,
		"$DESTINATION", destination, "$THROUGH-DESTINATION", throughDestination,
		"$DENY", deny, "$REDIRECT", redirect, "$BEHIND", behind, "$GONE", gone,
		"$VPN-ALPHA", vpnAlpha, "$VPN-BETA", vpnBeta, "$VPN-GONE", vpnGone,
		"$ALPHA", alpha.addr, "$BETA", beta.addr, "$PLAIN", plain.addr))

	// All of these come through a balancer: the entrypoint's TCP peer is
	// 127.0.0.1, and only the header tells who the client is.
	const refused = "exit code 35" // CURLE_SSL_CONNECT_ERROR
	t.Run("PROXY", func(t *testing.T) {
		throughRequired, throughMaybe, throughUntrusted := forwardTo(t, "tcp", required), forwardTo(t, "tcp", maybe), forwardTo(t, "tcp", untrusted)
		header := func(client string) []string { return []string{"--haproxy-protocol", "--interface", client} }
		bare := func(client string) []string { return []string{"--interface", client} }
		tests := []struct {
			name string
			args []string
			want string
		}{
			{"V1ToV2", curlTo(alpha, "alpha.example", throughRequired, header("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"V1ToV1", curlTo(beta, "beta.example", throughRequired, header("127.0.0.9")...), "beta: v1 CLIENT > DOOR"},
			{"V1ToNone", curlTo(plain, "plain.example", throughRequired, header("127.0.0.9")...), "plain: no header"},
			{"RequiredAndMissing", curlTo(plain, "plain.example", throughRequired, bare("127.0.0.9")...), refused},
			{"Maybe", curlTo(alpha, "alpha.example", throughMaybe, header("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"MaybeAndMissing", curlTo(plain, "plain.example", throughMaybe, bare("127.0.0.9")...), "plain: no header"},
			{"Direct", curlTo(alpha, "alpha.example", maybe, bare("127.0.0.1")...), "alpha: v2 CLIENT > DOOR"},
			{"MaybeButNotFromThisPeer", curlTo(alpha, "alpha.example", maybe, header("127.0.0.9")...), refused},
			{"Untrusted", curlTo(alpha, "alpha.example", throughUntrusted, header("127.0.0.9")...), refused},
			{"UntrustedAndMissing", curlTo(plain, "plain.example", throughUntrusted, bare("127.0.0.9")...), "plain: no header"},

			{"Allowed", curlTo(alpha, "allowed.example", throughRequired, header("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"NotAllowed", curlTo(alpha, "allowed.example", throughRequired, header("127.0.0.8")...), refused},
			{"AllowedByPeer", curlTo(alpha, "allowed.example", untrusted, bare("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"NotAllowedByPeer", curlTo(alpha, "allowed.example", throughUntrusted, bare("127.0.0.9")...), refused},
			{"NotDenied", curlTo(alpha, "denied.example", throughRequired, header("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"Denied", curlTo(alpha, "denied.example", throughRequired, header("127.0.0.8")...), refused},

			// Where the header is a stranger's, its destination is a key and its
			// source is nobody: neither the ACL nor the backend takes it for the
			// client.
			{"Destination", curlTo(alpha, "allowed.example", destination, header("127.0.0.9")...), "alpha: v2 CLIENT > DOOR"},
			{"DestinationButNotThisPeer", curlTo(alpha, "allowed.example", throughDestination, header("127.0.0.9")...), refused},
			{"DestinationUnknown", curlTo(alpha, "allowed.example", forwardTo(t, "tcp", destination), header("127.0.0.9")...), refused},
			{"DestinationMissing", curlTo(alpha, "allowed.example", destination, bare("127.0.0.9")...), refused},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				if got := answer(t, curl, test.args...); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			})
		}
		t.Run("ClientIP", func(t *testing.T) {
			if help, _, _ := run(t, nil, curl, "--help", "all"); !strings.Contains(help, "--haproxy-clientip") {
				t.Skip("this curl knows no --haproxy-clientip: 8.2 or newer does")
			}
			args := curlTo(alpha, "alpha.example", throughRequired, "--haproxy-clientip", "192.0.2.7")
			if got := answer(t, curl, args...); !strings.HasPrefix(got, "alpha: v2 192.0.2.7:") {
				t.Errorf("got %q, want client 192.0.2.7", got)
			}
			args = curlTo(alpha, "allowed.example", throughRequired, "--haproxy-clientip", "192.0.2.7")
			if got := answer(t, curl, args...); got != refused {
				t.Errorf("got %q, want %q", got, refused)
			}
		})
	})

	t.Run("CONNECT", func(t *testing.T) {
		// The name in the CONNECT is nobody's: only the header counts.
		through := func(door string, headers ...string) []string {
			args := []string{"--proxytunnel", "--proxy", "http://" + door, "--cacert", alpha.caFile, "https://alpha.example:1194/"}
			for _, h := range headers {
				args = append(args, "--proxy-header", h)
			}
			return args
		}
		http10 := func(door string, headers ...string) []string {
			args := through(door, headers...)
			args[1], args[2] = "--proxy1.0", door
			return args
		}
		const sees = "alpha: v2 CLIENT > DOOR"
		tests := []struct {
			name   string
			args   []string
			status int    // of the answer to CONNECT
			want   string // what came through the tunnel
		}{
			{"ReversedVPN", through(deny, "Reversed-VPN: "+vpnAlpha), 200, sees},
			{"LowerCase", through(deny, "reversed-vpn:"+vpnAlpha), 200, sees},
			{"GardenerDestination", through(deny, "X-Gardener-Destination: "+vpnAlpha), 200, sees},
			{"HTTP1.0", http10(deny, "Reversed-VPN: "+vpnAlpha), 200, sees},
			{"Missing", through(deny), 403, ""},
			{"Unknown", through(deny, "Reversed-VPN: "+vpnNobody), 403, ""},
			{"UnknownHTTP1.0", http10(deny, "Reversed-VPN: "+vpnNobody), 403, ""},
			{"NeverDialled", through(deny, "Reversed-VPN: "+alpha.addr), 403, ""},
			{"OtherHeader", through(deny, "X-Other: "+vpnAlpha), 403, ""},
			{"NotAllowed", through(deny, "Reversed-VPN: "+vpnBeta), 403, ""},
			{"Allowed", append(through(deny, "Reversed-VPN: "+vpnBeta), "--interface", "127.0.0.9"), 200, sees},
			{"TwoHeaders", through(deny, "Reversed-VPN: "+vpnAlpha, "X-Gardener-Destination: "+vpnAlpha), 400, ""},
			{"TwoValues", through(deny, "Reversed-VPN: "+vpnAlpha, "Reversed-VPN: "+vpnAlpha), 400, ""},
			{"BackendDown", through(deny, "Reversed-VPN: "+vpnGone), 503, ""},
			{"Redirect", through(redirect, "Reversed-VPN: "+vpnNobody), 301, ""},
			{"RedirectMissing", through(redirect), 301, ""},
			{"RedirectTwoHeaders", through(redirect, "Reversed-VPN: "+vpnAlpha, "X-Gardener-Destination: "+vpnAlpha), 400, ""},
			{"RedirectNot", through(redirect, "Reversed-VPN: "+vpnAlpha), 200, sees},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				if status := connectStatus(t, curl, test.args); status != test.status {
					t.Errorf("CONNECT was answered %d, want %d", status, test.status)
				}
				want := test.want
				if want == "" {
					want = "exit code 56" // CURLE_RECV_ERROR: the CONNECT was refused
				}
				if got := answer(t, curl, test.args...); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}

		t.Run("Location", func(t *testing.T) {
			_, errs, _ := run(t, nil, curl, append([]string{"-q", "-sS", "-v", "--noproxy", ""}, through(redirect)...)...)
			if !strings.Contains(strings.ToLower(errs), "< location: https://alpha.example") {
				t.Errorf("no Location that is the host's in\n%s", errs)
			}
		})
		t.Run("Big", func(t *testing.T) {
			out, errs, code := run(t, nil, curl, "-q", "-sS", "--noproxy", "", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}",
				"--proxytunnel", "--proxy", "http://"+deny, "--proxy-header", "Reversed-VPN: "+vpnAlpha,
				"--cacert", alpha.caFile, "https://alpha.example:1194/big")
			if code != 0 || out != strconv.Itoa(bigSize) {
				t.Errorf("exit code %d, %s bytes, want %d\n%s", code, out, bigSize, errs)
			}
		})
		t.Run("NoCONNECT", func(t *testing.T) {
			for door, want := range map[string]string{deny: "40", redirect: "301"} {
				out, errs, _ := run(t, nil, curl, "-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}",
					"-H", "Reversed-VPN: "+vpnAlpha, "http://"+door+"/")
				if !strings.HasPrefix(out, want) {
					t.Errorf("GET to %s: %s, want %s\n%s", door, out, want, errs)
				}
			}
		})
		// curl writes its PROXY header into the tunnel, not in front of CONNECT,
		// so that here it misses where a balancer has to send one.
		t.Run("BehindBalancerWithoutHeader", func(t *testing.T) {
			if got := answer(t, curl, through(behind, "Reversed-VPN: "+vpnAlpha)...); !strings.HasPrefix(got, "exit code ") {
				t.Errorf("got %q, want a failure", got)
			}
		})
	})
}

// testEntrypointIPv6 is about clients, headers and rules of the other family.
func testEntrypointIPv6(t *testing.T, program string) {
	curl := need(t, "curl", "apt-get install curl")
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		missing(t, "this system has no IPv6 on loopback: sysctl net.ipv6.conf.lo.disable_ipv6=0")
	}
	door := l.Addr().String()
	l.Close()
	alpha := newBackend(t, proxyproto.Require, "alpha", "alpha.example", "denied.example")
	startEntry(t, program, fill(`
listeners:
- address: "$DOOR"
  by: [sni]
  proxyMaybeFrom: ["::/0"]
routes:
- name: alpha
  sni: [alpha.example]
  backends: ["$ALPHA"]
  sendProxy: v2
  allow: ["::/64"]
- name: denied
  sni: [denied.example]
  backends: ["$ALPHA"]
  sendProxy: v2
  allow: ["2001:db8::/32", 0.0.0.0/0]
`, "$DOOR", door, "$ALPHA", alpha.addr))
	for _, more := range [][]string{nil, {"--haproxy-protocol"}} {
		if got, want := answer(t, curl, curlTo(alpha, "alpha.example", door, more...)...), "alpha: v2 CLIENT > DOOR"; got != want {
			t.Errorf("%v: got %q, want %q", more, got, want)
		}
		if got, want := answer(t, curl, curlTo(alpha, "denied.example", door, more...)...), "exit code 35"; got != want {
			t.Errorf("%v: got %q, want %q", more, got, want)
		}
	}
}

// connectStatus is the status of the answer that curl gets to its CONNECT.
func connectStatus(t *testing.T, curl string, args []string) int {
	t.Helper()
	out, errs, _ := run(t, nil, curl, append([]string{"-q", "-sS", "--noproxy", "", "--max-time", "20",
		"-o", "/dev/null", "-w", "%{http_connect}"}, args...)...)
	status, err := strconv.Atoi(out)
	if err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	return status
}
