package packet

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The versions of the link's protocol that this package speaks, and what it can
// do beyond the least of them. A feature that the peer does not name is not
// used.
const (
	minVersion = 1
	maxVersion = 1

	// A side with it wants REACH. Servers do not: what a client says is
	// reachable is for nobody.
	featureReach = "reach"
)

// Bounds on what a HELLO may hold, and REACH of each member.
const (
	maxName      = 256
	maxFeatures  = 64
	maxAddresses = 16
	maxNetworks  = 256
	minMTU       = 576 // RFC 791: what every host takes
	maxMTU       = 65535
)

// Hello is what one side of a link says of itself before anything else. What a
// peer says is a claim: a server decides by the credential, see [Identity].
type Hello struct {
	// ID is drawn at random by the process, and the same at all its servers. Zero
	// means that Handshake draws one, which then is another one at each.
	ID uint64
	// Name is for people. The credential's name is what counts.
	Name string
	// Mode must be the same on both sides.
	Mode Mode
	// MTU is that of the networks which packets go to behind this side, without
	// an Ethernet header: no longer packets should come over the link. Zero
	// means 1500; else it is 576 to 65535.
	MTU int
	// Offload is what this side takes unfinished, because its device does.
	Offload Offload
	// Addresses are its own on the tunnel's network, at most 16.
	Addresses []netip.Addr
	// Networks are what it forwards to, at most 256.
	Networks []netip.Prefix
	// Software is for people. Empty means "rhizome".
	Software string
}

// helloMessage is HELLO on the wire.
type helloMessage struct {
	MinVersion int            `json:"minVersion"`
	MaxVersion int            `json:"maxVersion"`
	Features   []string       `json:"features,omitempty"`
	ID         uint64         `json:"id,string"`
	Name       string         `json:"name,omitempty"`
	Mode       string         `json:"mode"`
	MTU        int            `json:"mtu"`
	Offload    []string       `json:"offload,omitempty"`
	Addresses  []netip.Addr   `json:"addresses,omitempty"`
	Networks   []netip.Prefix `json:"networks,omitempty"`
	Software   string         `json:"software,omitempty"`
}

// offloads are the names of what a side may take, on the wire.
func offloads() []struct {
	name string
	bit  Offload
} {
	return []struct {
		name string
		bit  Offload
	}{{"checksum", OffloadChecksum}, {"tso4", OffloadTSO4}, {"tso6", OffloadTSO6}, {"uso", OffloadUSO}}
}

// withDefaults resolves the zero fields.
func (h Hello) withDefaults() Hello {
	for h.ID == 0 {
		h.ID = rand.Uint64()
	}
	h.MTU = cmp.Or(h.MTU, defaultMTU)
	h.Software = cmp.Or(h.Software, "rhizome")
	return h
}

// check refuses a HELLO that is out of bounds.
func (h Hello) check() error {
	switch {
	case h.ID == 0:
		return errors.New("packet: HELLO without an id")
	case h.Mode != TUN && h.Mode != TAP:
		return fmt.Errorf("packet: HELLO with mode %d", int(h.Mode))
	case h.MTU < minMTU || h.MTU > maxMTU:
		return fmt.Errorf("packet: HELLO with an MTU of %d: it is %d to %d", h.MTU, minMTU, maxMTU)
	case len(h.Addresses) > maxAddresses || len(h.Networks) > maxNetworks:
		return fmt.Errorf("packet: HELLO with %d addresses and %d networks", len(h.Addresses), len(h.Networks))
	case !printable(h.Name) || !printable(h.Software):
		return fmt.Errorf("packet: HELLO with a name that is longer than %d bytes or not to be printed", maxName)
	}
	for _, a := range h.Addresses {
		if badAddress(a) {
			return fmt.Errorf("packet: HELLO with address %.60q", a)
		}
	}
	for _, n := range h.Networks {
		if badNetwork(n) {
			return fmt.Errorf("packet: HELLO with network %.60q", n)
		}
	}
	return nil
}

// printable reports whether a text may stand in a log line.
func printable(s string) bool {
	return len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// message is h as it is sent.
func (h Hello) message(features []string) helloMessage {
	m := helloMessage{
		MinVersion: minVersion, MaxVersion: maxVersion, Features: features,
		ID: h.ID, Name: h.Name, Mode: h.Mode.String(), MTU: h.MTU,
		Addresses: h.Addresses, Networks: h.Networks, Software: h.Software,
	}
	for _, o := range offloads() {
		if h.Offload&o.bit != 0 {
			m.Offload = append(m.Offload, o.name)
		}
	}
	return m
}

// decodeHello reads what a peer says of itself.
func decodeHello(body []byte) (h Hello, features map[string]bool, err error) {
	var m helloMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return h, nil, fmt.Errorf("packet: HELLO: %w", err)
	}
	if m.MinVersion < 1 || m.MaxVersion < m.MinVersion {
		return h, nil, fmt.Errorf("packet: HELLO with versions %d to %d", m.MinVersion, m.MaxVersion)
	}
	if min(m.MaxVersion, maxVersion) < max(m.MinVersion, minVersion) {
		return h, nil, bye(ByeVersion, fmt.Sprintf("no common version: this side speaks %d to %d, the peer %d to %d",
			minVersion, maxVersion, m.MinVersion, m.MaxVersion))
	}
	if len(m.Features) > maxFeatures || len(m.Offload) > maxFeatures {
		return h, nil, fmt.Errorf("packet: HELLO with %d features and %d offloads", len(m.Features), len(m.Offload))
	}
	h = Hello{ID: m.ID, Name: m.Name, MTU: m.MTU, Addresses: m.Addresses, Networks: m.Networks, Software: m.Software}
	switch m.Mode {
	case TUN.String():
		h.Mode = TUN
	case TAP.String():
		h.Mode = TAP
	default:
		return h, nil, fmt.Errorf("packet: HELLO with mode %.20q", m.Mode)
	}
	for _, o := range offloads() {
		if slices.Contains(m.Offload, o.name) {
			h.Offload |= o.bit
		}
	}
	if err := h.check(); err != nil {
		return h, nil, err
	}
	for i, n := range h.Networks {
		h.Networks[i] = n.Masked()
	}
	features = make(map[string]bool)
	for _, f := range m.Features {
		if len(f) <= maxName {
			features[f] = true
		}
	}
	return h, features, nil
}
