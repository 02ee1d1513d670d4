//go:build linux

package main

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

func TestGap(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	b := &beat{got: []time.Time{at(-50), at(10), at(20), at(520), at(530), at(990), at(2000)}}
	for _, c := range []struct{ from, to, want int }{
		{0, 1000, 500},
		{525, 1000, 460},
		{995, 1990, 995}, // nothing at all
		{530, 2100, 1010},
		{15, 25, 5},
		{1000, 2400, 1000},
		{1999, 2400, 400}, // the end counts
	} {
		if got, _ := b.gap(at(c.from), at(c.to)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("from %d to %d ms: %v, want %d ms", c.from, c.to, got, c.want)
		}
	}
}

func TestEvents(t *testing.T) {
	var names []string
	for _, e := range events() {
		if !e.more {
			names = append(names, e.name)
		}
	}
	const want = "server-killed server-blackholed leg-cut-1 leg-cut-2 leg-cut-3 leg-cut-4 shoot-client-killed servers-rolled"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("events %s\nwant   %s", got, want)
	}
}

func TestRows(t *testing.T) {
	var out bytes.Buffer
	o := &options{json: true}
	o.printer(&out)(row{Event: "server-killed", Backend: "user", Outage: ms(12345 * time.Microsecond), Lost: 1, misses: "connections lost"})
	if want := `{"event":"server-killed","backend":"user","outage_ms":12.3,"lost":1}` + "\n"; out.String() != want {
		t.Errorf("got %swant %s", &out, want)
	}
	out.Reset()
	o.json = false
	o.printer(&out)(row{Event: "leg-cut-1", Backend: "kernel", Outage: 3100, misses: "outage above 3s"})
	if !strings.HasSuffix(out.String(), "leg-cut-1             kernel                3100.0 ms             0 of 8                outage above 3s\n") {
		t.Errorf("got\n%s", &out)
	}
}

func TestFlags(t *testing.T) {
	parse := func(args ...string) (*options, error) { return parse(args, new(bytes.Buffer)) }
	if _, err := parse("-h"); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	var usage *cli.UsageError
	for _, args := range []string{"--backend wood", "--event flood", "--tries 0", "more", "--json=perhaps"} {
		if _, err := parse(strings.Fields(args)...); !errors.As(err, &usage) {
			t.Errorf("%s: %v", args, err)
		}
	}
	o, err := parse()
	if err != nil || strings.Join(o.backends, " ") != "user kernel" || o.asked {
		t.Errorf("by default %v, %v", o, err)
	}
	o, err = parse("--backend", "kernel", "--event", "leg-cut-4", "--json")
	if err != nil || strings.Join(o.backends, " ") != "kernel" || !o.asked || !o.json || o.events[0] != "leg-cut-4" {
		t.Errorf("got %v, %v", o, err)
	}
}
