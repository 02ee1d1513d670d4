// Command entrypoint is the front that all clusters of a seed share: it tells
// connections apart by server name, by the destination of a PROXY header, or by
// a header of a CONNECT request, and hands each to its route's backends.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

func main() { cli.Main("entrypoint", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := &program{options: o, log: o.log.Logger(stderr)}
	p.file = &cli.File{Path: o.config, Use: p.use, Interval: o.interval, MaxBytes: maxConfig, Logger: p.log}
	if err := p.file.Load(); err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	if o.check {
		return describe(stdout, p.current.Load())
	}
	g := cli.NewGroup()
	var open cli.Listeners
	if err := p.open(g, &open); err != nil {
		open.Close()
		_ = p.router.Close()
		g.Stop()
		return err
	}
	g.Go("configuration", func() error { return p.file.Run(g.Context()) })
	return g.Run(ctx, func(abort context.Context) error {
		p.log.Info("draining", "cause", context.Cause(ctx), "connections", p.router.Stats().Conns)
		return p.router.Shutdown(abort)
	})
}

// program is what the flags and the file have been made into.
type program struct {
	*options
	log     *slog.Logger
	file    *cli.File
	router  *entrypoint.Router
	started *entrypoint.Config                // what listeners, limits and timeouts are from
	current atomic.Pointer[entrypoint.Config] // what routes are from; also for the admin pages
}

// maxConfig bounds the file: some 100,000 routes.
const maxConfig = 64 << 20

// use takes what the file says, whole or not at all: the first time everything,
// and afterwards the routes.
func (p *program) use(data []byte) error {
	next, err := entrypoint.ParseConfig(data)
	if err != nil {
		return err
	}
	if p.router == nil {
		router, err := next.NewRouter()
		if err != nil {
			return err
		}
		router.Logger = p.log
		p.router, p.started = router, next
		p.current.Store(next)
		return nil
	}
	old := p.current.Load()
	if err := next.Apply(p.router, old); err != nil {
		return err
	}
	p.current.Store(next)
	added, removed, changed := differences(old, next)
	p.log.Info("routes replaced", "file", p.config, "routes", len(next.Routes), "added", added, "removed", removed, "changed", changed)
	if !next.SameFront(p.started) {
		p.log.Warn("listeners, limits or timeouts are not those of the start: that takes a restart", "file", p.config)
	}
	return nil
}

// differences counts routes by what became of them.
func differences(old, next *entrypoint.Config) (added, removed, changed int) {
	for i := range next.Routes {
		name := next.Routes[i].Name
		switch before := old.Route(name); {
		case before == nil:
			added++
		case before != next.Route(name):
			changed++
		}
	}
	return added, len(old.Routes) + added - len(next.Routes), changed
}

// open opens every port and serves it in the group. What it leaves open after
// an error is in the list.
func (p *program) open(g *cli.Group, open *cli.Listeners) error {
	doors, err := p.started.Doors()
	if err != nil {
		return err
	}
	listeners := make([]net.Listener, len(doors))
	for i, lc := range p.started.Listeners {
		if listeners[i], err = open.TCP(lc.Address, nil); err != nil {
			return fmt.Errorf("listener %q: %w", lc.Address, err)
		}
	}
	var admin net.Listener
	if p.adminListen != "" {
		if admin, err = open.TCP(p.adminListen, nil); err != nil {
			return fmt.Errorf("--admin-listen: %w", err)
		}
	}
	for i, l := range listeners {
		p.log.Info("listening", "door", p.started.Listeners[i].Kind(), "addr", l.Addr().String())
		g.Go("listener "+l.Addr().String(), func() error { return p.router.Serve(l, doors[i]) })
	}
	if admin != nil {
		p.log.Info("listening", "door", "admin", "addr", admin.Addr().String())
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	return nil
}
