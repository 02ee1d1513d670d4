package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

const help = `
proxy-server is the seed's end of the tunnel. Agents in closed networks connect
to it; kube-apiservers and Prometheus use it as an HTTP proxy and so reach the
nodes, pods and services behind the agents of their own cluster, and no others.

  kube-apiserver ── CONNECT ──►                ◄── session ── proxy-agent ─► pods
  Prometheus ────── GET http://… ──►  proxy-server            (closed network)
                      --listen          --agent-listen

One port for the clients and one for the agents, each with its authority:

  proxy-server --tls-cert tls.crt --tls-key tls.key \
    --listen :9443 --client-ca clients.crt \
    --agent-listen :8132 --agent-ca agents.crt --admin-listen :8133

A Unix socket for the kube-apiserver in the same pod, agents with bearer tokens:

  proxy-server --tls-cert tls.crt --tls-key tls.key \
    --listen unix:/run/tunnel/proxy.sock=shoot--dev--a \
    --agent-listen :8132 --agent-tokens tokens.yaml

Many clusters at one address, told apart by the TLS server name
shoot--dev--a.tunnel.seed.example; and an agent that listens, dialled from here:

  proxy-server --tls-cert tls.crt --tls-key tls.key \
    --listen :9443 --client-ca clients.crt --cluster-from sni:tunnel.seed.example \
    --dial-agent 203.0.113.7:8135=shoot--dev--a --agent-ca agents.crt

A certificate names its cluster by the URI SAN rhizome://cluster/NAME, else by
its only DNS SAN, else by its common name; "*" is an operator. All files are
followed: a change needs no restart and touches no connection that it still
admits. SIGTERM drains, a second one cuts off what is still open.
`

// clientDoor is one --listen.
type clientDoor struct {
	addr    string // host:port, or
	socket  string // the path of a Unix socket
	cluster string // of the socket
}

// agentAddr is one --dial-agent.
type agentAddr struct{ addr, cluster string }

type options struct {
	listen       []clientDoor
	agentListen  string
	dialAgents   []agentAddr
	proxyFrom    []netip.Prefix
	tlsCert      string
	tlsKey       string
	clientCAs    []certs.CA
	agentCAs     []certs.CA
	tokenFile    string
	clusterFrom  string
	adminListen  string
	serverID     string
	peers        []string
	drainTimeout time.Duration
	log          cli.Log

	pair     *certs.KeyPair  // of tlsCert and tlsKey, nil without
	selector tunnel.Selector // of clusterFrom, nil for client-cert
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{clusterFrom: "client-cert", drainTimeout: 25 * time.Second}
	f := cli.NewFlags("proxy-server", help)
	f.Section("Clients")
	f.Each("listen", "ADDR", "where clients come in: host:port, which needs --tls-cert, --tls-key and --client-ca, or unix:PATH=CLUSTER, a socket with mode 0660 that belongs to one cluster", o.addListen)
	f.Each("client-ca", "[CLUSTER=]FILE", "authority for client certificates (PEM); with CLUSTER, whatever it signs belongs to that cluster", cas(&o.clientCAs))
	f.Text(&o.clusterFrom, "cluster-from", "HOW", "what selects a client's cluster: client-cert, sni (the whole TLS server name), sni:SUFFIX (CLUSTER.SUFFIX), or header:NAME; except for an operator the certificate must be of the selected cluster")
	f.Section("Agents")
	f.Text(&o.agentListen, "agent-listen", "ADDR", "where agents come in: host:port; needs --tls-cert, --tls-key, and --agent-ca or --agent-tokens")
	f.Each("dial-agent", "ADDR=CLUSTER", "an agent that listens at host:port, to be dialled from here; needs --tls-cert (good for client use), --tls-key and --agent-ca", o.addDialAgent)
	f.Each("agent-ca", "[CLUSTER=]FILE", "authority for the agents' certificates (PEM), as --client-ca", cas(&o.agentCAs))
	f.Text(&o.tokenFile, "agent-tokens", "FILE", "bearer tokens of agents: a YAML list of cluster, sha256 (of the token, in hex), and optionally notAfter and name")
	f.Section("This server")
	f.Each("proxy-from", "IP[/BITS]", "a load balancer or entrypoint in front: connections from there must begin with a PROXY header, which names the peer in logs and pages", o.addProxyFrom)
	f.Text(&o.tlsCert, "tls-cert", "FILE", "certificate of this server (PEM)")
	f.Text(&o.tlsKey, "tls-key", "FILE", "its private key (PEM)")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (doors open, files loaded, not draining), /readyz?cluster=NAME (an agent of it is here), /clusters (JSON), /debug/pprof/; not for the world")
	f.Text(&o.serverID, "server-id", "ID", "name of this server towards agents; different for each of several servers; empty means the host name")
	f.Texts(&o.peers, "peer", "ID", "the id of a server that each agent shall have a session with too, for servers behind one load balancer")
	f.Duration(&o.drainTimeout, "drain-timeout", "how long streams may go on after SIGTERM; 0 means not at all, negative for ever")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if o.drainTimeout == 0 {
		o.drainTimeout = 1 // to the library 0 is the default
	}
	if err := o.check(); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}

func (o *options) addListen(s string) error {
	rest, ok := strings.CutPrefix(s, "unix:")
	if !ok {
		o.listen = append(o.listen, clientDoor{addr: s})
		return cli.CheckAddr(s)
	}
	path, cluster, err := cli.ParseBinding(rest)
	switch {
	case err != nil:
		return fmt.Errorf("want unix:PATH=CLUSTER: %w", err)
	case !filepath.IsAbs(path): // abstract sockets have no permissions
		return errors.New("want unix:PATH=CLUSTER: the path is not absolute")
	}
	o.listen = append(o.listen, clientDoor{socket: path, cluster: cluster})
	return nil
}

func (o *options) addProxyFrom(s string) error {
	p, err := netip.ParsePrefix(s)
	if a, e := netip.ParseAddr(s); e == nil {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil {
		return errors.New("want IP or IP/BITS")
	}
	o.proxyFrom = append(o.proxyFrom, p.Masked())
	return nil
}

func (o *options) addDialAgent(s string) error {
	addr, cluster, err := cli.ParseBinding(s)
	if err == nil {
		err = cli.CheckAddr(addr)
	}
	if err != nil {
		return fmt.Errorf("want ADDR=CLUSTER: %w", err)
	}
	o.dialAgents = append(o.dialAgents, agentAddr{addr, cluster})
	return nil
}

func cas(list *[]certs.CA) func(string) error {
	return func(s string) error {
		ca, err := cli.ParseCA(s)
		*list = append(*list, ca)
		return err
	}
}

// check finds all that is missing or contradicts itself.
func (o *options) check() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	o.pair, err = cli.KeyPair("tls-cert", o.tlsCert, "tls-key", o.tlsKey)
	pairKnown := o.pair != nil || err != nil // said once is enough
	errs = append(errs, err)
	need(len(o.listen) > 0, "--listen is missing: where do clients come in?")
	need(o.agentListen != "" || len(o.dialAgents) > 0, "--agent-listen or --dial-agent is missing: where do agents come from?")
	tcp := ""
	for _, d := range o.listen {
		tcp += d.addr
	}
	if tcp != "" {
		need(pairKnown, "--listen host:port needs --tls-cert and --tls-key")
		need(len(o.clientCAs) > 0, "--listen host:port needs --client-ca")
	} else {
		need(len(o.clientCAs) == 0, "--client-ca is for --listen host:port, and there is none")
		need(o.clusterFrom == "client-cert", "--cluster-from is for --listen host:port, and there is none")
	}
	if o.agentListen != "" {
		errs = append(errs, cli.CheckAddrFlag("agent-listen", o.agentListen))
		need(pairKnown, "--agent-listen needs --tls-cert and --tls-key")
		need(len(o.agentCAs) > 0 || o.tokenFile != "", "--agent-listen needs --agent-ca or --agent-tokens")
	} else {
		need(o.tokenFile == "", "--agent-tokens is for --agent-listen, and there is none")
	}
	if len(o.dialAgents) > 0 {
		need(pairKnown, "--dial-agent needs --tls-cert and --tls-key")
		need(len(o.agentCAs) > 0, "--dial-agent needs --agent-ca")
	}
	errs = append(errs, cli.CheckAddrFlag("admin-listen", o.adminListen), o.parseClusterFrom(), o.log.Check())
	return errors.Join(errs...)
}

func (o *options) parseClusterFrom() error {
	how, what, _ := strings.Cut(o.clusterFrom, ":")
	switch {
	case o.clusterFrom == "client-cert":
	case how == "sni":
		o.selector = tunnel.SelectSNI(what)
	case how == "header" && cli.IsHeaderName(what):
		o.selector = tunnel.SelectHeader(what)
	default:
		return fmt.Errorf("--cluster-from %q: want client-cert, sni, sni:SUFFIX or header:NAME", o.clusterFrom)
	}
	return nil
}
