//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

func main() { cli.Main("ha", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rhizome-ha-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.programs == "" {
		o.programs = dir
		if err := build(ctx, dir); err != nil {
			return err
		}
	}
	var missed []error
	print := o.printer(stdout)
	for _, backend := range o.backends {
		err := o.runBackend(ctx, backend, dir, stderr, func(r row, last bool) {
			print(r)
			if r.misses != "" && last {
				missed = append(missed, fmt.Errorf("%s, backend %s: %s", r.Event, r.Backend, r.misses))
			}
		})
		switch {
		case errors.Is(err, bond.ErrUnsupported) && !o.asked:
			fmt.Fprintf(stderr, "ha: backend %s is left out: %v\n", backend, err)
		case err != nil:
			return fmt.Errorf("backend %s: %w", backend, err)
		}
	}
	return errors.Join(missed...)
}

// build compiles the programs.
func build(ctx context.Context, dir string) error {
	const examples = "github.com/rhizome-tunnel/rhizome/examples/"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", examples+"seed/vpn-server", examples+"seed/path-controller", examples+"shoot/vpn-client")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// runBackend lets all events happen with a backend of the bond.
func (o *options) runBackend(ctx context.Context, backend, dir string, stderr io.Writer, tell func(r row, last bool)) (err error) {
	w, err := newWorld(backend, o.programs, dir)
	if err != nil {
		return err
	}
	defer w.close()
	defer func() {
		if o.verbose {
			fmt.Fprint(stderr, w.logs(math.MaxInt))
		} else if err != nil {
			fmt.Fprint(stderr, w.logs(15))
		}
	}()
	if backend == "kernel" {
		if err := w.bonding(); err != nil {
			return err
		}
	}
	e, err := newEchoes(w.pod, target)
	if err != nil {
		return err
	}
	b, err := newBeat(w.seed, target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { e.run(ctx) })
	work.Go(func() { b.run(ctx) })
	if err := w.startAll(ctx); err != nil {
		return err
	}
	for _, event := range events() {
		if len(o.events) > 0 && !slices.Contains(o.events, event.name) || len(o.events) == 0 && event.more && !o.more {
			continue
		}
		if err := w.try(ctx, b, event, o, stderr, tell); err != nil {
			return fmt.Errorf("%s: %w", event.name, err)
		}
	}
	return nil
}

// try makes an event happen until its row is as it should be, as often as it may.
// Lost connections are not tried again: no busy machine loses any.
func (w *world) try(ctx context.Context, b *beat, e event, o *options, stderr io.Writer, tell func(r row, last bool)) error {
	for n := 1; ; n++ {
		r, err := w.happen(ctx, b, e)
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		last := r.misses == "" || n >= o.tries || r.Lost > 0 && !e.mayLose
		tell(r, last)
		if o.verbose {
			fmt.Fprintf(stderr, "ha: %s: the outage began at %s\n", r.Event, r.since.Format(time.RFC3339Nano))
		}
		if last {
			return nil
		}
	}
}

// printer prints rows as they come.
func (o *options) printer(out io.Writer) func(row) {
	if o.json {
		return func(r row) { _ = json.NewEncoder(out).Encode(r) }
	}
	fmt.Fprint(out, picture)
	table := tabwriter.NewWriter(out, 22, 0, 2, ' ', 0)
	fmt.Fprintln(table, "event\tbackend\toutage\tlost\t")
	return func(r row) {
		fmt.Fprintf(table, "%s\t%s\t%.1f ms\t%d of %d\t%s\n", r.Event, r.Backend, r.Outage, r.Lost, streamed, r.misses)
		_ = table.Flush()
	}
}
