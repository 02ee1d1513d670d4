package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// noDevice is a backend that reads its links.
type noDevice struct{}

func (noDevice) offload() packet.Offload       { return 0 }
func (noDevice) run(ctx context.Context) error { <-ctx.Done(); return nil }
func (noDevice) close() error                  { return nil }
func (noDevice) active() string                { return "" }
func (noDevice) ready() error                  { return nil }
func (noDevice) status() backendStatus         { return backendStatus{} }

func (noDevice) serve(ctx context.Context, _ string, c *packet.Conn) error {
	defer c.Close()
	var run sync.WaitGroup
	run.Go(func() { _ = c.Run(ctx) })
	defer run.Wait()
	var b packet.Batch
	for {
		if err := c.ReadBatch(&b); err != nil {
			return err
		}
	}
}

// TestRenewed: the certificate of a client is renewed in its files, and later the
// old one runs out. There is a link at each moment, and in the end none is of the old
// one. A new certificate that servers refuse costs one link, as long as the old one
// is good.
func TestRenewed(t *testing.T) {
	for name, good := range map[string]bool{"good": true, "refused": false} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) { testRenewed(t, good) })
		})
	}
}

func testRenewed(t *testing.T, good bool) {
	const lifetime, renewed = 10 * time.Minute, 5 * time.Minute
	dir, start := t.TempDir(), time.Now()
	ca, err := tunneltest.NewCA("test")
	must(t, err)
	issue := func(ca *tunneltest.CA, name string, o tunneltest.CertOptions) (certFile, keyFile string) {
		cert, err := ca.Issue(o)
		must(t, err)
		certFile, keyFile, err = cert.WriteFiles(dir, name)
		must(t, err)
		return certFile, keyFile
	}
	caFile, err := ca.WriteFile(dir, "ca")
	must(t, err)
	serverCert, serverKey := issue(ca, "server", tunneltest.CertOptions{DNS: []string{"s0", "s1"}})
	cert, key := issue(ca, "seed", tunneltest.CertOptions{CommonName: "seed", Cluster: cluster, NotAfter: start.Add(lifetime)})
	o, err := parse(strings.Fields("--server https://s0:1 --server https://s1:1 --address fd00::1/96 --server-ca "+caFile+
		" --tls-cert "+cert+" --tls-key "+key), io.Discard)
	must(t, err)

	var network tunneltest.Network
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer func() { cancel(); work.Wait() }()
	for _, s := range o.servers {
		l, err := network.Listen("tcp", s.url.Host)
		must(t, err)
		pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}}
		sw := &packet.Switch{}
		srv := &packet.Server{
			TLS:   certs.ServerTLS(&certs.KeyPair{CertFile: serverCert, KeyFile: serverKey}, pool, true),
			Auth:  packet.Auth(cluster, pool, nil),
			Hello: packet.Hello{Mode: packet.TAP},
			Admit: func(_ context.Context, id packet.Identity, remote packet.Hello) (packet.ServeFunc, error) {
				port := packet.PortOptions{Member: packet.Member{ID: remote.ID, Name: id.Name, Addresses: remote.Addresses}, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::/96")}}
				return func(ctx context.Context, c *packet.Conn) error { return sw.Serve(ctx, c, port) }, nil
			},
		}
		work.Go(func() { _ = srv.Serve(l) })
		work.Go(func() { <-ctx.Done(); srv.Close() })
	}

	p := newProgram(o, slog.New(slog.DiscardHandler))
	p.backend = noDevice{}
	hello, err := p.hello()
	must(t, err)
	var mu sync.Mutex
	up, dark, ends := 0, 0, 0
	for i, s := range o.servers {
		l := newLink(p, i, s, hello)
		l.client.Dial = func(ctx context.Context) (net.Conn, error) { return network.Dial(ctx, "tcp", s.url.Host) }
		l.client.OnState = func(c *packet.Conn, err error) {
			l.change(c, err)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				up++
			case c != nil && ctx.Err() == nil:
				ends++
				if up--; up == 0 {
					dark++
					t.Logf("after %v: no link: %v", time.Since(start), err)
				}
			}
		}
		p.links = append(p.links, l)
	}
	must(t, p.files.Load())
	work.Go(func() { _ = p.serve(ctx, nil) })

	time.Sleep(renewed)
	if !good {
		ca, err = tunneltest.NewCA("nobody's")
		must(t, err)
	}
	issue(ca, "seed", tunneltest.CertOptions{CommonName: "seed", Cluster: cluster, NotAfter: start.Add(10 * lifetime)})
	look := lifetime + 5*time.Minute
	if !good {
		look = lifetime - 5*time.Second
	}
	time.Sleep(time.Until(start.Add(look)))
	mu.Lock()
	defer mu.Unlock()
	if !good {
		if up != 1 || dark != 0 || ends != 1 {
			t.Errorf("%d links up, %d times none, %d have ended: one should be kept", up, dark, ends)
		}
		return
	}
	if up != 2 || dark != 0 || ends != 2 {
		t.Errorf("%d links up, %d times none, %d have ended", up, dark, ends)
	}
	for _, l := range p.links {
		l.mu.Lock()
		if now := p.pair.Certificate(); l.cert == nil || !bytes.Equal(l.cert.Certificate[0], now.Certificate[0]) || errors.Is(l.err, certs.ErrExpired) {
			t.Errorf("link %s has the old certificate", l.name)
		}
		l.mu.Unlock()
	}
}
