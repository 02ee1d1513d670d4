package pathcontrol

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "seed of the simulation; 0 picks one")
	historiesFlag = flag.Int("histories", 1000, "how many histories the simulation has")
)

// change is a death or a recovery of a path.
type change struct {
	at   time.Duration // after the start
	path int
	dead bool
}

// history is what happens to some paths, and what a Controller makes of it.
type history struct {
	*rig
	length  time.Duration
	steady  bool // nothing but loss
	paths   []*fakePath
	changes []change
	script  []string // for the report of a failure
}

// newHistory makes one. Everything in it comes from the two numbers.
func newHistory(t *testing.T, seed, number uint64) *history {
	random := rand.New(rand.NewPCG(seed, number))
	h := &history{length: 30 * time.Second, steady: number%5 == 0}
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(random.Float64()*float64(most-least))
	}
	for i := range 2 + random.IntN(2) {
		p := &fakePath{name: string(rune('a' + i)), rtt: between(time.Millisecond, 400*time.Millisecond)}
		draws := rand.New(rand.NewPCG(seed+number, uint64(i)))
		loss := 0.2
		if !h.steady {
			loss *= random.Float64()
		}
		p.lost = func(uint64) bool { return draws.Float64() < loss }
		h.script = append(h.script, fmt.Sprintf("%s: rtt %v, loss %.2f", p.name, p.rtt, loss))
		h.paths = append(h.paths, p)
		if h.steady {
			continue
		}
		// It is alive for a while, dead for a while; some of both are short.
		for at, dead := between(0, h.length/2), true; at < h.length; {
			h.changes = append(h.changes, change{at, i, dead})
			dead = !dead
			most := 10 * time.Second
			if dead { // the next: now it is alive
				most = 25 * time.Second
			}
			if random.IntN(3) == 0 {
				most = 3 * time.Second
			}
			at += between(time.Millisecond, most)
		}
		for range random.IntN(3) {
			at, rtt := between(0, h.length), between(time.Millisecond, 450*time.Millisecond)
			h.script = append(h.script, fmt.Sprintf("%v: %s has rtt %v", at, p.name, rtt))
			time.AfterFunc(at, func() { p.slow(rtt) })
		}
	}
	slices.SortFunc(h.changes, func(a, b change) int { return int(a.at - b.at) })
	h.rig = newRig(t, h.paths...)
	h.Failback = Failback(random.IntN(3))
	if random.IntN(2) == 0 {
		for i := range h.Paths {
			h.Paths[i].Preference = random.IntN(2)
		}
	}
	for _, p := range h.Paths {
		h.script = append(h.script, fmt.Sprintf("%s: preference %d", p.Name, p.Preference))
	}
	h.script = append(h.script, fmt.Sprintf("failback %d", h.Failback))
	for _, c := range h.changes {
		f, word := h.paths[c.path].live, "lives"
		if c.dead {
			f, word = h.paths[c.path].die, "dies"
		}
		h.script = append(h.script, fmt.Sprintf("%v: %s %s", c.at, h.paths[c.path].name, word))
		time.AfterFunc(c.at, f)
	}
	return h
}

// TestSimulation runs random histories of loss, delay, death and recovery
// through a Controller: there is at most one switch for each real change, a
// path that dies is left within 2.5 s if another is up, and there is none while
// a fifth of the round trips is lost on all paths.
func TestSimulation(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	count := *historiesFlag
	if testing.Short() || underRace {
		count = min(count, 100)
	}
	switches, deaths, left := 0, 0, 0
	const together = 50 // in one bubble
	for first := 0; first < count && !t.Failed(); first += together {
		tunneltest.Bubble(t, func(t *testing.T) {
			var all []*history
			for i := first; i < min(first+together, count); i++ {
				h := newHistory(t, seed, uint64(i))
				h.run()
				all = append(all, h)
			}
			time.Sleep(all[0].length)
			for i, h := range all {
				h.end()
				mistakes, n := h.judge()
				for _, m := range mistakes {
					t.Errorf("history %d: %s", first+i, m)
				}
				if len(mistakes) > 0 {
					t.Logf("history %d of seed %d (go test -run Simulation -seed %d): %q\n%q", first+i, seed, seed, h.script, h.told())
				}
				switches += int(h.Status().Switches)
				left += n
				for _, c := range h.changes {
					if c.dead {
						deaths++
					}
				}
			}
		})
	}
	t.Logf("seed %d: %d histories, %d deaths, %d of them of the path in use with another one up, %d switches", seed, count, deaths, left, switches)
	if !t.Failed() && (left < count/4 || switches < count/4) {
		t.Error("too little has happened: is this test still one?")
	}
}

func (h *history) told() (list []string) {
	for _, e := range h.events {
		list = append(list, fmt.Sprintf("%v %s %s: %s", e.Time.Sub(h.start), e.Kind, e.Path, e.Reason))
	}
	return list
}

// index finds a path by its name.
func (h *history) index(name string) int {
	return slices.IndexFunc(h.paths, func(p *fakePath) bool { return p.name == name })
}

// lastChange is the index of the newest change of a path until then, of the
// given kind; -1 is the start.
func (h *history) lastChange(path int, dead bool, until time.Duration) int {
	last := -1
	for i, c := range h.changes {
		if c.path == path && c.dead == dead && c.at <= until {
			last = i
		}
	}
	return last
}

// judge returns what the Controller has done wrong, and how many deaths there
// were that it had to react to.
func (h *history) judge() (mistakes []string, left int) {
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	if h.steady && h.Status().Switches > 0 {
		wrong("%d switches although nothing has changed", h.Status().Switches)
	}

	// Each switch has a reason of its own.
	seen := make(map[int]string)
	down := make(map[string]bool)
	for _, e := range h.events {
		at := e.Time.Sub(h.start)
		switch e.Kind {
		case PathUp:
			down[e.Path] = false
		case PathDown:
			down[e.Path] = true
		case Switched:
			if e.From == "" {
				continue
			}
			reason := -1
			if down[e.From] {
				reason = h.lastChange(h.index(e.From), true, at)
			} else {
				reason = h.lastChange(h.index(e.Path), false, at)
			}
			if what := fmt.Sprintf("%s to %s after %v", e.From, e.Path, at); reason < 0 {
				wrong("switch from %s for no reason", what)
			} else if seen[reason] != "" {
				wrong("switches from %s and from %s for one change, that of %s at %v", seen[reason], what, h.paths[h.changes[reason].path].name, h.changes[reason].at)
			} else {
				seen[reason] = what
			}
		}
	}

	// Each death is seen in time.
	const limit = 2500 * time.Millisecond
	for i, c := range h.changes {
		if !c.dead || c.at+limit > h.length || h.changedWithin(i, c.path, limit) || h.chosenAt(c.at+limit) == "" {
			continue
		}
		another := slices.ContainsFunc(h.paths, func(p *fakePath) bool {
			return p.name != h.paths[c.path].name && h.upThroughout(p.name, c.at, c.at+limit)
		})
		if !another {
			continue
		}
		if h.chosenAt(c.at) == h.paths[c.path].name {
			left++
		}
		if h.chosenAt(c.at+limit) == h.paths[c.path].name {
			wrong("%s died after %v, and was still used %v later", h.paths[c.path].name, c.at, limit)
		}
	}
	return mistakes, left
}

// changedWithin tells whether a path changes again soon after its i-th change.
func (h *history) changedWithin(i, path int, d time.Duration) bool {
	return slices.ContainsFunc(h.changes[i+1:], func(c change) bool { return c.path == path && c.at <= h.changes[i].at+d })
}

// chosenAt is the path that is chosen right after that time.
func (h *history) chosenAt(at time.Duration) (path string) {
	for _, e := range h.events {
		if e.Kind == Switched && e.Time.Sub(h.start) <= at {
			path = e.Path
		}
	}
	return path
}

// upThroughout tells whether a path was alive, and up for the Controller, all
// the time.
func (h *history) upThroughout(path string, from, to time.Duration) bool {
	up := false
	for _, e := range h.events {
		if at := e.Time.Sub(h.start); e.Path == path && at <= to {
			if e.Kind == PathUp && at <= from {
				up = true
			} else if e.Kind == PathDown {
				up = false
			}
		}
	}
	i := h.index(path)
	died, lived := h.lastChange(i, true, to), h.lastChange(i, false, from)
	return up && died <= lived
}
