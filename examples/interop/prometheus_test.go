package interop

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestPrometheus has Prometheus scrape targets behind an agent, one over HTTP
// and one over HTTPS, in the three ways that there are:
//
//	           door     proxy_url with a client certificate
//	          ┌──────────────────────────────────────► ┌──────────────┐
//	Prometheus┤ client   proxy_url                     │ proxy-server │◄─ agent ─► targets
//	          ├─────────────────────► ┌──────────────┐ │              │
//	          │ forward  no proxy     │ proxy-client ├►└──────────────┘
//	          └─────────────────────► └──────────────┘   with a client certificate
//
// The first way has two catches, which the configuration below shows: ca_file
// must hold the authorities of the proxy and of the targets, since there is one
// tls_config for both, and for the same reason every target that asks for a
// client certificate is shown the one for the proxy.
func TestPrometheus(t *testing.T) {
	prometheus := need(t, "prometheus", "apt-get install prometheus")
	w := newScrapeWorld(t)

	ways := []struct {
		name      string
		proxy     string            // lines of a scrape_config
		ca        string            // of https targets
		addresses map[string]string // where targets are, by what they are
	}{
		{"door", fmt.Sprintf("proxy_url: https://%s\n  tls_config: {ca_file: %s, cert_file: %s, key_file: %s}",
			w.door, w.bundle, w.files.cert, w.files.key), "", w.targets},
		{"client", "proxy_url: http://" + w.proxy, w.targetCA, w.targets},
		{"forward", "", w.targetCA, w.forwards},
	}
	config := "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n"
	for _, way := range ways {
		for kind, address := range way.addresses {
			for _, scheme := range []string{"http", "https"} {
				if kind != "nobody" && kind != scheme {
					continue
				}
				config += fmt.Sprintf("- job_name: %s-%s-%s\n  scheme: %s\n  static_configs: [{targets: ['%s']}]\n", way.name, kind, scheme, scheme, address)
				if way.proxy != "" {
					config += "  " + way.proxy + "\n"
				}
				if way.ca != "" {
					config += fmt.Sprintf("  tls_config: {ca_file: %s}\n", way.ca)
				}
			}
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	web := freePorts(t, 1)[0]
	start(t, prometheus, "--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", web)
	waitReady(t, "http://"+web+"/-/ready")

	// Nobody listens at some targets. What Prometheus shows of a proxy's refusal
	// is the reason phrase of CONNECT and the status of a request in absolute
	// form; either shows that it did not dial itself. A forward can only reset.
	want := map[string]string{
		"door-http-http": "", "door-https-https": "",
		"client-http-http": "", "client-https-https": "",
		"forward-http-http": "", "forward-https-https": "",
		"door-nobody-http": "HTTP status 502", "door-nobody-https": "connection_refused: ",
		"client-nobody-http": "HTTP status 502", "client-nobody-https": "connection_refused: ",
		"forward-nobody-http": "connection reset by peer", "forward-nobody-https": "connection reset by peer",
	}
	var last string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if last = compareTargets(w.get(t, "http://"+web+"/api/v1/targets"), want); last == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s:\n%s", last)
		}
	}

	// What was stored came from the targets: over HTTP/2 where they offer it, and
	// with a client certificate only where Prometheus has one.
	query := func(q string) map[string]string {
		return parseQuery(t, w.get(t, "http://"+web+"/api/v1/query?query="+url.QueryEscape(q)))
	}
	up, scraped := query("up"), query("max by (job, scheme, proto, certificate) (interop_scraped)")
	for job, failure := range want {
		value := "1"
		if failure != "" {
			value = "0"
		}
		if got := up[fmt.Sprintf("job=%s", job)]; got != value {
			t.Errorf("up of %s is %q, want %s", job, got, value)
		}
	}
	for _, series := range []string{
		"certificate=false job=door-http-http proto=HTTP/1.1 scheme=http",
		"certificate=true job=door-https-https proto=HTTP/2.0 scheme=https",
		"certificate=false job=client-http-http proto=HTTP/1.1 scheme=http",
		"certificate=false job=client-https-https proto=HTTP/2.0 scheme=https",
		"certificate=false job=forward-http-http proto=HTTP/1.1 scheme=http",
		"certificate=false job=forward-https-https proto=HTTP/2.0 scheme=https",
	} {
		if scraped[series] == "" {
			t.Errorf("nothing was scraped as %s; there are %v", series, scraped)
		}
	}
}

// scrapeWorld is a proxy-server with an agent, a proxy-client, and targets that
// the agent may dial.
type scrapeWorld struct {
	door     string // host:port of the proxy-server, which wants the certificate
	files    certFiles
	bundle   string // authorities of the proxy-server and of the targets
	targetCA string
	proxy    string            // host:port of the proxy-client
	targets  map[string]string // host:port by http, https and nobody
	forwards map[string]string // the same by forwards of the proxy-client
}

func newScrapeWorld(t *testing.T) *scrapeWorld {
	t.Helper()
	dir := t.TempDir()
	build(t, dir, "./examples/seed/proxy-server", "./examples/seed/proxy-client", "./examples/shoot/proxy-agent")
	ca, other := must(tunneltest.NewCA("tunnel")), must(tunneltest.NewCA("targets"))
	w := &scrapeWorld{targetCA: must(other.WriteFile(dir, "targets")), bundle: filepath.Join(dir, "bundle.crt")}
	if err := os.WriteFile(w.bundle, append(ca.PEM(), other.PEM()...), 0o600); err != nil {
		t.Fatal(err)
	}
	issue := func(name string, o tunneltest.CertOptions) certFiles {
		cert, key, err := must(ca.Issue(o)).WriteFiles(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return certFiles{cert, key}
	}
	caFile := must(ca.WriteFile(dir, "ca"))
	own := issue("server", tunneltest.CertOptions{IPs: []string{"127.0.0.1"}, Server: true})
	agent := issue("agent", tunneltest.CertOptions{Cluster: "alpha", Client: true})
	w.files = issue("prometheus", tunneltest.CertOptions{CommonName: "prometheus", Cluster: "alpha", Client: true})

	ports := freePorts(t, 8)
	w.door, w.proxy = ports[0], ports[1]
	w.targets = map[string]string{"http": startTarget(t, nil), "https": startTarget(t, other), "nobody": ports[2]}
	w.forwards = map[string]string{"http": ports[3], "https": ports[4], "nobody": ports[5]}
	agents, admin := ports[6], ports[7]

	start(t, filepath.Join(dir, "proxy-server"), "--listen", w.door, "--client-ca", caFile,
		"--agent-listen", agents, "--agent-ca", caFile, "--tls-cert", own.cert, "--tls-key", own.key, "--admin-listen", admin)
	start(t, filepath.Join(dir, "proxy-agent"), "--server", "https://"+agents, "--ca", caFile, "--cert", agent.cert, "--key", agent.key,
		"--allow", w.targets["http"], "--allow", w.targets["https"], "--allow", w.targets["nobody"])
	waitReady(t, "http://"+admin+"/readyz?cluster=alpha")

	egress := filepath.Join(dir, "egress.yaml")
	text := fmt.Sprintf(`apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      tcp:
        url: https://%s
        tlsConfig: {caBundle: %s, clientCert: %s, clientKey: %s}
`, w.door, caFile, w.files.cert, w.files.key)
	if err := os.WriteFile(egress, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	clientAdmin := freePorts(t, 1)[0]
	args := []string{"--listen", w.proxy, "--egress-config", egress, "--selection", "cluster", "--admin-listen", clientAdmin}
	for kind, address := range w.forwards {
		args = append(args, "--forward", address+"="+w.targets[kind])
	}
	start(t, filepath.Join(dir, "proxy-client"), args...)
	waitReady(t, "http://"+clientAdmin+"/readyz")
	return w
}

// startTarget starts what Prometheus scrapes, with TLS if it gets an authority.
// Its metric tells how it was asked.
func startTarget(t *testing.T, ca *tunneltest.CA) (address string) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, certificate := "http", false
		if r.TLS != nil {
			scheme, certificate = "https", len(r.TLS.PeerCertificates) > 0
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintf(w, "interop_scraped{scheme=%q,proto=%q,certificate=\"%t\"} 1\n", scheme, r.Proto, certificate)
	}))
	if ca == nil {
		s.Start()
	} else {
		cert := must(ca.Issue(tunneltest.CertOptions{IPs: []string{"127.0.0.1"}, Server: true}))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert.TLS}, ClientAuth: tls.RequestClientCert}
		s.EnableHTTP2 = true
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// get asks Prometheus.
func (w *scrapeWorld) get(t *testing.T, url string) []byte {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", url, resp.Status, err, body)
	}
	return body
}

// compareTargets says what of /api/v1/targets is not as wanted: up without an
// error, or down with one that has the text.
func compareTargets(body []byte, want map[string]string) string {
	var answer struct {
		Data struct {
			ActiveTargets []struct {
				Labels            map[string]string
				Health, LastError string
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err.Error()
	}
	var wrong []string
	seen := make(map[string]bool)
	for _, target := range answer.Data.ActiveTargets {
		job := target.Labels["job"]
		seen[job] = true
		failure, ok := want[job]
		good := target.Health == "up" && target.LastError == ""
		if failure != "" {
			good = target.Health == "down" && strings.Contains(target.LastError, failure)
		}
		if !ok || !good {
			wrong = append(wrong, fmt.Sprintf("%s is %s: %q, want %q", job, target.Health, target.LastError, failure))
		}
	}
	for job := range want {
		if !seen[job] {
			wrong = append(wrong, "no target "+job)
		}
	}
	sort.Strings(wrong)
	return strings.Join(wrong, "\n")
}

// parseQuery returns the values of an instant query by the labels of the series,
// without its name and instance.
func parseQuery(t *testing.T, body []byte) map[string]string {
	t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	values := make(map[string]string)
	for _, r := range answer.Data.Result {
		var labels []string
		for name, value := range r.Metric {
			if name != "__name__" && name != "instance" {
				labels = append(labels, name+"="+value)
			}
		}
		sort.Strings(labels)
		values[strings.Join(labels, " ")] = fmt.Sprint(r.Value[1])
	}
	return values
}
