package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

const help = `
proxy-client is the sidecar of programs that cannot show a proxy a client
certificate, or that know of no proxy at all. It listens on loopback, and dials
the nodes, pods and services of a cluster through the cluster's proxy-server.

  Prometheus ── proxy_url ─────►                  CONNECT
                 --listen        proxy-client ── with mTLS ──► proxy-server ─► …
  any client ── plain TCP ─────►  (same pod)
                 --forward

An HTTP proxy for Prometheus, proxy_url: http://127.0.0.1:8136, on the way that
the kube-apiserver takes:

  proxy-client --listen 127.0.0.1:8136 \
    --egress-config egress-selector-configuration.yaml --selection cluster \
    --admin-listen :8137

The same with the proxy in flags, and two targets that are reached as if they
were here:

  proxy-client --listen 127.0.0.1:8136 \
    --forward 127.0.0.1:10250=node-1.example:10250 \
    --forward unix:/run/proxy/dns.sock=100.64.0.10:53 \
    --proxy https://proxy-server:9443 --ca ca.crt --cert tls.crt --key tls.key

The HTTP proxy takes CONNECT and absolute-form requests, and answers with the
proxy-server's own reason where there is no connection. A forward hands on what
comes, bytes and half-close; where there is no connection the client is reset,
and the log says why. All files are followed. SIGTERM drains, a second one cuts
off what is still open.
`

// listenAddr is where clients come in.
type listenAddr struct{ network, address string }

// String is what stood on the command line.
func (a listenAddr) String() string {
	if a.network == "unix" {
		return "unix:" + a.address
	}
	return a.address
}

// forwardFlag is one --forward.
type forwardFlag struct {
	at     listenAddr
	target string
}

type options struct {
	listen         []listenAddr
	forwards       []forwardFlag
	allowRemote    bool
	maxConnections int
	dialTimeout    time.Duration
	idleTimeout    time.Duration
	egressConfig   string
	selectionName  string
	proxyURL       string
	ca             string
	cert           string
	key            string
	serverName     string
	header         http.Header
	adminListen    string
	drainTimeout   time.Duration
	log            cli.Log

	selection egress.Selection
	proxy     *connect.Dialer // of proxyURL, without TLS; nil with egressConfig
	proxyName string          // proxyURL without its password
	proxyHost string          // of proxyURL, empty where that is a socket
	pair      *certs.KeyPair  // of cert and key, nil without
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{
		maxConnections: 1000,
		dialTimeout:    30 * time.Second, // the proxy's own 20 s, and its answer
		drainTimeout:   25 * time.Second,
		header:         make(http.Header),
	}
	f := cli.NewFlags("proxy-client", help)
	f.Section("Clients")
	f.Each("listen", "ADDR", "where an HTTP proxy is: host:port on loopback, or unix:PATH, a socket with mode 0660", o.addListen)
	f.Each("forward", "LISTEN=TARGET", "one target that is reached at LISTEN, an ADDR as of --listen; TARGET is host:port, whose name is resolved behind the proxy", o.addForward)
	f.Bool(&o.allowRemote, "allow-remote", "let --listen and --forward take an address that is not loopback. It is an open door to the cluster: clients are asked for nothing, and get in with this program's certificate, so that whoever reaches the port reaches all that the proxy lets this program reach. Close it by other means, such as a network policy")
	f.Int(&o.maxConnections, "max-connections", "how many connections each --listen and --forward has at a time; one more is refused: with 429, or with a reset by a forward")
	f.Duration(&o.dialTimeout, "dial-timeout", "how long a dial may take; longer than the proxy's own timeout, or its reason is not heard")
	f.Duration(&o.idleTimeout, "idle-timeout", "a connection on which nothing moves for so long is reset; 0 means never")
	f.Section("The way, by an egress configuration file")
	f.Text(&o.egressConfig, "egress-config", "FILE", "an EgressSelectorConfiguration, as kube-apiserver has one; it is followed, and so are the certificates that it names")
	f.Text(&o.selectionName, "selection", "NAME", "which of its entries: cluster, controlplane or etcd; empty means cluster. A file that has no such entry is refused (kube-apiserver would dial directly), one that says Direct there is obeyed")
	f.Section("The way, by flags")
	f.Text(&o.proxyURL, "proxy", "URL", "the proxy: https://host:port, http://host:port, either with user:password@ for Basic credentials, or http+unix:///path")
	f.Text(&o.ca, "ca", "FILE", "authorities of the proxy's certificate (PEM); empty means those of the host")
	f.Text(&o.cert, "cert", "FILE", "certificate of this client (PEM), which names its cluster")
	f.Text(&o.key, "key", "FILE", "its private key (PEM)")
	f.Text(&o.serverName, "server-name", "NAME", "what the proxy's certificate must be valid for, and what is sent as TLS server name, which may select the cluster; empty means the host of the URL")
	f.Each("header", "'NAME: VALUE'", "a header for the proxy", func(s string) error { return cli.ParseHeader(o.header, s) })
	f.Section("This program")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (the proxy answers; found by dials, else by asking it each 10 s for readyz.invalid:1), /doors (JSON), /debug/pprof/; not for the world")
	f.Duration(&o.drainTimeout, "drain-timeout", "how long connections may go on after SIGTERM; 0 means not at all, negative for ever")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}

// errNotLoopback refuses what would be open to others than this host.
var errNotLoopback = errors.New("this is no loopback address: whoever reaches the port would reach the cluster with our certificate; --allow-remote lets them")

func (o *options) addListen(s string) error {
	at, err := parseListen(s)
	o.listen = append(o.listen, at)
	return err
}

// addForward splits at the last =, because a path may have others and a target
// has none.
func (o *options) addForward(s string) error {
	i := strings.LastIndexByte(s, '=')
	if i < 0 {
		return errors.New("want LISTEN=TARGET")
	}
	at, err := parseListen(s[:i])
	if err != nil {
		return fmt.Errorf("want LISTEN=TARGET: %w", err)
	}
	if _, _, err := connect.ParseTarget(s[i+1:]); err != nil {
		return fmt.Errorf("want LISTEN=TARGET: the target is no host:port: %q", s[i+1:])
	}
	o.forwards = append(o.forwards, forwardFlag{at, s[i+1:]})
	return nil
}

func parseListen(s string) (listenAddr, error) {
	path, ok := strings.CutPrefix(s, "unix:")
	switch {
	case !ok:
		return listenAddr{"tcp", s}, cli.CheckAddr(s)
	case !filepath.IsAbs(path): // abstract sockets have no permissions
		return listenAddr{}, errors.New("want unix:PATH: the path is not absolute")
	}
	return listenAddr{"unix", path}, nil
}

// loopback reports whether an address is open to this host only. Of localhost
// the bound port is looked at again.
func (a listenAddr) loopback() bool {
	if a.network == "unix" {
		return true
	}
	host, _, _ := net.SplitHostPort(a.address)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}

// check finds all that is missing or contradicts itself.
func (o *options) check() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(len(o.listen)+len(o.forwards) > 0, "--listen or --forward is missing: where do clients come in?")
	for _, at := range o.listen {
		need(o.allowRemote || at.loopback(), "--listen %q: %w", at, errNotLoopback)
	}
	for _, f := range o.forwards {
		need(o.allowRemote || f.at.loopback(), "--forward %q: %w", f.at.String()+"="+f.target, errNotLoopback)
	}
	need(o.maxConnections > 0, "--max-connections %d: want 1 or more", o.maxConnections)
	need(o.dialTimeout > 0, "--dial-timeout %v: want more than 0", o.dialTimeout)
	need(o.egressConfig != "" || o.proxyURL != "", "--egress-config or --proxy is missing: which way do dials go?")
	need(o.egressConfig == "" || o.proxyURL == "", "--egress-config and --proxy exclude each other")
	var err error
	o.pair, err = cli.KeyPair("cert", o.cert, "key", o.key)
	errs = append(errs, err, o.parseProxy())
	if o.proxyURL == "" {
		need(o.ca == "" && o.cert == "" && o.key == "" && o.serverName == "" && len(o.header) == 0,
			"--ca, --cert, --key, --server-name and --header are for --proxy, and there is none")
	}
	need(o.egressConfig != "" || o.selectionName == "", "--selection is for --egress-config, and there is none")
	switch o.selection = egress.Selection(o.selectionName); o.selection {
	case "":
		o.selection = egress.Cluster
	case egress.Cluster, egress.ControlPlane, egress.Etcd:
	default:
		need(false, "--selection %q: want cluster, controlplane or etcd", o.selectionName)
	}
	errs = append(errs, cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check())
	return errors.Join(errs...)
}

func (o *options) parseProxy() error {
	if o.proxyURL == "" {
		return nil
	}
	u, err := url.Parse(o.proxyURL)
	if err != nil {
		return errors.New("--proxy: want http[s]://[user:password@]host:port or http+unix:///path") // not err, which has the password
	}
	d, err := connect.FromURL(u, nil)
	if err != nil {
		return fmt.Errorf("--proxy %q: %w", u.Redacted(), err)
	}
	if u.Scheme != "https" && (o.ca != "" || o.cert != "" || o.key != "" || o.serverName != "") {
		return errors.New("--ca, --cert, --key and --server-name are for a --proxy with https://")
	}
	o.proxy = d.(*connect.Dialer) // FromURL says so
	o.proxyName, o.proxyHost = u.Redacted(), u.Hostname()
	return nil
}
