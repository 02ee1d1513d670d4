package egress

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

const (
	// V1Alpha1 is the first version of the format, known to every
	// kube-apiserver with egress selection (since Kubernetes 1.18 in this form).
	V1Alpha1 = "apiserver.k8s.io/v1alpha1"
	// V1Beta1 is the newest version, since Kubernetes 1.18. The two do not
	// differ in their fields.
	V1Beta1 = "apiserver.k8s.io/v1beta1"
	// Kind is the kind of the file.
	Kind = "EgressSelectorConfiguration"

	// MaxFileSize bounds what Load reads, in bytes.
	MaxFileSize = 1 << 20
)

// Config is an EgressSelectorConfiguration, field by field. Its zero value
// selects nothing, so that everything is dialled directly. It can be written
// as a literal as well as read by [Parse].
type Config struct {
	// APIVersion is V1Alpha1 or V1Beta1. Empty means V1Beta1.
	APIVersion string
	// EgressSelections are the entries in the order of the file.
	EgressSelections []Egress

	documents int // YAML documents behind the first, which is the only one read
}

// Egress says how one kind of traffic leaves.
type Egress struct {
	// Name is a [Selection] in any case, or "master", the name of
	// ControlPlane before Kubernetes 1.20, in lower case only.
	Name string
	// Connection is the way.
	Connection Connection
}

// Connection is a protocol and what it runs over.
type Connection struct {
	// ProxyProtocol is HTTPConnect, GRPC or Direct. (It has nothing to do
	// with the PROXY protocol.)
	ProxyProtocol string
	// Transport must be nil for Direct and must not be nil else.
	Transport *Transport
}

// The values of [Connection.ProxyProtocol].
const (
	HTTPConnect = "HTTPConnect"
	GRPC        = "GRPC"
	Direct      = "Direct"
)

// Transport says how the proxy is reached: exactly one of the two is set.
type Transport struct {
	TCP *TCP // only for HTTPConnect
	UDS *UDS
}

// TCP is a proxy behind a URL.
type TCP struct {
	// URL is https://host:port. Path, query and user information are ignored.
	URL string
	// TLSConfig is required by kube-apiserver for https.
	TLSConfig *TLSConfig
}

// UDS is a proxy behind a Unix domain socket.
type UDS struct {
	// UDSName is the path of the socket, not a URL.
	UDSName string
}

// TLSConfig names the files for TLS to the proxy.
type TLSConfig struct {
	// CABundle is a PEM file with the authorities of the proxy's certificate.
	// Empty means those of the host.
	CABundle string
	// ClientKey and ClientCert are PEM files, required by kube-apiserver.
	ClientKey, ClientCert string
	// TLSServerName is what the proxy's certificate must be valid for and
	// what is sent as SNI. Empty means the host of the URL. Only Kubernetes
	// 1.36 and newer know the field; older ones refuse the whole file.
	TLSServerName string
}

// Selection is a kind of traffic that a kube-apiserver sends.
type Selection string

const (
	// Cluster is traffic to nodes, pods and services: logs, exec, attach,
	// port-forward, the proxy subresources.
	Cluster Selection = "cluster"
	// ControlPlane is traffic to admission webhooks and aggregated API
	// servers. Before Kubernetes 1.20 it was called master.
	ControlPlane Selection = "controlplane"
	// Etcd is traffic to the store.
	Etcd Selection = "etcd"
)

// Selection returns which traffic the entry is for. It is false for a name
// that kube-apiserver refuses.
func (e *Egress) Selection() (Selection, bool) {
	s := e.selection()
	return s, s == Cluster || s == ControlPlane || s == Etcd
}

// selection is the name as kube-apiserver compares it. Only the exact
// "master" is converted; "Master" stays what it is and is refused.
func (e *Egress) selection() Selection {
	if e.Name == "master" {
		return ControlPlane
	}
	return Selection(strings.ToLower(e.Name))
}

// Load reads and parses a file of at most MaxFileSize bytes.
func Load(file string) (*Config, error) {
	data, err := readRegular(file)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%w\n(in %s)", err, file)
	}
	return c, nil
}

// readRegular reads a file and neither blocks on a FIFO nor fills the memory
// from a device.
func readRegular(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err == nil && len(data) > MaxFileSize {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", MaxFileSize)}
	}
	return data, err
}

// YAML writes the configuration. The same Config gives the same bytes, and
// [Parse] reads them back, whether or not kube-apiserver would accept them.
func (c *Config) YAML() []byte {
	var w writer
	version := c.APIVersion
	if version == "" {
		version = V1Beta1
	}
	w.field(0, "apiVersion", version)
	w.field(0, "kind", Kind)
	if len(c.EgressSelections) == 0 {
		w.WriteString("egressSelections: []\n")
		return []byte(w.String())
	}
	w.WriteString("egressSelections:\n")
	for i := range c.EgressSelections {
		e := &c.EgressSelections[i]
		w.WriteString("- name: " + scalar(e.Name) + "\n  connection:\n")
		w.field(4, "proxyProtocol", e.Connection.ProxyProtocol)
		w.transport(e.Connection.Transport)
	}
	return []byte(w.String())
}

// writer is YAML by hand: an encoder would sort the fields by name.
type writer struct{ strings.Builder }

func (w *writer) field(indent int, name, value string) {
	w.WriteString(strings.Repeat(" ", indent) + name + ": " + scalar(value) + "\n")
}

// object begins a nested object.
func (w *writer) object(indent int, name string, empty bool) {
	w.WriteString(strings.Repeat(" ", indent) + name + ":")
	if empty {
		w.WriteString(" {}")
	}
	w.WriteString("\n")
}

func (w *writer) transport(t *Transport) {
	if t == nil {
		return
	}
	w.object(4, "transport", t.TCP == nil && t.UDS == nil)
	if t.TCP != nil {
		w.object(6, "tcp", false)
		w.field(8, "url", t.TCP.URL)
		if c := t.TCP.TLSConfig; c != nil {
			w.object(8, "tlsConfig", *c == TLSConfig{})
			for _, f := range []struct{ name, value string }{
				{"caBundle", c.CABundle},
				{"clientCert", c.ClientCert},
				{"clientKey", c.ClientKey},
				{"tlsServerName", c.TLSServerName},
			} {
				if f.value != "" {
					w.field(10, f.name, f.value)
				}
			}
		}
	}
	if t.UDS != nil {
		w.object(6, "uds", false)
		w.field(8, "udsName", t.UDS.UDSName)
	}
}

// scalar quotes what a YAML reader could take for something else than this
// string.
func scalar(s string) string {
	switch strings.ToLower(s) {
	case "", "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return strconv.Quote(s)
	}
	first, last := s[0], s[len(s)-1]
	plain := (first == '/' || 'a' <= first|0x20 && first|0x20 <= 'z') && last != ':'
	for i := range len(s) {
		b := s[i]
		plain = plain && (b == '/' || b == '.' || b == '_' || b == '-' || b == ':' ||
			'0' <= b && b <= '9' || 'a' <= b|0x20 && b|0x20 <= 'z')
	}
	if plain {
		return s
	}
	return strconv.QuoteToASCII(s) // its escapes are those of YAML, too
}
