package packet

import "github.com/rhizome-tunnel/rhizome/tunnel/internal/upgrade"

// protocol is the upgrade that opens a link.
func protocol() upgrade.Protocol {
	return upgrade.Protocol{Path: "/v1/packets", Token: "rhizome-packet/1", For: "packet links"}
}
