package main

import (
	"errors"
	"io"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

const help = `
entrypoint is the front that all clusters of a seed share: one load balancer,
three ports, and three ways to tell whose connection it is.

  kubectl ──── TLS, by server name ──────────────► :443  ┐
  pods ─ apiserver-proxy ─ PROXY v2, by address ─► :8443 ├─► the backends of the
  proxy-agent, vpn ─── CONNECT, by a header ─────► :8132 ┘   cluster's route

  entrypoint --config entrypoint.yaml
  entrypoint --config entrypoint.yaml --check

TLS is not terminated. A configuration; every field there is, with what it means,
is in example.yaml beside the program's source:

  listeners:
  - address: ":443"               # by: [sni] is what an empty one means
  - address: ":8443"
    by: [destination]
    proxyFrom: [10.0.0.0/8]       # load balancers that name the client
  - address: ":8132"
    by: [header]
    headers: [Reversed-VPN]
  routes:
  - name: shoot--dev--a/kube-apiserver
    sni: [api.a.dev.example.com]
    destinations: ["240.0.10.1:443"]
    headerValues: ["outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local"]
    backends: ["10.0.0.1:443", "10.0.0.2:443"]
    allow: [192.0.2.0/24]         # clients; empty means all

The file is followed; replace it by rename, as a mounted ConfigMap is. Routes are
replaced at once, and no connection of a route that stays is touched; listeners,
limits and timeouts are taken at the start only. A file with a mistake, or without
routes (none are written as []), is refused as a whole, and what was before stays in
use; the log and /routes say what is wrong. SIGTERM drains, a second one cuts off
what is still open.
`

type options struct {
	config      string
	interval    time.Duration
	check       bool
	adminListen string
	log         cli.Log
}

func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{interval: 10 * time.Second}
	f := cli.NewFlags("entrypoint", help)
	f.Section("Flags")
	f.Text(&o.config, "config", "FILE", "the configuration, YAML or JSON")
	f.Duration(&o.interval, "config-interval", "how often the file is read again")
	f.Bool(&o.check, "check", "print what goes where, and end; all that is wrong with the file is told, one a line, and ends with 1")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (not draining), /routes (JSON: each route with what leads to it, its backends and whether they can be dialled, and its counters; refused connections by reason; what is wrong with the newest file), /debug/pprof/; not for the world")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	errs := []error{cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check()}
	if o.config == "" {
		errs = append(errs, errors.New("--config is missing"))
	}
	if o.interval <= 0 {
		errs = append(errs, errors.New("--config-interval must be more than 0"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}
