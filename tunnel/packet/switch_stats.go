package packet

import (
	"slices"
	"time"
)

// SwitchStats is what a [Switch] has done since it was made.
type SwitchStats struct {
	// Frames and Bytes came in at all ports, those that have ended included;
	// Drops of them, and those that found a queue full, went no further.
	Frames uint64          `json:"frames"`
	Bytes  uint64          `json:"bytes"`
	Drops  map[Drop]uint64 `json:"drops,omitempty"`
	// MACs is how many Ethernet addresses are known.
	MACs int `json:"macs"`
	// ReachCut is how many changes of the members links were not told of in full, since
	// that is longer than a frame may be.
	ReachCut uint64 `json:"reachCut,omitempty"`
	// Ports are those that there are now, from the oldest to the newest.
	Ports []PortStats `json:"ports"`
}

// PortStats is what one port has done since it came.
type PortStats struct {
	// Name is the port's, Member what is believed of it.
	Name    string `json:"name"`
	Member  Member `json:"member"`
	Trusted bool   `json:"trusted,omitempty"`
	// MACs is how many Ethernet addresses are behind it.
	MACs int `json:"macs"`
	// FramesIn and BytesIn came from the port. Drops were dropped of them; only
	// [DropQueue] counts what the port should have got.
	FramesIn uint64          `json:"framesIn"`
	BytesIn  uint64          `json:"bytesIn"`
	Drops    map[Drop]uint64 `json:"drops,omitempty"`
	// Queue is what was to go to it.
	Queue QueueStats `json:"queue"`
}

// switchTotals are sums over ports.
type switchTotals struct {
	frames, bytes uint64
	dropped       [drops]uint64
}

func (t *switchTotals) add(p *switchPort) {
	t.frames += p.in.frames.Load()
	t.bytes += p.in.bytes.Load()
	for d := range t.dropped {
		t.dropped[d] += p.in.dropped[d].Load()
	}
	t.dropped[DropQueue] += p.queue.Stats().Dropped
}

// drops returns those that there are.
func (t *switchTotals) drops() map[Drop]uint64 {
	m := make(map[Drop]uint64)
	for d, n := range t.dropped {
		if n > 0 {
			m[Drop(d)] = n
		}
	}
	return m
}

// Stats returns the counts.
func (s *Switch) Stats() SwitchStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.past
	for p := range s.serving {
		all.add(p)
	}
	st := SwitchStats{Frames: all.frames, Bytes: all.bytes, Drops: all.drops(), ReachCut: s.cut.Load(), Ports: make([]PortStats, 0, len(s.ports))}
	if s.table == nil {
		return st
	}
	macs, n := s.table.sizes(time.Now().UnixNano(), s.ports)
	st.MACs = n
	for i, p := range s.ports {
		var t switchTotals
		t.add(p)
		m := p.member
		m.Addresses, m.Networks = slices.Clone(m.Addresses), slices.Clone(m.Networks)
		st.Ports = append(st.Ports, PortStats{
			Name: p.name(), Member: m, Trusted: p.trusted, MACs: macs[i],
			FramesIn: t.frames, BytesIn: t.bytes, Drops: t.drops(), Queue: p.queue.Stats(),
		})
	}
	return st
}

// end counts a port that has ended among the past.
func (s *Switch) end(p *switchPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.serving, p)
	s.past.add(p)
}
