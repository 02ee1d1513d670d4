package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/compare/internal/results"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	o := options{settle: 3 * time.Second}
	flag.IntVar(&o.rounds, "rounds", 5, "`number` of rounds")
	flag.DurationVar(&o.time, "time", 3*time.Second, "`duration` of each measurement")
	flag.IntVar(&o.idle, "idle", 10000, "`number` of idle connections, if there are descriptors for them")
	flag.StringVar(&o.only, "only", "", "`name` of the only contender: direct, entrypoint, haproxy or tcpproxy")
	flag.StringVar(&o.profile, "profile", "", "`file` for a CPU profile of the entrypoint")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := compare(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds  int
	time    time.Duration
	idle    int
	settle  time.Duration // how long idle connections are left alone before they are measured
	only    string
	profile string
}

// compare measures and prints the table to out, and what it is doing to progress.
func compare(ctx context.Context, o options, out, progress io.Writer) error {
	r, err := measure(ctx, o, progress)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s/%s, %d processors, %d descriptors\n\n", runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), maxDescriptors())
	r.Print(out)
	return nil
}

// measure runs all rounds.
func measure(ctx context.Context, o options, progress io.Writer) (*results.Results, error) {
	backend, stop, err := startRole(ctx, "backend")
	if err != nil {
		return nil, err
	}
	defer stop()
	contenders, err := contendersFor(o, backend.address, progress)
	if err != nil {
		return nil, err
	}
	r := results.New(ours, names(contenders)...)
	if err := measureRates(ctx, o, contenders, r, progress); err != nil {
		return nil, err
	}
	for round := range min(o.rounds, 3) {
		for i := range contenders {
			c := contenders[(i+round)%len(contenders)]
			if c.start == nil {
				continue // there is no process
			}
			fmt.Fprintf(progress, "round %d: idle: %s\n", round+1, c.name)
			if err := measureIdle(ctx, o, c, r); err != nil {
				return nil, fmt.Errorf("%s: idle: %w", c.name, err)
			}
		}
	}
	return r, nil
}

// measureRates measures connections and bulk, with all contenders up all the time.
func measureRates(ctx context.Context, o options, contenders []*contender, r *results.Results, progress io.Writer) error {
	running := make([]*process, len(contenders))
	for i, c := range contenders {
		if c.start == nil {
			running[i] = &process{address: c.address}
			continue
		}
		p, stop, err := c.start(ctx, o.profile)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		defer stop()
		running[i] = p
	}
	for round := range o.rounds {
		for _, m := range []struct {
			name string
			run  func(context.Context, *process, time.Duration) (amount, error)
			unit string
			cpu  string // processor time for what
		}{
			{"connections", connections(32), "1/s", "CPU µs/connection"},
			{"bulk, 1 stream", bulk(1), "MiB/s", "CPU µs/MiB"},
			{"bulk, 8 streams", bulk(8), "MiB/s", "CPU µs/MiB"},
		} {
			for i := range contenders {
				n := (i + round) % len(contenders)
				fmt.Fprintf(progress, "round %d: %s: %s\n", round+1, m.name, contenders[n].name)
				a, err := m.run(ctx, running[n], o.time)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", contenders[n].name, m.name, err)
				}
				r.Add(m.name, m.unit, contenders[n].name, a.done/a.took.Seconds())
				if running[n].pid != 0 {
					r.Add(m.name, m.cpu, contenders[n].name, float64(a.cpu.Microseconds())/a.done)
				}
			}
		}
	}
	return nil
}
