package packet

import (
	"encoding/json"
	"net/netip"
	"slices"
)

const (
	// maxReach bounds REACH: 256 members with a few networks each.
	maxReach = 240 << 10
	// maxMembers bounds the members in a REACH.
	maxMembers = 1024
)

type reachMessage struct {
	Members []Member `json:"members"`
}

// tellable reports whether a member may stand in a REACH: what a HELLO may say of
// itself, a server may say of others.
func (m *Member) tellable() bool {
	return m.ID != 0 && printable(m.Name) && (m.MTU == 0 || m.MTU >= minMTU && m.MTU <= maxMTU) &&
		len(m.Addresses) <= maxAddresses && !slices.ContainsFunc(m.Addresses, badAddress) &&
		len(m.Networks) <= maxNetworks && !slices.ContainsFunc(m.Networks, badNetwork)
}

// badAddress reports whether an address cannot be that of a member.
func badAddress(a netip.Addr) bool {
	return !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast()
}

func badNetwork(n netip.Prefix) bool { return !n.IsValid() || n.Addr().Is4In6() }

// encodeReach makes the frame that tells of members, and cuts what is too long for one.
// Networks go first, of those members that have most of them, since who is there
// matters more than what is behind and who has few must not suffer; then
// addresses; then the last members.
func encodeReach(all []Member) (frame []byte, cut bool) {
	networks, addresses, members := maxNetworks, maxAddresses, maxMembers
	for {
		told := make([]Member, 0, min(len(all), members))
		for _, m := range all {
			if len(m.Networks) > networks {
				m.Networks, cut = m.Networks[:networks], true
			}
			if len(m.Addresses) > addresses {
				m.Addresses, cut = m.Addresses[:addresses], true
			}
			if len(told) == members || !m.tellable() {
				cut = true
				continue
			}
			told = append(told, m)
		}
		frame, err := appendControl(nil, typeReach, reachMessage{told})
		switch {
		case err == nil:
			return frame, cut
		case networks > 0:
			networks /= 2
		case addresses > 1:
			addresses /= 2
		default:
			members = len(told) * 7 / 8
		}
	}
}

// decodeReach reads the members that a server has links to. Those that are out of
// bounds, or too many, are skipped: they must not cost the others.
func decodeReach(body []byte) (members []Member, skipped int, err error) {
	var all struct {
		Members []json.RawMessage `json:"members"`
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, 0, malformed("REACH: %v", err)
	}
	members = make([]Member, 0, min(len(all.Members), maxMembers))
	for _, one := range all.Members {
		var m Member
		if len(members) == maxMembers || json.Unmarshal(one, &m) != nil || !m.tellable() {
			skipped++
			continue
		}
		members = append(members, m)
	}
	return members, skipped, nil
}
