//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
)

// event is one thing that happens, and what must hold then.
type event struct {
	name string
	// do makes it happen, mend takes it back.
	do, mend func(*world) error
	// limit is the longest outage that there may be; 0: any.
	limit time.Duration
	// mayLose is whether open connections may end.
	mayLose bool
	// rolled is whether the programs find together before it is taken back, as
	// whoever restarts one after the other waits for.
	rolled bool
	// more marks what happens only with --more, or by name.
	more bool
	// firstSYN is whether a dial that begins 3 s later succeeds at once.
	firstSYN bool
}

// Limits of an outage: a peer that is killed is seen to go, one that falls silent
// is dead after 2.5 s.
const (
	seen   = 500 * time.Millisecond
	silent = 3 * time.Second
)

func events() []event {
	all := []event{
		{
			name: "server-killed", limit: seen,
			do:   func(w *world) error { w.serverRuns[0].Kill(); return nil },
			mend: func(w *world) error { return w.startServer(0) },
		},
		{
			name: "server-blackholed", limit: silent,
			do:   func(w *world) error { return w.lab.Blackhole(w.servers[0]) },
			mend: func(w *world) error { return w.lab.Mend() },
		},
	}
	for leg := range 4 {
		shoot, server := leg/2, leg%2
		all = append(all, event{
			name: fmt.Sprintf("leg-cut-%d", leg+1), limit: silent,
			do:   func(w *world) error { return w.lab.Cut(w.shoots[shoot], w.servers[server]) },
			mend: func(w *world) error { return w.lab.Mend() },
		})
	}
	all = append(all,
		event{
			// Its connections end with what it knew of them, if it masquerades.
			name: "shoot-client-killed", mayLose: true, firstSYN: true,
			do:   func(w *world) error { w.clientRuns[0].Kill(); return nil },
			mend: func(w *world) error { return w.startShoot(0) },
		},
		event{
			name: "servers-rolled", rolled: true,
			do:   func(w *world) error { return w.roll(0) },
			mend: func(w *world) error { return w.roll(1) },
		},
	)
	// One side of a link goes on to hear the other.
	for _, way := range []struct {
		name     string
		from, to func(*world) *netlab.Host
	}{
		{"shoot-0-to-server-0", shoot0, server0}, {"server-0-to-shoot-0", server0, shoot0},
		{"seed-to-server-0", seed, server0}, {"server-0-to-seed", server0, seed},
	} {
		all = append(all, event{
			name: "one-way-cut-" + way.name, limit: silent, more: true,
			do:   func(w *world) error { return w.lab.CutOneWay(way.from(w), way.to(w)) },
			mend: func(w *world) error { return w.lab.Mend() },
		})
	}
	return all
}

func seed(w *world) *netlab.Host    { return w.seed }
func server0(w *world) *netlab.Host { return w.servers[0] }
func shoot0(w *world) *netlab.Host  { return w.shoots[0] }

// roll restarts a server as an update does.
func (w *world) roll(i int) error {
	if err := w.serverRuns[i].Stop(30 * time.Second); err != nil {
		return fmt.Errorf("server %d: %w", i, err)
	}
	return w.startServer(i)
}

// row is a line of the table.
type row struct {
	Event   string  `json:"event"`
	Backend string  `json:"backend"`
	Outage  float64 `json:"outage_ms"`
	Lost    int     `json:"lost"`

	misses string    // what it misses, or empty
	since  time.Time // when the outage began
}

// Times of an event.
const (
	watched  = 4 * time.Second // how long it lasts: more than the slowest may take
	dialAt   = 3 * time.Second // when the dial begins that must succeed at once
	answered = 15 * time.Second
	streamed = 8 // connections that live through it
)

// happen makes an event happen under traffic and takes it back. What it measures
// is both, the way there and the way back.
func (w *world) happen(ctx context.Context, b *beat, e event) (row, error) {
	r := row{Event: e.name, Backend: w.backend}
	s, err := newStreams(w.seed, target, streamed)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.run(ctx)
	}()
	defer func() {
		cancel()
		<-over
	}()
	if n := s.alive(answered); n > 0 {
		return r, fmt.Errorf("%d of %d connections carry nothing before anything has happened", n, streamed)
	}
	start := time.Now()
	if err := e.do(w); err != nil {
		return r, err
	}
	if e.firstSYN {
		pause(ctx, time.Until(start.Add(dialAt)))
		if _, err := firstSYN(w.seed, target); err != nil {
			r.misses = fmt.Sprintf("a dial %v later: %v", dialAt, err)
		}
	}
	pause(ctx, time.Until(start.Add(watched)))
	silent := s.alive(answered)
	if e.rolled {
		if err := w.settled(ctx); err != nil {
			return r, err
		}
	}
	if err := e.mend(w); err != nil {
		return r, err
	}
	if err := w.settled(ctx); err != nil {
		return r, err
	}
	r.Lost = max(silent, s.alive(answered))
	outage, since := b.gap(start, time.Now())
	r.since = since
	r.Outage = ms(outage)
	switch {
	case r.misses != "":
	case e.limit > 0 && outage > e.limit:
		r.misses = fmt.Sprintf("outage above %v", e.limit)
	case r.Lost > 0 && !e.mayLose:
		r.misses = "connections lost"
		if why := s.why.Load(); why != nil {
			r.misses += ": " + (*why).Error()
		}
	}
	return r, nil
}

func ms(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond/10)) / float64(time.Millisecond)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
