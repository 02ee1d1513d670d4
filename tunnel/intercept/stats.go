package intercept

import (
	"maps"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Stats is what an [Interceptor] has done so far, for an admin page. All but
// Open only grow.
type Stats struct {
	// Open is how many connections there are now, dials under way included.
	Open int `json:"open"`
	// Accepted is how many clients came, the ones below included.
	Accepted int64 `json:"accepted"`
	// Failed are the clients that were reset because they could not be
	// forwarded, by reason: one of the constants here, or of package connect,
	// such as connection_refused or http_request_denied.
	Failed map[string]int64 `json:"failed"`
	// Broken are the connections that did not end in order after they had been
	// forwarded, by what failed, one of the Op constants of package relay. A
	// client that resets is among them.
	Broken map[string]int64 `json:"broken"`
	// ToEntrypoint and FromEntrypoint are bytes of the clients and for them.
	ToEntrypoint   int64 `json:"bytesToEntrypoint"`
	FromEntrypoint int64 `json:"bytesFromEntrypoint"`
}

// Stats returns the counts of now. It can be called at any time.
func (i *Interceptor) Stats() Stats {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := Stats{Open: len(i.conns), Accepted: i.counts.accepted, Failed: i.counts.failed.copy(), Broken: i.counts.broken.copy()}
	s.ToEntrypoint, s.FromEntrypoint = i.counts.relayed.Bytes()
	return s
}

// counts is under the Interceptor's lock, but for relayed.
type counts struct {
	accepted       int64
	failed, broken tally
	relayed        relay.Counter
}

func (i *Interceptor) count(f func(*counts)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(&i.counts)
}

// tally counts by name; its zero value is empty.
type tally struct{ m map[string]int64 }

func (t *tally) add(name string) {
	if t.m == nil {
		t.m = make(map[string]int64)
	}
	t.m[name]++
}

func (t *tally) copy() map[string]int64 {
	c := make(map[string]int64, len(t.m))
	maps.Copy(c, t.m)
	return c
}
