package bond

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Status is what a [Bond] does at a moment, for people and for JSON.
type Status struct {
	Policy  string       `json:"policy"`
	Mode    string       `json:"mode"`
	Primary string       `json:"primary,omitempty"`
	Links   []LinkStatus `json:"links"`
	Peers   []PeerStatus `json:"peers"`
	// Everybody are the links of what is for everybody, and for who is not known.
	Everybody []string `json:"everybody"`
	// Unsent is how many packets had no link to go over, Malformed how many of
	// the device's were none.
	Unsent    uint64 `json:"unsent"`
	Malformed uint64 `json:"malformed"`
}

// LinkStatus is one link of a [Status].
type LinkStatus struct {
	Name     string        `json:"name"`
	Since    time.Time     `json:"since"`
	Draining bool          `json:"draining,omitempty"`
	Told     bool          `json:"told"`    // its server has told whom it reaches
	Members  int           `json:"members"` // that its server reaches
	Peers    int           `json:"peers"`   // that it is used for
	RTT      time.Duration `json:"rtt_ns,omitempty"`
	// Sent and Received count packets; Dropped those that had no room in its
	// queue, Doubles those that had come over another link before. Waiting is
	// how many bytes are in its queue.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	Dropped  uint64 `json:"dropped"`
	Doubles  uint64 `json:"doubles"`
	Waiting  int    `json:"waiting"`
}

// PeerStatus is one other member of a [Status].
type PeerStatus struct {
	ID        uint64         `json:"id,string"`
	Name      string         `json:"name,omitempty"`
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	Networks  []netip.Prefix `json:"networks,omitempty"`
	Links     []string       `json:"links"`     // that are used for it
	Reachable []string       `json:"reachable"` // over these
	Since     time.Time      `json:"since"`     // when Links were chosen
}

// Status returns what the bond does now: the links in the order of their names, the
// peers in the order of their addresses.
func (b *Bond) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.init()
	s := Status{
		Policy: b.Policy.String(), Mode: b.Mode.String(), Primary: b.Primary,
		Links: []LinkStatus{}, Peers: []PeerStatus{}, Everybody: nameList(b.table.Load().all.lanes),
		Unsent: b.unsent.Load(), Malformed: b.malformed.Load(),
	}
	for _, name := range slices.Sorted(maps.Keys(b.lanes)) {
		l := b.lanes[name]
		st := LinkStatus{
			Name: name, Since: l.since, Draining: l.draining, Told: l.members != nil, Members: len(l.members), RTT: l.rtt(),
			Sent: l.sent.Load(), Received: l.received.Load(), Dropped: l.dropped.Load(), Doubles: l.doubles.Load(),
			Waiting: l.queue.Stats().Waiting,
		}
		for _, p := range b.peers {
			if slices.Contains(p.lanes, l) {
				st.Peers++
			}
		}
		s.Links = append(s.Links, st)
	}
	for _, p := range b.peers {
		st := PeerStatus{
			ID: p.member.ID, Name: p.member.Name, Addresses: p.member.Addresses, Networks: p.member.Networks,
			Links: nameList(p.lanes), Reachable: []string{}, Since: p.since,
		}
		for _, name := range slices.Sorted(maps.Keys(p.ways)) {
			if p.ways[name].open {
				st.Reachable = append(st.Reachable, name)
			}
		}
		s.Peers = append(s.Peers, st)
	}
	slices.SortFunc(s.Peers, func(x, y PeerStatus) int {
		return cmp.Or(slices.CompareFunc(x.Addresses, y.Addresses, netip.Addr.Compare), cmp.Compare(x.ID, y.ID))
	})
	return s
}
