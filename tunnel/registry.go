package tunnel

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// registry knows the clusters of a server and their agents. Everything about
// a cluster hangs on its own entry, and an entry is only ever reached by the
// name that a credential gave: a dial of one cluster cannot see an agent of
// another.
type registry struct {
	mu       sync.Mutex
	clusters map[string]*cluster
	swept    time.Time
}

// cluster is the unit of isolation.
type cluster struct {
	name string

	mu        sync.Mutex
	agents    map[string]*remoteAgent // by id; may be suspect, but not draining
	sessions  map[*remoteAgent]struct{}
	changed   chan struct{} // closed when the agents change
	lastAgent time.Time     // when the last one went
	users     int           // dials, streams and client connections

	streams  atomic.Int64
	clients  atomic.Int64
	dials    guard.Rate
	counters counters

	clientLog, agentLog guard.LogLimit
}

// counters are what happened in a cluster since its first use.
type counters struct {
	dials, failed        atomic.Int64
	fromAgents, toAgents atomic.Int64 // bytes
}

// remoteAgent is one session of an agent, on the server's side.
type remoteAgent struct {
	*session
	cluster  *cluster
	identity Identity
	addr     net.Addr
	mute     atomic.Int64 // UnixNano of the last dial that it left unanswered
	served   []served
	dialled  atomic.Int64
}

// use returns the entry of a cluster whose name was authenticated. The caller
// must call done.
func (r *registry) use(name string) (c *cluster, done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	c = r.clusters[name]
	if c == nil {
		c = &cluster{
			name:     name,
			agents:   make(map[string]*remoteAgent),
			sessions: make(map[*remoteAgent]struct{}),
			changed:  make(chan struct{}),
		}
		if r.clusters == nil {
			r.clusters = make(map[string]*cluster)
		}
		r.clusters[name] = c
	}
	c.mu.Lock()
	c.users++
	c.mu.Unlock()
	return c, sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.users--
	})
}

// remembered is how long a cluster without agents counts as reconnecting, and
// how long its entry is kept.
const remembered = time.Minute

// sweepEvery is how often sweep does something.
const sweepEvery = 10 * time.Second

// sweep forgets clusters that nobody used for a while; r.mu is held.
func (r *registry) sweep(now time.Time) {
	if now.Sub(r.swept) < sweepEvery {
		return
	}
	r.swept = now
	for name, c := range r.clusters {
		c.mu.Lock()
		if c.users == 0 && len(c.sessions) == 0 && now.Sub(c.lastAgent) > remembered {
			delete(r.clusters, name)
		}
		c.mu.Unlock()
	}
}

func (r *registry) all() []*cluster {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	all := make([]*cluster, 0, len(r.clusters))
	for _, c := range r.clusters {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *cluster) int { return strings.Compare(a.name, b.name) })
	return all
}

// get returns the entry of a cluster if there is one.
func (r *registry) get(name string) *cluster {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clusters[name]
}

// add registers an agent. A session with the same id that was there is
// returned: it has to drain, as renewed if it is the same process, else as
// replaced.
func (c *cluster) add(a *remoteAgent, limit int) (old *remoteAgent, reason string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old = c.agents[a.remote.ID]
	if old == nil && len(c.agents) >= limit {
		return nil, "", fmt.Errorf("tunnel: cluster %s has %d agents, which is its limit", c.name, limit)
	}
	// Draining sessions hold memory too: a process that reconnects in a loop
	// must not pile them up.
	if len(c.sessions) >= 4*limit {
		return nil, "", fmt.Errorf("tunnel: cluster %s has %d sessions that still drain", c.name, len(c.sessions))
	}
	if old != nil {
		reason = drainReplaced
		if old.remote.Nonce == a.remote.Nonce {
			reason = drainRenewed
		}
	}
	c.agents[a.remote.ID] = a
	c.sessions[a] = struct{}{}
	c.notify()
	return old, reason, nil
}

// retire takes an agent out of the choice; its session goes on.
func (c *cluster) retire(a *remoteAgent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.agents[a.remote.ID] == a {
		delete(c.agents, a.remote.ID)
		c.lastAgent = time.Now()
		c.notify()
	}
}

// remove forgets a session that has ended.
func (c *cluster) remove(a *remoteAgent) {
	c.retire(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, a)
	c.lastAgent = time.Now()
}

func (c *cluster) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// choose lists the agents that can take a dial, without those that were tried,
// and with suspects only if there is nobody else. The channel is closed when
// asking again may help; reconnecting says whether that is to be expected.
func (c *cluster) choose(tried map[*remoteAgent]bool) (agents []*remoteAgent, changed <-chan struct{}, reconnecting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var suspects []*remoteAgent
	for _, a := range c.agents {
		switch {
		case tried[a]:
		case a.live.isSuspect() || a.isMute():
			suspects = append(suspects, a)
		default:
			agents = append(agents, a)
		}
	}
	if len(agents) == 0 {
		agents = suspects
	}
	slices.SortFunc(agents, func(a, b *remoteAgent) int { return strings.Compare(a.remote.ID, b.remote.ID) })
	reconnecting = len(c.sessions) > 0 || !c.lastAgent.IsZero() && time.Since(c.lastAgent) < remembered
	return agents, c.changed, reconnecting
}

// muteFor is how long an agent that left a dial unanswered is picked last.
const muteFor = 30 * time.Second

func (a *remoteAgent) isMute() bool {
	at := a.mute.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < muteFor
}

// list is the sessions of the cluster, draining ones included.
func (c *cluster) list() []*remoteAgent {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*remoteAgent, 0, len(c.sessions))
	for a := range c.sessions {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b *remoteAgent) int {
		if d := strings.Compare(a.remote.ID, b.remote.ID); d != 0 {
			return d
		}
		return a.started.Compare(b.started)
	})
	return all
}

// hasAgent reports whether a dial would find somebody.
func (c *cluster) hasAgent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.agents) > 0
}

// load is what the sessions of a cluster carry.
type load struct {
	streams      int
	unread, held int64
	most         *remoteAgent // holds most
}

func (c *cluster) load() (l load) {
	var largest int64
	for _, a := range c.list() {
		l.streams += a.streams()
		l.unread += a.mux.Unread()
		held := a.mux.Held()
		l.held += held
		if held > largest {
			largest, l.most = held, a
		}
	}
	return l
}
