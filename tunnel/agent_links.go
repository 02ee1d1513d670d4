package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/backoff"
)

// links keeps an agent connected: one session with each distinct server.
//
// An endpoint is an address that a server's name resolved to. It is covered
// while the server that answered there last has a session, whichever address
// that runs over. Uncovered endpoints are dialled. When all are covered and
// PEERS names servers that are not connected, they stand behind a load
// balancer: the endpoints are dialled in turn until each has been met. Servers
// tell who they are before the agent registers, so that these tries disturb
// nobody.
type links struct {
	agent   *Agent
	servers []serverURL
	backoff backoff.Policy
	wake    chan struct{}
	work    sync.WaitGroup

	mu        sync.Mutex
	endpoints map[endpointKey]*endpoint
	links     map[string]*link     // by the server's nonce; draining ones are out
	pending   map[string]bool      // nonces of servers that are being registered with
	avoid     map[string]time.Time // server ids not to register with before then
	turn      int                  // of the endpoints, for PEERS
	probe     endpoint             // the timing of tries for PEERS
	lacking   int                  // how many servers of PEERS were missing last
}

type endpointKey struct{ url, address string }

type endpoint struct {
	key     endpointKey
	server  serverURL
	nonce   string    // of the server that answered here last
	busy    bool      // a try is under way
	next    time.Time // not before then
	outage  backoff.Outage
	lastLog string // the last failure that was logged
}

// link is a session that counts.
type link struct {
	*agentSession
	peers []string // what the server's PEERS named
}

var errKnown = errors.New("a session with this server exists")

func newLinks(a *Agent, servers []serverURL) *links {
	return &links{
		agent: a, servers: servers, backoff: backoff.Policy(a.Backoff).WithDefaults(),
		wake:      make(chan struct{}, 1),
		endpoints: make(map[endpointKey]*endpoint),
		links:     make(map[string]*link),
		pending:   make(map[string]bool),
		avoid:     make(map[string]time.Time),
	}
}

// run works until ctx ends or the agent drains and its sessions have ended.
func (l *links) run(ctx context.Context) {
	defer l.work.Wait()
	// Drain ends the tries to connect, but not the sessions.
	tries, cancel := context.WithCancel(ctx)
	defer cancel()
	l.work.Go(func() { l.follow(tries) })
	drains := l.agent.drainStarted()
	for {
		timer := time.NewTimer(l.step(ctx, tries, time.Now()))
		select {
		case <-l.wake:
		case <-timer.C:
		case <-drains:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func (l *links) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// followEvery is how often names are resolved again.
const followEvery = 10 * time.Second

// follow resolves the servers' names, again and again.
func (l *links) follow(ctx context.Context) {
	failed := make(map[string]string)
	for {
		for _, u := range l.servers {
			addresses, err := l.agent.resolve(ctx, u)
			if ctx.Err() != nil {
				return
			}
			text := fmt.Sprint(err)
			if err != nil && failed[u.text] != text {
				l.agent.logger().Warn("server's name cannot be resolved", "server", u.text, "error", err)
			}
			failed[u.text] = text
			if err == nil {
				l.set(u, addresses)
			}
		}
		l.poke()
		wait := followEvery
		if l.empty() {
			wait = l.backoff.Min * 5
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (l *links) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.endpoints) == 0
}

// maxEndpoints bounds the addresses that are dialled for one name.
const maxEndpoints = 64

// set makes the addresses the endpoints of a server's name. Sessions over an
// address that has gone stay until their server ends them.
func (l *links) set(u serverURL, addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(addresses) > maxEndpoints {
		addresses = addresses[:maxEndpoints]
	}
	for key := range l.endpoints {
		if key.url == u.text && !slices.Contains(addresses, key.address) {
			delete(l.endpoints, key)
		}
	}
	for _, address := range addresses {
		key := endpointKey{u.text, address}
		if l.endpoints[key] == nil {
			l.endpoints[key] = &endpoint{key: key, server: u}
		}
	}
}

// step starts the tries that are due, and returns when to look again. What
// comes of a try is a session, which ends with ctx.
func (l *links) step(ctx, tries context.Context, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := followEvery
	uncovered := false
	if len(l.agent.list()) >= maxSessions {
		return time.Second
	}
	for _, e := range l.endpoints {
		if l.links[e.nonce] != nil {
			continue
		}
		uncovered = true
		switch {
		case e.busy:
		case now.Before(e.next):
			wait = min(wait, e.next.Sub(now))
		default:
			e.busy = true
			l.work.Go(func() { l.try(ctx, tries, e, e) })
		}
	}
	missing := len(l.missing())
	if missing < l.lacking || missing == 0 {
		l.probe.outage = backoff.Outage{} // the tries for PEERS bring something
	}
	l.lacking = missing
	if uncovered || len(l.endpoints) == 0 || l.probe.busy || missing == 0 {
		return wait
	}
	if now.Before(l.probe.next) {
		return min(wait, l.probe.next.Sub(now))
	}
	keys := slices.SortedFunc(maps.Keys(l.endpoints), func(a, b endpointKey) int {
		return cmp.Or(strings.Compare(a.url, b.url), strings.Compare(a.address, b.address))
	})
	e := l.endpoints[keys[l.turn%len(keys)]]
	l.turn++
	l.probe.busy = true
	l.work.Go(func() { l.try(ctx, tries, e, &l.probe) })
	return wait
}

// maxSessions bounds an agent's sessions, draining ones included.
const maxSessions = 256

// missing is the servers that PEERS names and that are not connected.
// l.mu is held.
func (l *links) missing() []string {
	have := make(map[string]bool)
	for _, k := range l.links {
		have[k.remote.ID] = true
	}
	var missing []string
	for _, k := range l.links {
		for _, id := range k.peers {
			if !have[id] {
				have[id] = true
				missing = append(missing, id)
			}
		}
	}
	return missing
}

// try connects to an endpoint and serves the session to its end. Timing is
// the endpoint's own, or that of the tries for PEERS.
func (l *links) try(ctx, tries context.Context, e, timing *endpoint) {
	a := l.agent
	tries, cancel := withTimeout(tries, orDefault(a.ConnectTimeout, 20*time.Second), errSlow)
	var nonce string
	s, err := a.connect(tries, e.server, e.key.address, func(h *helloMessage) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		e.nonce = h.Nonce
		if until := l.avoid[h.ID]; time.Now().Before(until) {
			return fmt.Errorf("another process with this agent's id is connected; waiting until %s", until.Format(time.TimeOnly))
		}
		if l.links[h.Nonce] != nil || l.pending[h.Nonce] {
			return errKnown
		}
		nonce = h.Nonce
		l.pending[h.Nonce] = true
		return nil
	})
	cancel()
	if err != nil {
		l.failed(e, timing, nonce, err)
		return
	}
	l.serve(ctx, e, timing, s)
}

// failed plans the next try after one that gave no session.
func (l *links) failed(e, timing *endpoint, nonce string, err error) {
	l.mu.Lock()
	delete(l.pending, nonce)
	now := time.Now()
	timing.busy = false
	if errors.Is(err, errKnown) && timing == e {
		timing.outage = backoff.Outage{} // somebody answered, and is connected
	}
	policy := l.backoff
	if timing == &l.probe {
		policy = l.probeBackoff()
	}
	wait := timing.outage.Failed(policy, now)
	var refused *connect.Error
	var bye *byeError
	switch {
	case errors.As(err, &refused):
		wait = max(wait, min(refused.RetryAfter, time.Minute))
	case errors.As(err, &bye):
		wait = max(wait, min(time.Duration(bye.RetryAfter)*time.Second, time.Minute))
	}
	timing.next = now.Add(wait)
	text := err.Error()
	log := !errors.Is(err, errKnown) && timing.lastLog != text
	if log {
		timing.lastLog = text
	}
	l.mu.Unlock()
	if log { // once for each reason, not for each try
		l.agent.logger().Warn("cannot connect", "server", e.key.url, "address", e.key.address, "error", err)
	}
	l.poke()
}

// probeBackoff is for the tries for PEERS: a server that is named and down
// must not cost all the others a handshake of each agent every few seconds.
func (l *links) probeBackoff() backoff.Policy {
	b := l.backoff
	b.Max = max(b.Max, 2*time.Minute)
	return b
}

// serve makes a session count, serves it, and plans what comes after it.
func (l *links) serve(ctx context.Context, e, timing *endpoint, s *agentSession) {
	k := &link{agentSession: s}
	nonce := s.remote.Nonce
	accepted := s.onPeers
	s.onPeers = func(peers []string) {
		accepted(peers)
		l.mu.Lock()
		k.peers = peers[:min(len(peers), maxEndpoints)]
		l.mu.Unlock()
		l.poke()
	}
	s.onDrain = func(reason string) {
		s.log.Info("server drains the session", "reason", reason)
		l.uncover(k, reason)
		s.endDrained(-1) // for how long is the server's business
	}
	l.mu.Lock()
	delete(l.pending, nonce)
	l.links[nonce] = k
	timing.busy = false
	timing.lastLog = ""
	if timing == &l.probe {
		timing.next = time.Now().Add(timing.outage.Failed(l.probeBackoff(), time.Now()))
	}
	l.mu.Unlock()
	l.poke()
	s.log.Info("connected", "address", e.key.address, "version", s.version)
	err := s.serve(ctx)
	lasted := time.Since(s.started)
	s.log.Info("disconnected", "address", e.key.address, "error", err, "lasted", lasted.Round(time.Millisecond))
	l.lost(k, e, timing, lasted, err)
}

// uncover takes a session that drains out of the count, so that another one
// is made before it ends.
func (l *links) uncover(k *link, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.links[k.remote.Nonce] == k {
		delete(l.links, k.remote.Nonce)
		now := time.Now()
		for _, e := range l.endpoints {
			if e.nonce == k.remote.Nonce {
				// A server that drains tells all its agents at once, and one
				// that drains again and again is like one that is down.
				e.outage.Ended(l.backoff, time.Since(k.started))
				e.next = now.Add(max(rand.N(5*l.backoff.Min), e.outage.Failed(l.backoff, now)))
			}
		}
	}
	l.endOldDrains(k.remote.ID)
	if reason == drainReplaced {
		// Two processes with one id: stay away for a while, at random, so
		// that they do not take the place from each other for ever.
		wait := replacedWait/2 + rand.N(replacedWait)
		l.avoid[k.remote.ID] = time.Now().Add(wait)
		l.agent.logger().Error("another process with this agent's id is connected", "server", k.remote.ID, "id", k.local.ID, "wait", wait)
	}
	l.poke()
}

// maxDrains is how many sessions with one server may drain at a time.
const maxDrains = 4

// endOldDrains cuts off the oldest sessions with a server that drain, if there
// are too many of them.
func (l *links) endOldDrains(server string) {
	var draining []*agentSession
	for _, s := range l.agent.list() {
		if _, d := s.isDraining(); d && s.remote.ID == server {
			draining = append(draining, s)
		}
	}
	slices.SortFunc(draining, func(a, b *agentSession) int { return a.started.Compare(b.started) })
	for len(draining) > maxDrains {
		s := draining[0]
		draining = draining[1:]
		go func() { _ = s.mux.Close(errManyDrains) }()
	}
}

var errManyDrains = errors.New("tunnel: too many sessions with this server drain")

// replacedWait is about how long a replaced agent stays away.
const replacedWait = time.Minute

// lost plans the next try after a session ended.
func (l *links) lost(k *link, e, timing *endpoint, lasted time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.links[k.remote.Nonce] == k {
		delete(l.links, k.remote.Nonce)
		timing.outage.Ended(l.backoff, lasted)
		wait := timing.outage.Failed(l.backoff, now)
		var bye *byeError
		if errors.As(err, &bye) {
			wait = max(wait, min(time.Duration(bye.RetryAfter)*time.Second, time.Minute))
		}
		timing.next, e.next = now.Add(wait), now.Add(wait)
	}
	for id, until := range l.avoid {
		if now.After(until) {
			delete(l.avoid, id)
		}
	}
	l.poke()
}
