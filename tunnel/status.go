package tunnel

import "time"

// ClusterStatus is what a [Server] knows of one cluster, for an admin page.
type ClusterStatus struct {
	Cluster string `json:"cluster"`
	// Agents are the sessions, draining ones included, by agent id.
	Agents []AgentStatus `json:"agents"`
	// Clients is the number of open client connections, Streams that of
	// dials and streams.
	Clients int64 `json:"clients"`
	Streams int64 `json:"streams"`
	// Dials and Failed count since the cluster was first seen, Failed among
	// Dials. FromAgents and ToAgents are bytes of streams. A cluster that
	// nobody uses any more is forgotten, with its counts.
	Dials      int64 `json:"dials"`
	Failed     int64 `json:"failed"`
	FromAgents int64 `json:"bytesFromAgents"`
	ToAgents   int64 `json:"bytesToAgents"`
	// Unread is how many bytes from agents wait for slow clients.
	Unread int64 `json:"bytesUnread"`
}

// AgentStatus is one session of an agent.
type AgentStatus struct {
	ID       string            `json:"id"`
	Identity string            `json:"identity"` // of its credential
	Remote   string            `json:"remote"`
	Labels   map[string]string `json:"labels,omitempty"`
	Serves   []string          `json:"serves,omitempty"`
	Since    time.Time         `json:"since"`
	// State is ready, suspect or draining.
	State string `json:"state"`
	// Streams are open now, Dials were tried in all.
	Streams int   `json:"streams"`
	Dials   int64 `json:"dials"`
	// RTT and Jitter are smoothed, in milliseconds, zero if not known yet.
	// Loss is the share of PINGs without an answer.
	RTT    float64 `json:"rttMillis"`
	Jitter float64 `json:"jitterMillis"`
	Loss   float64 `json:"loss"`
}

// Clusters returns what is known of each cluster, in the order of their names.
func (s *Server) Clusters() []ClusterStatus {
	list := []ClusterStatus{}
	for _, c := range s.registry.all() {
		list = append(list, c.status())
	}
	return list
}

// Ready reports whether the server takes connections: doors are open and it
// does not drain. It says nothing about agents, because a server that waits
// for some must be reachable for them.
func (s *Server) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.doors) > 0 && !s.draining
}

// HasAgent reports whether a dial to the cluster would find an agent.
func (s *Server) HasAgent(cluster string) bool {
	c := s.registry.get(cluster)
	return c != nil && c.hasAgent()
}

func (c *cluster) status() ClusterStatus {
	l := c.load()
	st := ClusterStatus{
		Cluster: c.name, Agents: []AgentStatus{},
		Clients: c.clients.Load(), Streams: c.streams.Load(),
		Dials: c.counters.dials.Load(), Failed: c.counters.failed.Load(),
		FromAgents: c.counters.fromAgents.Load(), ToAgents: c.counters.toAgents.Load(),
		Unread: l.unread,
	}
	for _, a := range c.list() {
		st.Agents = append(st.Agents, a.status())
	}
	return st
}

func (a *remoteAgent) status() AgentStatus {
	rtt, jitter, loss := a.live.roundTrip()
	state := "ready"
	if a.live.isSuspect() {
		state = "suspect"
	}
	if _, draining := a.isDraining(); draining {
		state = "draining"
	}
	return AgentStatus{
		ID: a.remote.ID, Identity: a.identity.Name, Remote: a.addr.String(),
		Labels: a.remote.Labels, Serves: a.remote.Serves, Since: a.started, State: state,
		Streams: a.streams(), Dials: a.dialled.Load(),
		RTT: millis(rtt), Jitter: millis(jitter), Loss: loss,
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
