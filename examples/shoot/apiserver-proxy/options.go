package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/intercept"
)

const help = `
apiserver-proxy runs on each node of a shoot, in the network of the host. It owns
the address that the API server advertises, which is the endpoint of the service
kubernetes.default, and forwards what connects to it to the entrypoint of the
seed. TLS stays between the pod and the API server.

  pod ─► 10.96.0.1:443 ─ kube-proxy ─► 240.0.10.1:443 = apiserver-proxy
                                             │ the node's own address
                                             ▼
                        entrypoint ─ by 240.0.10.1:443, or by a header ─► API server
                        (seed, shared by many shoots)

With a PROXY header, version 2, whose destination tells whose API server is meant:

  apiserver-proxy --listen-address 240.0.10.1 --entrypoint api.seed.example:8443 \
    --admin-listen 127.0.0.1:16910

With an HTTP CONNECT whose header does:

  apiserver-proxy --listen-address 240.0.10.1 --entrypoint api.seed.example:8443 \
    --dialect connect --admin-listen 127.0.0.1:16910 \
    --header 'X-Gardener-Destination: outbound|443||kube-apiserver.shoot--dev--a.svc.cluster.local'

It needs linux and the capability NET_ADMIN, and NET_BIND_SERVICE for ports below
1024. The address is put on a dummy interface of our own, rhizome-api. Where the
kernel has none: modprobe dummy, or name an --interface. If the address is
anybody else's, the program says whose and ends.

SIGTERM closes the port, waits for the connections, and then removes the address;
a second one cuts off what is still open.
`

// noInterface is the --interface of who looks after the address otherwise.
const noInterface = "none"

type options struct {
	listen       netip.AddrPort
	iface        string
	destination  netip.AddrPort
	entrypoint   string
	dialect      intercept.Dialect
	header       http.Header
	adminListen  string
	drainTimeout time.Duration
	maxConns     int
	log          cli.Log
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{header: make(http.Header), drainTimeout: 25 * time.Second, maxConns: 10000}
	listen, destination, dialect := "", "", "proxy"
	f := cli.NewFlags("apiserver-proxy", help)
	f.Section("Pods")
	f.Text(&listen, "listen-address", "IP[:PORT]", "the address to own and the port to listen on, 443 unless given; an IPv6 address with a port stands in brackets")
	f.Text(&o.iface, "interface", "NAME", "an existing interface for the address, which is then not made and never deleted; none means that the address is there already and stays; empty means a dummy interface of our own")
	f.Section("Entrypoint")
	f.Text(&o.entrypoint, "entrypoint", "HOST:PORT", "where to forward to; the name is resolved for each connection")
	f.Text(&dialect, "dialect", "proxy|connect", "how to tell the entrypoint where a connection was going: by a PROXY header of version 2, or by an HTTP CONNECT")
	f.Text(&destination, "destination", "IP:PORT", "where it was going, as the entrypoint knows it; empty means --listen-address")
	f.Each("header", "'NAME: VALUE'", "a header of the CONNECT, of which the entrypoint wants one to route by, such as X-Gardener-Destination or Reversed-VPN", func(s string) error { return cli.ParseHeader(o.header, s) })
	f.Section("Operation")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (the address is there), /stats (JSON), /debug/pprof/; not for the world")
	f.Int(&o.maxConns, "max-connections", "how many connections may be open; one pod gets nine tenths of them at most")
	f.Duration(&o.drainTimeout, "drain-timeout", "how long connections may go on after SIGTERM; 0 means not at all, negative for ever. Each is cut off at a moment of its own, in the last four fifths of it, so that they do not all come back at once")
	f.Section("Logs")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if err := o.check(listen, destination, dialect); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}

// check finds all that is missing or contradicts itself.
func (o *options) check(listen, destination, dialect string) error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	if o.listen, err = parseListen(listen); err != nil {
		errs = append(errs, err)
	} else {
		// Clients come to the port that the API server advertises. Only where the
		// address is not ours either, the program may be behind something that asks
		// it for its port, as tests do, which read it from the log.
		need(o.listen.Port() != 0 || o.iface == noInterface, "--listen-address %q: port 0 is none that clients know", listen)
	}
	if destination != "" {
		o.destination, err = netip.ParseAddrPort(destination)
		need(err == nil && o.destination.Port() != 0, "--destination %q: want IP:PORT", destination)
	}
	need(o.entrypoint != "", "--entrypoint is missing: where are the connections to go?")
	errs = append(errs, cli.CheckAddrFlag("entrypoint", o.entrypoint))
	switch dialect {
	case "proxy":
		need(len(o.header) == 0, "--header needs --dialect connect")
	case "connect":
		o.dialect = intercept.Connect
		need(len(o.header) > 0, "--dialect connect needs --header: what is the entrypoint to route by?")
	default:
		need(false, "--dialect %q: want proxy or connect", dialect)
	}
	errs = append(errs, cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check())
	return errors.Join(errs...)
}

// parseListen reads IP, IP:PORT or [IP]:PORT.
func parseListen(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, errors.New("--listen-address is missing: which address does the API server advertise?")
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		ip, e := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
		a, err = netip.AddrPortFrom(ip, 443), e
	}
	if err != nil || a.Addr().IsUnspecified() {
		return netip.AddrPort{}, fmt.Errorf("--listen-address %q: want one IP, or IP:PORT", s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}
