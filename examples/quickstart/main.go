// Command quickstart shows the whole tunnel in one process: two clusters, each
// with a server, an agent and a stand-in kubelet, one entrypoint that the agents
// of both come in by, and a client that reads an EgressSelectorConfiguration as
// kube-apiserver does. It talks over loopback with mTLS and throw-away
// certificates, prints what happened at each hop, and ends.
//
//	go run ./examples/quickstart
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

const help = `
quickstart shows the whole tunnel in one process, over loopback, and ends.
It needs no root, no network and no configuration, and takes no flags.
`

const picture = `
A control plane reaches a kubelet in a closed network, over a connection that
the closed network opened. All clusters of a seed come in by one address.

  client ─ CONNECT ─► server ◄─┐                ┌─ session ─ agent ─► kubelet
  (seed)                       ├── entrypoint ◄─┤            (shoot--demo)
  client ─ CONNECT ─► server ◄─┘                └─ session ─ agent ─► kubelet
  (seed)                                                     (shoot--other)

`

func main() { cli.Main("quickstart", run) }

func run(ctx context.Context, args []string, stdout, _ io.Writer) error {
	if err := cli.NewFlags("quickstart", help).Parse(args, stdout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "rhizome-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	t := &tour{out: stdout, dir: dir, demo: cluster{name: "shoot--demo", pods: 3}, other: cluster{name: "shoot--other", pods: 5}}
	defer t.stop()
	fmt.Fprint(stdout, picture)
	for _, step := range []func(context.Context) error{
		t.certificates, t.kubelets, t.servers, t.entrypoint, t.agents,
		t.egress, t.request, t.closedPort, t.forbidden, t.apart, t.drain,
	} {
		if err := step(ctx); err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
	}
	return nil
}

// tell prints a step: its number and what it is about, then its lines.
func (t *tour) tell(what string, lines ...string) {
	t.steps++
	for i, line := range lines {
		if i == 0 {
			fmt.Fprintf(t.out, "%-2d %-13s %s\n", t.steps, what, line)
		} else {
			fmt.Fprintf(t.out, "   %-13s %s\n", "", line)
		}
	}
}

// ms is a duration as people read it.
func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
