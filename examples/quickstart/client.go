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
	"strings"
	"time"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// egress writes the file that a kube-apiserver would be given, and makes of it
// what a kube-apiserver would: a dial function.
func (t *tour) egress(context.Context) error {
	generated, err := egress.Generate(&egress.Options{
		URL:        "https://" + t.clients.Addr().String(),
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
		"is written: kube-apiserver would send the cluster's traffic through the server")
	return nil
}

// request is what kubectl logs is at heart: HTTPS to a kubelet, from afar.
func (t *tour) request(ctx context.Context) error {
	target := net.JoinHostPort(nodeName, port(t.node1))
	transport := &http.Transport{
		DialContext:     t.dial,
		TLSClientConfig: &tls.Config{RootCAs: t.ca.Pool()},
	}
	defer transport.CloseIdleConnections()
	var asked, open time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:           func(string) { asked = time.Now() },
		TLSHandshakeStart: func() { open = time.Now() },
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+target+"/pods", http.NoBody)
	if err != nil {
		return err
	}
	res, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil {
		return err
	}
	done := time.Since(asked)
	t.tell("request", "GET "+r.URL.String(),
		"client  ► server    CONNECT "+target+", as a client of "+cluster,
		"server  ► agent     a stream of the session, with the same CONNECT",
		"agent   ► kubelet   "+<-t.dialled,
		fmt.Sprintf("client  ◄ server    200, the tunnel is open after %s", ms(open.Sub(asked))),
		fmt.Sprintf("client ◄─► kubelet  %s from end to end: HTTP %d %q", tls.VersionName(res.TLS.Version), res.StatusCode, body),
		"                    all in all "+ms(done))
	return nil
}

// closedPort shows that a refusal crosses all hops, at once and with its kind.
func (t *tour) closedPort(ctx context.Context) error {
	err := t.refused(ctx, "closed port", net.JoinHostPort(nodeName, t.closed), func() string { return "agent " + <-t.dialled })
	if !errors.Is(err, connect.ErrRefused) {
		return fmt.Errorf("a closed port gave %w", err)
	}
	return nil
}

// forbidden shows that the agent decides what may be dialled.
func (t *tour) forbidden(ctx context.Context) error {
	const metadata = "169.254.169.254:80" // the cloud's, with the node's credentials
	err := t.refused(ctx, "forbidden", metadata, func() string { return "agent dials nothing: no rule of its own allows it" })
	if !errors.Is(err, connect.ErrProhibited) {
		return fmt.Errorf("a forbidden target gave %w", err)
	}
	return nil
}

// refused dials what cannot be dialled, tells how that went and returns it.
func (t *tour) refused(ctx context.Context, what, target string, agent func() string) error {
	start := time.Now()
	c, err := t.dial(ctx, "tcp", target)
	if err == nil {
		return errors.Join(errors.New("no error"), c.Close())
	}
	took := time.Since(start)
	var e *connect.Error
	if !errors.As(err, &e) {
		return err
	}
	t.tell(what, "CONNECT "+target, agent(),
		fmt.Sprintf("client gets %d %s after %s;", e.Status, e.Reason, ms(took)),
		fmt.Sprintf("in Go that is errors.Is(err, %s)", goName(e.Reason)))
	return err
}

func goName(r connect.Reason) string {
	switch r {
	case connect.ErrRefused:
		return "connect.ErrRefused"
	case connect.ErrProhibited:
		return "connect.ErrProhibited"
	}
	return fmt.Sprintf("connect.Reason(%q)", r)
}

// drain ends it in order: what is open may finish, and then nothing is left.
func (t *tour) drain(ctx context.Context) error {
	c := t.srv.Clusters()[0]
	if err := errors.Join(t.srv.Shutdown(ctx), t.agt.Shutdown(ctx)); err != nil {
		return err
	}
	t.tell("end", fmt.Sprintf("server and agent have drained: %d dials, %d of them refused,", c.Dials, c.Failed),
		fmt.Sprintf("%d bytes to the agent and %d back", c.ToAgents, c.FromAgents))
	fmt.Fprintf(t.out, "\n%s\n", strings.TrimSpace(`
Next: go run ./examples/seed/proxy-server -h
      go run ./examples/shoot/proxy-agent -h`))
	return nil
}
