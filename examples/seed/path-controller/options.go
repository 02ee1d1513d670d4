package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

const help = `
path-controller runs beside a kube-apiserver, in its network namespace. There are
several ways to a shoot, one for each shoot client of the packet tunnel, and at
each moment the routes lead over one of them: over the first that works.

                                     ┌─ fd8f:…::b:0  vpn-client a ─┐
  kube-apiserver ─ route ─► bond0 ──┤                              ├─► pods,
                  path-controller    └─ fd8f:…::b:1  vpn-client b ─┘   services, nodes
                  moves the route

  path-controller --device bond0 \
    --path a=fd8f:6d53:b97a:1::b:0 --path b=fd8f:6d53:b97a:1::b:1 \
    --network 100.64.0.0/13 --network 100.96.0.0/11 --network 10.250.0.0/16 \
    --probe-behind tcp://100.64.0.10:53 --admin-listen 127.0.0.1:8138

A path is asked each half second: its far end, and what --probe-behind names,
over that path whichever is in use. It is down when twelve probes in a row are
lost, within 2.5 s of its death, so that one which loses a fifth of its packets
is not; and up again when it has answered all of them for 3 s, longer each time
it falls again. The routes move when the path in use is down, or as --failback
says. Where no path works they stay: connections outlive an interruption.

Moving the routes ends connections where shoot clients masquerade, and the bond
below heals the loss of a server or a link without, in less than 3 s. With
--members the two do not race: the vpn-client beside this program is asked whether any
server still reaches the far end. If none does, the path is down at once; as
long as one does, the path is left only after 36 lost probes, 4 s.

It needs linux and the capability NET_ADMIN, and for icmp NET_RAW or the sysctl
net.ipv4.ping_group_range. Routes that are not its own it never touches; its own
have --protocol, --table and --metric. What others remove of them it puts back. At the end it
removes them; what a killed one has left stays in use until the next start, which
takes it over.
`

// path is one --path.
type path struct {
	name   string
	via    netip.Addr
	source netip.Addr
	device string
}

// sourceFor is the source address for what goes to an address, if there is one of
// its family.
func (p path) sourceFor(to netip.Addr) netip.Addr {
	if p.source.Is4() != to.Is4() {
		return netip.Addr{}
	}
	return p.source
}

type options struct {
	paths         []path
	networks      []netip.Prefix
	device        string
	metric        int
	table         int
	protocol      int
	probe         question
	behind        []question
	members       string
	probeInterval time.Duration
	probeTimeout  time.Duration
	fall          int
	rise          time.Duration
	probeMark     int
	probeTable    int
	failback      pathcontrol.Failback
	adminListen   string
	log           cli.Log
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{
		metric:        pathcontrol.DefaultRouteMetric,
		table:         pathcontrol.DefaultRouteTable,
		protocol:      pathcontrol.DefaultRouteProtocol,
		probeInterval: 500 * time.Millisecond,
		probeTimeout:  500 * time.Millisecond,
		rise:          3 * time.Second,
		probeMark:     pathcontrol.DefaultProbeMark,
		probeTable:    pathcontrol.DefaultProbeTable,
	}
	probe, failback := "icmp", "always"
	f := cli.NewFlags("path-controller", help)
	f.Section("Paths")
	f.Each("path", "NAME=VIA[,src=IP][,dev=NAME]", "a way to the networks, in the order of preference: VIA is the next hop, the far end's address in the tunnel, which may be an IPv6 address for IPv4 networks, too; src is what this host's packets come from, dev the interface in place of --device", o.addPath)
	f.Each("network", "CIDR", "what is behind all paths, and is routed", o.addNetwork)
	f.Text(&o.device, "device", "NAME", "the interface on which the next hops are; empty means where the kernel finds them")
	f.Text(&failback, "failback", "always|never|better", "when a path that works is left: for one that stands before it as soon as that is up, never, or for one that has long been clearly better")
	f.Section("Probes")
	f.Text(&probe, "probe", "icmp|tcp:PORT|http://:PORT/PATH", "how the far end of each path is asked")
	f.Each("probe-behind", "URL", "something behind the far end that is asked as well, over each path by itself: icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH, an address within a --network. A path without it is down", o.addBehind)
	f.Text(&o.members, "members", "ADDR", "the admin address of the vpn-client in this network namespace, host:port, which is asked of each path whether any server reaches its far end")
	f.Duration(&o.probeInterval, "probe-interval", "the time from one probe to the next; after a miss it is 0.1 s, if that is less")
	f.Duration(&o.probeTimeout, "probe-timeout", "how long an answer may take")
	f.Int(&o.fall, "fall", "how many probes in a row are missed when a path is down; 0 means 12, and 36 with --members")
	f.Duration(&o.rise, "rise", "for how long every probe is answered when a path is up again; 0 means that one answer is enough")
	f.Section("The kernel")
	f.Int(&o.metric, "metric", "the metric of the routes; low wins")
	f.Int(&o.table, "table", "their table; 254 is the main one")
	f.Int(&o.protocol, "protocol", "their protocol, by which they are known as ours, 5 to 255; two of these programs in one network namespace must differ in metric, table or this")
	f.Int(&o.probeMark, "probe-mark", "for --probe-behind: the fwmark of the first path's probes; the 48 numbers from it on must be nobody else's")
	f.Int(&o.probeTable, "probe-table", "for --probe-behind: the table of the first path; the 48 from it on must be nobody else's")
	f.Section("Operation")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (a path is in use, and up), /status (JSON), /debug/pprof/; not for the world")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if err := o.check(probe, failback); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}

// patientFall is so many misses that a bond has had time to find a silent server,
// 2.5 s, and its members to leave it: 36 take 4 s at least.
const patientFall = 36

// addPath reads NAME=VIA[,src=IP][,dev=NAME].
func (o *options) addPath(s string) error {
	name, rest, ok := strings.Cut(s, "=")
	parts := strings.Split(rest, ",")
	p := path{name: name}
	var err error
	if p.via, err = netip.ParseAddr(parts[0]); !ok || name == "" || err != nil || p.via.IsUnspecified() || p.via.IsMulticast() {
		return errors.New("want NAME=VIA[,src=IP][,dev=NAME], where VIA is an IP")
	}
	p.via = p.via.Unmap()
	for _, part := range parts[1:] {
		key, value, _ := strings.Cut(part, "=")
		switch {
		case key == "src" && !p.source.IsValid():
			if p.source, err = netip.ParseAddr(value); err != nil || p.source.Zone() != "" {
				return fmt.Errorf("src %q is not an IP", value)
			}
			p.source = p.source.Unmap()
		case key == "dev" && p.device == "" && value != "":
			p.device = value
		default:
			return fmt.Errorf("%q: want src=IP or dev=NAME, each once", part)
		}
	}
	if slices.ContainsFunc(o.paths, func(q path) bool { return q.name == p.name }) {
		return fmt.Errorf("there is a path %s already", p.name)
	}
	o.paths = append(o.paths, p)
	return nil
}

func (o *options) addNetwork(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("want an address and a prefix length, such as 100.96.0.0/11")
	}
	o.networks = append(o.networks, p)
	return nil
}

func (o *options) addBehind(s string) error {
	q, err := parseBehind(s)
	o.behind = append(o.behind, q)
	return err
}

// check finds all that is missing or contradicts itself.
func (o *options) check(probe, failback string) error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(len(o.paths) > 0, "--path is missing: which ways are there?")
	need(len(o.networks) > 0, "--network is missing: what is behind the paths?")
	for i := range o.paths {
		if o.paths[i].device == "" {
			o.paths[i].device = o.device
		}
	}
	var err error
	if o.probe, err = parseFar(probe); err != nil {
		errs = append(errs, fmt.Errorf("--probe %q: %w", probe, err))
	}
	for _, q := range o.behind {
		need(slices.ContainsFunc(o.networks, func(n netip.Prefix) bool { return n.Contains(q.host) }),
			"--probe-behind %q: %v is in no --network, so that no path leads there", q.text, q.host)
	}
	need(o.probeInterval > 0, "--probe-interval %v: want more than 0", o.probeInterval)
	need(o.probeTimeout > 0, "--probe-timeout %v: want more than 0", o.probeTimeout)
	need(o.fall >= 0, "--fall %d: want 0 or more", o.fall)
	if o.fall == 0 && o.members != "" {
		o.fall = patientFall
	}
	need(o.rise >= 0, "--rise %v: want 0 or more", o.rise)
	need(o.metric > 0, "--metric %d: want 1 at least", o.metric)
	need(o.table > 0, "--table %d: want 1 at least", o.table)
	need(o.protocol > 0, "--protocol %d: want 5 to 255", o.protocol)
	need(o.probeMark > 0, "--probe-mark %d: want 1 at least", o.probeMark)
	need(o.probeTable > 0, "--probe-table %d: want 1 at least", o.probeTable)
	switch failback {
	case "always":
		o.failback = pathcontrol.Always
	case "never":
		o.failback = pathcontrol.Never
	case "better":
		o.failback = pathcontrol.Better
	default:
		need(false, "--failback %q: want always, never or better", failback)
	}
	errs = append(errs, cli.CheckAddrFlag("members", o.members), cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return o.router().Check()
}

// riseTime is what the library is told, for which 0 is the default.
func (o *options) riseTime() time.Duration {
	if o.rise == 0 {
		return -1
	}
	return o.rise
}

// router is what the flags say of routes.
func (o *options) router() *pathcontrol.NetlinkRouter {
	r := &pathcontrol.NetlinkRouter{
		Networks:   o.networks,
		Hops:       make(map[string]pathcontrol.NextHop),
		Metric:     o.metric,
		Table:      o.table,
		Protocol:   o.protocol,
		PerPath:    len(o.behind) > 0,
		ProbeMark:  o.probeMark,
		ProbeTable: o.probeTable,
	}
	for _, p := range o.paths {
		r.Hops[p.name] = pathcontrol.NextHop{Via: p.via, Interface: p.device, Source: p.source}
	}
	return r
}
