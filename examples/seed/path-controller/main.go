// Command path-controller runs beside a kube-apiserver: it finds out which shoot
// client of a packet tunnel works, and leads the routes to the shoot over that.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

func main() { cli.Main("path-controller", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p, err := newProgram(o, o.log.Logger(stderr))
	if err != nil {
		return err
	}
	defer p.closeProbers()
	if err := p.openProbers(); err != nil {
		return err
	}
	if err := p.router.Up(); err != nil {
		return err
	}
	defer p.router.Close() // for the case that Run below is not reached
	// With another --metric it may have left what nobody looks after.
	if err := p.router.Sweep(); err != nil {
		return err
	}
	// What a process that was killed has left counts as chosen, so that a restart
	// moves nothing.
	p.controller.Current = p.router.Status().Path
	var open cli.Listeners
	admin, err := p.open(&open)
	if err != nil {
		open.Close()
		return err
	}
	g := cli.NewGroup()
	g.Go("routes", func() error { return p.router.Run(g.Context()) })
	if admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	choosing, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	g.Go("paths", func() error {
		defer close(ended)
		return p.controller.Run(choosing)
	})
	return g.Run(ctx, func(context.Context) error {
		p.logger.Info("ending", "cause", context.Cause(ctx))
		// Nobody is to choose a path while the routes are removed.
		stop()
		<-ended
		return nil
	})
}

// program is what the flags have been made into.
type program struct {
	*options
	logger     *slog.Logger
	router     *pathcontrol.NetlinkRouter
	controller *pathcontrol.Controller
	icmp       []*pathcontrol.ICMP // have sockets, which are to be closed
}

func newProgram(o *options, log *slog.Logger) (*program, error) {
	p := &program{options: o, logger: log, router: o.router()}
	p.router.Logger = log
	p.controller = &pathcontrol.Controller{
		Hysteresis: pathcontrol.Hysteresis{Interval: o.probeInterval, Timeout: o.probeTimeout, Fall: o.fall, Rise: o.riseTime()},
		Failback:   o.failback,
		Use:        p.router.Use,
		Logger:     log,
	}
	for i, path := range o.paths {
		probers, err := p.probers(path)
		if err != nil {
			return nil, fmt.Errorf("path %s: %w", path.name, err)
		}
		p.controller.Paths = append(p.controller.Paths, pathcontrol.Path{Name: path.name, Preference: i, Probers: probers})
	}
	return p, nil
}

// open opens the port that the flags name; nil where they name none.
func (p *program) open(open *cli.Listeners) (admin net.Listener, err error) {
	if p.adminListen == "" {
		return nil, nil
	}
	if admin, err = open.TCP(p.adminListen, nil); err != nil {
		return nil, fmt.Errorf("--admin-listen: %w", err)
	}
	p.logger.Info("listening", "door", "admin", "addr", admin.Addr().String())
	return admin, nil
}

// openProbers finds out at the start what the process may not. The device may not
// be there yet, and may come and go: probes are missed meanwhile.
func (p *program) openProbers() error {
	for _, i := range p.icmp {
		if err := i.Open(); err != nil && !errors.Is(err, syscall.ENODEV) {
			return err
		}
	}
	return nil
}

func (p *program) closeProbers() {
	for _, i := range p.icmp {
		_ = i.Close()
	}
}

// ready is a path that is in use: routes lead over it, and it works.
func (p *program) ready() error {
	status := p.controller.Status()
	switch {
	case status.Path == "":
		return errors.New("no path has answered yet")
	case !status.Applied && status.UseError != "":
		return fmt.Errorf("path %s is not in use: %s", status.Path, status.UseError)
	case !status.Applied:
		return fmt.Errorf("path %s is not in use yet", status.Path)
	}
	for _, path := range status.Paths {
		if path.Name == status.Path && path.State == pathcontrol.Down {
			return fmt.Errorf("no path is up; the routes stay on %s, which is down: %s", path.Name, path.LastError)
		}
	}
	return p.router.Status().Err
}
