package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

const cluster = "shoot--dev--a"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openDoor runs a door that dials directly, for clients of ca.
func openDoor(t *testing.T, ca *clitest.CA, log *slog.Logger) (d *door, cut func()) {
	t.Helper()
	cert, key := ca.Files("server", tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
	pair := &certs.KeyPair{CertFile: cert, KeyFile: key}
	pool := &certs.Pool{CAs: []certs.CA{{File: ca.File}}, Interval: time.Nanosecond}
	l, err := tls.Listen("tcp", "127.0.0.1:0", certs.ServerTLS(pair, pool, true))
	must(t, err)
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d = newDoor(l, pool, cluster, &connect.Handler{Name: "vpn-server"}, log)
	ctx, cut := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = d.run(ctx) })
	t.Cleanup(func() { cut(); _ = d.shutdown(ctx, cut); run.Wait() })
	return d, cut
}

// client dials through the door with a certificate.
func client(d *door, ca *clitest.CA, o tunneltest.CertOptions) *connect.Dialer {
	return &connect.Dialer{Address: d.listener.Addr().String(), TLS: &tls.Config{
		RootCAs: ca.Pool(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{ca.Issue(o).TLS},
	}}
}

func TestDoor(t *testing.T) {
	t.Parallel()
	ca, target := clitest.NewCA(t), clitest.Target(t)
	d, _ := openDoor(t, ca, nil)
	for _, tc := range []struct {
		cert tunneltest.CertOptions
		want error
	}{
		{tunneltest.CertOptions{Cluster: cluster}, nil},
		{tunneltest.CertOptions{Cluster: "*"}, nil}, // an operator
		{tunneltest.CertOptions{CommonName: "shoot--dev--b"}, connect.ErrDenied},
		{tunneltest.CertOptions{}, connect.ErrDenied},
	} {
		c, err := client(d, ca, tc.cert).DialContext(t.Context(), "tcp", target)
		if !errors.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.cert, err, tc.want)
		}
		if err == nil {
			c.Close()
		}
	}
	other := clitest.NewCA(t)
	stranger := client(d, ca, tunneltest.CertOptions{})
	stranger.TLS.Certificates[0] = other.Issue(tunneltest.CertOptions{Cluster: cluster}).TLS
	if _, err := stranger.DialContext(t.Context(), "tcp", target); err == nil {
		t.Error("a certificate of another authority is good")
	}
}

// TestDoorStrangers: those who say nothing keep nobody out.
func TestDoorStrangers(t *testing.T) {
	t.Parallel()
	ca, target := clitest.NewCA(t), clitest.Target(t)
	d, _ := openDoor(t, ca, nil)
	const more = 20
	var silent []net.Conn
	for range maxStrangers + more {
		c, err := net.Dial("tcp", d.listener.Addr().String())
		must(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	for i, c := range silent[:more] {
		must(t, c.SetReadDeadline(time.Now().Add(clitest.Patience)))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("stranger %d of many: %v", i, err)
		}
	}
	c, err := client(d, ca, tunneltest.CertOptions{Cluster: cluster}).DialContext(t.Context(), "tcp", target)
	must(t, err)
	c.Close()
}

// TestDoorLog: neither strangers nor clients of other clusters fill the log.
func TestDoorLog(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		ca, err := tunneltest.NewCA("test")
		must(t, err)
		dir := t.TempDir()
		caFile, err := ca.WriteFile(dir, "ca")
		must(t, err)
		server, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}})
		must(t, err)
		cert, key, err := server.WriteFiles(dir, "server")
		must(t, err)
		other, err := ca.Issue(tunneltest.CertOptions{Cluster: "shoot--dev--b"})
		must(t, err)
		var network tunneltest.Network
		l, err := network.Listen("tcp", "server:1")
		must(t, err)
		var log bytes.Buffer
		pool := &certs.Pool{CAs: []certs.CA{{File: caFile}}}
		l = tls.NewListener(l, certs.ServerTLS(&certs.KeyPair{CertFile: cert, KeyFile: key}, pool, true))
		d := newDoor(l, pool, cluster, &connect.Handler{Name: "vpn-server"}, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cut := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { _ = d.run(ctx) })
		defer run.Wait()
		denied := &connect.Dialer{Address: "server:1", Forward: network.Dial, TLS: &tls.Config{
			RootCAs: ca.Pool(), ServerName: "server", Certificates: []tls.Certificate{other.TLS},
		}}
		const each = 100
		start := time.Now()
		for i := range 2 * each {
			if i%2 == 0 {
				c, err := network.Dial(ctx, "tcp", "server:1")
				must(t, err)
				c.Close()
			} else if _, err := denied.DialContext(ctx, "tcp", "10.0.0.1:80"); !errors.Is(err, connect.ErrDenied) {
				t.Errorf("another cluster: %v", err)
			}
		}
		took := time.Since(start)
		must(t, d.shutdown(ctx, cut))
		if n := strings.Count(log.String(), "\n"); n > 20+int(took.Seconds()*20) {
			t.Errorf("%d lines of %d connections in %v:\n%s", n, 2*each, took, &log)
		}
		for _, want := range []string{"TLS handshake failed", "msg=refused"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %s in\n%s", want, &log)
			}
		}
	})
}

// TestDoorShutdown cuts off what does not end, and lets nobody in.
func TestDoorShutdown(t *testing.T) {
	t.Parallel()
	ca, target := clitest.NewCA(t), clitest.Target(t)
	d, cut := openDoor(t, ca, nil)
	one := client(d, ca, tunneltest.CertOptions{Cluster: cluster})
	c, err := one.DialContext(t.Context(), "tcp", target)
	must(t, err)
	defer c.Close()
	ended, end := context.WithCancel(t.Context())
	end()
	if err := d.shutdown(ended, cut); err == nil || !strings.Contains(err.Error(), "1 connections") {
		t.Errorf("shutdown over an open connection: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a connection that was cut off reads %v", err)
	}
	if _, err := one.DialContext(t.Context(), "tcp", target); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCredentialGone has the authority of a client removed while it has a
// connection. Ten seconds later it is noticed, and after thirty more that ends.
func TestCredentialGone(t *testing.T) {
	t.Parallel()
	if os.Getenv("RHIZOME_LONG") != "1" {
		t.Skip("takes 45 s: set RHIZOME_LONG=1")
	}
	ca, target := clitest.NewCA(t), clitest.Target(t)
	out := clitest.NewOutput(t)
	d, _ := openDoor(t, ca, slog.New(slog.NewJSONHandler(out, nil)))
	c, err := client(d, ca, tunneltest.CertOptions{Cluster: cluster}).DialContext(t.Context(), "tcp", target)
	must(t, err)
	defer c.Close()
	other := clitest.NewCA(t)
	pem, err := os.ReadFile(other.File)
	must(t, err)
	must(t, os.WriteFile(ca.File, pem, 0o600))
	must(t, d.pool.Load())
	out.Find("credential no longer holds")
	must(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection goes on")
	}
}

func TestDialer(t *testing.T) {
	t.Parallel()
	target := clitest.Target(t)
	bound, there := 0, true
	d := &dialer{
		networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		bind:     func(uintptr) error { bound++; return nil },
		behind:   func(netip.Addr) bool { return there },
	}
	c := clitest.Client(t, &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true})
	if status, _ := clitest.Get(t, c, "http://"+target+"/"); status != http.StatusOK || bound != 1 {
		t.Errorf("status %d, bound %d times", status, bound)
	}
	for _, address := range []string{"[::1]:80", "192.0.2.1:80", "[::ffff:192.0.2.1]:80", "169.254.169.254:80"} {
		_, err := d.DialContext(t.Context(), "tcp", address)
		if !errors.Is(err, connect.ErrProhibited) || connect.Classify(err).Reason != connect.ErrProhibited {
			t.Errorf("%s: %v", address, err)
		}
	}
	if bound != 1 {
		t.Errorf("bound %d times", bound)
	}
	there = false
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialContext(ctx, "tcp", target); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	there = true
	d.bind = func(uintptr) error { return net.ErrClosed }
	if _, err := d.DialContext(t.Context(), "tcp", target); !errors.Is(err, net.ErrClosed) {
		t.Errorf("no device: %v", err)
	}
}

// TestAwait waits for a client that is reconnecting, and not for ever.
func TestAwait(t *testing.T) {
	ip := netip.MustParseAddr("10.0.0.1")
	for name, tc := range map[string]struct {
		back, patience, took time.Duration
		want                 error
	}{
		"there":     {0, time.Minute, 0, nil},
		"back":      {time.Second, time.Minute, time.Second, nil},
		"not back":  {time.Hour, time.Minute, awaitPeer, connect.ErrUnavailable},
		"given up":  {time.Hour, time.Second, time.Second, context.DeadlineExceeded},
		"too early": {time.Hour, 0, 0, context.DeadlineExceeded},
	} {
		tunneltest.Bubble(t, func(t *testing.T) {
			start := time.Now()
			d := &dialer{behind: func(a netip.Addr) bool { return a == ip && time.Since(start) >= tc.back }}
			ctx, cancel := context.WithTimeout(t.Context(), tc.patience)
			defer cancel()
			err := d.await(ctx, ip)
			if took := time.Since(start); !errors.Is(err, tc.want) || took != tc.took {
				t.Errorf("%s: %v after %v, want %v after %v", name, err, took, tc.want, tc.took)
			}
		})
	}
}
