package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// tenants is a server with two clusters. Each has a CA of its own that is
// bound to it, and a third CA is shared and bound to none. Each cluster has an
// agent whose one target says the cluster's name.
type tenants struct {
	*world
	bound  map[string]*tunneltest.CA
	tokens *certs.Tokens
	pool   *certs.Pool
}

// selector makes "header" and "sni" doors beside the one by certificate.
const (
	headerDoor = "server:9001"
	sniDoor    = "server:9002"
	tokenOfA   = "token-of-a-0123456789abcdef"
	tokenOfB   = "token-of-b-0123456789abcdef"
	wantHeader = "X-Cluster"
)

func newTenants(t *testing.T) *tenants {
	w := &tenants{world: newWorld(t, nil), bound: make(map[string]*tunneltest.CA)}
	dir := t.TempDir()
	shared, err := w.ca.WriteFile(dir, "shared.pem")
	if err != nil {
		t.Fatal(err)
	}
	cas := []certs.CA{{File: shared}}
	for _, cluster := range []string{"a", "b"} {
		ca, err := tunneltest.NewCA("bound to " + cluster)
		if err != nil {
			t.Fatal(err)
		}
		file, err := ca.WriteFile(dir, cluster+".pem")
		if err != nil {
			t.Fatal(err)
		}
		w.bound[cluster] = ca
		cas = append(cas, certs.CA{Cluster: cluster, File: file})
	}
	w.pool = &certs.Pool{CAs: cas}
	file := filepath.Join(dir, "tokens.yaml")
	list := "- cluster: a\n  sha256: " + certs.HashToken(tokenOfA) + "\n- cluster: b\n  sha256: " + certs.HashToken(tokenOfB) + "\n"
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	w.tokens = &certs.Tokens{File: file}

	s := &Server{ID: "tenants", Logger: w.logger(), AgentAuth: AgentAuth(w.pool, w.tokens), ClientAuth: ClientAuth(w.pool, nil)}
	w.server = s
	w.serveDoor(s, "server:9000", Door{})
	w.serveDoor(s, headerDoor, Door{NoAgents: true, Clients: ClientAuth(w.pool, SelectHeader(wantHeader))})
	w.serveDoor(s, sniDoor, Door{NoAgents: true, Clients: ClientAuth(w.pool, SelectSNI("tunnel.example"))})
	for _, cluster := range []string{"a", "b"} {
		w.tenantAgent(cluster, "agent", w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: cluster}))
	}
	w.ready("a", 1)
	w.ready("b", 1)
	return w
}

func (w *tenants) serveDoor(s *Server, address string, d Door) {
	w.Helper()
	config := w.serverTLS()
	config.ClientCAs = w.pool.Roots()
	config.Certificates = []tls.Certificate{w.cert(tunneltest.CertOptions{
		DNS: []string{"server", "*.tunnel.example"}, Server: true,
	})}
	l, err := w.net.Host("server").Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ServeDoor(tls.NewListener(l, config), d) }()
	w.Cleanup(func() { s.Close(); <-done })
}

// tenantAgent starts an agent that can reach only what says the cluster's name.
func (w *tenants) tenantAgent(cluster, id string, config *tls.Config) *Agent {
	return w.agent(cluster, id, func(a *Agent) {
		a.Servers = []string{"https://server:9000"}
		a.TLS = config
		a.DialTarget = func(context.Context, string, string) (net.Conn, error) {
			near, far := tunneltest.Pipe()
			go func() {
				defer far.Close()
				_, _ = io.WriteString(far, cluster)
			}()
			return near, nil
		}
	})
}

func (w *tenants) tlsBy(ca *tunneltest.CA, o tunneltest.CertOptions) *tls.Config {
	w.Helper()
	o.Client = true
	cert, err := ca.Issue(o)
	if err != nil {
		w.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert.TLS}, RootCAs: w.ca.Pool(), ServerName: "server"}
}

// reach dials as a client and returns the cluster that answers.
func (w *tenants) reach(door string, config *tls.Config, sni string, header http.Header) (string, error) {
	config = config.Clone()
	if sni != "" {
		config.ServerName = sni
		config.InsecureSkipVerify = true // the client's own check is not what is tested
	}
	d := &connect.Dialer{Address: door, TLS: config, Forward: w.net.Host("client").Dial, Header: header}
	c, err := d.DialContext(context.Background(), "tcp", "10.0.0.7:10250")
	if err != nil {
		return "", err
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	return string(got), err
}

// TestTenancy tries every way that we could think of to get from cluster a to
// cluster b, or to be taken for b. The list is the specification.
func TestTenancy(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newTenants(t)
		ofA := w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: "a"})
		boundA := w.tlsBy(w.bound["a"], tunneltest.CertOptions{CommonName: "kube-apiserver-http-proxy"})
		operator := w.tlsBy(w.ca, tunneltest.CertOptions{CommonName: "*"})
		header := func(v ...string) http.Header { return http.Header{wantHeader: v} }
		none := &tls.Config{RootCAs: w.ca.Pool(), ServerName: "server"}
		foreign, err := tunneltest.NewCA("nobody knows it")
		if err != nil {
			t.Fatal(err)
		}

		for _, tt := range []struct {
			way    string
			door   string
			config *tls.Config
			sni    string
			header http.Header
			want   string // the cluster that answers; empty: refused
		}{
			// What is allowed, so that the rest means something.
			{"certificate of a", "server:9000", ofA, "", nil, "a"},
			{"CA bound to a, any name", "server:9000", boundA, "", nil, "a"},
			{"certificate of a selects a by header", headerDoor, ofA, "", header("a"), "a"},
			{"certificate of a selects a by server name", sniDoor, ofA, "a.tunnel.example", nil, "a"},
			{"operator selects b by header", headerDoor, operator, "", header("b"), "b"},
			{"operator selects b by server name", sniDoor, operator, "b.tunnel.example", nil, "b"},

			// Foreign server names.
			{"a's certificate, b's server name", sniDoor, ofA, "b.tunnel.example", nil, ""},
			{"a's certificate, b's server name in capitals", sniDoor, ofA, "B.TUNNEL.EXAMPLE", nil, ""},
			{"CA bound to a, b's server name", sniDoor, boundA, "b.tunnel.example", nil, ""},
			{"a's certificate, b's server name where it does not select", "server:9000", ofA, "b.tunnel.example", nil, "a"},
			{"a's certificate, server name b.a", sniDoor, ofA, "b.a.tunnel.example", nil, ""},
			{"operator, no cluster in the server name", sniDoor, operator, "server", nil, ""},
			{"operator, empty cluster", sniDoor, operator, ".tunnel.example", nil, ""},

			// Foreign headers.
			{"a's certificate, header b", headerDoor, ofA, "", header("b"), ""},
			{"a's certificate, headers a and b", headerDoor, ofA, "", header("a", "b"), ""},
			{"a's certificate, headers b and a", headerDoor, ofA, "", header("b", "a"), ""},
			{"a's certificate, header a, b", headerDoor, ofA, "", header("a, b"), ""},
			{"a's certificate, no header", headerDoor, ofA, "", nil, ""},
			{"a's certificate, header where it does not select", "server:9000", ofA, "", header("b"), "a"},
			{"CA bound to a, header b", headerDoor, boundA, "", header("b"), ""},
			{"a's certificate, header *", headerDoor, ofA, "", header("*"), ""},
			{"operator, header *", headerDoor, operator, "", header("*"), ""},
			{"operator where nothing selects", "server:9000", operator, "", nil, ""},

			// Foreign certificates.
			{"no certificate", "server:9000", none, "", nil, ""},
			{"no certificate, header b", headerDoor, none, "", header("b"), ""},
			{"unknown CA names b", "server:9000", w.tlsBy(foreign, tunneltest.CertOptions{Cluster: "b"}), "", nil, ""},
			{"CA bound to a names b by URI", "server:9000", w.tlsBy(w.bound["a"], tunneltest.CertOptions{Cluster: "b"}), "", nil, ""},
			{"CA bound to a names b by common name", "server:9000", w.tlsBy(w.bound["a"], tunneltest.CertOptions{CommonName: "b"}), "", nil, "a"},
			{"CA bound to a names *", headerDoor, w.tlsBy(w.bound["a"], tunneltest.CertOptions{CommonName: "*"}), "", header("b"), ""},
			{"URI a, DNS b, common name b", "server:9000", w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: "a", DNS: []string{"b"}, CommonName: "b"}), "", nil, "a"},
			{"two URIs, a and b", "server:9000", w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: "a", URIs: []string{"rhizome://cluster/b"}}), "", nil, ""},
			{"an expired certificate of b", "server:9000", w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: "b", NotAfter: time.Now().Add(-time.Hour)}), "", nil, ""},

			// Tokens are for agents.
			{"a's certificate with b's token", "server:9000", ofA, "", http.Header{"Authorization": {"Bearer " + tokenOfB}}, "a"},
			{"no certificate, b's token", "server:9000", none, "", http.Header{"Authorization": {"Bearer " + tokenOfB}}, ""},
			{"a's certificate claims b", "server:9000", ofA, "", http.Header{headerCluster: {"b"}}, "a"},
		} {
			got, err := w.reach(tt.door, tt.config, tt.sni, tt.header)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("%s: reached %q, %v; want %q", tt.way, got, err, tt.want)
			}
		}
		w.tryAgents(t, ofA, none, foreign)
		w.tryNames(t, ofA)
	})
}

// tryAgents lets agents try to be of cluster b.
func (w *tenants) tryAgents(t *testing.T, ofA, none *tls.Config, foreign *tunneltest.CA) {
	bearer := func(tokens ...string) http.Header {
		h := make(http.Header)
		for _, token := range tokens {
			h.Add("Authorization", "Bearer "+token)
		}
		return h
	}
	for _, tt := range []struct {
		way    string
		config *tls.Config
		header http.Header
		want   string // the cluster that it is taken for
		status int
	}{
		{"certificate of a", ofA, nil, "a", 0},
		{"token of b", none, bearer(tokenOfB), "b", 0},
		{"certificate and token of a", ofA, bearer(tokenOfA), "a", 0},
		{"CA bound to a", w.tlsBy(w.bound["a"], tunneltest.CertOptions{CommonName: "vpn-shoot-client"}), nil, "a", 0},

		{"certificate of a, token of b", ofA, bearer(tokenOfB), "", 403},
		{"certificate of a, unknown token", ofA, bearer("guess"), "", 401},
		{"certificate of a, tokens of a and b", ofA, bearer(tokenOfA, tokenOfB), "", 401},
		{"unknown token", none, bearer("guess"), "", 401},
		{"nothing", none, nil, "", 401},
		{"certificate of a claims b", ofA, http.Header{headerCluster: {"b"}}, "", 403},
		{"token of a claims b", none, http.Header{"Authorization": {"Bearer " + tokenOfA}, headerCluster: {"b"}}, "", 403},
		{"CA bound to a names b", w.tlsBy(w.bound["a"], tunneltest.CertOptions{Cluster: "b"}), nil, "", 403},
		{"operator", w.tlsBy(w.ca, tunneltest.CertOptions{CommonName: "*"}), nil, "", 403},
		{"token as Basic", none, http.Header{"Authorization": {"Basic " + tokenOfB}}, "", 401},
	} {
		cluster, err := w.join(ofAgent(tt.config, tt.header))
		var ce *connect.Error
		errors.As(err, &ce)
		if cluster != tt.want || (tt.want == "") != (ce != nil) || ce != nil && ce.Status != tt.status {
			t.Errorf("agent with %s: taken for %q, %v; want %q, status %d", tt.way, cluster, err, tt.want, tt.status)
		}
	}
	if _, err := w.join(ofAgent(w.tlsBy(foreign, tunneltest.CertOptions{Cluster: "b"}), nil)); err == nil {
		t.Error("an agent with a certificate of an unknown CA was let in")
	}
}

func ofAgent(config *tls.Config, header http.Header) *Agent {
	return &Agent{ID: "intruder", TLS: config, Header: header}
}

// join connects an agent and returns the cluster that the server put it in.
func (w *tenants) join(a *Agent) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a.Dial = w.net.Host("intruder").Dial
	u, err := parseServer("https://server:9000")
	if err != nil {
		w.Fatal(err)
	}
	s, err := a.connect(ctx, u, "server:9000", func(*helloMessage) error { return nil })
	if err != nil {
		return "", err
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.run() }()
	<-s.accepted
	found := ""
	for _, c := range w.server.Clusters() {
		for _, agent := range c.Agents {
			if agent.ID == "intruder" {
				found += c.Cluster
			}
		}
	}
	_ = s.mux.Close(nil)
	<-done
	w.until("it has left", func() bool {
		for _, c := range w.server.Clusters() {
			for _, agent := range c.Agents {
				if agent.ID == "intruder" {
					return false
				}
			}
		}
		return true
	})
	return found, nil
}

// tryNames reuses agent ids and races reconnects: each cluster keeps its own.
func (w *tenants) tryNames(t *testing.T, ofA *tls.Config) {
	check := func(when string) {
		for _, cluster := range []string{"a", "b"} {
			got, err := w.reach("server:9000", w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: cluster}), "", nil)
			if err != nil || got != cluster {
				t.Errorf("%s: cluster %s reached %q, %v", when, cluster, got, err)
			}
		}
	}
	check("both agents are called agent")
	for range 20 {
		time.Sleep(2 * time.Minute) // so that back-off begins anew
		w.net.Cut("agent")          // both reconnect, in any order
		check("while both reconnect")
	}
	// Without b's agent nobody answers for b.
	for _, c := range w.server.Clusters() {
		if c.Cluster == "b" && len(c.Agents) != 1 {
			t.Errorf("cluster b has %d agents", len(c.Agents))
		}
	}
	w.net.Freeze("agent")
	if got, err := w.reach("server:9000", ofA, "", nil); err == nil {
		t.Errorf("with all agents frozen, %q answered", got)
	}
}

// A credential that is taken back ends what it alone admitted after 30 s, and
// nothing else.
func TestRevocation(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newTenants(t)
		expires := tunneltest.CertOptions{Cluster: "a", NotAfter: time.Now().Add(5 * time.Minute)}
		config := w.tlsBy(w.ca, expires)
		w.server.Picker = func(_ string, c []Candidate) int { return len(c) - 1 }
		a := w.agent("a", "zz-expires", func(a *Agent) {
			a.Servers = []string{"https://server:9000"}
			a.TLS = config
		})
		w.ready("a", 2)
		old, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		other, err := w.server.Dialer("b")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		client := &connect.Dialer{Address: "server:9000", TLS: config, Forward: w.net.Host("client").Dial}
		viaOld, err := client.DialContext(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer viaOld.Close()

		time.Sleep(5*time.Minute + admit.Every + time.Second)
		if !w.log.has("drains the session", drainCredential) {
			t.Error("the agent was not told")
		}
		if n := w.agents(w.server, "a"); n != 1 {
			t.Errorf("%d agents can be chosen", n)
		}
		if _, err := old.Write([]byte("x")); err != nil {
			t.Errorf("within the grace: %v", err)
		}
		time.Sleep(admit.Grace + admit.Every)
		for name, c := range map[string]net.Conn{"stream": old, "client": viaOld} {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := io.ReadAll(c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s after the grace: %v", name, err)
			}
		}
		if _, err := other.Write([]byte("x")); err != nil {
			t.Errorf("the other cluster: %v", err)
		}
		a.Close()
	})
}

// Both sides log why an agent is refused.
func TestRefusalIsLoggedByBoth(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newTenants(t)
		for id, config := range map[string]*tls.Config{
			"expired": w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: "a", NotAfter: time.Now().Add(-time.Hour)}),
			"nothing": {RootCAs: w.ca.Pool(), ServerName: "server"},
		} {
			a := w.agent("a", id, func(a *Agent) {
				a.Servers = []string{"https://server:9000"}
				a.TLS = config
			})
			time.Sleep(time.Minute)
			a.Close()
		}
		for _, parts := range [][]string{
			{"connection refused", "expired"},
			{"cannot connect", "agent expired", "expired"},
			{"request refused", "401", errNoCert.Error()},
			{"cannot connect", "agent nothing", "401"},
		} {
			if !w.log.has(parts...) {
				t.Errorf("no log line with %q\n%s", parts, w.log)
			}
		}
		if n := len(w.log.lines("cannot connect")); n > 4 {
			t.Errorf("%d lines of an agent that cannot connect for a minute", n)
		}
	})
}
