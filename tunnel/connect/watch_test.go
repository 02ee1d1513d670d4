package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestEarlyBytes(t *testing.T) {
	for _, tt := range []struct {
		name, early string
		split       bool
	}{
		{"with the head", "hello", false}, {"behind the head", "hello", true},
		{"full", strings.Repeat("x", guard.MaxEarly), true}, {"more than is kept", strings.Repeat("x", 300<<10), true},
		{"more with the head", strings.Repeat("y", 40<<10), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &Handler{Observe: func(*Tunnel) func(error) { return nil }}
			bubble(t, h, func(t *testing.T, n *tunneltest.Network) {
				slow := func(ctx context.Context, network, address string) (net.Conn, error) {
					time.Sleep(time.Second)
					return n.Dial(ctx, network, address)
				}
				serve(t, &Handler{Dial: slow}, listen(t, n.Listen, "tcp", "proxy:1"))
				c, err := n.Dial(t.Context(), "tcp", "proxy:1")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if tt.split {
					io.WriteString(c, connectTarget)
					synctest.Wait()
				}
				go func() { // the conn holds 256 KiB only
					if !tt.split {
						io.WriteString(c, connectTarget+tt.early)
					} else {
						io.WriteString(c, tt.early)
					}
					relay.CloseWrite(c) // a half-close, for bytes came before
				}()
				r, err := ReadResponse(c, nil)
				if err != nil || r.Status != 200 {
					t.Fatal(r, err)
				}
				b, err := io.ReadAll(relay.NewPrefixed(c, r.Early))
				if err != nil || string(b) != tt.early {
					t.Errorf("heard %d bytes, %v, want %d", len(b), err, len(tt.early))
				}
			})
		})
	}
}

// TestEarlyBackPressure shows that a client which floods the proxy before the
// 200 is held back.
func TestEarlyBackPressure(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		n := tunneltest.Network{Buffer: 1 << 10}
		h := &Handler{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
		c := dialProxy(t, &n, connectTarget)
		c.SetWriteDeadline(time.Now().Add(time.Second))
		m, err := c.Write(make([]byte, 1<<20))
		if max := guard.MaxEarly + 1<<10; m > max || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("took %d bytes, %v, want at most %d", m, err, max)
		}
	})
}

// TestEarlyBytesRace sends numbers without a pause while dials end at any
// moment; not one byte may be lost or doubled.
func TestEarlyBytesRace(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS=%v", secure), func(t *testing.T) {
			target := listenTCP(t)
			accept(t, target, echo)
			l := listenTCP(t)
			if secure {
				l = tls.NewListener(l, serverTLS())
			}
			var mu sync.Mutex
			delay := time.Duration(0)
			serve(t, &Handler{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				mu.Lock()
				delay += 7 * time.Microsecond
				pause := delay
				mu.Unlock()
				time.Sleep(pause) // not for a verdict: to end the watch at any point
				return directDial(ctx, network, address)
			}}, l)
			var sent strings.Builder
			for i := range 4000 {
				fmt.Fprintf(&sent, "%d ", i)
			}
			for range 100 {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				if secure {
					config := clientTLS()
					config.ServerName = "proxy"
					c = tls.Client(c, config)
				}
				go func() {
					fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: a\r\n\r\n", target.Addr())
					for s := sent.String(); s != ""; {
						n := min(len(s), 97)
						if _, err := io.WriteString(c, s[:n]); err != nil {
							return
						}
						s = s[n:]
					}
					relay.CloseWrite(c)
				}()
				r, err := ReadResponse(c, nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(relay.NewPrefixed(c, r.Early))
				c.Close()
				if err != nil || string(b) != sent.String() {
					t.Fatalf("heard %d bytes of %d, %v", len(b), sent.Len(), err)
				}
			}
		})
	}
}

func TestDialCancelledWhenClientGone(t *testing.T) {
	for _, tt := range []struct {
		name  string
		early string
		leave func(net.Conn)
		gone  bool
	}{
		{"close", "", func(c net.Conn) { c.Close() }, true},
		{"half-close", "", func(c net.Conn) { relay.CloseWrite(c) }, true},
		{"reset", "", func(c net.Conn) { relay.Reset(c) }, true},
		{"reset after early bytes", "x", func(c net.Conn) { relay.Reset(c) }, true},
		{"half-close after early bytes", "x", func(c net.Conn) { relay.CloseWrite(c) }, false},
		{"reset behind a full buffer", strings.Repeat("x", 2*guard.MaxEarly), func(c net.Conn) { relay.Reset(c) }, false},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/late=%v", tt.name, late), func(t *testing.T) {
				tunneltest.Bubble(t, func(t *testing.T) {
					var n tunneltest.Network
					accept(t, listen(t, n.Listen, "tcp", "target:80"), echo)
					var cause error
					var ended time.Duration
					outcome := make(chan error, 1)
					start := time.Now()
					h := &Handler{
						Observe: func(*Tunnel) func(error) { return func(err error) { outcome <- err } },
						Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
							select {
							case <-ctx.Done():
							case <-time.After(5 * time.Second):
							}
							ended, cause = time.Since(start), context.Cause(ctx)
							if late { // one that does not look at its context
								return n.Dial(context.Background(), network, address)
							}
							return nil, ErrRefused
						},
					}
					serve(t, h, listen(t, n.Listen, "tcp", "proxy:8080"))
					c := dialProxy(t, &n, connectTarget)
					if tt.early != "" {
						io.WriteString(c, tt.early)
						synctest.Wait()
					}
					time.Sleep(time.Second)
					tt.leave(c)
					err := <-outcome
					if !tt.gone {
						if ended != 5*time.Second || errors.Is(cause, errClientGone) {
							t.Errorf("the dial ended after %v with %v", ended, cause)
						}
						return
					}
					if ended != time.Second || !errors.Is(cause, ErrTerminated) || !errors.Is(err, errClientGone) {
						t.Errorf("the dial ended after %v with %v, the request with %v", ended, cause, err)
					}
					c.Close()
					synctest.Wait()
					if left := n.Conns(); len(left) > 0 {
						t.Errorf("%d conns are left", len(left))
					}
				})
			})
		}
	}
}
