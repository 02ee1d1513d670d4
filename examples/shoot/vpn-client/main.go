// Command vpn-client is an end of the packet tunnel: in the shoot, where it
// forwards into the networks of the cluster, and beside kube-apiserver.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

func main() { cli.Main("vpn-client", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, o.log.Logger(stderr))
	if err := p.files.Load(); err != nil {
		return err
	}
	if err := p.up(); err != nil {
		return errors.Join(err, p.down())
	}
	var open cli.Listeners
	admin, err := p.open(&open)
	if err != nil {
		open.Close()
		return errors.Join(err, p.down())
	}
	return errors.Join(p.serve(ctx, admin), p.down())
}

// program is what the flags have been made into.
type program struct {
	*options
	log     *slog.Logger
	files   cli.Files
	pool    *certs.Pool // nil without --server-ca
	backend backend     // nil before up
	kernel  surroundings
	links   []*link
}

func newProgram(o *options, log *slog.Logger) *program {
	p := &program{options: o, log: log}
	o.pair.Logger = log
	p.files = cli.Files{o.pair}
	if o.ca != "" {
		p.pool = &certs.Pool{CAs: []certs.CA{{File: o.ca}}, Logger: log}
		p.files = append(p.files, p.pool)
	}
	return p
}

// up makes what is in the kernel, in the network namespace of this thread: first
// the wall, then the device, then what leads there.
func (p *program) up() error {
	if err := p.kernel.wall(p.options, p.log); err != nil {
		return err
	}
	hello, err := p.hello()
	if err != nil {
		return err
	}
	if p.backend, err = openBackend(p.options, hello.MTU, p.log); err != nil {
		return err
	}
	hello.Offload = p.backend.offload()
	for i, s := range p.servers {
		p.links = append(p.links, newLink(p, i, s, hello))
	}
	return p.kernel.roads(p.options, p.log)
}

// down takes it back, in the opposite order. It may be called after an up that
// failed.
func (p *program) down() error {
	err := p.kernel.unroads()
	if p.backend != nil {
		err = errors.Join(err, p.backend.close())
	}
	return errors.Join(err, p.kernel.unwall())
}

// open opens the port that the flags name; nil where they name none.
func (p *program) open(open *cli.Listeners) (admin net.Listener, err error) {
	if p.adminListen == "" {
		return nil, nil
	}
	if admin, err = open.TCP(p.adminListen, nil); err != nil {
		return nil, fmt.Errorf("--admin-listen: %w", err)
	}
	p.log.Info("listening", "door", "admin", "addr", admin.Addr().String())
	return admin, nil
}

// serve runs all parts until ctx ends. There is nothing to drain: the servers see
// the links end, and tell the other members.
func (p *program) serve(ctx context.Context, admin net.Listener) error {
	g := cli.NewGroup()
	p.files.Follow(g)
	g.Go("device", func() error { return p.backend.run(g.Context()) })
	for _, r := range p.kernel.routers {
		g.Go("routes", func() error { return r.Run(g.Context()) })
	}
	for _, l := range p.links {
		g.Go(l.name, func() error { return l.client.Run(g.Context()) })
	}
	if len(p.links) > 1 {
		g.Go("renewal of links", func() error { return p.renew(g.Context()) })
	}
	if admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	return g.Run(ctx, func(context.Context) error {
		p.log.Info("ending", "cause", context.Cause(ctx))
		return nil
	})
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz":           cli.Alive(),
		"GET /readyz":            cli.Check(p.ready),
		"GET /status":            cli.JSON(func() any { return p.status() }),
		"GET /members/{address}": p.member,
	}
}

// ready is a client with a link, whose device is as it should be.
func (p *program) ready(*http.Request) error {
	if err := p.backend.ready(); err != nil {
		return err
	}
	var errs []error
	for _, l := range p.links {
		s := l.status()
		if s.State != stateDown {
			return nil
		}
		errs = append(errs, fmt.Errorf("no link to %s: %s", s.Server, cmp.Or(s.Error, "connecting")))
	}
	return errors.Join(errs...)
}
