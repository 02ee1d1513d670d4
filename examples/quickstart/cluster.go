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
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

const loopback = "127.0.0.1"

// cluster is a server in the seed, and an agent and a kubelet in the shoot.
type cluster struct {
	name string
	pods int // that its kubelet says it runs

	serving tls.Certificate // of the server
	agentID tls.Certificate // of the agent
	node    tls.Certificate // of the kubelet

	clients, agents net.Listener // the server's doors
	node1           net.Listener // the kubelet's port
	taken           net.Conn     // keeps the next one from others
	closed          string       // a port of the node where nobody listens

	srv     *tunnel.Server
	agt     *tunnel.Agent
	kube    *http.Server
	serve   sync.WaitGroup
	dialled chan string // what the agent dialled, and how that went
}

// host is the server's name in the seed. Nobody resolves it: the certificate is
// for it, and with it begins what the entrypoint looks up.
func (c *cluster) host() string { return "proxy-server." + c.name + ".svc.cluster.local" }

// key is the value of the header by which the entrypoint tells the cluster.
func (c *cluster) key() string { return "outbound|8132||" + c.host() }

// nodeName is a name that only the agent can resolve.
func (c *cluster) nodeName() string { return "node-1." + c.name + ".internal" }

// kubelet is the address of what clients want to reach.
func (c *cluster) kubelet() string { return net.JoinHostPort(c.nodeName(), port(c.node1.Addr())) }

// issue makes the certificates of server, agent and kubelet.
func (c *cluster) issue(ca *tunneltest.CA) error {
	for _, made := range []struct {
		to      *tls.Certificate
		options tunneltest.CertOptions
	}{
		{&c.serving, tunneltest.CertOptions{CommonName: "proxy-server", DNS: []string{c.host()}, IPs: []string{loopback}, Server: true}},
		{&c.agentID, tunneltest.CertOptions{CommonName: "proxy-agent", Cluster: c.name, Client: true}},
		{&c.node, tunneltest.CertOptions{CommonName: "kubelet", DNS: []string{c.nodeName()}, Server: true}},
	} {
		cert, err := ca.Issue(made.options)
		if err != nil {
			return err
		}
		*made.to = cert.TLS
	}
	return nil
}

// startKubelet starts what a client wants to reach.
func (c *cluster) startKubelet() error {
	var err error
	if c.node1, err = net.Listen("tcp", net.JoinHostPort(loopback, "0")); err != nil {
		return err
	}
	c.kube = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%d pods run here", c.pods)
		}),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	l := tls.NewListener(c.node1, &tls.Config{Certificates: []tls.Certificate{c.node}})
	c.serve.Go(func() { _ = c.kube.Serve(l) })

	// For later a port where nobody listens, nor will: this end of a connection
	// has it.
	end := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(loopback)}}
	if c.taken, err = end.Dial("tcp", c.node1.Addr().String()); err != nil {
		return err
	}
	c.closed = port(c.taken.LocalAddr())
	return nil
}

// startServer opens two doors with mTLS: one for clients, one for agents.
func (c *cluster) startServer(ca *tunneltest.CA) error {
	c.srv = &tunnel.Server{ID: "server-of-" + c.name}
	config := &tls.Config{
		Certificates: []tls.Certificate{c.serving},
		ClientCAs:    ca.Pool(),
		ClientAuth:   tls.RequireAndVerifyClientCert,
		NextProtos:   []string{"http/1.1"},
	}
	for _, door := range []struct {
		listener *net.Listener
		rules    tunnel.Door
	}{
		{&c.clients, tunnel.Door{NoAgents: true}},
		{&c.agents, tunnel.Door{NoClients: true}},
	} {
		l, err := tls.Listen("tcp", net.JoinHostPort(loopback, "0"), config)
		if err != nil {
			return err
		}
		*door.listener = l
		c.serve.Go(func() { _ = c.srv.ServeDoor(l, door.rules) })
	}
	return nil
}

// startAgent connects to the server by way of the front, whose address is all
// that the agent knows. It may dial two ports of its host and no more.
func (c *cluster) startAgent(ctx context.Context, ca *tunneltest.CA, front string) error {
	var rules tunnel.Rules
	for _, p := range []string{port(c.node1.Addr()), c.closed} {
		rule, err := tunnel.ParseRule(net.JoinHostPort(loopback, p))
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	via := &connect.Dialer{Address: front, Header: http.Header{entrypoint.HeaderReversedVPN: {c.key()}}}
	c.dialled = make(chan string, 1)
	c.agt = &tunnel.Agent{
		Servers: []string{"https://" + c.host() + ":8132"},
		Dial:    via.DialContext,
		ID:      "agent-1",
		TLS:     &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{c.agentID}},
		Allow:   rules.Allow,
		ResolveTarget: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == c.nodeName() {
				return []netip.Addr{netip.MustParseAddr(loopback)}, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
		DialTarget: c.dialTarget,
	}
	failed := make(chan error, 1)
	c.serve.Go(func() { failed <- c.agt.Run(context.WithoutCancel(ctx)) })

	for !c.srv.HasAgent(c.name) {
		select {
		case err := <-failed:
			return fmt.Errorf("agent: %w", err)
		case <-ctx.Done():
			return errors.New("the agent of " + c.name + " did not connect")
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// dialTarget is how the agent dials, with a note of it for the printout.
func (c *cluster) dialTarget(ctx context.Context, network, address string) (net.Conn, error) {
	start := time.Now()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	outcome := "accepted"
	if err != nil {
		outcome = "refused"
	}
	select {
	case c.dialled <- fmt.Sprintf("dials %s: %s after %s", address, outcome, ms(time.Since(start))):
	default: // nobody reads it
	}
	return conn, err
}

// stop ends whatever runs.
func (c *cluster) stop() {
	if c.agt != nil {
		_ = c.agt.Close()
	}
	if c.srv != nil {
		_ = c.srv.Close()
	}
	if c.taken != nil {
		_ = c.taken.Close()
	}
	if c.kube != nil {
		_ = c.kube.Close()
	}
	c.serve.Wait()
}

func port(a net.Addr) string {
	_, p, _ := net.SplitHostPort(a.String())
	return p
}
