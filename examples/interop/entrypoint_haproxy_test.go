package interop

import (
	"bufio"
	"crypto/tls"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// haproxyConfig makes one HAProxy the load balancer of each of the entrypoint's
// ports, a server behind it, and the apiserver-proxy of a shoot, which writes
// the inner one of two headers:
//
//	curl ─► v1, v2, tlvs ─────── outer ─► sni ──► servers, HAProxy's among them
//	curl ─► node ─ inner ─► lb ─ outer ─► destination
//	curl ─────► connect ─────── outer ─► header
const haproxyConfig = `
global
  log stdout format raw local0
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 60s
  timeout server 60s

frontend admin
  mode http
  bind $ADMIN
  monitor-uri /readyz
  stats enable
  stats uri /stats

# Checks that open a connection and say LOCAL, or UNKNOWN in version 1, and the
# same with a TLS handshake behind the header.
listen v1
  bind $V1
  server entrypoint $SNI send-proxy check check-send-proxy inter 50ms
listen v2
  bind $V2
  server entrypoint $SNI send-proxy-v2 check inter 50ms
listen checks-v1
  bind $CHECKS1
  server entrypoint $SNI send-proxy check check-send-proxy inter 100ms check-ssl check-sni alpha.example ca-file $CA-ALPHA verifyhost alpha.example
listen checks-v2
  bind $CHECKS2
  server entrypoint $SNI send-proxy-v2 check inter 100ms check-ssl check-sni alpha.example ca-file $CA-ALPHA verifyhost alpha.example

listen lb-v1
  bind $LB1
  server entrypoint $DESTINATION send-proxy check check-send-proxy inter 50ms
listen lb-v2
  bind $LB2
  server entrypoint $DESTINATION send-proxy-v2 check inter 50ms
listen node-v1
  bind $NODE1
  server lb $LB1 send-proxy-v2 source 127.0.0.7
listen node-v2
  bind $NODE2
  server lb $LB2 send-proxy-v2 source 127.0.0.7
listen node-inner-v1
  bind $NODE3
  server lb $LB2 send-proxy source 127.0.0.7

listen connect-v1
  bind $CONNECT1
  server entrypoint $HEADER send-proxy check check-send-proxy inter 50ms
listen connect-v2
  bind $CONNECT2
  server entrypoint $HEADER send-proxy-v2 check inter 50ms

frontend behind
  mode http
  option httplog
  bind $BEHIND accept-proxy ssl crt $CRT
  bind unix@$SOCKET accept-proxy ssl crt $CRT
  http-request return status 200 content-type text/plain lf-string "haproxy: %[src]:%[src_port] > %[dst]:%[dst_port]\n"

# All that a header of version 2 can carry: the client's certificate, the name
# that it asked for, a checksum, an id of the connection. Once to the entrypoint
# and once past it, to see that HAProxy does so.
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  unique-id-format connection-%ci
  default-server send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,crc32c,unique-id,authority
  default-server ssl sni str(alpha.example) ca-file $CA-ALPHA verifyhost alpha.example
listen tlvs
  bind $TLVS ssl crt $CRT ca-file $CA verify required alpn http/1.1
  server entrypoint $SNI
listen tlvs-direct
  bind $DIRECT ssl crt $CRT ca-file $CA verify required alpn http/1.1
  server alpha $ALPHA
`

const entrypointForHAProxy = `
listeners:
- address: $SNI
  by: [sni]
  proxyFrom: [127.0.0.0/8]
- address: $DESTINATION
  by: [destination, header]
  headers: [X-Gardener-Destination]
  proxyFrom: [127.0.0.0/8]
- address: $HEADER
  by: [header]
  headers: [Reversed-VPN]
  proxyFrom: [127.0.0.0/8]
routes:
- name: alpha
  sni: [alpha.example]
  destinations: ["$NODE1", "$NODE2", "$NODE3", "[fd00::1]:443", "240.0.10.1"]
  headerValues: ["$VPN-ALPHA"]
  backends: ["$ALPHA"]
  sendProxy: v2
- name: beta
  sni: [beta.example]
  headerValues: ["$VPN-BETA"]
  backends: ["$BETA"]
  sendProxy: v1
- name: behind-v1
  sni: [behind-v1.example]
  backends: ["$BEHIND"]
  sendProxy: v1
- name: behind-v2
  sni: [behind-v2.example]
  headerValues: ["$API"]
  backends: ["$BEHIND"]
  sendProxy: v2
- name: socket
  headerValues: ["$API-SOCKET"]
  backends: ["unix:$SOCKET"]
  sendProxy: v2
- name: allowed
  sni: [allowed.example]
  destinations: ["240.0.10.2:443"]
  backends: ["$ALPHA"]
  sendProxy: v2
  allow: [127.0.0.9/32]
`

const (
	apiAlpha       = "outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"
	apiSocketAlpha = "shoot--dev--a--kube-apiserver-socket"
)

// balanced is an entrypoint with HAProxy on both of its sides.
type balanced struct {
	*entry
	curl        string
	addr        map[string]string // by the $NAME in the configurations, without $
	alpha, beta *backend
	behind      *backend // HAProxy's own
	user        certFiles
}

func testEntrypointHAProxy(t *testing.T, program string) {
	w := newBalanced(t, program)
	t.Run("SNI", w.testSNI)
	t.Run("TLVs", w.testTLVs)
	t.Run("Stacked", w.testStacked)
	t.Run("CONNECT", w.testCONNECT)
	t.Run("Checks", w.testChecks) // last: those of all the time
}

func newBalanced(t *testing.T, program string) *balanced {
	t.Helper()
	haproxy := needDaemon(t, "haproxy", "apt-get install haproxy")
	w := &balanced{
		curl:  need(t, "curl", "apt-get install curl"),
		addr:  make(map[string]string),
		alpha: newBackend(t, proxyproto.Require, "alpha", "alpha.example", "allowed.example"),
		beta:  newBackend(t, proxyproto.Require, "beta", "beta.example"),
	}
	needLoopbacks(t)
	dir := t.TempDir()
	ca := must(tunneltest.NewCA("CA of haproxy"))
	w.behind = &backend{name: "haproxy", caFile: must(ca.WriteFile(dir, "ca"))}
	user := must(ca.Issue(tunneltest.CertOptions{CommonName: "user", Client: true}))
	var err error
	if w.user.cert, w.user.key, err = user.WriteFiles(dir, "user"); err != nil {
		t.Fatal(err)
	}
	cert := must(ca.Issue(tunneltest.CertOptions{CommonName: "haproxy", DNS: []string{"behind-v1.example", "behind-v2.example"}, Server: true}))
	crt := filepath.Join(dir, "haproxy.pem")
	if err := os.WriteFile(crt, slices.Concat(cert.CertPEM, cert.KeyPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	// Not in dir: the path of a socket has 108 bytes at most.
	short, err := os.MkdirTemp("", "rhizome")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })

	values := []string{
		"$VPN-ALPHA", vpnAlpha, "$VPN-BETA", vpnBeta, "$API-SOCKET", apiSocketAlpha, "$API", apiAlpha,
		"$SOCKET", filepath.Join(short, "haproxy.sock"), "$CRT", crt, "$CA-ALPHA", w.alpha.caFile, "$CA", w.behind.caFile,
		"$ALPHA", w.alpha.addr, "$BETA", w.beta.addr,
	}
	names := []string{
		"ADMIN", "V1", "V2", "CHECKS1", "CHECKS2", "TLVS", "DIRECT", "LB1", "LB2", "NODE1", "NODE2", "NODE3",
		"CONNECT1", "CONNECT2", "BEHIND", "SNI", "DESTINATION", "HEADER",
	}
	for i, port := range freePorts(t, len(names)) {
		w.addr[names[i]] = port
		values = append(values, "$"+names[i], port)
	}
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(fill(haproxyConfig, values...)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.entry = startEntry(t, program, fill(entrypointForHAProxy, values...))
	counterpart(t, haproxy, "-db", "-f", config)
	waitReady(t, "http://"+w.addr["ADMIN"]+"/readyz")
	return w
}

// The true client, here 127.0.0.9, arrives behind two proxies, and the ACL sees
// it too.
func (w *balanced) testSNI(t *testing.T) {
	tests := []struct {
		name   string
		b      *backend
		server string
		client string
		want   string
	}{
		{"V2", w.alpha, "alpha.example", "127.0.0.9", "alpha: v2 CLIENT > DOOR"},
		{"V1", w.beta, "beta.example", "127.0.0.9", "beta: v1 CLIENT > DOOR"},
		{"HAProxyV2", w.behind, "behind-v2.example", "127.0.0.9", "haproxy: CLIENT > DOOR"},
		{"HAProxyV1", w.behind, "behind-v1.example", "127.0.0.9", "haproxy: CLIENT > DOOR"},
		{"Unknown", w.alpha, "nobody.example", "127.0.0.9", "exit code 35"},
		{"Allowed", w.alpha, "allowed.example", "127.0.0.9", "alpha: v2 CLIENT > DOOR"},
		{"NotAllowed", w.alpha, "allowed.example", "127.0.0.8", "exit code 35"},
	}
	for _, lb := range []string{"V1", "V2"} {
		for _, test := range tests {
			t.Run(lb+"To"+test.name, func(t *testing.T) {
				got := answer(t, w.curl, curlTo(test.b, test.server, w.addr[lb], "--interface", test.client)...)
				if got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			})
		}
	}
}

func (w *balanced) testTLVs(t *testing.T) {
	ask := func(door, page string) string {
		_, port, _ := strings.Cut(w.addr[door], ":")
		return answer(t, w.curl, append(resolve("behind-v2.example", w.addr[door]), "--interface", "127.0.0.9", "--tlsv1.3",
			"--cacert", w.behind.caFile, "--cert", w.user.cert, "--key", w.user.key, "https://behind-v2.example:"+port+page)...)
	}
	const all = "authority behind-v2.example, ALPN http/1.1, id connection-127.0.0.9, TLSv1.3 by user, checked true"
	if got := ask("DIRECT", "/tlvs"); got != all {
		t.Errorf("past the entrypoint: got %q, want %q", got, all)
	}
	if got, want := ask("TLVS", "/"), "alpha: v2 CLIENT > DOOR"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The outer header is the balancer's and names the client: the node, at
// 127.0.0.7. The inner one is the node's: its destination is the key, and the
// address of the pod in it is nobody's business.
func (w *balanced) testStacked(t *testing.T) {
	for node, lb := range map[string]string{"NODE1": "LB1", "NODE2": "LB2", "NODE3": "LB2"} {
		t.Run(node, func(t *testing.T) {
			got := answer(t, w.curl, curlTo(w.alpha, "alpha.example", w.addr[node], "--interface", "127.0.0.9")...)
			// The port of the node is not known here.
			if !strings.HasPrefix(got, "alpha: v2 127.0.0.7:") || !strings.HasSuffix(got, " > "+w.addr[lb]) {
				t.Errorf("got %q, want a client 127.0.0.7 that came to %s", got, w.addr[lb])
			}
		})
	}

	// The same from here, with addresses that this machine does not have.
	inner := func(source, destination string) *proxyproto.Header {
		return &proxyproto.Header{Source: tcpAddr(source), Destination: tcpAddr(destination)}
	}
	tests := []struct {
		name   string
		header *proxyproto.Header
		want   bool
	}{
		{"IPv4", inner("10.1.2.3:4711", "240.0.10.1:443"), true},
		{"IPv6", inner("[fd00::2]:4711", "[fd00::1]:443"), true},
		{"Unknown", inner("10.1.2.3:4711", "240.0.10.3:443"), false},
		{"SourceIsNoClient", inner("127.0.0.9:4711", "240.0.10.2:443"), false},
		{"Local", &proxyproto.Header{Local: true}, false},
		{"None", nil, false},
	}
	for _, lb := range []string{"LB1", "LB2"} {
		for _, test := range tests {
			t.Run(lb+test.name, func(t *testing.T) {
				got, client, err := w.dialInner(t, w.addr[lb], test.header)
				if want := fmt.Sprintf("alpha: v2 %s > %s\n", client, w.addr[lb]); test.want && (err != nil || got != want) {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
				if !test.want && err == nil {
					t.Errorf("got %q, want that it is refused", got)
				}
			})
		}
		// The newer dialect on the same port, to a port and to a Unix socket.
		t.Run(lb+"CONNECT", func(t *testing.T) {
			for _, value := range []string{apiAlpha, apiSocketAlpha} {
				got := answer(t, w.curl, "--proxytunnel", "--proxy", "http://"+w.addr[lb], "--interface", "127.0.0.9",
					"--proxy-header", "X-Gardener-Destination: "+value, "--cacert", w.behind.caFile, "https://behind-v2.example/")
				if want := "haproxy: CLIENT > DOOR"; got != want {
					t.Errorf("%s: got %q, want %q", value, got, want)
				}
			}
		})
	}
}

func (w *balanced) testCONNECT(t *testing.T) {
	tests := []struct {
		value string
		b     *backend
		want  string
	}{
		{vpnAlpha, w.alpha, "alpha: v2 CLIENT > DOOR"},
		{vpnBeta, w.beta, "beta: v1 CLIENT > DOOR"},
		{vpnNobody, w.alpha, "exit code 56"},
	}
	for _, lb := range []string{"CONNECT1", "CONNECT2"} {
		for _, test := range tests {
			got := answer(t, w.curl, "--proxytunnel", "--proxy", "http://"+w.addr[lb], "--interface", "127.0.0.9",
				"--proxy-header", "Reversed-VPN: "+test.value, "--cacert", test.b.caFile, "https://"+test.b.name+".example/")
			if got != test.want {
				t.Errorf("%s through %s: got %q, want %q", test.value, lb, got, test.want)
			}
		}
	}
}

// HAProxy's checks have gone on all the time: none of them failed, and none was
// worth an error to the entrypoint.
func (w *balanced) testChecks(t *testing.T) {
	want := map[string]string{
		"v1": "L4OK", "v2": "L4OK", "lb-v1": "L4OK", "lb-v2": "L4OK", "connect-v1": "L4OK", "connect-v2": "L4OK",
		"checks-v1": "L6OK", "checks-v2": "L6OK",
	}
	waitFor(t, "a check of each listener", func() (bool, string) {
		servers := haproxyServers(t, w.addr["ADMIN"])
		all, text := true, ""
		for name, status := range want {
			s := servers[name]
			text += fmt.Sprintln(name, s["status"], s["check_status"], s["last_chk"])
			all = all && s["status"] == "UP" && s["check_status"] == status
		}
		return all, text
	})
	for name, s := range haproxyServers(t, w.addr["ADMIN"]) {
		if want[name] != "" && s["chkfail"] != "0" {
			t.Errorf("%s: %s checks failed, the last with %s %s", name, s["chkfail"], s["check_status"], s["last_chk"])
		}
	}
	// A header that says LOCAL, or UNKNOWN, is in order, and nobody waited for more.
	all, _ := w.stats(t)
	for _, reason := range []entrypoint.Reason{entrypoint.ReasonProxyHeader, entrypoint.ReasonSlow, entrypoint.ReasonFlood} {
		if n := all.Refused[reason]; n != 0 {
			t.Errorf("%d connections were refused as %s", n, reason)
		}
	}
	t.Logf("refused in all: %v", all.Refused)
	if strings.Contains(w.log.String(), "level=ERROR") {
		t.Error("an error in the log of the entrypoint")
	}
}

func tcpAddr(s string) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// dialInner comes to a load balancer as a node does, with the inner header, and
// asks alpha behind it who that is.
func (w *balanced) dialInner(t *testing.T, addr string, header *proxyproto.Header) (answer, client string, err error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client = c.LocalAddr().String()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if header != nil {
		if err := proxyproto.WriteHeader(c, header); err != nil {
			t.Fatal(err)
		}
	}
	secure := tls.Client(c, &tls.Config{ServerName: "alpha.example", RootCAs: w.alpha.pool})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://alpha.example/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(secure); err != nil {
		return "", client, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(secure), req)
	if err != nil {
		return "", client, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), client, err
}

// haproxyServers are the rows of HAProxy's statistics that are about a server, by
// the name of its listener, and in them the values by column.
func haproxyServers(t *testing.T, admin string) map[string]map[string]string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + admin + "/stats;csv")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rows, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil || len(rows) == 0 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	columns := rows[0]
	columns[0] = strings.TrimPrefix(columns[0], "# ")
	servers := make(map[string]map[string]string)
	for _, row := range rows[1:] {
		values := make(map[string]string)
		for i, c := range columns {
			values[c] = row[i]
		}
		if values["svname"] != "FRONTEND" && values["svname"] != "BACKEND" {
			servers[values["pxname"]] = values
		}
	}
	return servers
}
