package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"time"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// egress writes the file that a kube-apiserver would be given, and makes of it
// what a kube-apiserver would: a dial function.
func (t *tour) egress(context.Context) error {
	generated, err := egress.Generate(&egress.Options{
		URL:        "https://" + t.demo.clients.Addr().String(),
		CABundle:   filepath.Join(t.dir, "ca.crt"),
		ClientCert: filepath.Join(t.dir, "client.crt"),
		ClientKey:  filepath.Join(t.dir, "client.key"),
	})
	if err != nil {
		return err
	}
	file := filepath.Join(t.dir, "egress-selector-configuration.yaml")
	if err := os.WriteFile(file, generated.YAML(), 0o600); err != nil {
		return err
	}
	config, err := egress.Load(file)
	if err != nil {
		return err
	}
	if err := config.Validate().Err(); err != nil {
		return err
	}
	t.dial = (&egress.Selector{Config: config}).Dialer(egress.Cluster)
	t.tell("egress", file,
		"is written: "+t.demo.name+"'s kube-apiserver would send its traffic through the server")
	return nil
}

// request is what kubectl logs is at heart: HTTPS to a kubelet, from afar.
func (t *tour) request(ctx context.Context) error {
	var asked, open time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:           func(string) { asked = time.Now() },
		TLSHandshakeStart: func() { open = time.Now() },
	})
	answer, err := t.pods(ctx, t.dial, &t.demo)
	if err != nil {
		return err
	}
	done := time.Since(asked)
	t.tell("request", "GET https://"+t.demo.kubelet()+"/pods",
		"client  ► server    CONNECT "+t.demo.kubelet()+", client of "+t.demo.name,
		"server  ► agent     a stream of the session, with the same CONNECT",
		"agent   ► kubelet   "+<-t.demo.dialled,
		fmt.Sprintf("client  ◄ server    200, the tunnel is open after %s", ms(open.Sub(asked))),
		"client ◄─► kubelet  "+answer,
		"                    all in all "+ms(done))
	return nil
}

// pods asks the kubelet of a cluster what it runs.
func (t *tour) pods(ctx context.Context, dial dialFunc, c *cluster) (answer string, err error) {
	transport := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: t.ca.Pool()}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.kubelet()+"/pods", http.NoBody)
	if err != nil {
		return "", err
	}
	res, err := transport.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s from end to end: HTTP %d %q", tls.VersionName(res.TLS.Version), res.StatusCode, body), nil
}

// closedPort shows that a refusal crosses all hops, at once and with its kind.
func (t *tour) closedPort(ctx context.Context) error {
	target := net.JoinHostPort(t.demo.nodeName(), t.demo.closed)
	e, took, err := refused(ctx, t.dial, target, connect.ErrRefused)
	if err != nil {
		return err
	}
	t.tell("closed port", "CONNECT "+target,
		"agent "+<-t.demo.dialled,
		fmt.Sprintf("client gets %d %s after %s;", e.Status, e.Reason, ms(took)),
		"in Go that is errors.Is(err, connect.ErrRefused)")
	return nil
}

// forbidden shows that the agent decides what may be dialled.
func (t *tour) forbidden(ctx context.Context) error {
	const metadata = "169.254.169.254:80" // the cloud's, with the node's credentials
	e, took, err := refused(ctx, t.dial, metadata, connect.ErrProhibited)
	if err != nil {
		return err
	}
	t.tell("forbidden", "CONNECT "+metadata,
		"agent dials nothing: no rule of its own allows it",
		fmt.Sprintf("client gets %d %s after %s;", e.Status, e.Reason, ms(took)),
		"in Go that is errors.Is(err, connect.ErrProhibited)")
	return nil
}

// apart shows what does not cross from one cluster to the other, and that the
// entrypoint knows nothing but its routes.
func (t *tour) apart(ctx context.Context) error {
	answer, err := t.pods(ctx, t.other.srv.Dialer(t.other.name), &t.other)
	if err != nil {
		return err
	}
	foreign, _, err := refused(ctx, t.dial, t.other.kubelet(), connect.ErrDNS)
	if err != nil {
		return err
	}
	const unknown = "shoot--none"
	stranger := &connect.Dialer{Address: t.front.Addr().String(), Header: http.Header{entrypoint.HeaderReversedVPN: {unknown}}}
	denied, _, err := refused(ctx, stranger.DialContext, t.other.agents.Addr().String(), connect.ErrDenied)
	if err != nil {
		return err
	}
	t.tell("apart", "GET https://"+t.other.kubelet()+"/pods",
		fmt.Sprintf("server of %-13s %s", t.other.name, answer),
		fmt.Sprintf("server of %-13s %d %s: only its own agent is asked", t.demo.name, foreign.Status, foreign.Reason),
		fmt.Sprintf("CONNECT %s, with %s: %s", t.other.agents.Addr(), entrypoint.HeaderReversedVPN, unknown),
		fmt.Sprintf("%-23s %d %s: no route has that value", "entrypoint", denied.Status, denied.Reason))
	return nil
}

// refused dials what cannot be dialled, and returns how that was told.
func refused(ctx context.Context, dial dialFunc, target string, why connect.Reason) (*connect.Error, time.Duration, error) {
	start := time.Now()
	c, err := dial(ctx, "tcp", target)
	if err == nil {
		return nil, 0, errors.Join(fmt.Errorf("%s was reached", target), c.Close())
	}
	took := time.Since(start)
	var e *connect.Error
	if !errors.As(err, &e) || !errors.Is(err, why) {
		return nil, 0, fmt.Errorf("want %v: %w", why, err)
	}
	return e, took, nil
}
