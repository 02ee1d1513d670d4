package egress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Phase is how far kube-apiserver gets before a problem stops it.
type Phase string

const (
	// PhaseValidate means that kube-apiserver reads the file and refuses it.
	PhaseValidate Phase = "validate"
	// PhaseStart means that the file passes and kube-apiserver fails when it
	// makes its dialers: a key of another certificate, say.
	PhaseStart Phase = "start"
	// PhasePanic is as PhaseStart, only that kube-apiserver panics.
	PhasePanic Phase = "panic"
	// PhaseRun means that kube-apiserver starts. Only warnings have it.
	PhaseRun Phase = "run"
)

// Problem is one thing that is wrong.
type Problem struct {
	// Field is the path, such as
	// egressSelections[0].connection.transport.tcp.tlsConfig.clientCert,
	// or empty for the file as a whole.
	Field string
	// Value is what stands there, without passwords. Empty when nothing does.
	Value string
	// Detail says what is wrong with it.
	Detail string
	// Fix says what to write instead.
	Fix string
	// Phase is where it stops kube-apiserver.
	Phase Phase
}

// String returns the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	if p.Value != "" {
		fmt.Fprintf(&b, "%q: ", p.Value)
	}
	b.WriteString(p.Detail)
	if p.Fix != "" {
		b.WriteString("; " + p.Fix)
	}
	return b.String()
}

// Report is what [Config.Validate] finds.
type Report struct {
	// Errors are why a kube-apiserver with this file does not start, in the
	// order in which it looks: connections, then names, then files. It is
	// empty if and only if kube-apiserver starts.
	Errors []Problem
	// Warnings are what kube-apiserver accepts and probably nobody wants.
	Warnings []Problem
}

// Err returns all errors as one, a line each, or nil. Warnings do not count.
func (r Report) Err() error {
	errs := make([]error, len(r.Errors))
	for i, p := range r.Errors {
		errs[i] = errors.New(p.String())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("egress: kube-apiserver refuses this configuration:\n%w", err)
	}
	return nil
}

// Validate gives kube-apiserver's verdict (that of k8s.io/apiserver v0.36.3)
// on this machine: it looks at the certificate files that are named.
//
// It reports more than kube-apiserver: also what would be refused next, once
// the first errors are mended, and what fails after validation, at start.
// kube-apiserver itself names paths in another form ("service.connection…").
func (c *Config) Validate() Report { return c.validate(true) }

// ValidateOffline is Validate without a look at files, which are all taken to
// be there and good: for a configuration that is written on one machine and
// read on another.
func (c *Config) ValidateOffline() Report { return c.validate(false) }

func (c *Config) validate(files bool) Report {
	v := validator{files: files}
	if c.documents > 0 {
		v.warn("", "", fmt.Sprintf("only the first YAML document counts, %d more not read", c.documents), "move everything into one")
	}
	if len(c.EgressSelections) == 0 {
		v.warn("egressSelections", "", "no selection: everything is dialled directly", "add one with name: cluster")
	}
	for i := range c.EgressSelections {
		v.connection(&c.EgressSelections[i].Connection, fmt.Sprintf("egressSelections[%d].connection", i))
	}
	seen := make(map[Selection]int)
	for i := range c.EgressSelections {
		v.name(&c.EgressSelections[i], i, seen)
	}
	return Report{Errors: append(v.refused, v.start...), Warnings: v.warnings}
}

// validator collects by phase, because kube-apiserver does one after the other.
type validator struct {
	files                    bool
	refused, start, warnings []Problem
}

func (v *validator) refuse(field, value, detail, fix string) {
	v.refused = append(v.refused, Problem{field, value, detail, fix, PhaseValidate})
}

func (v *validator) fail(field, value, detail, fix string) {
	v.start = append(v.start, Problem{field, value, detail, fix, PhaseStart})
}

func (v *validator) warn(field, value, detail, fix string) {
	v.warnings = append(v.warnings, Problem{field, value, detail, fix, PhaseRun})
}

func (v *validator) name(e *Egress, i int, seen map[Selection]int) {
	field := fmt.Sprintf("egressSelections[%d].name", i)
	s := e.selection()
	if first, dup := seen[s]; dup {
		v.refuse(field, e.Name, fmt.Sprintf("the same as egressSelections[%d].name", first), "keep one of the two")
		return
	}
	seen[s] = i
	if _, ok := e.Selection(); ok {
		if e.Name == "master" {
			v.warn(field, e.Name, "deprecated since Kubernetes 1.20", "write controlplane unless kube-apiserver is older")
		}
		return
	}
	fix := "write cluster, controlplane or etcd"
	switch {
	case s == "":
		v.refuse(field, "", "missing", fix)
	case s == "master":
		v.refuse(field, e.Name, "known in lower case only", "write controlplane, or master for kube-apiserver below 1.20")
	default:
		v.refuse(field, e.Name, "unknown name", fix)
	}
}

func (v *validator) connection(c *Connection, path string) {
	const fix = "write HTTPConnect, GRPC or Direct"
	field, protocol := join(path, "proxyProtocol"), c.protocol()
	if c.ProxyProtocol != protocol {
		v.refuse(field, c.ProxyProtocol, "case counts for kube-apiserver", "write "+protocol)
	}
	path = join(path, "transport")
	switch protocol {
	case "":
		v.refuse(field, "", "missing", fix)
	case Direct:
		if c.Transport != nil {
			v.refuse(path, "", "must be absent for Direct", "remove it, or write proxyProtocol: HTTPConnect")
		}
	case HTTPConnect:
		v.httpConnect(c.Transport, path)
	case GRPC:
		v.grpc(c.Transport, path)
	default:
		v.refuse(field, c.ProxyProtocol, "unknown protocol", fix)
	}
}

// protocol returns the protocol with the right case if it is a known one.
func (c *Connection) protocol() string {
	for _, p := range []string{HTTPConnect, GRPC, Direct} {
		if strings.EqualFold(c.ProxyProtocol, p) {
			return p
		}
	}
	return c.ProxyProtocol
}

func (v *validator) httpConnect(t *Transport, path string) {
	const fix = "add tcp with a url, or uds with a udsName"
	switch {
	case t == nil:
		v.refuse(path, "", "missing", fix)
	case t.TCP != nil && t.UDS != nil:
		v.refuse(path, "", "both tcp and uds", "keep one of the two")
	case t.TCP != nil:
		v.tcp(t.TCP, join(path, "tcp"))
	case t.UDS != nil:
		v.uds(t.UDS, join(path, "uds"))
	default:
		v.refuse(path, "", "neither tcp nor uds", fix)
	}
}

func (v *validator) grpc(t *Transport, path string) {
	if t == nil {
		v.refuse(path, "", "missing", "add uds with a udsName")
		return
	}
	if t.UDS == nil {
		v.refuse(join(path, "uds"), "", "missing: GRPC works over Unix sockets only", "add uds, or write proxyProtocol: HTTPConnect")
		return
	}
	if t.TCP != nil {
		v.warn(join(path, "tcp"), "", "ignored for GRPC", "remove it")
	}
	v.uds(t.UDS, join(path, "uds"))
	v.warn(path, "", "kube-apiserver speaks GRPC to konnectivity-server only; Selector does not support it", "use HTTPConnect for other proxies")
}

func (v *validator) uds(u *UDS, path string) {
	field := join(path, "udsName")
	switch {
	case u.UDSName == "":
		v.refuse(field, "", "missing", "write the path of the proxy's socket")
	case strings.Contains(u.UDSName, "://"):
		_, rest, _ := strings.Cut(u.UDSName, "://")
		v.warn(field, u.UDSName, "taken as a path, not as a URL", "write "+rest)
	case !filepath.IsAbs(u.UDSName) && !strings.HasPrefix(u.UDSName, "/") && !strings.HasPrefix(u.UDSName, "@"):
		v.warn(field, u.UDSName, "relative to the working directory of kube-apiserver", "write an absolute path")
	}
}

func (v *validator) tcp(t *TCP, path string) {
	field, refused := join(path, "url"), len(v.refused)
	if t.URL == "" {
		v.refuse(field, "", "missing", "write https://host:port")
		return
	}
	u, err := url.Parse(t.URL)
	shown := t.URL
	switch {
	case err == nil && u.User != nil:
		shown = u.Redacted()
	case err != nil && strings.Contains(shown, "@"):
		shown = "" // there may be a password in it
	}
	// kube-apiserver compares the first characters of the URL.
	switch {
	case strings.HasPrefix(t.URL, "https://"):
		v.tls(t.TLSConfig, join(path, "tlsConfig"))
	case strings.HasPrefix(t.URL, "http://"):
		if t.TLSConfig != nil {
			v.refuse(join(path, "tlsConfig"), "", "must be absent for http://", "write https:// in url")
		} else {
			v.start = append(v.start, Problem{field, shown, "plain http:// passes kube-apiserver's validation and then makes it panic at start, on the tlsConfig that must be absent",
				"use https:// with a tlsConfig, or uds", PhasePanic})
		}
	case err == nil && (u.Scheme == "https" || u.Scheme == "http"):
		v.refuse(field, shown, "kube-apiserver wants the scheme in lower case", "write "+u.Scheme+"://"+u.Host)
		if u.Scheme == "https" {
			v.tls(t.TLSConfig, join(path, "tlsConfig"))
		}
	case err == nil && u.Scheme == "unix":
		v.refuse(field, shown, "not an https:// URL", "write uds instead of tcp, with udsName: "+u.Path)
		return
	case err == nil && !strings.Contains(t.URL, "://"):
		v.refuse(field, shown, "not an https:// URL", "write https://"+t.URL)
		return
	default:
		v.refuse(field, shown, "not an https:// URL", "write https://host:port")
		return
	}
	if err != nil {
		if len(v.refused) == refused {
			v.fail(field, shown, parseReason(err), "write https://host:port")
		}
		return
	}
	v.url(u, shown, field)
}

// parseReason drops the URL, which may hold a password, from the error.
func parseReason(err error) string {
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return "not a URL: " + err.Error()
}

// url warns of what kube-apiserver takes only to fail at each dial.
func (v *validator) url(u *url.URL, shown, field string) {
	switch {
	case u.Hostname() == "":
		v.warn(field, shown, "no host: every dial will fail", "write https://host:port")
	case u.Port() == "":
		v.warn(field, shown, "no port: every dial of kube-apiserver will fail", "write "+u.Scheme+"://"+strings.TrimSuffix(u.Host, ":")+":"+defaultPort(u.Scheme))
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		v.warn(field, shown, "user, path and query are ignored", "write "+u.Scheme+"://"+u.Host)
	}
}

func (v *validator) tls(c *TLSConfig, path string) {
	if c == nil {
		v.refuse(path, "", "missing: kube-apiserver wants a client certificate for https://", "add clientCert and clientKey, and caBundle unless the host trusts the proxy's authority")
		return
	}
	refused := len(v.refused)
	if c.CABundle != "" {
		v.exists(c.CABundle, join(path, "caBundle"))
	}
	for _, f := range []struct{ name, value string }{{"clientCert", c.ClientCert}, {"clientKey", c.ClientKey}} {
		if f.value == "" {
			v.refuse(join(path, f.name), "", "missing", "write the path of a PEM file: kube-apiserver wants a client certificate for https://")
		} else {
			v.exists(f.value, join(path, f.name))
		}
	}
	if c.TLSServerName != "" {
		v.warn(join(path, "tlsServerName"), c.TLSServerName, "kube-apiserver below 1.36 refuses the file because of this field", "leave it out there and use a host name per cluster in url")
	}
	if v.files && len(v.refused) == refused {
		v.contents(c, path)
	}
}

func (v *validator) exists(file, field string) {
	if !v.files {
		return
	}
	if _, err := os.Stat(file); err != nil {
		var reason error = err
		if inner := errors.Unwrap(err); inner != nil {
			reason = inner
		}
		v.refuse(field, file, reason.Error(), "mount the file there or correct the path")
	}
}

// contents looks into files that exist, as kube-apiserver does at start.
func (v *validator) contents(c *TLSConfig, path string) {
	cert, certErr := readRegular(c.ClientCert)
	key, keyErr := readRegular(c.ClientKey)
	if err := errors.Join(certErr, keyErr); err != nil {
		v.fail(join(path, "clientCert"), c.ClientCert, err.Error(), "write the path of a PEM file")
	} else if pair, err := tls.X509KeyPair(cert, key); err != nil {
		v.fail(join(path, "clientCert"), c.ClientCert, fmt.Sprintf("does not go with clientKey %q: %v", c.ClientKey, err), "name a certificate and its own key")
	} else if time.Now().After(pair.Leaf.NotAfter) {
		v.warn(join(path, "clientCert"), c.ClientCert, "expired at "+pair.Leaf.NotAfter.UTC().Format(time.RFC3339), "renew it and restart kube-apiserver, which reads it once only")
	}
	if c.CABundle == "" {
		return
	}
	bundle, err := readRegular(c.CABundle)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(bundle) {
		err = errors.New("no PEM certificate in it")
	}
	if err != nil {
		v.fail(join(path, "caBundle"), c.CABundle, err.Error(), "name a PEM file with the authority of the proxy's certificate")
	}
}

func defaultPort(scheme string) string {
	if scheme == "http" {
		return "80"
	}
	return "443"
}
