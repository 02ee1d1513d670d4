package interop

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

// testEntrypointTLS has two TLS stacks choose servers by name, and checks the
// certificates: each server has a CA of its own, so that no other can answer.
func testEntrypointTLS(t *testing.T, program string) {
	var (
		alpha    = newBackend(t, proxyproto.Refuse, "alpha", "alpha.example", "exact.wild.example")
		beta     = newBackend(t, proxyproto.Refuse, "beta", "beta.example")
		wild     = newBackend(t, proxyproto.Refuse, "wild", "*.wild.example", "*.deep.wild.example")
		fallback = newBackend(t, proxyproto.Refuse, "fallback", "nobody.example")
		door     = freePorts(t, 1)[0]
	)
	config := fill(`
listeners:
- address: $DOOR
  by: [sni]
routes:
- name: alpha
  sni: [alpha.example, exact.wild.example]
  backends: ["$ALPHA"]
- name: beta
  sni: [beta.example]
  backends: ["$BETA"]
- name: wild
  sni: ["*.wild.example"]
  backends: ["$WILD"]
`, "$DOOR", door, "$ALPHA", alpha.addr, "$BETA", beta.addr, "$WILD", wild.addr)
	e := startEntry(t, program, config)

	// What both stacks ask for, and the backend that has to answer.
	names := []struct {
		name string
		want *backend
	}{
		{"alpha.example", alpha},
		{"beta.example", beta},
		{"a.wild.example", wild},
		{"b.wild.example", wild},
		{"a.deep.wild.example", wild},
		{"exact.wild.example", alpha},
	}
	t.Run("Curl", func(t *testing.T) {
		curl := need(t, "curl", "apt-get install curl")
		for _, version := range []string{"1.2", "1.3"} {
			t.Run("TLS"+version, func(t *testing.T) {
				pin := []string{"--tlsv" + version, "--tls-max", version}
				for _, test := range names {
					want := test.want.name + ": no header"
					if got := answer(t, curl, curlTo(test.want, test.name, door, pin...)...); got != want {
						t.Errorf("%s: got %q, want %q", test.name, got, want)
					}
				}
				for _, name := range []string{"nobody.example", "wild.example", "alpha.example.org"} {
					if got := answer(t, curl, curlTo(alpha, name, door, pin...)...); got != "exit code 35" {
						t.Errorf("%s: got %q, want a handshake that fails", name, got)
					}
				}
				// The certificate is the right server's: no other CA will do.
				if got := answer(t, curl, curlTo(beta, "alpha.example", door, pin...)...); got != "exit code 60" {
					t.Errorf("alpha with the CA of beta: got %q, want a certificate that curl does not take", got)
				}
			})
		}
		// An address is no name, so that there is no SNI.
		t.Run("NoName", func(t *testing.T) {
			if got := answer(t, curl, "--cacert", alpha.caFile, "https://"+door+"/"); got != "exit code 35" {
				t.Errorf("got %q, want a handshake that fails", got)
			}
		})
	})
	t.Run("OpenSSL", func(t *testing.T) {
		openssl := need(t, "openssl", "apt-get install openssl")
		client := func(b *backend, name string, more ...string) []string {
			return append([]string{"s_client", "-quiet", "-verify_return_error", "-connect", door,
				"-servername", name, "-verify_hostname", strings.ToLower(name), "-CAfile", b.caFile}, more...)
		}
		ask := func(t *testing.T, b *backend, args []string) {
			t.Helper()
			converse(t, openssl, args, "GET / HTTP/1.1\r\nHost: any\r\n\r\n", b.name+": no header\n")
		}
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			t.Run("TLS"+version, func(t *testing.T) {
				for _, test := range names {
					ask(t, test.want, client(test.want, test.name, version))
				}
				ask(t, alpha, client(alpha, "ALPHA.Example", version)) // a name has no case
				for _, name := range []string{"nobody.example", "wild.example"} {
					out, errs, code := run(t, nil, openssl, client(alpha, name, version)...)
					if code == 0 || strings.Contains(errs, "verify return") {
						t.Errorf("%s: exit code %d, want no certificate at all\n%s%s", name, code, out, errs)
					}
				}
				_, errs, code := run(t, nil, openssl, client(beta, "alpha.example", version)...)
				if code == 0 || !strings.Contains(errs, "verify error") {
					t.Errorf("alpha with the CA of beta: exit code %d, want a certificate that openssl does not take\n%s", code, errs)
				}
				out, errs, code := run(t, nil, openssl, "s_client", version, "-connect", door, "-noservername")
				if code == 0 || strings.Contains(out, "BEGIN CERTIFICATE") {
					t.Errorf("no name: exit code %d, want no certificate at all\n%s%s", code, out, errs)
				}
			})
		}
		// The server's choice of protocol reaches the client: it is the end of TLS.
		t.Run("ALPN", func(t *testing.T) {
			out, errs, _ := run(t, strings.NewReader(""), openssl, "s_client", "-connect", door,
				"-servername", "alpha.example", "-CAfile", alpha.caFile, "-alpn", "h2,http/1.1")
			for _, want := range []string{"ALPN protocol: http/1.1", "Verify return code: 0 (ok)"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s%s", want, out, errs)
				}
			}
		})
		// A ClientHello of more than one TLS record, and of many packets.
		t.Run("LongClientHello", func(t *testing.T) {
			var protocols []string
			for i := range 2000 {
				protocols = append(protocols, fmt.Sprintf("protocol-%05d", i))
			}
			protocols = append(protocols, "http/1.1")
			for _, version := range []string{"-tls1_2", "-tls1_3"} {
				ask(t, beta, client(beta, "beta.example", version, "-alpn", strings.Join(protocols, ",")))
			}
		})
	})

	// Last, since it changes the routes: with a default route nobody is turned away.
	t.Run("Default", func(t *testing.T) {
		e.replace(t, config+fill(`- name: fallback
  default: true
  backends: ["$FALLBACK"]
`, "$FALLBACK", fallback.addr))
		e.waitRoute(t, "fallback", true)
		curl := need(t, "curl", "apt-get install curl")
		for _, test := range append(names, struct {
			name string
			want *backend
		}{"nobody.example", fallback}) {
			want := test.want.name + ": no header"
			if got := answer(t, curl, curlTo(test.want, test.name, door)...); got != want {
				t.Errorf("%s: got %q, want %q", test.name, got, want)
			}
		}
		if got := answer(t, curl, "--cacert", fallback.caFile, "https://"+door+"/"); got != "fallback: no header" {
			t.Errorf("no name: got %q, want the fallback", got)
		}
		openssl := need(t, "openssl", "apt-get install openssl")
		out, errs, _ := run(t, strings.NewReader(""), openssl, "s_client", "-connect", door, "-noservername", "-CAfile", fallback.caFile)
		if !strings.Contains(out, "Verify return code: 0 (ok)") {
			t.Errorf("no name: not the certificate of the fallback:\n%s%s", out, errs)
		}
	})
}
