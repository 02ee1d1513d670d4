// Command proxy-agent is the shoot's end of the tunnel: it connects to servers
// and dials nodes, pods and services for them.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

func main() { cli.Main("proxy-agent", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, stderr)
	if err := p.load(); err != nil {
		return err
	}
	var open cli.Listeners
	door, admin, err := p.open(&open)
	if err != nil {
		open.Close()
		return err
	}
	g := cli.NewGroup()
	p.files.Follow(g)
	if len(o.servers) > 0 {
		g.Go("agent", func() error { return p.agent.Run(g.Context()) })
	}
	if door != nil {
		g.Go("door for servers", func() error { return p.agent.Serve(g.Context(), door) })
	}
	if admin != nil {
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), admin, p.pages()) })
	}
	return g.Run(ctx, func(abort context.Context) error {
		p.agent.Logger.Info("draining", "cause", context.Cause(ctx), "timeout", o.drainTimeout)
		return p.agent.Shutdown(abort)
	})
}

// program is what the flags have been made into.
type program struct {
	*options
	agent *tunnel.Agent
	files cli.Files
	pool  *certs.Pool // nil without --ca
}

func newProgram(o *options, stderr io.Writer) *program {
	log := o.log.Logger(stderr)
	p := &program{options: o}
	if o.pair != nil {
		o.pair.Logger = log
		p.files = append(p.files, o.pair)
	}
	if o.ca != "" {
		p.pool = &certs.Pool{CAs: []certs.CA{{File: o.ca}}, Logger: log}
		p.files = append(p.files, p.pool)
	}
	p.agent = &tunnel.Agent{
		Servers:      o.servers,
		ID:           o.agentID,
		Cluster:      o.cluster,
		TLSFor:       p.clientTLS,
		Allow:        o.allow.Allow,
		Labels:       o.labels,
		Serves:       o.serves,
		DrainTimeout: o.drainTimeout,
		Logger:       log,
	}
	if o.tokenFile != "" {
		p.agent.Token = func(context.Context) (string, error) { return cli.ReadToken(o.tokenFile) }
	}
	if o.via != nil {
		p.agent.Dial = o.via.DialContext
	}
	if o.serverName != "" {
		p.agent.AuthServer = p.authServer
	}
	return p
}

// clientTLS is for the server at a host of --server.
func (p *program) clientTLS(host string) *tls.Config {
	if p.serverName != "" {
		host = p.serverName
	}
	return certs.ClientTLS(p.pair, p.pool, host)
}

// load reads every file once, so that a mistake shows at the start.
func (p *program) load() error {
	err := p.files.Load()
	if p.tokenFile != "" {
		_, e := cli.ReadToken(p.tokenFile)
		err = errors.Join(err, e)
	}
	return err
}

// authServer admits the servers that connect here by their name: without it
// whoever has a certificate of the authority may dial through this agent.
func (p *program) authServer(peer *tunnel.Peer) error {
	err := errors.New("no client certificate")
	if peer.TLS != nil && len(peer.TLS.VerifiedChains) > 0 {
		err = peer.TLS.VerifiedChains[0][0].VerifyHostname(p.serverName)
	}
	if err != nil {
		return &connect.Error{Reason: connect.ErrDenied, Err: err}
	}
	return nil
}

// open opens the ports that the flags name; nil where they name none.
func (p *program) open(open *cli.Listeners) (door, admin net.Listener, err error) {
	if p.listen != "" {
		if door, err = open.TCP(p.listen, certs.ServerTLS(p.pair, p.pool, true)); err != nil {
			return nil, nil, fmt.Errorf("--listen: %w", err)
		}
		p.agent.Logger.Info("listening", "door", "servers", "addr", door.Addr().String())
	}
	if p.adminListen != "" {
		if admin, err = open.TCP(p.adminListen, nil); err != nil {
			return nil, nil, fmt.Errorf("--admin-listen: %w", err)
		}
		p.agent.Logger.Info("listening", "door", "admin", "addr", admin.Addr().String())
	}
	return door, admin, nil
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz":  cli.Alive(),
		"GET /readyz":   cli.Check(p.ready),
		"GET /sessions": cli.JSON(func() any { return p.agent.Sessions() }),
	}
}

// ready is an agent that a server can dial through.
func (p *program) ready(*http.Request) error {
	for _, s := range p.agent.Sessions() {
		if s.State == "ready" || s.State == "suspect" {
			return nil
		}
	}
	return errors.New("no session with a server")
}
