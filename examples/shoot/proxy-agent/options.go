package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

const help = `
proxy-agent is the shoot's end of the tunnel. It connects to proxy-servers in
the seed, and over that connection they dial the nodes, pods and services that
it can reach. It needs no open port.

  proxy-server ◄──── session, from the inside out ──── proxy-agent ──► pods,
  (seed)                                            (closed network)   nodes

With a certificate, which names the cluster:

  proxy-agent --server https://tunnel.seed.example:8132 \
    --ca ca.crt --cert tls.crt --key tls.key --admin-listen :8134

With a token, through an HTTP proxy on the way, and for a few targets only:

  proxy-agent --server https://proxy-server.shoot--dev--a.svc:8132 \
    --ca ca.crt --token-file token \
    --via http://entrypoint.seed.example:8132 \
    --via-header 'Reversed-VPN: outbound|8132||proxy-server.shoot--dev--a.svc.cluster.local' \
    --allow 100.64.0.0/11 --allow 10.250.0.0/16:10250

The old direction, where the seed dials the agent:

  proxy-agent --listen :8135 --ca ca.crt --cert tls.crt --key tls.key \
    --server-name proxy-server

Without --allow everything may be dialled but loopback, link-local (cloud
metadata), multicast and unspecified addresses, which need a rule inside their
own network. Names are resolved here, and each address is checked. All files
are followed. SIGTERM drains, a second one cuts off what is still open.
`

type options struct {
	servers      []string
	listen       string
	agentID      string
	cluster      string
	serverName   string
	viaURL       string
	viaHeader    http.Header
	ca           string
	cert         string
	key          string
	tokenFile    string
	allow        tunnel.Rules
	serves       []string
	labels       map[string]string
	adminListen  string
	drainTimeout time.Duration
	log          cli.Log

	via  *connect.Dialer // of viaURL and viaHeader, nil without
	pair *certs.KeyPair  // of cert and key, nil without
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{drainTimeout: 25 * time.Second, viaHeader: make(http.Header), labels: make(map[string]string)}
	f := cli.NewFlags("proxy-agent", help)
	f.Section("Servers")
	f.Each("server", "URL", "a server, https://host:port; each address of the host gets a session", o.addServer)
	f.Text(&o.listen, "listen", "ADDR", "host:port where servers that dial come in, the old direction; needs --ca, --cert and --key")
	f.Text(&o.viaURL, "via", "URL", "an HTTP proxy on the way to the servers, http[s]://[user:password@]host:port; it resolves their names")
	f.Each("via-header", "'NAME: VALUE'", "a header for that proxy", func(s string) error { return cli.ParseHeader(o.viaHeader, s) })
	f.Text(&o.ca, "ca", "FILE", "authorities of the servers' certificates (PEM); empty means those of the host")
	f.Text(&o.serverName, "server-name", "NAME", "what a server's certificate must be valid for; empty means the host of its URL, and with --listen that any certificate of --ca will do")
	f.Section("This agent")
	f.Text(&o.cert, "cert", "FILE", "certificate of this agent (PEM), which names its cluster")
	f.Text(&o.key, "key", "FILE", "its private key (PEM)")
	f.Text(&o.tokenFile, "token-file", "FILE", "a bearer token, instead of a certificate or with one; it is read for each connection")
	f.Text(&o.agentID, "agent-id", "ID", "name of this agent in its cluster; a second one with the same name replaces the first; empty means the host name")
	f.Text(&o.cluster, "cluster", "NAME", "what cluster this agent thinks it is of: the credential decides, and a server refuses the agent if they differ")
	f.Each("label", "KEY=VALUE", "told to the servers, for their choice of an agent and for /clusters", o.addLabel)
	f.Texts(&o.serves, "serves", "CIDR|NAME", "a network, name or .suffix that this agent serves in preference to others; without any it serves all")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (there is a session), /sessions (JSON), /debug/pprof/; not for the world")
	f.Duration(&o.drainTimeout, "drain-timeout", "how long streams may go on after SIGTERM; 0 means not at all, negative for ever")
	f.Section("Targets")
	f.Each("allow", "RULE", "what may be dialled: CIDR, CIDR:port, [CIDR]:port for IPv6, host:port, host or .suffix; a list allows what one of its rules covers", func(s string) error {
		rule, err := tunnel.ParseRule(s)
		o.allow = append(o.allow, rule)
		return err
	})
	f.Section("Logs")
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

func (o *options) addServer(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("want https://host:port")
	}
	o.servers = append(o.servers, s)
	return nil
}

func (o *options) addLabel(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return errors.New("want KEY=VALUE")
	}
	o.labels[key] = value
	return nil
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
	o.pair, err = cli.KeyPair("cert", o.cert, "key", o.key)
	errs = append(errs, err)
	need(len(o.servers) > 0 || o.listen != "", "--server or --listen is missing: where are the servers?")
	need(len(o.servers) == 0 || err != nil || o.pair != nil || o.tokenFile != "", "--cert and --key, or --token-file, are missing: no server admits an agent without a credential")
	if o.listen != "" {
		errs = append(errs, cli.CheckAddrFlag("listen", o.listen))
		need(err != nil || o.pair != nil, "--listen needs --cert and --key")
		need(o.ca != "", "--listen needs --ca: which servers may connect?")
	}
	need(len(o.viaHeader) == 0 || o.viaURL != "", "--via-header needs --via")
	if o.cluster != "" {
		if err := certs.ValidCluster(o.cluster); err != nil {
			errs = append(errs, fmt.Errorf("--cluster %q: %w", o.cluster, err))
		}
	}
	errs = append(errs, cli.CheckAddrFlag("admin-listen", o.adminListen), o.parseVia(), o.log.Check())
	return errors.Join(errs...)
}

func (o *options) parseVia() error {
	if o.viaURL == "" {
		return nil
	}
	u, err := url.Parse(o.viaURL)
	if err != nil {
		return errors.New("--via: want http[s]://[user:password@]host:port") // not err, which has the password
	}
	d, err := connect.FromURL(u, nil)
	if err != nil {
		return fmt.Errorf("--via %q: %w", u.Redacted(), err)
	}
	o.via = d.(*connect.Dialer) // FromURL says so
	o.via.Header = o.viaHeader
	return nil
}
