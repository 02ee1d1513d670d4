package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Parse reads YAML or JSON as strictly as kube-apiserver does: apiVersion and
// kind must be known, unknown and duplicate fields are errors, and so is a
// value of another type. All unknown fields and wrong types are reported at
// once, each with its path. Field names are case-sensitive.
//
// What the fields say is not judged: see [Config.Validate] for kube-apiserver's
// opinion and [Selector] for what can be dialled, which is more.
//
// As in kube-apiserver, YAML documents behind the first are not read; Validate
// warns of them.
func Parse(data []byte) (*Config, error) {
	doc, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber() // numbers are wrong everywhere, but shown as written
	var root any
	if err := dec.Decode(&root); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	top, ok := root.(map[string]any)
	if !ok && root != nil {
		return nil, fmt.Errorf("egress: want apiVersion, kind and egressSelections, found %s", typeName(root))
	}
	var d decoder
	c := &Config{documents: countDocuments(data) - 1}
	c.APIVersion = d.text(top, "", "apiVersion")
	kind := d.text(top, "", "kind")
	if len(d.errs) == 0 {
		d.identity(c.APIVersion, kind)
	}
	if len(d.errs) > 0 {
		return nil, d.err() // another kind of file: do not judge its fields
	}
	d.known(top, "", "apiVersion", "kind", "egressSelections")
	for i, item := range d.list(top, "", "egressSelections") {
		path := fmt.Sprintf("egressSelections[%d]", i)
		m, _ := d.object(item, path)
		c.EgressSelections = append(c.EgressSelections, d.egress(m, path))
	}
	if len(d.errs) > 0 {
		return nil, d.err()
	}
	return c, nil
}

// identity judges apiVersion and kind.
func (d *decoder) identity(apiVersion, kind string) {
	switch {
	case kind == "":
		d.fail("kind", "missing; write kind: "+Kind)
	case kind != Kind:
		d.fail("kind", fmt.Sprintf("%.100q is not an egress configuration; write %s", kind, Kind))
	}
	switch apiVersion {
	case V1Alpha1, V1Beta1:
	case "":
		d.fail("apiVersion", "missing; write apiVersion: "+V1Beta1)
	default:
		d.fail("apiVersion", fmt.Sprintf("unknown version %.100q; write %s or %s", apiVersion, V1Beta1, V1Alpha1))
	}
}

func (d *decoder) egress(m map[string]any, path string) Egress {
	d.known(m, path, "name", "connection")
	e := Egress{Name: d.text(m, path, "name")}
	path = join(path, "connection")
	m, _ = d.object(m["connection"], path)
	d.known(m, path, "proxyProtocol", "transport")
	e.Connection.ProxyProtocol = d.text(m, path, "proxyProtocol")
	path = join(path, "transport")
	if m, ok := d.object(m["transport"], path); ok {
		e.Connection.Transport = d.transport(m, path)
	}
	return e
}

func (d *decoder) transport(m map[string]any, path string) *Transport {
	d.known(m, path, "tcp", "uds")
	t := new(Transport)
	if m, ok := d.object(m["tcp"], join(path, "tcp")); ok {
		path := join(path, "tcp")
		d.known(m, path, "url", "tlsConfig")
		t.TCP = &TCP{URL: d.text(m, path, "url")}
		path = join(path, "tlsConfig")
		if m, ok := d.object(m["tlsConfig"], path); ok {
			d.known(m, path, "caBundle", "clientKey", "clientCert", "tlsServerName")
			t.TCP.TLSConfig = &TLSConfig{
				CABundle:      d.text(m, path, "caBundle"),
				ClientKey:     d.text(m, path, "clientKey"),
				ClientCert:    d.text(m, path, "clientCert"),
				TLSServerName: d.text(m, path, "tlsServerName"),
			}
		}
	}
	if m, ok := d.object(m["uds"], join(path, "uds")); ok {
		path := join(path, "uds")
		d.known(m, path, "udsName")
		t.UDS = &UDS{UDSName: d.text(m, path, "udsName")}
	}
	return t
}

// decoder walks the tree and collects what is wrong. A null is an absent
// field, as in kube-apiserver.
type decoder struct{ errs []error }

func (d *decoder) fail(path, what string) {
	d.errs = append(d.errs, fmt.Errorf("%s: %s", path, what))
}

func (d *decoder) err() error {
	return fmt.Errorf("egress: %w", errors.Join(d.errs...))
}

// known reports fields that do not belong into an object.
func (d *decoder) known(m map[string]any, path string, fields ...string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if slices.Contains(fields, name) {
			continue
		}
		what := "unknown field"
		if i := slices.IndexFunc(fields, func(f string) bool { return strings.EqualFold(f, name) }); i >= 0 {
			what += "; write " + fields[i]
		} else {
			what += "; there are " + strings.Join(fields, ", ")
		}
		if len(name) > 100 {
			name = name[:100] + "…"
		}
		d.fail(join(path, name), what)
	}
}

func (d *decoder) text(m map[string]any, path, name string) string {
	switch v := m[name].(type) {
	case nil:
	case string:
		return v
	default:
		what := "want a string, found " + typeName(v)
		if _, isObject := v.(map[string]any); !isObject {
			what += "; put it in quotes"
		}
		d.fail(join(path, name), what)
	}
	return ""
}

func (d *decoder) object(v any, path string) (map[string]any, bool) {
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		d.fail(path, "want fields, found "+typeName(v))
	}
	return m, ok
}

func (d *decoder) list(m map[string]any, path, name string) []any {
	list, ok := m[name].([]any)
	if !ok && m[name] != nil {
		d.fail(join(path, name), "want a list, found "+typeName(m[name]))
	}
	return list
}

func typeName(v any) string {
	switch v.(type) {
	case map[string]any:
		return "fields"
	case []any:
		return "a list"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "a truth value"
	}
	return "nothing"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// countDocuments counts YAML documents with content. A line that begins with
// "---" always begins one (YAML 1.2 §9.1.2).
func countDocuments(data []byte) int {
	n, content := 0, false
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0 || line[0] == '#' || line[0] == '%':
			continue
		case string(line) == "---" || string(line) == "...":
			content = false
			continue
		case bytes.HasPrefix(line, []byte("--- ")):
			content = false
		}
		if !content {
			content = true
			n++
		}
	}
	return n
}
