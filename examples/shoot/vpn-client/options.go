package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

const help = `
vpn-client is an end of the packet tunnel: in the shoot, where it forwards into the
networks of the cluster, and beside kube-apiserver in the seed. It connects to
vpn-servers, and needs no open port. It needs linux, CAP_NET_ADMIN and
/dev/net/tun.

  kube-apiserver ─ bond0 ═ vpn-client ═► 2 vpn-servers ◄═ vpn-client ═ bond0 ─► pods,
                   --route                                --network             nodes

In the shoot, through the entrypoint of the seed, which tells the servers by a
header:

  vpn-client --server https://vpn-server-0:9444 --server https://vpn-server-1:9444 \
    --server-ca ca.crt --tls-cert tls.crt --tls-key tls.key --admin-listen :9446 \
    --proxy http://entrypoint.seed.example:8132 \
    --proxy-header 'Reversed-VPN: outbound|9444||vpn-server-0.shoot--dev--a.svc.cluster.local' \
    --proxy-header 'Reversed-VPN: outbound|9444||vpn-server-1.shoot--dev--a.svc.cluster.local' \
    --address fd8f:6d53:b97a:1::b:0/96 --address 192.168.123.128/24 \
    --network 100.64.0.0/13 --network 10.250.0.0/16

Beside kube-apiserver, with routes to the first of the shoot's clients, where
no path-controller looks after them:

  vpn-client --server https://vpn-server-0:9444 --server https://vpn-server-1:9444 \
    --server-ca ca.crt --tls-cert tls.crt --tls-key tls.key --admin-listen :9446 \
    --address fd8f:6d53:b97a:1::a:1/96 --address 192.168.123.9/24 \
    --route 100.64.0.0/13=fd8f:6d53:b97a:1::b:0,src=192.168.123.9

With one server, which has a device and a CONNECT proxy itself:

  vpn-client --mode tun --server https://vpn-server:9444 --server-ca ca.crt \
    --tls-cert tls.crt --tls-key tls.key --address 192.168.123.2/24 \
    --network 100.64.0.0/13

The links to several servers are one device, so that the loss of a server, or of
the way to it, breaks no connection: bonded in this program (--bond user), or by
the kernel (--bond kernel), where each link is a TAP: tap0, tap1. All members
of a tunnel must do it in the same way.

All files are followed; with a new certificate the links are made anew, one after
the other. What is made in the kernel, devices, routes, rules, is
removed at the end, and after a kill at the next start.
`

// server is one --server and the way to it.
type server struct {
	url   *url.URL
	proxy *connect.Dialer // nil without --proxy
}

// static is one --route.
type static struct {
	network netip.Prefix
	via     netip.Addr
	source  netip.Addr // zero without src=
}

type options struct {
	servers     []server
	proxies     []string
	headers     []http.Header
	ca          string
	serverName  string
	tlsCert     string
	tlsKey      string
	mode        packet.Mode
	kernel      bool // --bond kernel
	redundant   bool
	device      string
	addresses   []netip.Prefix
	mtu         int
	networks    []netip.Prefix
	masquerade  bool
	routes      []static
	firewall    bool
	open        bool // --firewall=false
	adminListen string
	log         cli.Log

	pair *certs.KeyPair // of tlsCert and tlsKey
}

// texts are flags that are words, as they stood.
type texts struct{ mode, bond, masquerade, firewall string }

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := new(options)
	w := texts{mode: "tap", bond: "user"}
	f := cli.NewFlags("vpn-client", help)
	f.Section("Servers")
	f.Each("server", "URL", "a server, https://host:port; the first is used in preference to the others", o.addServer)
	f.Texts(&o.proxies, "proxy", "URL", "an HTTP proxy on the way to the servers, http[s]://[user:password@]host:port, such as the entrypoint; it resolves their names. One for all, or one for each in their order")
	f.Each("proxy-header", "'NAME: VALUE'", "a header for the proxy, by which the entrypoint tells the servers; one for all, or one for each in their order", o.addHeader)
	f.Text(&o.ca, "server-ca", "FILE", "authorities of the servers' certificates (PEM); empty means those of the host")
	f.Text(&o.serverName, "server-name", "NAME", "what a server's certificate must be valid for; empty means the host of its URL")
	f.Text(&o.tlsCert, "tls-cert", "FILE", "certificate of this client (PEM), which names its cluster, and by its common name the client")
	f.Text(&o.tlsKey, "tls-key", "FILE", "its private key (PEM)")
	f.Section("The tunnel")
	f.Text(&w.mode, "mode", "tap|tun", "what goes through the tunnel, as the servers have it: Ethernet frames or IP packets")
	f.Text(&w.bond, "bond", "user|kernel", "who makes one device of the links: this program, or the kernel's bonding driver, which needs --mode tap")
	f.Bool(&o.redundant, "redundant", "send each packet over all links, so that none is lost with one of them; not with --bond kernel")
	f.Text(&o.device, "device", "NAME", "what the device is called; empty means bond0, or tun0 with --mode tun")
	f.Each("address", "IP/BITS", "its address on the tunnel's network; Ethernet addresses are made of the first one", o.addAddress)
	f.Int(&o.mtu, "mtu", "the largest packet, in bytes, which the servers are told; 0 means that of the interface that leads to the first addresses of each --network, the least of them, and 1500 without; it is looked at once, at the start")
	f.Section("In the shoot")
	f.Each("network", "CIDR", "a network that can be reached from here: packets are forwarded there and nowhere else, back only what answers, by nftables, and the servers are told; loopback and link-local addresses are not part of a larger network. A kernel without nftables needs --masquerade=false and limits nothing", o.addNetwork)
	f.Text(&w.masquerade, "masquerade", "true|false", "let forwarded packets come from this host, by nftables; with false the networks need a route back to here; empty means true")
	f.Section("In the seed")
	f.Each("route", "CIDR=VIA[,src=IP]", "a route to a network behind another client, by that client's address on the tunnel's network, for packets from an address of this host; with --mode tun the servers choose the client, and VIA is not needed", o.addRoute)
	f.Text(&w.firewall, "firewall", "true|false", "let others in the tunnel begin nothing towards this host, by nftables, on the device, but for what is in --network; empty means true, where the kernel can if there is a --network")
	f.Section("This program")
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (a link is up, and the device as it should be), /status (links, members, counters, JSON), /members/ADDRESS (200 if a server reaches it, 410 if none does, 503 if none can tell), /debug/pprof/; not for the world")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if err := o.check(w); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}

func (o *options) addServer(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.String() != "https://"+u.Host {
		return errors.New("want https://host:port")
	}
	o.servers = append(o.servers, server{url: u})
	return nil
}

func (o *options) addHeader(s string) error {
	h := make(http.Header)
	o.headers = append(o.headers, h)
	return cli.ParseHeader(h, s)
}

func (o *options) addAddress(s string) error {
	p, err := cli.ParseAddress(s)
	o.addresses = append(o.addresses, p)
	return err
}

func (o *options) addNetwork(s string) error {
	p, err := cli.ParsePrefix(s)
	o.networks = append(o.networks, p)
	return err
}

// addRoute reads CIDR, CIDR=VIA, either with ,src=IP behind it.
func (o *options) addRoute(s string) error {
	const want = "want CIDR=VIA[,src=IP]"
	rest, source, given := strings.Cut(s, ",src=")
	network, via, hop := strings.Cut(rest, "=")
	var r static
	var err error
	if r.network, err = cli.ParsePrefix(network); err != nil {
		return fmt.Errorf("%s: %w", want, err)
	}
	if hop {
		if r.via, err = netip.ParseAddr(via); err != nil || r.via.Zone() != "" {
			return errors.New(want)
		}
	}
	if given {
		if r.source, err = netip.ParseAddr(source); err != nil || r.source.Is4() != r.network.Addr().Is4() {
			return errors.New(want + ", with an address of the network's kind")
		}
	}
	o.routes = append(o.routes, r)
	return nil
}

// check finds all that is missing or contradicts itself.
func (o *options) check(w texts) error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	o.pair, err = cli.KeyPair("tls-cert", o.tlsCert, "tls-key", o.tlsKey)
	errs = append(errs, err)
	need(o.pair != nil || err != nil, "--tls-cert and --tls-key are missing: no server admits a client without")
	need(len(o.servers) > 0, "--server is missing: where are the servers?")
	need(len(o.servers) <= maxServers, "--server: %d of them, and %d are the most", len(o.servers), maxServers)
	errs = append(errs, o.checkProxies(), o.checkMode(w))
	need(len(o.addresses) > 0, "--address is missing: which address has this host in the tunnel?")
	need(len(o.addresses) <= maxAddresses, "--address: %d of them, and %d are the most", len(o.addresses), maxAddresses)
	need(len(o.networks) <= maxNetworks, "--network: %d of them, and %d are the most", len(o.networks), maxNetworks)
	need(o.mtu == 0 || o.mtu >= minMTU && o.mtu <= maxMTU, "--mtu %d: want %d to %d, or 0", o.mtu, minMTU, maxMTU)
	masquerade, err := parseBool("masquerade", w.masquerade, len(o.networks) > 0)
	errs = append(errs, err)
	need(!masquerade || err != nil || len(o.networks) > 0, "--masquerade is for --network, and there is none")
	o.masquerade = masquerade
	o.firewall, err = parseBool("firewall", w.firewall, len(o.networks) == 0)
	o.open = w.firewall != "" && !o.firewall
	errs = append(errs, err)
	errs = append(errs, o.checkRoutes(), cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check())
	return errors.Join(errs...)
}

const (
	// maxServers bounds the links; more than two or three help nobody.
	maxServers = 16
	// What servers can be told.
	maxAddresses = 16
	maxNetworks  = 256
	// What an MTU can be: IPv6 needs 1280 bytes, IP has 65535 at most.
	minMTU = 1280
	maxMTU = 65535
)

func parseBool(flag, s string, empty bool) (bool, error) {
	if s == "" {
		return empty, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("--%s %q: want true or false", flag, s)
	}
	return v, nil
}

func (o *options) checkMode(w texts) error {
	var errs []error
	switch w.mode {
	case "tap":
		o.mode = packet.TAP
	case "tun":
		o.mode = packet.TUN
	default:
		errs = append(errs, fmt.Errorf("--mode %q: want tap or tun", w.mode))
	}
	switch w.bond {
	case "user":
	case "kernel":
		o.kernel = true
		if w.mode == "tun" {
			errs = append(errs, errors.New("--bond kernel needs --mode tap: the kernel bonds Ethernet devices only"))
		}
		if o.redundant {
			errs = append(errs, errors.New("--redundant is for --bond user"))
		}
	default:
		errs = append(errs, fmt.Errorf("--bond %q: want user or kernel", w.bond))
	}
	if o.device == "" {
		o.device = "bond0"
		if o.mode == packet.TUN {
			o.device = "tun0"
		}
	}
	return errors.Join(errs...)
}

func (o *options) checkRoutes() error {
	var errs []error
	for _, r := range o.routes {
		own := slices.ContainsFunc(o.addresses, func(a netip.Prefix) bool { return a.Addr() == r.via })
		switch {
		case !r.via.IsValid() && o.mode == packet.TAP:
			errs = append(errs, fmt.Errorf("--route %s: want CIDR=VIA with --mode tap", r.network))
		case own:
			errs = append(errs, fmt.Errorf("--route %s: %s is this host's own --address", r.network, r.via))
		case r.via.IsValid() && !slices.ContainsFunc(o.addresses, func(a netip.Prefix) bool { return a.Contains(r.via) }):
			errs = append(errs, fmt.Errorf("--route %s: %s is on the network of no --address", r.network, r.via))
		case r.via.Is4() && r.network.Addr().Is6():
			errs = append(errs, fmt.Errorf("--route %s: an IPv6 network needs an IPv6 VIA", r.network))
		}
		if r.network.Bits() == 0 {
			errs = append(errs, fmt.Errorf("--route %s: this host's own way out would lead into the tunnel", r.network))
		}
	}
	return errors.Join(errs...)
}

// checkProxies gives each server its proxy.
func (o *options) checkProxies() error {
	var errs []error
	fits := func(flag string, n int) {
		if n > 1 && n != len(o.servers) {
			errs = append(errs, fmt.Errorf("--%s: want one for all servers or one for each, %d, not %d", flag, len(o.servers), n))
		}
	}
	fits("proxy", len(o.proxies))
	fits("proxy-header", len(o.headers))
	if len(o.headers) > 0 && len(o.proxies) == 0 {
		errs = append(errs, errors.New("--proxy-header needs --proxy"))
	}
	if len(errs) > 0 || len(o.proxies) == 0 {
		return errors.Join(errs...)
	}
	for i := range o.servers {
		d, err := parseProxy(o.proxies[min(i, len(o.proxies)-1)])
		if err != nil {
			return err
		}
		if len(o.headers) > 0 {
			d.Header = o.headers[min(i, len(o.headers)-1)]
		}
		o.servers[i].proxy = d
	}
	return nil
}

func parseProxy(s string) (*connect.Dialer, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("--proxy: want http[s]://[user:password@]host:port") // not err, which has the password
	}
	d, err := connect.FromURL(u, nil)
	if err != nil {
		return nil, fmt.Errorf("--proxy %q: %w", u.Redacted(), err)
	}
	return d.(*connect.Dialer), nil // FromURL says so
}
