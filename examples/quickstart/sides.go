package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// tour is everything that the steps share.
type tour struct {
	out   io.Writer
	dir   string // of temporary files
	steps int

	ca          *tunneltest.CA
	demo, other cluster

	front  net.Listener // the entrypoint's port
	router entrypoint.Router
	serve  sync.WaitGroup

	dial dialFunc // that of demo's client, out of the egress configuration
}

func (t *tour) clusters() []*cluster { return []*cluster{&t.demo, &t.other} }

// certificates makes an authority and what it signs.
func (t *tour) certificates(context.Context) error {
	var err error
	if t.ca, err = tunneltest.NewCA("quickstart"); err != nil {
		return err
	}
	for _, c := range t.clusters() {
		if err := c.issue(t.ca); err != nil {
			return err
		}
	}
	client, err := t.ca.Issue(tunneltest.CertOptions{CommonName: "kube-apiserver", Cluster: t.demo.name, Client: true})
	if err != nil {
		return err
	}
	if _, err := t.ca.WriteFile(t.dir, "ca"); err != nil {
		return err
	}
	if _, _, err := client.WriteFiles(t.dir, "client"); err != nil {
		return err
	}
	t.tell("certificates", "a throw-away CA signs one each for servers, agents, kubelets and a client;",
		"those of agents and client say: cluster "+t.demo.name+", or "+t.other.name)
	return nil
}

// kubelets starts what clients want to reach.
func (t *tour) kubelets(context.Context) error {
	for _, c := range t.clusters() {
		if err := c.startKubelet(); err != nil {
			return err
		}
	}
	t.tell("kubelets", "https://"+t.demo.kubelet(), "https://"+t.other.kubelet(),
		"names that only the agent of the same cluster can resolve")
	return nil
}

// servers starts one for each cluster.
func (t *tour) servers(context.Context) error {
	var lines []string
	for _, c := range t.clusters() {
		if err := c.startServer(t.ca); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%-13s for clients on %s and for agents on %s", c.name, c.clients.Addr(), c.agents.Addr()))
	}
	t.tell("servers", lines...)
	return nil
}

// entrypoint opens the one port for the agents of all clusters.
func (t *tour) entrypoint(context.Context) error {
	var routes []*entrypoint.Route
	var lines []string
	for _, c := range t.clusters() {
		backend := c.agents.Addr().String()
		routes = append(routes, &entrypoint.Route{
			Name:         c.name + "/proxy-server",
			HeaderValues: []string{c.key()},
			Handler:      &entrypoint.Forward{Backends: []string{backend}},
		})
		lines = append(lines, fmt.Sprintf("%-58s ─► %s", c.key(), backend))
	}
	if err := t.router.SetRoutes(routes); err != nil {
		return err
	}
	var err error
	if t.front, err = net.Listen("tcp", net.JoinHostPort(loopback, "0")); err != nil {
		return err
	}
	t.serve.Go(func() { _ = t.router.Serve(t.front, &entrypoint.Door{By: entrypoint.ByHeader}) })
	t.tell("entrypoint", append([]string{fmt.Sprintf("listens on %s for all, and has a route for each value of a header:", t.front.Addr())}, lines...)...)
	return nil
}

// agents connects those of both clusters.
func (t *tour) agents(ctx context.Context) error {
	for _, c := range t.clusters() {
		if err := c.startAgent(ctx, t.ca, t.front.Addr().String()); err != nil {
			return err
		}
	}
	a := t.demo.srv.Clusters()[0]
	t.tell("agents", "dial out to the entrypoint, and no port is open on their side; that of "+a.Cluster+":",
		"agent      ► entrypoint  CONNECT "+t.demo.host()+":8132",
		"                         "+entrypoint.HeaderReversedVPN+": outbound|8132||…, as its route has it",
		"entrypoint ► server      a connection to where the route leads",
		"agent     ◄─► server     mTLS from end to end, and here that name counts",
		fmt.Sprintf("                         session of %q in cluster %s", a.Agents[0].ID, a.Cluster))
	return nil
}

// drain ends it in order: what is open may finish, and then nothing is left.
func (t *tour) drain(ctx context.Context) error {
	c := t.demo.srv.Clusters()[0]
	for _, shutdown := range []func(context.Context) error{
		t.demo.agt.Shutdown, t.other.agt.Shutdown, t.demo.srv.Shutdown, t.other.srv.Shutdown, t.router.Shutdown,
	} {
		if err := shutdown(ctx); err != nil {
			return err
		}
	}
	front := t.router.Stats()
	var carried uint64
	for _, r := range front.Routes {
		carried += r.Total
	}
	t.tell("end", fmt.Sprintf("all have drained; %s had %d dials, %d of them refused,", c.Cluster, c.Dials, c.Failed),
		fmt.Sprintf("%d bytes to the agent and %d back;", c.ToAgents, c.FromAgents),
		fmt.Sprintf("the entrypoint has carried %d connections and refused %d", carried, front.Refused[entrypoint.ReasonUnknown]))
	fmt.Fprintf(t.out, "\n%s\n", strings.TrimSpace(`
Next: go run ./examples/seed/proxy-server -h
      go run ./examples/seed/entrypoint -h
      go run ./examples/shoot/proxy-agent -h`))
	return nil
}

// stop ends whatever runs, also after a step that failed.
func (t *tour) stop() {
	for _, c := range t.clusters() {
		c.stop()
	}
	_ = t.router.Close()
	t.serve.Wait()
}
