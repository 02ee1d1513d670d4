// Command proxy-server is the seed's end of the tunnel: it takes in the agents
// of many clusters, and dials through them for kube-apiservers and Prometheus.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
)

func main() { cli.Main("proxy-server", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	p := newProgram(o, o.log.Logger(stderr))
	if err := p.files.Load(); err != nil {
		return err
	}
	g := cli.NewGroup()
	var open cli.Listeners
	if err := p.open(ctx, g, &open); err != nil {
		open.Close()
		_ = p.server.Close()
		g.Stop()
		return err
	}
	p.files.Follow(g)
	for _, d := range o.dialAgents {
		g.Go("agent "+d.addr, func() error { return p.dialAgent(g.Context(), d) })
	}
	return g.Run(ctx, func(abort context.Context) error {
		p.log.Info("draining", "cause", context.Cause(ctx), "timeout", o.drainTimeout)
		return p.server.Shutdown(abort)
	})
}

// program is what the flags have been made into.
type program struct {
	*options
	log     *slog.Logger
	server  *tunnel.Server
	files   cli.Files
	pair    *certs.KeyPair
	clients *certs.Pool // nil without client CAs
	agents  *certs.Pool // nil without agent CAs
}

func newProgram(o *options, log *slog.Logger) *program {
	p := &program{options: o, log: log}
	if p.pair = o.pair; p.pair != nil {
		p.pair.Logger = log
		p.files = append(p.files, p.pair)
	}
	if len(o.clientCAs) > 0 {
		p.clients = &certs.Pool{CAs: o.clientCAs, Logger: log}
		p.files = append(p.files, p.clients)
	}
	if len(o.agentCAs) > 0 {
		p.agents = &certs.Pool{CAs: o.agentCAs, Logger: log}
		p.files = append(p.files, p.agents)
	}
	var tokens *certs.Tokens
	if o.tokenFile != "" {
		tokens = &certs.Tokens{File: o.tokenFile, Logger: log}
		p.files = append(p.files, tokens)
	}
	p.server = &tunnel.Server{
		ID:           o.serverID,
		AgentAuth:    tunnel.AgentAuth(p.agents, tokens),
		ClientAuth:   tunnel.ClientAuth(p.clients, o.selector),
		DrainTimeout: o.drainTimeout,
		Logger:       log,
	}
	p.server.SetPeers(o.peers)
	return p
}

// open opens every port and serves it in the group. What it leaves open after
// an error is in the list.
func (p *program) open(ctx context.Context, g *cli.Group, open *cli.Listeners) error {
	serve := func(door string, l net.Listener, rules tunnel.Door) {
		p.log.Info("listening", "door", door, "addr", l.Addr().String())
		g.Go("door for "+door, func() error { return p.server.ServeDoor(l, rules) })
	}
	for _, d := range p.listen {
		l, rules, err := p.openClientDoor(ctx, d, open)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		serve("clients", l, rules)
	}
	if p.agentListen != "" {
		// With tokens an agent needs no certificate.
		l, err := open.TCPBehind(p.proxyFrom, p.agentListen, certs.ServerTLS(p.pair, p.agents, p.tokenFile == ""))
		if err != nil {
			return fmt.Errorf("--agent-listen: %w", err)
		}
		serve("agents", l, tunnel.Door{NoClients: true})
	}
	if p.adminListen != "" {
		l, err := open.TCP(p.adminListen, nil)
		if err != nil {
			return fmt.Errorf("--admin-listen: %w", err)
		}
		p.log.Info("listening", "door", "admin", "addr", l.Addr().String())
		g.Go("admin pages", func() error { return cli.ServeAdmin(g.Context(), l, p.pages()) })
	}
	return nil
}

// openClientDoor opens a Unix socket, which belongs to one cluster, or a port,
// where certificates tell whose client comes.
func (p *program) openClientDoor(ctx context.Context, d clientDoor, open *cli.Listeners) (net.Listener, tunnel.Door, error) {
	rules := tunnel.Door{NoAgents: true}
	if d.socket == "" {
		l, err := open.TCPBehind(p.proxyFrom, d.addr, certs.ServerTLS(p.pair, p.clients, true))
		return l, rules, err
	}
	rules.Clients = tunnel.FixedCluster(d.cluster)
	l, err := open.Unix(ctx, d.socket)
	return l, rules, err
}

// dialAgent keeps a session with an agent that listens.
func (p *program) dialAgent(ctx context.Context, d agentAddr) error {
	config := certs.AgentTLS(p.pair, p.agents, d.cluster)
	return p.server.DialAgent(ctx, d.cluster, func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", d.addr)
	}, config.VerifyConnection)
}

func (p *program) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /healthz": cli.Alive(),
		"GET /readyz":  cli.Check(p.ready),
		"GET /clusters": cli.JSON(func() any {
			return p.server.Clusters()
		}),
	}
}

// ready is about the server alone, or about one cluster if one is named. A
// server without agents is ready: else no Service would let one in.
func (p *program) ready(r *http.Request) error {
	if err := p.files.Ready(); err != nil {
		return err
	}
	if !p.server.Ready() {
		return errors.New("no door is open, or the server drains")
	}
	if query := r.URL.Query(); query.Has("cluster") && !p.server.HasAgent(query.Get("cluster")) {
		return fmt.Errorf("no agent of cluster %q is connected", query.Get("cluster"))
	}
	return nil
}
