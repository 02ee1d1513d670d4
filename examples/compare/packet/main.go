//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/compare/internal/results"
)

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "`number` of rounds")
	flag.DurationVar(&o.time, "time", 5*time.Second, "`duration` of each measurement")
	flag.BoolVar(&o.verbose, "v", false, "shows what the programs say")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := compare(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "packet:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds  int
	time    time.Duration
	verbose bool
}

// compare measures and prints the table to out, and what it is doing to progress.
func compare(ctx context.Context, o options, out, progress io.Writer) error {
	for program, pkg := range map[string]string{"iperf3": "iperf3", "ping": "iputils-ping", "openvpn": "openvpn"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: apt-get install %s", err, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "rhizome-packet-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := newWorld(ctx, dir)
	if err != nil {
		return err
	}
	defer w.lab.Close()
	if err := w.startAll(ctx); err != nil || o.verbose {
		fmt.Fprint(progress, w.logs())
		if err != nil {
			return err
		}
	}
	r := results.New(ours, names()...)
	for round := range o.rounds {
		for i := range contenders {
			c := contenders[(round+i)%len(contenders)]
			fmt.Fprintf(progress, "round %d of %d, %s\n", round+1, o.rounds, c.name)
			if err := w.measure(ctx, o, c, r); err != nil {
				return fmt.Errorf("%s: %w", c.name, errors.Join(err, context.Cause(ctx)))
			}
		}
	}
	fmt.Fprintf(out, "%s/%s, %d processors, %s, %s\n\n", runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), runtime.Version(), openVPNVersion(ctx))
	r.Print(out)
	return nil
}

// openVPNVersion is the name and the version of what is measured beside us.
func openVPNVersion(ctx context.Context) string {
	out, _ := exec.CommandContext(ctx, "openvpn", "--version").Output() // it exits with 1
	words := strings.Fields(string(out))
	return strings.Join(words[:min(2, len(words))], " ")
}

// again measures up to three times: TCP in TCP may stall for longer than a
// measurement, and iperf3's server be busy with the last one.
func again(measure func() (float64, error)) (v float64, err error) {
	for range 3 {
		if v, err = measure(); err == nil {
			return v, nil
		}
		time.Sleep(time.Second)
	}
	return 0, err
}

// measure takes a round's figures of one contender.
func (w *world) measure(ctx context.Context, o options, c contender, r *results.Results) error {
	for _, m := range []struct {
		name    string
		reverse bool
	}{{"to the shoot", false}, {"from the shoot", true}} {
		rate, err := again(func() (float64, error) { return w.iperf(ctx, c, o.time, m.reverse) })
		if err != nil {
			return err
		}
		r.Add("bulk "+m.name, "MB/s", c.name, rate)
	}
	average, err := again(func() (float64, error) {
		return w.ping(ctx, c, int(min(o.time, 2*time.Second)/(10*time.Millisecond)))
	})
	if err != nil {
		return err
	}
	r.Add("ping", "us", c.name, average)
	return nil
}
