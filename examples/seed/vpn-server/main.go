// Command vpn-server is the seed's end of the packet tunnel: it takes in the
// vpn-clients of a cluster, and packets go between them, or between them and a
// device and an HTTP CONNECT proxy of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

func main() { cli.Main("vpn-server", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, o.log.Logger(stderr))
	if err := p.files.Load(); err != nil {
		return err
	}
	// First what is in the kernel, then who uses it, and the other way round at
	// the end.
	if o.mode == packet.TUN {
		if p.tun, err = openTunnel(o, p.log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.tun.close()) }()
	}
	var open cli.Listeners
	ports, err := p.open(&open)
	if err != nil {
		open.Close()
		return err
	}
	return p.serve(ctx, ports)
}

// program is what the flags have been made into.
type program struct {
	*options
	log        *slog.Logger
	files      cli.Files
	clients    *certs.Pool
	apiservers *certs.Pool // nil without --connect-listen
	sw         *packet.Switch
	server     *packet.Server
	tun        *tunnel // nil without --mode tun
	door       *door   // nil without --connect-listen
	draining   atomic.Bool
}

func newProgram(o *options, log *slog.Logger) *program {
	p := &program{options: o, log: log}
	o.pair.Logger = log
	p.clients = &certs.Pool{CAs: o.clientCAs, Logger: log}
	p.files = cli.Files{o.pair, p.clients}
	if o.connect != "" {
		p.apiservers = &certs.Pool{CAs: o.connectCAs, Logger: log}
		p.files = append(p.files, p.apiservers)
	}
	p.sw = &packet.Switch{Mode: o.mode, Isolate: o.isolate, Logger: log}
	p.server = &packet.Server{
		TLS:  certs.ServerTLS(o.pair, p.clients, true),
		Auth: p.auth(),
		// The links finish for their peers what a device or another peer has not.
		Hello: packet.Hello{Name: "vpn-server", Mode: o.mode, MTU: o.mtu, Offload: packet.OffloadAll},
		Admit: p.admit,
		// The clients beside all kube-apiservers of a cluster may have one name.
		MaxLinksPerName: 64,
		DrainTimeout:    o.drainTimeout,
		Logger:          log,
	}
	return p
}

// auth lets nobody in who has no rule.
func (p *program) auth() packet.AuthFunc {
	who := packet.Auth(p.cluster, p.clients, nil)
	return func(peer *packet.Peer) (packet.Identity, error) {
		id, err := who(peer)
		if err == nil && p.peers[id.Name] == nil {
			err = &connect.Error{Reason: connect.ErrDenied, Err: fmt.Errorf("there are no --peer-addresses of %q", id.Name)}
		}
		return id, err
	}
}

// admit makes a port of the switch of a client.
func (p *program) admit(_ context.Context, id packet.Identity, remote packet.Hello) (packet.ServeFunc, error) {
	rule := p.peers[id.Name]
	port := packet.PortOptions{
		Member:    packet.Member{ID: remote.ID, Name: id.Name, Addresses: remote.Addresses, Networks: remote.Networks, MTU: remote.MTU},
		Addresses: rule.addresses,
		Networks:  rule.networks,
	}
	return func(ctx context.Context, c *packet.Conn) error {
		if p.tun != nil {
			defer p.tun.fit(c)()
		}
		return p.sw.Serve(ctx, c, port)
	}, nil
}

// ports are the listeners; nil where the flags name none.
type ports struct{ clients, apiservers, admin net.Listener }

// open opens them.
func (p *program) open(open *cli.Listeners) (l ports, err error) {
	if l.clients, err = open.TCPBehind(p.proxyFrom, p.listen, nil); err != nil {
		return l, fmt.Errorf("--listen: %w", err)
	}
	p.log.Info("listening", "door", "clients", "addr", l.clients.Addr().String())
	if p.connect != "" {
		if l.apiservers, err = open.TCP(p.connect, certs.ServerTLS(p.pair, p.apiservers, true)); err != nil {
			return l, fmt.Errorf("--connect-listen: %w", err)
		}
		p.log.Info("listening", "door", "connect", "addr", l.apiservers.Addr().String())
	}
	if p.adminListen != "" {
		if l.admin, err = open.TCP(p.adminListen, nil); err != nil {
			return l, fmt.Errorf("--admin-listen: %w", err)
		}
		p.log.Info("listening", "door", "admin", "addr", l.admin.Addr().String())
	}
	return l, nil
}

// serve runs all parts until ctx ends, and then drains.
func (p *program) serve(ctx context.Context, l ports) error {
	g := cli.NewGroup()
	p.files.Follow(g)
	g.Go("door for clients", func() error { return p.server.Serve(l.clients) })
	if p.tun != nil {
		g.Go("device", func() error { return p.sw.Serve(g.Context(), p.tun.device, p.tun.port()) })
		if p.tun.routes != nil {
			g.Go("routes", func() error { return p.tun.routes.Run(g.Context()) })
		}
	}
	conns, cut := context.WithCancel(context.Background())
	defer cut()
	if l.apiservers != nil {
		p.door = newDoor(l.apiservers, p.apiservers, p.cluster, p.proxy(), p.log)
		g.Go("door for kube-apiserver", func() error { return p.door.run(conns) })
	}
	if l.admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), l.admin, p.pages()) })
	}
	return g.Run(ctx, func(abort context.Context) error {
		p.log.Info("draining", "cause", context.Cause(ctx), "timeout", p.drainTimeout)
		p.draining.Store(true)
		// At the same time: what goes through the proxy goes over a link.
		var err error
		var wait sync.WaitGroup
		if p.door != nil {
			wait.Go(func() { err = p.drainProxy(abort, cut) })
		}
		_ = p.server.Shutdown(abort)
		wait.Wait()
		return err
	})
}

// drainProxy gives the connections of the CONNECT proxy the time that the links
// have.
func (p *program) drainProxy(abort context.Context, cut func()) error {
	if p.drainTimeout >= 0 {
		var cancel context.CancelFunc
		abort, cancel = context.WithTimeout(abort, p.drainTimeout)
		defer cancel()
	}
	return p.door.shutdown(abort, cut)
}

// proxy is the CONNECT proxy into the device.
func (p *program) proxy() *connect.Handler {
	d := &dialer{networks: p.networks, bind: bindTo(p.device), behind: p.behind}
	return &connect.Handler{Dial: d.DialContext, Name: "vpn-server", Logger: p.log}
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(p.ready),
		"GET /status":  cli.JSON(func() any { return p.status() }),
	}
}

// ready is a server that clients can come to. One without clients is ready: else
// no Service would let one in.
func (p *program) ready(*http.Request) error {
	if err := p.files.Ready(); err != nil {
		return err
	}
	if p.draining.Load() {
		return errors.New("the server drains")
	}
	return nil
}
