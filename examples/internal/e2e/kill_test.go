package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
)

const (
	workers  = 200              // requests under way at any time
	deadline = 10 * time.Second // of each
	recovery = 2 * time.Second  // how soon after the peer is back new requests succeed
)

// TestKillAndRestart kills the server, or the agent, with 200 requests under
// way, and starts it again. For an outage of up to two seconds new requests
// succeed within two seconds after it is back, no request hangs, and nothing of
// them is left in either program.
func TestKillAndRestart(t *testing.T) {
	bin := build(t)
	for _, tc := range []struct {
		peer   string
		outage time.Duration
		long   bool // only with RHIZOME_LONG=1
	}{
		{"server", 1900 * time.Millisecond, false},
		{"agent", 1900 * time.Millisecond, false},
		{"server", 0, true},
		{"server", time.Second, true},
		{"agent", 0, true},
		{"agent", time.Second, true},
	} {
		if tc.long && os.Getenv("RHIZOME_LONG") != "1" {
			continue
		}
		t.Run(fmt.Sprintf("%s/%v", tc.peer, tc.outage), func(t *testing.T) {
			w := newWorld(t, bin)
			server, agent := w.startServer("--agent-listen", w.agents), w.startAgent("--server", "https://"+w.agents)
			w.waitAgent()
			// A program that has been restarted is measured by what it was before.
			idle := map[string]int{w.admin: w.goroutines(w.admin), w.agentAdmin: w.goroutines(w.agentAdmin)}
			load := w.startLoad()
			time.Sleep(2500 * time.Millisecond) // until the load is even

			killed := time.Now()
			if tc.peer == "server" {
				server.Kill()
				time.Sleep(tc.outage)
				server = w.startServer("--agent-listen", w.agents)
			} else {
				agent.Kill()
				time.Sleep(tc.outage)
				agent = w.startAgent("--server", "https://"+w.agents)
			}
			back := time.Now()
			time.Sleep(recovery + 1500*time.Millisecond)
			judge(t, load.stop(), killed, back)
			for addr, before := range idle {
				clitest.Eventually(t, func() error {
					if now := w.goroutines(addr); now > before {
						return fmt.Errorf("http://%s: %d goroutines after the load, %d before", addr, now, before)
					}
					return nil
				})
			}

			for name, p := range map[string]*clitest.Process{"server": server, "agent": agent} {
				if code := p.Stop(); code != 0 {
					t.Errorf("%s: exit code %d after a drain", name, code)
				}
			}
		})
	}
}

// judge looks at all requests of a run.
func judge(t *testing.T, all []request, killed, back time.Time) {
	t.Helper()
	var cut, during, early, good int
	var longest time.Duration
	first := time.Duration(-1)
	var lastFailure time.Duration
	for _, r := range all {
		longest = max(longest, r.end.Sub(r.start))
		switch {
		case r.err == nil:
			good++
			if answered := r.answered.Sub(back); r.start.After(killed) && answered > 0 && (first < 0 || answered < first) {
				first = answered
			}
		case r.end.Before(killed):
			t.Errorf("before the kill: %v", r.err)
		case r.start.Before(killed):
			cut++
		case r.start.Before(back):
			during++
		default:
			early++
			lastFailure = max(lastFailure, r.start.Sub(back))
			if r.start.Sub(back) > recovery {
				t.Errorf("%v after the peer was back: %v", r.start.Sub(back), r.err)
			}
		}
	}
	t.Logf("down for %v; first answer %v after it was back; of %d requests %d were cut off, %d failed while it was down, "+
		"%d that began later (the last %v after it was back); the longest took %v",
		back.Sub(killed).Round(time.Millisecond), first.Round(time.Millisecond), len(all), cut, during, early,
		lastFailure.Round(time.Millisecond), longest.Round(time.Millisecond))
	if first < 0 || first > recovery {
		t.Errorf("the first answer came %v after the peer was back", first)
	}
	if good < workers {
		t.Errorf("only %d requests succeeded", good)
	}
	if longest > deadline+2*time.Second {
		t.Errorf("a request hung for %v", longest)
	}
}

// request is what became of one.
type request struct {
	start, answered, end time.Time
	err                  error
}

// load is workers that ask and ask again.
type load struct {
	stopped context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	mu      sync.Mutex
	all     []request
}

func (w *world) startLoad() *load {
	l := &load{}
	l.stopped, l.cancel = context.WithCancel(context.Background())
	transport := &http.Transport{DialContext: w.client.DialContext, DisableKeepAlives: true}
	w.t.Cleanup(func() { l.stop() })
	for range workers {
		l.work.Go(func() {
			for l.pause(rand.N(200 * time.Millisecond)) {
				r := ask(transport, "http://"+w.target+"/")
				l.mu.Lock()
				l.all = append(l.all, r)
				l.mu.Unlock()
			}
		})
	}
	return l
}

// pause waits, and reports whether to go on.
func (l *load) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-l.stopped.Done():
	}
	return l.stopped.Err() == nil
}

// stop lets the requests under way end, and returns what became of all.
func (l *load) stop() []request {
	l.cancel()
	l.work.Wait()
	return slices.Clone(l.all)
}

// ask makes one request over a connection of its own.
func ask(transport *http.Transport, url string) (r request) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	r.start = time.Now()
	defer func() { r.end = time.Now() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		r.err = err
		return r
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		r.err = err
		return r
	}
	defer res.Body.Close()
	r.answered = time.Now()
	body, err := io.ReadAll(res.Body)
	if err == nil && string(body) != slowBody {
		err = errors.New("half an answer passed for a whole one")
	}
	r.err = err
	return r
}
