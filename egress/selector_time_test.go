package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestEvents checks the hook against kube-apiserver's labels, in exact fake
// time.
func TestEvents(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var n tunneltest.Network
		l, err := n.Listen("tcp", "10.1.0.1:9443")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := &connect.Handler{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			time.Sleep(time.Second)
			if address == "refused:1" {
				return nil, &connect.Error{Reason: connect.ErrRefused}
			}
			a, b := tunneltest.Pipe()
			b.Close()
			return a, nil
		}}
		go h.Serve(ctx, l)
		var events []Event
		config := `    proxyProtocol: HTTPConnect
    transport:
      tcp:
        url: http://10.1.0.1:9443`
		sel := &Selector{Config: selection(t, config), Dial: n.Dial, Observe: func(e Event) { events = append(events, e) }}
		dial := sel.Dialer(Cluster)
		c, err := dial(ctx, "tcp", "good:1")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		_, refused := dial(ctx, "tcp", "refused:1")
		if !errors.Is(refused, connect.ErrRefused) {
			t.Errorf("refused: %v", refused)
		}
		l.Close()
		_, gone := dial(ctx, "tcp", "good:1")
		if gone == nil {
			t.Error("no error without a proxy")
		}
		start := Event{Type: DialStart, Selection: Cluster, Protocol: "http_connect", Transport: "tcp", Proxy: "10.1.0.1:9443", Target: "good:1"}
		done := start
		done.Type, done.Duration = DialDone, time.Second
		start2, fail2 := start, start
		start2.Target, fail2.Target = "refused:1", "refused:1"
		fail2.Type, fail2.Stage, fail2.Duration, fail2.Err = DialFailed, StageProxy, time.Second, refused
		fail3 := start
		fail3.Type, fail3.Stage, fail3.Err = DialFailed, StageConnect, gone
		want := []Event{start, done, start2, fail2, start, fail3}
		if len(events) != len(want) {
			t.Fatalf("%d events, want %d: %+v", len(events), len(want), events)
		}
		for i := range want {
			if events[i] != want[i] {
				t.Errorf("event %d:\n%+v, want\n%+v", i, events[i], want[i])
			}
		}
		cancel()
		synctest.Wait()
	})
}

// TestTimeout has a proxy that accepts and says nothing.
func TestTimeout(t *testing.T) {
	for _, tt := range []struct {
		timeout, want time.Duration
	}{{0, 30 * time.Second}, {5 * time.Second, 5 * time.Second}, {-1, time.Hour}} {
		tunneltest.Bubble(t, func(t *testing.T) {
			var n tunneltest.Network
			l, err := n.Listen("unix", "/run/proxy.sock")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			sel := &Selector{Config: selection(t, "    proxyProtocol: HTTPConnect\n    transport: {uds: {udsName: /run/proxy.sock}}"), Dial: n.Dial, Timeout: tt.timeout}
			start := time.Now()
			_, err = sel.Dialer(Cluster)(ctx, "tcp", "10.0.0.7:10250")
			if d := time.Since(start); d != tt.want {
				t.Errorf("took %v, want %v", d, tt.want)
			}
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, connect.ErrTimeout) {
				t.Errorf("not a timeout: %v", err)
			}
			if de := err.(*DialError); de.Stage != StageProxy || !de.Temporary() {
				t.Errorf("%+v", de)
			}
		})
	}
}

// TestCertificatesFollowFiles rotates the client's certificate and the CA of
// both sides, once with Run and once without.
func TestCertificatesFollowFiles(t *testing.T) {
	for _, withRun := range []bool{false, true} {
		ca2 := newCA(t, "ca2")
		dir := t.TempDir()
		ca := newCA(t, "ca")
		caName := caFile(t, ca, dir, "ca")
		clientCert, clientKey := certFiles(t, ca, dir, "tls", clientOptions)
		proxyCert, proxyKey := certFiles(t, ca, dir, "proxy", proxyOptions)
		tunneltest.Bubble(t, func(t *testing.T) {
			var n tunneltest.Network
			l, err := n.Listen("tcp", "proxy-server:9443")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			pool := &certs.Pool{CAs: []certs.CA{{File: caName}}}
			pair := &certs.KeyPair{CertFile: proxyCert, KeyFile: proxyKey}
			h := &connect.Handler{Dial: func(context.Context, string, string) (net.Conn, error) {
				a, b := tunneltest.Pipe()
				b.Close()
				return a, nil
			}}
			go h.Serve(ctx, tls.NewListener(l, certs.ServerTLS(pair, pool, true)))
			c := &Config{EgressSelections: []Egress{{Name: "cluster", Connection: Connection{
				ProxyProtocol: HTTPConnect,
				Transport: &Transport{TCP: &TCP{URL: "https://proxy-server:9443",
					TLSConfig: &TLSConfig{CABundle: caName, ClientCert: clientCert, ClientKey: clientKey}}},
			}}}}
			sel := &Selector{Config: c, Dial: n.Dial}
			ran := make(chan error, 1)
			if withRun {
				go func() { ran <- sel.Run(ctx) }()
			} else {
				ran <- nil
			}
			dial := func() error {
				conn, err := sel.Dialer(Cluster)(ctx, "tcp", "x:1")
				if err == nil {
					conn.Close()
				}
				return err
			}
			if err := dial(); err != nil {
				t.Fatal(err)
			}
			caFile(t, ca2, dir, "ca")
			certFiles(t, ca2, dir, "tls", clientOptions)
			certFiles(t, ca2, dir, "proxy", proxyOptions)
			if err := errors.Join(pool.Load(), pair.Load()); err != nil {
				t.Fatal(err)
			}
			if dial() == nil {
				t.Error("files were read again at once; the test proves nothing")
			}
			time.Sleep(certs.DefaultInterval)
			synctest.Wait()
			if err := dial(); err != nil {
				t.Errorf("run %v, after the interval: %v", withRun, err)
			}
			// Bad files leave the old ones in use.
			os.WriteFile(clientKey, nil, 0o600)
			os.Remove(caName)
			time.Sleep(certs.DefaultInterval)
			synctest.Wait()
			if err := dial(); err != nil {
				t.Errorf("run %v, bad files: %v", withRun, err)
			}
			cancel()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			synctest.Wait()
		})
	}
}
