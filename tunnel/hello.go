package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

// The protocol versions that this package speaks, and what it can do beyond
// the least of them. A feature that the peer does not name is not used.
const (
	minVersion = 1
	maxVersion = 1

	featureReset = "reset" // RESET messages
	featurePeers = "peers" // PEERS messages
	featureDrain = "drain" // DRAIN messages
)

func features() []string { return []string{featureReset, featurePeers, featureDrain} }

// Bounds on what a HELLO may hold.
const (
	maxLabels = 64
	maxLabel  = 256
	maxServes = 1024
)

// negotiate picks the version to speak with a peer: the newest that both know.
func negotiate(local, remote *helloMessage) (int, error) {
	version := min(local.MaxVersion, remote.MaxVersion)
	if version < local.MinVersion || version < remote.MinVersion {
		return 0, fmt.Errorf("tunnel: no common protocol version: this side speaks %d to %d, the peer %d to %d",
			local.MinVersion, local.MaxVersion, remote.MinVersion, remote.MaxVersion)
	}
	return version, nil
}

// common is the features that both sides have.
func common(local, remote *helloMessage) map[string]bool {
	both := make(map[string]bool)
	for _, f := range local.Features {
		if slices.Contains(remote.Features, f) {
			both[f] = true
		}
	}
	return both
}

// check refuses a HELLO that is malformed or out of bounds.
func (h *helloMessage) check() error {
	if h.MinVersion < 1 || h.MaxVersion < h.MinVersion {
		return fmt.Errorf("tunnel: HELLO with versions %d to %d", h.MinVersion, h.MaxVersion)
	}
	if err := validID(h.ID); err != nil {
		return fmt.Errorf("tunnel: HELLO with id %.40q: %w", h.ID, err)
	}
	if len(h.Nonce) < 8 || len(h.Nonce) > 64 {
		return errors.New("tunnel: HELLO with a nonce of less than 8 or more than 64 characters")
	}
	if len(h.Software) > maxLabel {
		return errors.New("tunnel: HELLO with a software name longer than 256 bytes")
	}
	for _, f := range h.Features {
		if len(f) > maxLabel {
			return fmt.Errorf("tunnel: HELLO with feature %.40q longer than %d bytes", f, maxLabel)
		}
	}
	if len(h.Labels) > maxLabels || len(h.Serves) > maxServes || len(h.Features) > maxLabels {
		return fmt.Errorf("tunnel: HELLO with %d labels, %d destinations, %d features", len(h.Labels), len(h.Serves), len(h.Features))
	}
	for k, v := range h.Labels {
		if len(k) > maxLabel || len(v) > maxLabel {
			return fmt.Errorf("tunnel: HELLO with label %.40q longer than %d bytes", k, maxLabel)
		}
	}
	for _, s := range h.Serves {
		if _, err := parseServed(s); err != nil {
			return fmt.Errorf("tunnel: HELLO: %w", err)
		}
	}
	return nil
}

// validID refuses agent and server ids that could not stand in a log line.
// They follow the rules of cluster names.
func validID(id string) error { return certs.ValidCluster(id) }

// served is one destination that an agent declares to serve: a network, or a
// name with its subdomains if it begins with a dot.
type served struct {
	prefix netip.Prefix
	name   string
}

func parseServed(s string) (served, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return served{prefix: p.Masked()}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return served{prefix: netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())}, nil
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if !validName(strings.TrimPrefix(name, ".")) {
		return served{}, fmt.Errorf("destination %.60q is neither a network nor a name", s)
	}
	return served{name: name}, nil
}

// validName reports whether s can be a host's name and nothing else: not an
// IPv4 address in any spelling.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	digits := true
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
		digits = true
		for i := range len(label) {
			c := label[i]
			digits = digits && '0' <= c && c <= '9'
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return !digits // RFC 1123 §2.1: the last label is not all digits
}

// match tells how specifically s covers the host: -1 not at all.
func (s served) match(host string, addr netip.Addr) int {
	switch {
	case s.prefix.IsValid() && addr.IsValid() && s.prefix.Contains(addr):
		return s.prefix.Bits() + 1
	case s.name != "" && s.name == host:
		return 1 << 16
	case strings.HasPrefix(s.name, ".") && (strings.HasSuffix(host, s.name) || host == s.name[1:]):
		return 1<<8 + len(s.name)
	}
	return -1
}
