package egress

import (
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

var expiredOptions = tunneltest.CertOptions{CommonName: "old", Client: true,
	NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)}

func TestGenerate(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want []string // lines, those with - must not be there
		err  string   // part of the error, empty for none
	}{
		{"konnectivity", Options{Mode: Konnectivity, KubernetesVersion: "1.31", APIVersion: V1Alpha1},
			[]string{"apiVersion: " + V1Alpha1, "url: https://konnectivity-server:9443", "caBundle: /srv/kubernetes/ca/ca.crt", "- name: controlplane", "!master", "!tlsServerName"}, ""},
		{"vpn-server", Options{Mode: VPNServer, ClientCert: "/c", ClientKey: "/k", KubernetesVersion: "1.31"},
			[]string{"url: https://vpn-server:9443", "clientCert: /c", "- name: controlplane", "!caBundle"}, ""},
		{"konnectivity by socket", Options{Mode: Konnectivity, KubernetesVersion: "v1.19.16", UDSName: "/etc/srv/kubernetes/konnectivity-server/konnectivity-server.socket"},
			[]string{"udsName: /etc/srv/kubernetes/konnectivity-server/konnectivity-server.socket", "- name: master", "!controlplane", "!tcp"}, ""},
		{"reversed VPN", Options{Mode: ReversedVPN, KubernetesVersion: "1.20"},
			[]string{"apiVersion: " + V1Beta1, "url: https://vpn-seed-server:9443", "clientKey: /etc/srv/kubernetes/envoy/tls.key", "- name: controlplane"}, ""},
		{"proxy-server", Options{ClientCert: "/tls.crt", ClientKey: "/tls.key", TLSServerName: "shoot--dev--a"},
			[]string{"url: https://proxy-server:9443", "tlsServerName: shoot--dev--a", "!caBundle"}, ""},
		{"tlsServerName at 1.36", Options{Mode: ReversedVPN, TLSServerName: "a", KubernetesVersion: "1.36.0"}, []string{"tlsServerName: a"}, ""},
		{"tlsServerName at 1.35", Options{Mode: ReversedVPN, TLSServerName: "a", KubernetesVersion: "1.35"}, nil, "host name per cluster in URL"},
		{"other URL", Options{Mode: Konnectivity, URL: "https://127.0.0.1:9443"}, []string{"url: https://127.0.0.1:9443", "caBundle: /srv/kubernetes/ca/ca.crt"}, ""},
		{"control plane too", Options{UDSName: "/run/x", ControlPlane: true, KubernetesVersion: "1.18"}, []string{"- name: master", "udsName: /run/x", "!tcp"}, ""},
		{"versions: pre-release", Options{UDSName: "/run/x", KubernetesVersion: "v1.19.0-rc.1+k3s1"}, []string{"- name: master"}, ""},
		{"versions: plus", Options{UDSName: "/run/x", KubernetesVersion: "1.19+"}, []string{"- name: master"}, ""},
		{"versions: dash", Options{UDSName: "/run/x", KubernetesVersion: "1.19-gke"}, []string{"- name: master"}, ""},
		{"versions: too old", Options{UDSName: "/run/x", KubernetesVersion: "1.17.9"}, nil, "begins with 1.18"},
		{"versions: Kubernetes 2", Options{UDSName: "/run/x", KubernetesVersion: "2.0"}, nil, "KubernetesVersion: want"},
		{"versions: words", Options{UDSName: "/run/x", KubernetesVersion: "latest"}, nil, "KubernetesVersion: want"},
		{"versions: minor is a word", Options{UDSName: "/run/x", KubernetesVersion: "1.x"}, nil, "KubernetesVersion: want"},
		{"no certificate", Options{}, nil, "ClientCert, ClientKey: required"},
		{"unknown mode", Options{Mode: "OpenVPN", UDSName: "/run/x"}, nil, "Mode: unknown"},
		{"unknown version of the format", Options{APIVersion: "v1", UDSName: "/run/x"}, nil, "APIVersion: unknown"},
		{"both transports", Options{UDSName: "/run/x", URL: "https://h:1"}, nil, "UDSName: excludes"},
		{"relative socket", Options{UDSName: "x"}, nil, "absolute"},
		{"plain http", Options{Mode: ReversedVPN, URL: "http://h:1"}, nil, "panics"},
		{"no port", Options{Mode: ReversedVPN, URL: "https://h"}, nil, "URL: want"},
		{"path", Options{Mode: ReversedVPN, URL: "https://h:1/"}, nil, "URL: want"},
		{"bad URL", Options{Mode: ReversedVPN, URL: "https://h:port"}, nil, "URL: not a URL"},
		{"all at once", Options{Mode: "x", APIVersion: "x", KubernetesVersion: "x"}, nil, "KubernetesVersion: want"},
	} {
		c, err := Generate(&tt.o)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		out := string(c.YAML())
		for _, line := range tt.want {
			not, absent := strings.CutPrefix(line, "!")
			if absent == strings.Contains(out, not) {
				t.Errorf("%s: %q in\n%s", tt.name, line, out)
			}
		}
		parsed, err := Parse([]byte(out))
		if err != nil || parsed.ValidateOffline().Err() != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if again, _ := Generate(&tt.o); string(again.YAML()) != out {
			t.Errorf("%s: not stable", tt.name)
		}
		if tt.o.ControlPlane != (parsed.EgressSelections[1].Connection.ProxyProtocol == HTTPConnect) {
			t.Errorf("%s: control plane goes the wrong way", tt.name)
		}
	}
	if _, err := Generate(nil); err == nil {
		t.Error("nil options make a configuration without certificates")
	}
}
