package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The names by which a client asks for the API servers of two clusters, and the
// addresses that these advertise.
var apiServers = map[string]string{"api.a.example.com": "240.0.10.1:443", "api.b.example.com": "240.0.10.2:443"}

// TestAPIServerProxy has pods of two clusters reach the API servers of theirs:
// by an apiserver-proxy and the one entrypoint, in both dialects on one port, and
// kubectl by the server name. TLS is from end to end.
func TestAPIServerProxy(t *testing.T) {
	bin := build(t)
	ca := clitest.NewCA(t)
	byAddress, byName := freePort(t), freePort(t)
	config := fmt.Sprintf("listeners:\n- {address: %q, by: [destination, header]}\n- {address: %q}\nroutes:\n", byAddress, byName)
	for name, advertised := range apiServers {
		config += fmt.Sprintf("- {name: %s, sni: [%s], destinations: [%q], headerValues: [%s], backends: [%q]}\n",
			name, name, advertised, "to-"+name, apiServer(t, ca, name))
	}
	file := ca.Path("entrypoint.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := freePort(t)
	clitest.StartProcess(t, filepath.Join(bin, "entrypoint"), "--config", file, "--admin-listen", admin).Addr("admin")

	for name, advertised := range apiServers {
		askAPIServer(t, ca, name, byName)
		for dialect, args := range map[string][]string{
			"proxy":   {"--destination", advertised},
			"connect": {"--header", entrypoint.HeaderGardenerDestination + ": to-" + name},
		} {
			p := clitest.StartProcess(t, filepath.Join(bin, "apiserver-proxy"), append(args, "--dialect", dialect,
				"--listen-address", "127.0.0.1:0", "--interface", "none", "--entrypoint", byAddress)...)
			askAPIServer(t, ca, name, p.Addr("clients"))
			if code := p.Stop(); code != 0 {
				t.Errorf("%s: exit code %d", dialect, code)
			}
		}
	}
	var s entrypoint.Stats
	readJSON(t, "http://"+admin+"/routes", &s)
	for _, r := range s.Routes {
		if r.Total != 3 {
			t.Errorf("%+v", r)
		}
	}
	if len(s.Refused) > 0 {
		t.Errorf("refused: %v", s.Refused)
	}
}

// apiServer says its name, over TLS.
func apiServer(t *testing.T, ca *clitest.CA, name string) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.Issue(tunneltest.CertOptions{DNS: []string{name}, Server: true}).TLS},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "I am "+name) })}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// askAPIServer asks the API server of that name at an address.
func askAPIServer(t *testing.T, ca *clitest.CA, name, address string) {
	t.Helper()
	c := clitest.Client(t, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
		TLSClientConfig:   &tls.Config{RootCAs: ca.Pool()},
		DisableKeepAlives: true,
	})
	if status, body := clitest.Get(t, c, "https://"+name+"/"); status != http.StatusOK || body != "I am "+name {
		t.Errorf("%s at %s: %d %q", name, address, status, body)
	}
}
