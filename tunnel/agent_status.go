package tunnel

import (
	"cmp"
	"slices"
	"time"
)

// SessionStatus is one session of an [Agent], for an admin page.
type SessionStatus struct {
	// Server is the server's id.
	Server string    `json:"server"`
	Since  time.Time `json:"since"`
	// State is connecting (the server has not accepted the agent yet), ready,
	// suspect or draining.
	State string `json:"state"`
	// Streams are open now.
	Streams int `json:"streams"`
	// RTT and Jitter are smoothed, in milliseconds, zero if not known yet.
	// Loss is the share of PINGs without an answer.
	RTT    float64 `json:"rttMillis"`
	Jitter float64 `json:"jitterMillis"`
	Loss   float64 `json:"loss"`
}

// Sessions returns the agent's sessions in the order of the servers' ids.
func (a *Agent) Sessions() []SessionStatus {
	list := []SessionStatus{}
	for _, s := range a.list() {
		list = append(list, s.status())
	}
	slices.SortFunc(list, func(a, b SessionStatus) int {
		return cmp.Or(cmp.Compare(a.Server, b.Server), a.Since.Compare(b.Since))
	})
	return list
}

func (s *agentSession) status() SessionStatus {
	st := SessionStatus{Server: s.remote.ID, Since: s.started, State: "ready", Streams: s.streams()}
	rtt, jitter, loss := s.live.roundTrip()
	st.RTT, st.Jitter, st.Loss = millis(rtt), millis(jitter), loss
	select {
	case <-s.accepted:
	default:
		st.State = "connecting"
	}
	if s.live.isSuspect() {
		st.State = "suspect"
	}
	if _, draining := s.isDraining(); draining {
		st.State = "draining"
	}
	return st
}
