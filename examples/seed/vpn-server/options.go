package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

const help = `
vpn-server is the seed's end of the packet tunnel: vpn-clients connect to it, and
packets go between them. It belongs to one cluster.

For high availability it is a switch (--mode tap) that needs no root and has no
device. Two of them stand side by side, and every client, the one beside
kube-apiserver and those in the shoot, has a link to both:

  vpn-client ─ TLS ─►             ◄─ TLS ─ vpn-client 0 ─► pods, nodes, services
  (seed)             vpn-server 0
             ─ TLS ─►             ◄─ TLS ─ vpn-client 1 ─► pods, nodes, services
                     vpn-server 1

  vpn-server --listen :9444 --tls-cert tls.crt --tls-key tls.key \
    --client-ca clients.crt --cluster shoot--dev--a --admin-listen :9445 \
    --peer-addresses seed=fd8f:6d53:b97a:1::a:0/112,192.168.123.0/25 \
    --peer-addresses shoot-0=fd8f:6d53:b97a:1::b:0,192.168.123.128 \
    --peer-addresses shoot-1=fd8f:6d53:b97a:1::b:1,192.168.123.129 \
    --peer-networks shoot-0=100.64.0.0/13,10.250.0.0/16 \
    --peer-networks shoot-1=100.64.0.0/13,10.250.0.0/16

Without, it has a device of its own (--mode tun, linux and CAP_NET_ADMIN), and
kube-apiserver enters the tunnel by an HTTP CONNECT proxy beside it:

  kube-apiserver ─ CONNECT ─► vpn-server ─ tun0 ◄─ TLS ─ vpn-client ─► pods, …
                   --connect-listen      --address

  vpn-server --mode tun --listen :9444 --tls-cert tls.crt --tls-key tls.key \
    --client-ca clients.crt --cluster shoot--dev--a --admin-listen :9445 \
    --address 192.168.123.1/24 --shoot-network 100.64.0.0/13 \
    --peer-addresses shoot=192.168.123.2 --peer-networks shoot=100.64.0.0/13 \
    --connect-listen :9443 --connect-client-ca apiservers.crt

A client's certificate names the cluster, as for proxy-server, and the client
itself by its common name, for which the rules say what addresses it may have and
what may be behind it. A client without a rule is refused. All files are followed:
a change needs no restart and touches no link that it still admits. What is
made in the kernel is removed at the end, and after a kill at the next start.

SIGTERM tells the clients to move to another server, and ends their links after
--drain-timeout; a second one at once.
`

// peer is the rules of a client, by the common name of its certificate.
type peer struct{ addresses, networks []netip.Prefix }

type options struct {
	listen       string
	proxyFrom    []netip.Prefix
	tlsCert      string
	tlsKey       string
	clientCAs    []certs.CA
	cluster      string
	mode         packet.Mode
	mtu          int
	isolate      bool
	peers        map[string]*peer
	device       string
	addresses    []netip.Prefix
	networks     []netip.Prefix // --shoot-network
	firewall     bool
	connect      string // --connect-listen
	connectCAs   []certs.CA
	adminListen  string
	drainTimeout time.Duration
	log          cli.Log

	pair *certs.KeyPair // of tlsCert and tlsKey
}

// parse reads the command line. Its errors are all that is wrong with it.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{peers: make(map[string]*peer), drainTimeout: time.Second}
	mode, firewall := "tap", "true"
	f := cli.NewFlags("vpn-server", help)
	f.Section("Clients")
	f.Text(&o.listen, "listen", "ADDR", "where vpn-clients come in: host:port")
	f.Each("client-ca", "[CLUSTER=]FILE", "authority for their certificates (PEM); with CLUSTER, whatever it signs belongs to that cluster", cas(&o.clientCAs))
	f.Each("peer-addresses", "NAME=CIDR[,CIDR…]", "what addresses on the tunnel's network the client whose certificate has the common name NAME may have; a client without is refused", o.addPeer(func(p *peer) *[]netip.Prefix { return &p.addresses }))
	f.Each("peer-networks", "NAME=CIDR[,CIDR…]", "what may be behind that client: from where it forwards packets, and with --mode tun, to where they are sent to it if it says so", o.addPeer(func(p *peer) *[]netip.Prefix { return &p.networks }))
	f.Bool(&o.isolate, "isolate", "let no packet go from one client to another; with --mode tun only this host remains")
	f.Section("This server")
	f.Text(&o.tlsCert, "tls-cert", "FILE", "certificate of this server (PEM)")
	f.Text(&o.tlsKey, "tls-key", "FILE", "its private key (PEM)")
	f.Text(&o.cluster, "cluster", "NAME", "the cluster that it belongs to: certificates of others are refused")
	f.Text(&mode, "mode", "tap|tun", "what goes through the tunnel: Ethernet frames, between clients, or IP packets, also to and from this host")
	f.Int(&o.mtu, "mtu", "the largest packet, in bytes, which clients are told and keep to if it is less than their own; 0 means 1500")
	f.Each("proxy-from", "IP[/BITS]", "a load balancer or entrypoint in front: connections from there must begin with a PROXY header, which names the client in logs and pages", prefixes(&o.proxyFrom))
	f.Text(&o.adminListen, "admin-listen", "ADDR", "plain HTTP for probes and people: /healthz, /readyz (the door is open, files loaded, not draining), /status (clients, links and counters, JSON), /debug/pprof/; not for the world")
	f.Duration(&o.drainTimeout, "drain-timeout", "how long clients have after SIGTERM to move their traffic to another server: they keep their links to this one meanwhile, and a server without clients ends at once; 0 means no time, negative until a second SIGTERM")
	f.Section("Its device, with --mode tun")
	f.Text(&o.device, "device", "NAME", "what it is called; empty means tun0")
	f.Each("address", "IP/BITS", "its address on the tunnel's network, one of IPv4, IPv6 or of both", addresses(&o.addresses))
	f.Each("shoot-network", "CIDR", "a network behind the clients, to which a route leads into the device while this program runs", prefixes(&o.networks))
	f.Text(&firewall, "firewall", "true|false", "let clients begin nothing towards this host, by nftables, on the device")
	f.Text(&o.connect, "connect-listen", "ADDR", "host:port of an HTTP proxy for kube-apiserver, with this server's certificate, that dials into the device, to each --shoot-network and nowhere else")
	f.Each("connect-client-ca", "[CLUSTER=]FILE", "authority for the certificates of that proxy's clients (PEM), which must be of --cluster, or of an operator", cas(&o.connectCAs))
	f.Section("Logs")
	o.log.Define(f)
	if err := f.Parse(args, stdout); err != nil {
		return nil, err
	}
	if err := o.check(mode, firewall); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	if o.drainTimeout == 0 {
		o.drainTimeout = 1 // ended in the same moment
	}
	if o.mode == packet.TUN && o.device == "" {
		o.device = "tun0"
	}
	return o, nil
}

func cas(list *[]certs.CA) func(string) error {
	return func(s string) error {
		ca, err := cli.ParseCA(s)
		*list = append(*list, ca)
		return err
	}
}

func prefixes(list *[]netip.Prefix) func(string) error {
	return func(s string) error {
		p, err := cli.ParsePrefix(s)
		*list = append(*list, p)
		return err
	}
}

func addresses(list *[]netip.Prefix) func(string) error {
	return func(s string) error {
		p, err := cli.ParseAddress(s)
		*list = append(*list, p)
		return err
	}
}

// addPeer adds to one of a peer's lists. The last = counts, for a common name may
// have others and a network has none.
func (o *options) addPeer(list func(*peer) *[]netip.Prefix) func(string) error {
	return func(s string) error {
		i := strings.LastIndexByte(s, '=')
		if i <= 0 {
			return errors.New("want NAME=CIDR[,CIDR…]")
		}
		more, err := cli.ParsePrefixes(s[i+1:])
		if err != nil {
			return fmt.Errorf("want NAME=CIDR[,CIDR…]: %w", err)
		}
		p := o.peers[s[:i]]
		if p == nil {
			p = new(peer)
			o.peers[s[:i]] = p
		}
		*list(p) = append(*list(p), more...)
		return nil
	}
}

// check finds all that is missing or contradicts itself.
func (o *options) check(mode, firewall string) error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var err error
	o.pair, err = cli.KeyPair("tls-cert", o.tlsCert, "tls-key", o.tlsKey)
	errs = append(errs, err, cli.CheckAddrFlag("listen", o.listen))
	need(o.pair != nil || err != nil, "--tls-cert and --tls-key are missing")
	need(o.listen != "", "--listen is missing: where do clients come in?")
	need(len(o.clientCAs) > 0, "--client-ca is missing: whose certificates are good?")
	if o.cluster == "" {
		need(false, "--cluster is missing: whose clients may come in?")
	} else if err := certs.ValidCluster(o.cluster); err != nil {
		need(false, "--cluster %q: %w", o.cluster, err)
	}
	need(o.mtu == 0 || o.mtu >= minMTU && o.mtu <= maxMTU, "--mtu %d: want %d to %d, or 0", o.mtu, minMTU, maxMTU)
	errs = append(errs, o.checkPeers())
	o.firewall, err = strconv.ParseBool(firewall)
	need(err == nil, "--firewall %q: want true or false", firewall)
	switch mode {
	case "tap":
		o.mode = packet.TAP
		need(o.device == "" && len(o.addresses)+len(o.networks)+len(o.connectCAs) == 0 && o.connect == "",
			"--device, --address, --shoot-network, --connect-listen and --connect-client-ca are for --mode tun")
	case "tun":
		o.mode = packet.TUN
		errs = append(errs, o.checkDevice())
	default:
		need(false, "--mode %q: want tap or tun", mode)
	}
	errs = append(errs, cli.CheckAddrFlag("admin-listen", o.adminListen), o.log.Check())
	return errors.Join(errs...)
}

// What an MTU can be: IPv6 needs 1280 bytes, IP has 65535 at most.
const (
	minMTU = 1280
	maxMTU = 65535
)

func (o *options) checkPeers() error {
	if len(o.peers) == 0 {
		return errors.New("--peer-addresses is missing: which clients may have which addresses?")
	}
	var errs []error
	for name, p := range o.peers {
		if len(p.addresses) == 0 {
			errs = append(errs, fmt.Errorf("--peer-networks %s: there are no --peer-addresses of %s", name, name))
		}
		for _, a := range o.addresses {
			if contains(p.addresses, a.Addr()) {
				errs = append(errs, fmt.Errorf("--peer-addresses %s: %s among them is this server's --address", name, a.Addr()))
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// checkDevice is about what only --mode tun has.
func (o *options) checkDevice() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(len(o.addresses) > 0, "--mode tun needs --address: which address has this host in the tunnel?")
	for _, network := range o.networks {
		need(network.Bits() > 0, "--shoot-network %s: this server's own way out would lead into the tunnel", network)
		need(slices.ContainsFunc(o.addresses, func(a netip.Prefix) bool { return a.Addr().Is4() == network.Addr().Is4() }),
			"--shoot-network %s: there is no --address of its kind for packets to come from", network)
		behind := false
		for _, p := range o.peers {
			behind = behind || slices.ContainsFunc(p.networks, network.Overlaps)
		}
		need(behind, "--shoot-network %s: no --peer-networks let it be behind a client", network)
	}
	errs = append(errs, cli.CheckAddrFlag("connect-listen", o.connect))
	if o.connect != "" {
		need(len(o.connectCAs) > 0, "--connect-listen needs --connect-client-ca")
		need(len(o.networks) > 0, "--connect-listen needs --shoot-network: where may it dial?")
	} else {
		need(len(o.connectCAs) == 0, "--connect-client-ca is for --connect-listen, and there is none")
	}
	return errors.Join(errs...)
}

// contains reports whether one of the networks has the address.
func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}
