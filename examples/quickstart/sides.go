package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The cluster, and a node of it. Only the agent can resolve the node's name.
const (
	cluster  = "shoot--demo"
	nodeName = "node-1.shoot.internal"
	loopback = "127.0.0.1"
)

// tour is everything that the steps share.
type tour struct {
	out   io.Writer
	dir   string // of temporary files
	steps int

	ca      *tunneltest.CA
	serving tls.Certificate // of the server
	node    tls.Certificate // of the kubelet
	agentID tls.Certificate // of the agent

	clients, agents net.Listener // the server's doors
	node1           net.Listener // the kubelet's port
	closed          string       // a port of the node where nobody listens

	srv     *tunnel.Server
	agt     *tunnel.Agent
	kube    *http.Server
	serve   sync.WaitGroup
	dialled chan string // what the agent dialled, and how that went
	dial    dialFunc    // the client's, out of the egress configuration
}

// certificates makes an authority and what it signs.
func (t *tour) certificates(context.Context) error {
	var err error
	if t.ca, err = tunneltest.NewCA("quickstart"); err != nil {
		return err
	}
	client, err := t.ca.Issue(tunneltest.CertOptions{CommonName: "kube-apiserver", Cluster: cluster, Client: true})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		to      *tls.Certificate
		options tunneltest.CertOptions
	}{
		{&t.serving, tunneltest.CertOptions{CommonName: "proxy-server", IPs: []string{loopback}, Server: true}},
		{&t.agentID, tunneltest.CertOptions{CommonName: "proxy-agent", Cluster: cluster, Client: true}},
		{&t.node, tunneltest.CertOptions{CommonName: "kubelet", DNS: []string{nodeName}, Server: true}},
	} {
		made, err := t.ca.Issue(c.options)
		if err != nil {
			return err
		}
		*c.to = made.TLS
	}
	if _, err := t.ca.WriteFile(t.dir, "ca"); err != nil {
		return err
	}
	if _, _, err := client.WriteFiles(t.dir, "client"); err != nil {
		return err
	}
	t.tell("certificates", "a throw-away CA signs one each for server, agent, client and kubelet;",
		"those of agent and client say: cluster "+cluster)
	return nil
}

// kubelet starts what the client wants to reach.
func (t *tour) kubelet(context.Context) error {
	var err error
	if t.node1, err = net.Listen("tcp", net.JoinHostPort(loopback, "0")); err != nil {
		return err
	}
	t.kube = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%d pods run here", 3)
		}),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	l := tls.NewListener(t.node1, &tls.Config{Certificates: []tls.Certificate{t.node}})
	t.serve.Go(func() { _ = t.kube.Serve(l) })

	// A port where nobody listens, for later.
	free, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return err
	}
	t.closed = port(free)
	t.tell("kubelet", "https://"+net.JoinHostPort(nodeName, port(t.node1))+", a name that only the agent can resolve")
	return free.Close()
}

// server opens two doors with mTLS: one for clients, one for agents.
func (t *tour) server(context.Context) error {
	t.srv = &tunnel.Server{ID: "server-1"}
	config := &tls.Config{
		Certificates: []tls.Certificate{t.serving},
		ClientCAs:    t.ca.Pool(),
		ClientAuth:   tls.RequireAndVerifyClientCert,
		NextProtos:   []string{"http/1.1"},
	}
	for _, door := range []struct {
		listener *net.Listener
		rules    tunnel.Door
	}{
		{&t.clients, tunnel.Door{NoAgents: true}},
		{&t.agents, tunnel.Door{NoClients: true}},
	} {
		l, err := tls.Listen("tcp", net.JoinHostPort(loopback, "0"), config)
		if err != nil {
			return err
		}
		*door.listener = l
		t.serve.Go(func() { _ = t.srv.ServeDoor(l, door.rules) })
	}
	t.tell("server", fmt.Sprintf("listens for clients on %s and for agents on %s", t.clients.Addr(), t.agents.Addr()))
	return nil
}

// agent connects to the server. It may dial two ports of its host and no more.
func (t *tour) agent(ctx context.Context) error {
	var rules tunnel.Rules
	for _, p := range []string{port(t.node1), t.closed} {
		rule, err := tunnel.ParseRule(net.JoinHostPort(loopback, p))
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	t.dialled = make(chan string, 1)
	t.agt = &tunnel.Agent{
		Servers: []string{"https://" + t.agents.Addr().String()},
		ID:      "agent-1",
		TLS:     &tls.Config{RootCAs: t.ca.Pool(), Certificates: []tls.Certificate{t.agentID}},
		Allow:   rules.Allow,
		ResolveTarget: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == nodeName {
				return []netip.Addr{netip.MustParseAddr(loopback)}, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
		DialTarget: t.dialTarget,
	}
	failed := make(chan error, 1)
	t.serve.Go(func() { failed <- t.agt.Run(context.WithoutCancel(ctx)) })

	for !t.srv.HasAgent(cluster) {
		select {
		case err := <-failed:
			return fmt.Errorf("agent: %w", err)
		case <-ctx.Done():
			return errors.New("the agent did not connect")
		case <-time.After(time.Millisecond):
		}
	}
	c := t.srv.Clusters()[0]
	t.tell("agent", fmt.Sprintf("dials out from %s: session of %q in cluster %s;", c.Agents[0].Remote, c.Agents[0].ID, c.Cluster),
		"no port is open on its side")
	return nil
}

// dialTarget is how the agent dials, with a note of it for the printout.
func (t *tour) dialTarget(ctx context.Context, network, address string) (net.Conn, error) {
	start := time.Now()
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	outcome := "accepted"
	if err != nil {
		outcome = "refused"
	}
	select {
	case t.dialled <- fmt.Sprintf("dials %s: %s after %s", address, outcome, ms(time.Since(start))):
	default: // nobody reads it
	}
	return c, err
}

// stop ends whatever runs, also after a step that failed.
func (t *tour) stop() {
	if t.agt != nil {
		_ = t.agt.Close()
	}
	if t.srv != nil {
		_ = t.srv.Close()
	}
	if t.kube != nil {
		_ = t.kube.Close()
	}
	t.serve.Wait()
}

func port(l net.Listener) string {
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}
