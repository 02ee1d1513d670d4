// Command apiserver-proxy runs on each node of a shoot: it owns the address at
// which the API server seems to be in the cluster, and forwards what connects to
// it to the entrypoint of the seed.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/intercept"
)

func main() { cli.Main("apiserver-proxy", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, o.log.Logger(stderr))
	// First the address, then the listener on it, and the other way round at
	// the end: the address stays as long as a connection to it lives.
	if p.local != nil {
		if err := p.local.Up(); err != nil {
			return err
		}
		defer p.local.Close() // for the case that Run below is not reached
	}
	var open cli.Listeners
	door, admin, err := p.open(&open)
	if err != nil {
		open.Close()
		return err
	}
	g := cli.NewGroup()
	if p.local != nil {
		g.Go("address", func() error { return p.local.Run(g.Context()) })
	}
	g.Go("clients", func() error { return p.interceptor.Serve(door) })
	if admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	return g.Run(ctx, func(abort context.Context) error {
		p.logger.Info("draining", "cause", context.Cause(ctx), "timeout", o.drainTimeout)
		return p.interceptor.Shutdown(abort)
	})
}

// program is what the flags have been made into.
type program struct {
	*options
	logger      *slog.Logger
	local       *intercept.LocalAddr // nil with --interface none
	interceptor *intercept.Interceptor
}

func newProgram(o *options, log *slog.Logger) *program {
	p := &program{options: o, logger: log}
	if o.iface != noInterface {
		p.local = &intercept.LocalAddr{Addr: o.listen.Addr(), Interface: o.iface, Logger: log}
	}
	p.interceptor = &intercept.Interceptor{
		Entrypoint:   o.entrypoint,
		Dialect:      o.dialect,
		Destination:  o.destination,
		Header:       o.header,
		MaxConns:     o.maxConns,
		DrainTimeout: o.drain(),
		Logger:       log,
	}
	return p
}

// drain is what the library is told, for which 0 is the default.
func (o *options) drain() time.Duration {
	if o.drainTimeout == 0 {
		return 1
	}
	return o.drainTimeout
}

// open opens the ports that the flags name; nil where they name none.
func (p *program) open(open *cli.Listeners) (door, admin net.Listener, err error) {
	if door, err = open.TCP(p.listen.String(), nil); err != nil {
		return nil, nil, fmt.Errorf("--listen-address: %w", err)
	}
	p.logger.Info("listening", "door", "clients", "addr", door.Addr().String())
	if p.adminListen != "" {
		if admin, err = open.TCP(p.adminListen, nil); err != nil {
			return nil, nil, fmt.Errorf("--admin-listen: %w", err)
		}
		p.logger.Info("listening", "door", "admin", "addr", admin.Addr().String())
	}
	return door, admin, nil
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(p.ready),
		"GET /stats":   cli.JSON(func() any { return p.interceptor.Stats() }),
	}
}

// ready is a node whose pods reach this program: the address is there. Whether
// the entrypoint is, /stats tells: a probe of it would take all nodes' proxies
// down at once, which helps nobody.
func (p *program) ready(*http.Request) error {
	if p.local == nil {
		return nil
	}
	return p.local.Ready()
}
