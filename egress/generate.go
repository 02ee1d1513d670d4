package egress

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Mode is what the kube-apiserver shall reach its cluster through.
type Mode string

const (
	// ProxyServer is this project's proxy-server:
	// https://proxy-server:9443 with a client certificate.
	ProxyServer Mode = "ProxyServer"
	// VPNServer is the HTTP proxy of this project's vpn-server, its
	// --connect-listen: https://vpn-server:9443 with a client certificate.
	VPNServer Mode = "VPNServer"
	// Konnectivity is Gardener's deployment of konnectivity-server:
	// https://konnectivity-server:9443.
	Konnectivity Mode = "Konnectivity"
	// ReversedVPN is the proxy of Gardener's vpn-seed-server:
	// https://vpn-seed-server:9443.
	ReversedVPN Mode = "ReversedVPN"
)

// Options say what to generate.
type Options struct {
	// Mode chooses the defaults of the fields below. Empty means ProxyServer.
	Mode Mode
	// KubernetesVersion is that of the kube-apiserver, such as "1.31" or
	// "v1.19.16". At least 1.18. Empty means the newest.
	KubernetesVersion string
	// APIVersion is V1Alpha1 or V1Beta1. Empty means V1Beta1, which every
	// kube-apiserver from 1.18 on knows; Gardener itself writes V1Alpha1.
	APIVersion string

	// URL is where the proxy is, https://host:port. Empty means that of the
	// Mode.
	URL string
	// UDSName is the socket of the proxy, which is then reached through it
	// and neither by URL nor with TLS. Empty means by URL.
	UDSName string

	// CABundle, ClientCert and ClientKey are the paths of PEM files as
	// kube-apiserver sees them. Empty means the paths of Gardener's
	// deployments for Konnectivity and ReversedVPN; ProxyServer and VPNServer
	// have none, so that ClientCert and ClientKey are required there and an
	// empty CABundle means the authorities of the host.
	CABundle, ClientCert, ClientKey string
	// TLSServerName selects the cluster on a proxy-server of several (a
	// vpn-server has one). Only
	// from Kubernetes 1.36 on; older ones need a host name per cluster in URL,
	// or a client certificate that names the cluster.
	TLSServerName string

	// ControlPlane sends webhooks and aggregated API servers through the
	// proxy, too. They often run in the cluster. False means directly.
	ControlPlane bool
}

// defaults are what a Mode stands for.
var defaults = map[Mode]Options{
	ProxyServer: {URL: "https://proxy-server:9443"},
	VPNServer:   {URL: "https://vpn-server:9443"},
	Konnectivity: {
		URL:        "https://konnectivity-server:9443",
		CABundle:   "/srv/kubernetes/ca/ca.crt",
		ClientCert: "/etc/srv/kubernetes/konnectivity-server-client-tls/tls.crt",
		ClientKey:  "/etc/srv/kubernetes/konnectivity-server-client-tls/tls.key",
	},
	ReversedVPN: {
		URL:        "https://vpn-seed-server:9443",
		CABundle:   "/srv/kubernetes/ca-vpn/bundle.crt",
		ClientCert: "/etc/srv/kubernetes/envoy/tls.crt",
		ClientKey:  "/etc/srv/kubernetes/envoy/tls.key",
	},
}

// Generate makes the configuration of one kube-apiserver: cluster through the
// proxy, controlplane (master below Kubernetes 1.20) as Options.ControlPlane
// says, etcd directly. Nil Options are refused only for want of a client
// certificate.
//
// What it returns passes [Config.ValidateOffline], and kube-apiserver's own
// validation where the files exist. [Config.YAML] writes it. All that is wrong
// with the options is reported at once.
func Generate(o *Options) (*Config, error) {
	if o == nil {
		o = new(Options)
	}
	filled, minor, err := o.fill()
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	through := func() Connection {
		t := new(Transport)
		if filled.UDSName != "" {
			t.UDS = &UDS{UDSName: filled.UDSName}
		} else {
			t.TCP = &TCP{URL: filled.URL, TLSConfig: &TLSConfig{
				CABundle:      filled.CABundle,
				ClientCert:    filled.ClientCert,
				ClientKey:     filled.ClientKey,
				TLSServerName: filled.TLSServerName,
			}}
		}
		return Connection{ProxyProtocol: HTTPConnect, Transport: t}
	}
	control := Egress{Name: string(ControlPlane), Connection: Connection{ProxyProtocol: Direct}}
	if minor < 20 {
		control.Name = "master"
	}
	if filled.ControlPlane {
		control.Connection = through()
	}
	c := &Config{APIVersion: filled.APIVersion, EgressSelections: []Egress{
		{Name: string(Cluster), Connection: through()},
		control,
		{Name: string(Etcd), Connection: Connection{ProxyProtocol: Direct}},
	}}
	// What the checks above leave over is caught by the rules themselves.
	if err := c.ValidateOffline().Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// newest is more than any minor version of Kubernetes.
const newest = 1 << 30

// fill checks the options and fills in the defaults.
func (o *Options) fill() (Options, int, error) {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	f := *o
	if f.Mode == "" {
		f.Mode = ProxyServer
	}
	d, ok := defaults[f.Mode]
	if !ok {
		fail("Mode: unknown %q; use %s, %s, %s or %s", f.Mode, ProxyServer, VPNServer, Konnectivity, ReversedVPN)
	}
	switch f.APIVersion {
	case "":
		f.APIVersion = V1Beta1
	case V1Alpha1, V1Beta1:
	default:
		fail("APIVersion: unknown %q; use %s or %s", f.APIVersion, V1Beta1, V1Alpha1)
	}
	minor, err := minorVersion(f.KubernetesVersion)
	switch {
	case err != nil:
		errs = append(errs, err)
	case minor < 18:
		fail("KubernetesVersion: %s has no egress selection in this form; it begins with 1.18", f.KubernetesVersion)
	case minor < 36 && f.TLSServerName != "":
		fail("TLSServerName: kube-apiserver %s refuses tlsServerName, which begins with 1.36; use a host name per cluster in URL, or a client certificate that names the cluster", f.KubernetesVersion)
	}
	if f.UDSName != "" {
		if f.URL != "" || f.CABundle != "" || f.ClientCert != "" || f.ClientKey != "" || f.TLSServerName != "" {
			fail("UDSName: excludes URL, TLSServerName and certificates")
		}
		if !strings.HasPrefix(f.UDSName, "/") {
			fail("UDSName: want an absolute path, not %q", f.UDSName)
		}
		return f, minor, errors.Join(errs...)
	}
	for _, field := range []struct {
		value    *string
		fallback string
	}{{&f.URL, d.URL}, {&f.CABundle, d.CABundle}, {&f.ClientCert, d.ClientCert}, {&f.ClientKey, d.ClientKey}} {
		if *field.value == "" {
			*field.value = field.fallback
		}
	}
	if f.ClientCert == "" || f.ClientKey == "" {
		fail("ClientCert, ClientKey: required by kube-apiserver for an https proxy; without them use UDSName")
	}
	if u, err := url.Parse(f.URL); err != nil {
		fail("URL: %s", parseReason(err))
	} else if u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.String() != "https://"+u.Host {
		fail("URL: want https://host:port (with http:// kube-apiserver panics), not %q", u.Redacted())
	}
	return f, minor, errors.Join(errs...)
}

// minorVersion reads 1.31, v1.31.2, 1.31.2-rc.1 or 1.31+.
func minorVersion(s string) (int, error) {
	if s == "" {
		return newest, nil
	}
	parts := strings.SplitN(strings.TrimPrefix(s, "v"), ".", 3)
	if len(parts) >= 2 && parts[0] == "1" {
		digits := parts[1]
		if len(parts) == 2 {
			digits, _, _ = strings.Cut(digits, "+")
			digits, _, _ = strings.Cut(digits, "-")
		}
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			return int(n), nil
		}
	}
	return 0, fmt.Errorf("KubernetesVersion: want 1.MINOR such as 1.31 or v1.31.2, not %.40q", s)
}
