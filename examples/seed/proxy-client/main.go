// Command proxy-client is the sidecar of programs that cannot show a proxy a
// client certificate, or know of no proxy at all: it listens on loopback and
// dials through the proxy-server for them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

func main() { cli.Main("proxy-client", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, o.log.Logger(stderr))
	if err := p.way.files.Load(); err != nil {
		return err
	}
	var open cli.Listeners
	admin, err := p.open(ctx, &open)
	if err != nil {
		open.Close()
		return err
	}
	p.log.Info("dialling", "through", p.way.name)
	g := cli.NewGroup()
	p.way.files.Follow(g)
	conns, cut := context.WithCancel(context.Background())
	for _, d := range p.doors {
		g.Go("door "+d.name, func() error { return d.run(conns) })
	}
	g.Go("look at the proxy", func() error { return p.reach.run(g.Context()) })
	if admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	return g.Run(ctx, func(abort context.Context) error {
		p.log.Info("draining", "cause", context.Cause(ctx), "timeout", o.drainTimeout)
		close(p.drain)
		return p.doors.shutdown(abort, o.drainTimeout, cut)
	})
}

// program is what the flags have been made into.
type program struct {
	*options
	log   *slog.Logger
	way   *way
	reach *reach
	proxy *connect.Handler // behind each --listen
	doors doors
	drain chan struct{} // closed when nobody is let in any more
}

func newProgram(o *options, log *slog.Logger) *program {
	p := &program{options: o, log: log, drain: make(chan struct{})}
	if o.egressConfig != "" {
		p.way = egressWay(o.egressConfig, o.selection, log)
	} else {
		p.way = proxyWay(o, log)
	}
	p.reach = &reach{way: p.way, log: log}
	p.proxy = &connect.Handler{
		Dial:        p.reach.dial,
		Name:        "proxy-client",
		DialTimeout: o.dialTimeout,
		IdleTimeout: o.idleTimeout,
		Drain:       p.drain,
		Logger:      log,
	}
	return p
}

// open opens all ports; admin is nil where the flags name none.
func (p *program) open(ctx context.Context, open *cli.Listeners) (admin net.Listener, err error) {
	for _, at := range p.listen {
		l, err := p.openDoor(ctx, at, open)
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		p.doors = append(p.doors, proxyDoor(p.proxy, l, p.maxConnections, p.log))
		p.log.Info("listening", "door", "proxy", "addr", l.Addr().String())
	}
	for _, f := range p.forwards {
		l, err := p.openDoor(ctx, f.at, open)
		if err != nil {
			return nil, fmt.Errorf("--forward %s=%s: %w", f.at, f.target, err)
		}
		forward := &forward{target: f.target, dial: p.reach.dial, dialTimeout: p.dialTimeout, idleTimeout: p.idleTimeout, log: p.log}
		p.doors = append(p.doors, forwardDoor(forward, l, p.maxConnections, p.log))
		p.log.Info("listening", "door", "forward", "addr", l.Addr().String(), "target", f.target)
	}
	if p.adminListen != "" {
		if admin, err = open.TCP(p.adminListen, nil); err != nil {
			return nil, fmt.Errorf("--admin-listen: %w", err)
		}
		p.log.Info("listening", "door", "admin", "addr", admin.Addr().String())
	}
	return admin, nil
}

// openDoor opens a port or a Unix socket for clients.
func (p *program) openDoor(ctx context.Context, at listenAddr, open *cli.Listeners) (net.Listener, error) {
	if at.network == "unix" {
		return open.Unix(ctx, at.address)
	}
	l, err := open.TCP(at.address, nil)
	if err != nil {
		return nil, err
	}
	// What localhost means is for the resolver to say.
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() && !p.allowRemote {
		return nil, fmt.Errorf("%s: %w", a, errNotLoopback)
	}
	return l, nil
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(p.ready),
		"GET /doors":   cli.JSON(func() any { return p.doors.status() }),
	}
}

// ready is a program whose clients reach the proxy; what is behind the proxy is
// not asked.
func (p *program) ready(*http.Request) error {
	select {
	case <-p.drain:
		return errors.New("draining")
	default:
	}
	if err := p.way.files.Ready(); err != nil {
		return err
	}
	return p.reach.ready()
}
