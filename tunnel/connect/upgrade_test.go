package connect

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

const (
	askUpgrade = "GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
	upgradedX  = "HTTP/1.1 101 Switching to X\r\nUpgrade: X\r\nConnection: Upgrade\r\n\r\n"
)

// TestForwardUpgrade switches protocols, half-closes, and hears a late answer.
func TestForwardUpgrade(t *testing.T) {
	var tunnel *Tunnel
	h := &Handler{Observe: func(t *Tunnel) func(error) { tunnel = t; return nil }}
	bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
		accept(t, listen(t, n.Listen, "tcp", "a:80"), func(c net.Conn) {
			r, err := ReadRequest(c, nil)
			if err != nil || r.Header.Get("Upgrade") != "x" {
				return
			}
			(&Response{Status: 101, Header: http.Header{"Upgrade": {"x"}, "Connection": {"Upgrade"}}}).Write(c)
			b, _ := io.ReadAll(c)
			time.Sleep(time.Minute)
			c.Write(b)
		})
		c := dialProxy(t, n, "GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		r, err := ReadResponse(c, nil)
		if err != nil || r.Status != 101 {
			t.Fatal(r, err)
		}
		io.WriteString(c, "hello")
		relay.CloseWrite(c)
		if b, err := io.ReadAll(relay.NewPrefixed(c, r.Early)); string(b) != "hello" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if up, down := tunnel.Bytes(); up != 5 || down != 5 {
			t.Errorf("%d bytes up, %d down", up, down)
		}
	})
}

// upgradeServer answers upgrades with answer and hands its conns out, until
// the end of the test.
func upgradeServer(t *testing.T, n *tunneltest.Network, answer string) <-chan net.Conn {
	conns := make(chan net.Conn, 1)
	done := make(chan struct{})
	accept(t, listen(t, n.Listen, "tcp", "a:80"), func(c net.Conn) {
		if _, err := ReadRequest(c, nil); err != nil {
			return
		}
		io.WriteString(c, answer)
		conns <- c
		<-done
	})
	t.Cleanup(func() { close(done) })
	return conns
}

// TestUpgradeEnds resets each side behind an upgrade, and lets it be idle: the
// other side must not take that for the end.
func TestUpgradeEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(client, target net.Conn)
		min  time.Duration
	}{
		{"client resets", func(client, _ net.Conn) { relay.Reset(client) }, 0},
		{"target resets", func(_, target net.Conn) { relay.Reset(target) }, 0},
		{"idle", func(_, _ net.Conn) {}, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outcome := make(chan error, 1)
			h := &Handler{IdleTimeout: time.Minute, Observe: func(*Tunnel) func(error) { return func(err error) { outcome <- err } }}
			bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
				outcome = make(chan error, 1)
				targets := upgradeServer(t, n, upgradedX+"early")
				c := dialProxy(t, n, askUpgrade+"bytes")
				r, err := ReadResponse(c, nil)
				if err != nil || r.Status != 101 || r.Phrase != "Switching to X" || r.Header.Get("Upgrade") != "X" {
					t.Fatal(r, err)
				}
				target := <-targets
				b := make([]byte, 5)
				if _, err := io.ReadFull(relay.NewPrefixed(c, r.Early), b); err != nil || string(b) != "early" {
					t.Errorf("the client read %q, %v", b, err)
				}
				if _, err := io.ReadFull(target, b); err != nil || string(b) != "bytes" {
					t.Errorf("the target read %q, %v", b, err)
				}
				start := time.Now()
				tt.end(c, target)
				for name, c := range map[string]net.Conn{"client": c, "target": target} {
					if _, err := c.Read(b); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
						t.Errorf("the %s read %v", name, err)
					}
				}
				if err := <-outcome; err == nil || time.Since(start) < tt.min {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

func TestUpgradeMismatch(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		upgradeServer(t, n, strings.Replace(upgradedX, "Upgrade: X", "Upgrade: y", 1))
		c := dialProxy(t, n, askUpgrade)
		r, err := ReadResponse(c, nil)
		if err != nil || r.Status != 502 || !strings.Contains(r.Header.Get("Proxy-Status"), `switched to \"y\" where \"x\" was asked for`) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestUpgradeSlowReader is a client who does not read the 101.
func TestUpgradeSlowReader(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		n := tunneltest.Network{Buffer: 64}
		outcome := make(chan error, 1)
		h := &Handler{Dial: n.Dial, Observe: func(*Tunnel) func(error) { return func(err error) { outcome <- err } }}
		serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
		upgradeServer(t, &n, upgradedX)
		dialProxy(t, &n, askUpgrade)
		start := time.Now()
		if err := <-outcome; !errors.Is(err, ErrTerminated) || time.Since(start) != answerTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestBrokenBodyWithoutLength is an HTTP/1.0 client, for whom the end of the
// conn is the end of the body: a body that broke off must end in a reset.
func TestBrokenBodyWithoutLength(t *testing.T) {
	bubble(t, &Handler{}, func(t *testing.T, n *tunneltest.Network) {
		accept(t, listen(t, n.Listen, "tcp", "a:80"), func(c net.Conn) {
			ReadRequest(c, nil)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhalf an ans")
			time.Sleep(time.Second)
			relay.Reset(c)
		})
		c := dialProxy(t, n, "GET http://a/ HTTP/1.0\r\n\r\n")
		r, err := ReadResponse(c, nil)
		if err != nil || r.Status != 200 {
			t.Fatal(r, err)
		}
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read to the end with %v", err)
		}
	})
}
