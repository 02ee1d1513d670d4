package tunnel

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Candidate is one agent that could serve a dial, as a [Picker] sees it.
type Candidate struct {
	// ID is the agent's id, Labels and Serves what it said of itself. They
	// must not be changed.
	ID     string
	Labels map[string]string
	Serves []string
	// Streams is how many streams are open through the agent.
	Streams int
	// RTT is the round-trip time to it, zero if not known yet.
	RTT time.Duration
	// Since is when it connected.
	Since time.Time

	served []served
}

// Picker chooses which agent of a cluster serves a dial: it returns an index
// of candidates, of which there is at least one. They are in the order of
// their ids, none is draining, and suspects are among them only if there is
// nobody else. It is called by many goroutines at once.
type Picker func(target string, candidates []Candidate) int

// LeastStreams picks the agent with the fewest open streams, of several the
// one with the shortest round trip.
func LeastStreams(_ string, candidates []Candidate) int {
	best := 0
	for i, c := range candidates {
		b := candidates[best]
		// An unknown round trip, which is zero, is no short one.
		shorter := c.RTT > 0 && (b.RTT == 0 || c.RTT < b.RTT)
		if c.Streams < b.Streams || c.Streams == b.Streams && shorter {
			best = i
		}
	}
	return best
}

// RoundRobin returns a picker that takes the agents in turn.
func RoundRobin() Picker {
	var turn atomic.Uint64
	return func(_ string, candidates []Candidate) int {
		return int((turn.Add(1) - 1) % uint64(len(candidates)))
	}
}

// ByDestination returns a picker that lets next choose among the agents which
// declare the target most specifically: a longer prefix or name before a
// shorter one, and those that declare nothing, and so serve everything, after
// all that match. Where nobody fits, next chooses among all. A nil next means
// LeastStreams.
func ByDestination(next Picker) Picker {
	if next == nil {
		next = LeastStreams
	}
	return func(target string, candidates []Candidate) int {
		host, _, err := connect.ParseTarget(target)
		if err != nil {
			return next(target, candidates)
		}
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		addr, err := netip.ParseAddr(host)
		if err == nil {
			addr = unmap(addr)
		}
		best, fits := -1, make([]int, 0, len(candidates))
		for i, c := range candidates {
			m := -1
			if len(c.served) == 0 {
				m = 0
			}
			for _, s := range c.served {
				m = max(m, s.match(host, addr))
			}
			switch {
			case m > best:
				best, fits = m, append(fits[:0], i)
			case m == best:
				fits = append(fits, i)
			}
		}
		some := make([]Candidate, len(fits))
		for i, f := range fits {
			some[i] = candidates[f]
		}
		i := next(target, some)
		if i < 0 || i >= len(fits) {
			return -1 // and the dial fails
		}
		return fits[i]
	}
}
