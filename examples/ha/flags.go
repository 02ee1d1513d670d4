//go:build linux

package main

import (
	"io"
	"slices"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

const help = `
ha makes hosts of network namespaces, starts two vpn-servers, two shoot-side
vpn-clients, a seed-side one and a path-controller on them, lets TCP connections
and a UDP echo run end to end, and then kills and blackholes each part in turn.
It prints what died, the longest gap in the echo, and how many connections were
lost, and exits with 1 if that is more than it should be. It needs root, and
Go to build the programs unless --programs names a folder that has them.

  events   server-killed, server-blackholed, leg-cut-1 … leg-cut-4 (shoot client 0
           to server 0, to server 1, shoot client 1 to server 0, to server 1),
           shoot-client-killed, servers-rolled; with --more also one-way-cut-A-to-B,
           where one side goes on to hear the other
  backends user (bond.Bond, needs nothing of the kernel but TAP devices) and
           kernel (the bonding driver, which many kernels lack)
`

const picture = `
               ┌── server 0 ──┐          ┌── shoot client 0 ──┐
  seed client ─┤              ├─ legs ───┤                    ├── pod
               └── server 1 ──┘  1 … 4   └── shoot client 1 ──┘

`

type options struct {
	backends []string
	asked    bool // for backends by name
	events   []string
	programs string
	tries    int
	more     bool
	json     bool
	verbose  bool
}

func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{tries: 1}
	f := cli.NewFlags("ha", help)
	f.Texts(&o.backends, "backend", "NAME", "which bond: user or kernel; both unless named, the kernel's if there is one")
	f.Texts(&o.events, "event", "NAME", "lets only this happen; may be repeated")
	f.Bool(&o.more, "more", "lets more happen than is promised: see events")
	f.Int(&o.tries, "tries", "how often an event may happen until its outage is as short as it should be, with a row for each; more than 1 is for machines that others use, too. A lost connection is never tried again")
	f.Text(&o.programs, "programs", "DIR", "folder with vpn-server, vpn-client and path-controller, ready built")
	f.Bool(&o.json, "json", "prints one JSON object per event and line: event, backend, outage_ms, lost")
	f.Bool(&o.verbose, "verbose", "prints at the end all that the programs said; without it, the last of it after an error")
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	o.asked = len(o.backends) > 0
	if !o.asked {
		o.backends = []string{"user", "kernel"}
	}
	for _, b := range o.backends {
		if b != "user" && b != "kernel" {
			return nil, cli.Usagef("--backend %q is neither user nor kernel", b)
		}
	}
	if o.tries < 1 {
		return nil, cli.Usagef("--tries %d: want 1 at least", o.tries)
	}
	known := events()
	for _, name := range o.events {
		if !slices.ContainsFunc(known, func(e event) bool { return e.name == name }) {
			return nil, cli.Usagef("--event %q is none of the events", name)
		}
	}
	return o, nil
}
