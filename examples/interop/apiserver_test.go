package interop

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/server/egressselector"

	"github.com/rhizome-tunnel/rhizome/egress"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// lookup has kube-apiserver's own code read a configuration that egress.Generate
// made, as it does at its start, and returns its dial function for cluster
// traffic.
func lookup(t *testing.T, o *egress.Options) dialFunc {
	t.Helper()
	config, err := egress.Generate(o)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "egress.yaml")
	if err := os.WriteFile(file, config.YAML(), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		t.Fatalf("kube-apiserver does not read\n%s%v", config.YAML(), err)
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(read); len(errs) > 0 {
		t.Fatalf("kube-apiserver refuses\n%s%v", config.YAML(), errs.ToAggregate())
	}
	selector, err := egressselector.NewEgressSelector(read)
	if err != nil {
		t.Fatalf("kube-apiserver does not start with\n%s%v", config.YAML(), err)
	}
	dial, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil || dial == nil {
		t.Fatalf("Lookup(Cluster) = %p, %v; want a dial function", dial, err)
	}
	return dial
}

// overTLS are the options of a kube-apiserver whose certificate names one
// cluster, or all of them, and which asks for a cluster by tlsServerName.
func (w *world) overTLS(certificateOf, cluster string) *egress.Options {
	files := w.client[certificateOf]
	return &egress.Options{
		URL: "https://" + w.clients, TLSServerName: server(cluster),
		CABundle: w.caFile, ClientCert: files.cert, ClientKey: files.key,
	}
}

// httpClient sends requests through a dial function, as kube-apiserver does to
// kubelets.
func (k *kubelet) httpClient(t *testing.T, dial dialFunc) *http.Client {
	transport := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: k.ca.Pool()}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func testAPIServer(t *testing.T, w *world) {
	ways := []struct {
		name    string
		options *egress.Options
		kubelet *kubelet
		want    string
	}{
		{"TLS/alpha", w.overTLS("alpha", "alpha"), w.alpha, "kubelet of alpha\n"},
		{"TLS/beta", w.overTLS("beta", "beta"), w.beta, "kubelet of beta\n"},
		{"TLS/operator", w.overTLS("*", "beta"), w.beta, "kubelet of beta\n"},
		{"Unix", &egress.Options{UDSName: w.socket}, w.alpha, "kubelet of alpha\n"},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			dial := lookup(t, way.options)
			t.Run("Get", func(t *testing.T) {
				client := way.kubelet.httpClient(t, dial)
				for range 3 { // on one connection
					if got := get(t, client, "https://"+way.kubelet.secure+"/who"); got != way.want {
						t.Errorf("got %q, want %q", got, way.want)
					}
				}
				if got := get(t, client, "http://"+way.kubelet.plain+"/who"); got != way.want {
					t.Errorf("without TLS inside: got %q, want %q", got, way.want)
				}
			})
			t.Run("Big", func(t *testing.T) {
				client := way.kubelet.httpClient(t, dial)
				if got := len(get(t, client, "https://"+way.kubelet.secure+"/big")); got != bigSize {
					t.Errorf("got %d bytes, want %d", got, bigSize)
				}
			})
			t.Run("Parallel", func(t *testing.T) { manyAtOnce(t, way.kubelet, dial) })
			t.Run("Exec", func(t *testing.T) { testExec(t, way.kubelet, dial) })
		})
	}
	t.Run("Errors", func(t *testing.T) { testAPIServerErrors(t, w) })
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%.200s", url, resp.Status, err, body)
	}
	return string(body)
}

// manyAtOnce dials for each of many concurrent requests, as kube-apiserver does.
func manyAtOnce(t *testing.T, k *kubelet, dial dialFunc) {
	client := k.httpClient(t, dial)
	client.Transport.(*http.Transport).DisableKeepAlives = true
	results := make(chan error)
	const n = 50
	for i := range n {
		go func() {
			body := strings.Repeat(fmt.Sprint(i, " "), 20_000)
			resp, err := client.Post("https://"+k.secure+"/echo", "text/plain", strings.NewReader(body))
			if err == nil {
				var got []byte
				got, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil && string(got) != body {
					err = fmt.Errorf("request %d: %d bytes came back, want its own %d", i, len(got), len(body))
				}
			}
			results <- err
		}()
	}
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// testExec is what kubectl exec comes down to: an upgrade, bytes in both
// directions, the end of the input, and then the rest of the output.
func testExec(t *testing.T, k *kubelet, dial dialFunc) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	raw, err := dial(ctx, "tcp", k.secure)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{RootCAs: k.ca.Pool(), ServerName: "127.0.0.1"})
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST /exec HTTP/1.1\r\nHost: kubelet\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	head := make([]byte, len("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"))
	if _, err := io.ReadFull(c, head); err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("got %q, %v", head, err)
	}
	for _, line := range []string{"ls\n", "exit\n"} {
		got := make([]byte, len(line))
		if _, err := io.WriteString(c, line); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != line {
			t.Fatalf("got %q, %v; want %q", got, err, line)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "8 bytes" {
		t.Errorf("after CloseWrite: %q, %v; want \"8 bytes\"", rest, err)
	}
}

// testAPIServerErrors has the errors as an operator reads them in the log of
// kube-apiserver, and a user in the answer of kubectl.
func testAPIServerErrors(t *testing.T, w *world) {
	tests := []struct {
		name    string
		options *egress.Options
		target  string
		want    string // PROXY and TARGET stand for the addresses
	}{
		{"Refused", w.overTLS("alpha", "alpha"), w.refused,
			"proxy error from PROXY while dialing TARGET, code 502: 502 connection_refused"},
		{"RefusedUnix", &egress.Options{UDSName: w.socket}, w.refused,
			"proxy error from PROXY while dialing TARGET, code 502: 502 connection_refused"},
		{"OtherClustersKubelet", w.overTLS("alpha", "alpha"), w.beta.secure,
			"proxy error from PROXY while dialing TARGET, code 403: 403 "},
		{"Metadata", w.overTLS("alpha", "alpha"), "169.254.169.254:80",
			"proxy error from PROXY while dialing TARGET, code 403: 403 "},
		{"OtherCluster", w.overTLS("alpha", "beta"), w.beta.secure,
			"proxy error from PROXY while dialing TARGET, code 403: 403 http_request_denied"},
		{"NoCluster", w.overTLS("*", "no.such"), w.alpha.secure, "certificate is valid for "}, // kube-apiserver's own check
		{"NoAgent", w.overTLS("*", "gamma"), w.alpha.secure,
			"proxy error from PROXY while dialing TARGET, code 503: 503 destination_unavailable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			proxy := w.clients
			if test.options.UDSName != "" {
				proxy = w.socket
			}
			dial := lookup(t, test.options)
			start := time.Now()
			c, err := dial(t.Context(), "tcp", test.target)
			if err == nil {
				c.Close()
				t.Fatal("no error")
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("took %v; half of kube-apiserver's 30 s is too much for a refusal", took)
			}
			want := strings.NewReplacer("PROXY", proxy, "TARGET", test.target).Replace(test.want)
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			t.Log(err)
		})
	}
}
