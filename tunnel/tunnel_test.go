package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestThroughTheTunnel(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		func() {
			c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatal(err)
			}
			if got := c.RemoteAddr().String(); got != "10.0.0.7:10250" {
				t.Errorf("remote address %s", got)
			}
			if err := roundTrip(c); err != nil {
				t.Error(err)
			}
		}()
		func() {
			c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
			if err != nil {
				t.Fatal(err)
			}
			if err := roundTrip(c); err != nil {
				t.Error(err)
			}
		}()
		st := w.server.Clusters()
		if len(st) != 1 || st[0].Dials != 2 || st[0].Failed != 0 || st[0].FromAgents != 36 || st[0].ToAgents != 36 {
			t.Errorf("status: %+v", st)
		}
	})
}

func TestWholePathIsConn(t *testing.T) {
	w := newWorld(t, nil)
	conns := make(chan net.Conn, 1)
	done := make(chan struct{})
	w.target("10.0.0.8:80", func(c net.Conn) { conns <- c; <-done })
	t.Cleanup(func() { close(done) })
	w.agent("a", "agent-1", nil)
	w.ready("a", 1)
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		a, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.8:80")
		if err != nil {
			return nil, nil, nil, err
		}
		b := <-conns
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestAbsoluteForm(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		l, err := w.net.Host("10.0.0.9").Listen("tcp", "10.0.0.9:9100")
		if err != nil {
			t.Fatal(err)
		}
		node := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(rw, "metrics of "+r.Host+r.URL.Path)
		})}
		go node.Serve(l)
		t.Cleanup(func() { node.Close() })
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)

		d := w.client("a")
		transport := &http.Transport{
			Proxy:           http.ProxyURL(mustURL("https://" + serverAddr)),
			TLSClientConfig: d.TLS,
			DialContext:     w.net.Host("prometheus").Dial,
		}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		for range 2 {
			res, err := client.Get("http://10.0.0.9:9100/metrics")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(body) != "metrics of 10.0.0.9:9100/metrics" {
				t.Errorf("body %q", body)
			}
		}
		res, err := client.Get("http://10.0.0.99:1/") // nothing listens
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 502 || !strings.Contains(res.Header.Get("Proxy-Status"), "connection_refused") {
			t.Errorf("%d %q", res.StatusCode, res.Header.Get("Proxy-Status"))
		}
	})
}

// Every failure of a dial has its status and reason, at both doors.
func TestDialErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.net.SetHost("localhost.example", "127.0.0.1")
		w.net.Host("10.9.9.9")
		w.net.Freeze("10.9.9.9")
		w.ready("a", 1)
		time.Sleep(startupGrace)
		for _, tt := range []struct {
			name, cluster, target string
			reason                connect.Reason
			status                int
			is                    error
		}{
			{"refused", "a", "10.0.0.7:1", connect.ErrRefused, 502, syscall.ECONNREFUSED},
			{"no name", "a", "nowhere.example:80", connect.ErrDNS, 502, nil},
			{"timeout", "a", "10.9.9.9:80", connect.ErrTimeout, 504, nil},
			{"loopback", "a", "127.0.0.1:80", connect.ErrProhibited, 403, nil},
			{"metadata", "a", "169.254.169.254:80", connect.ErrProhibited, 403, nil},
			{"mapped", "a", "[::ffff:127.0.0.1]:80", connect.ErrProhibited, 403, nil},
			{"NAT64", "a", "[64:ff9b::169.254.169.254]:80", connect.ErrProhibited, 403, nil},
			{"name of loopback", "a", "localhost.example:80", connect.ErrProhibited, 403, nil},
			{"no agent", "b", "10.0.0.7:10250", connect.ErrUnavailable, 503, nil},
			{"no port", "a", "10.0.0.7", connect.ErrRequest, 400, nil},
		} {
			func() {
				_, err := w.server.Dialer(tt.cluster)(t.Context(), "tcp", tt.target)
				var de *DialError
				if !errors.As(err, &de) || de.Err.Reason != tt.reason {
					t.Fatalf("%s: Dialer: %v, want %s", tt.name, err, tt.reason)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%s: Dialer: %v is not %v", tt.name, err, tt.is)
				}
				if want := tt.status == 504; de.Timeout() != want {
					t.Errorf("%s: Timeout() = %v", tt.name, !want)
				}
				if tt.status == 400 {
					return // the client's own dialer refuses to send it
				}
				_, err = w.client(tt.cluster).DialContext(t.Context(), "tcp", tt.target)
				var ce *connect.Error
				if !errors.As(err, &ce) || ce.Status != tt.status || ce.Reason != tt.reason {
					t.Errorf("%s: CONNECT: %v, want %d %s", tt.name, err, tt.status, tt.reason)
				}
				if ce != nil && tt.status == 503 && ce.RetryAfter <= 0 {
					t.Errorf("%s: 503 without Retry-After", tt.name)
				}
			}()
		}
	})
}

// A client that goes away during a dial takes the dial of the target with it.
func TestDialCancelledWhenClientGone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		began, gone := make(chan struct{}), make(chan error, 1)
		w.agent("a", "agent-1", func(a *Agent) {
			a.DialTarget = func(ctx context.Context, _, _ string) (net.Conn, error) {
				close(began)
				<-ctx.Done()
				gone <- context.Cause(ctx)
				return nil, ctx.Err()
			}
		})
		w.ready("a", 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		start := time.Now()
		if _, err := w.client("a").DialContext(ctx, "tcp", "10.0.0.7:10250"); !errors.Is(err, context.Canceled) {
			t.Errorf("dial: %v", err)
		}
		<-gone
		if d := time.Since(start); d != 0 {
			t.Errorf("the target's dial ended after %v", d)
		}
		w.until("the stream is gone", func() bool { return w.server.Clusters()[0].Streams == 0 })
	})
}

// The agent reaches its server through any HTTP proxy on the way.
func TestAgentThroughProxy(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		l, err := w.net.Host("proxy").Listen("tcp", "proxy:3128")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan struct{})
		var mu sync.Mutex
		var heads []string
		go func() {
			defer close(served)
			_ = (&connect.Handler{
				Dial: w.net.Host("proxy").Dial,
				Allow: func(_ context.Context, r *connect.Request, target string) error {
					mu.Lock()
					defer mu.Unlock()
					heads = append(heads, target+" "+r.Header.Get("Reversed-VPN"))
					return nil
				},
			}).Serve(ctx, l)
		}()
		t.Cleanup(func() { cancel(); <-served })
		w.agent("a", "agent-1", func(a *Agent) {
			a.Dial = (&connect.Dialer{
				Address: "proxy:3128", Forward: w.net.Host("agent-1").Dial,
				Header: http.Header{"Reversed-VPN": {"outbound|1194||vpn"}},
			}).DialContext
		})
		w.ready("a", 1)
		c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(heads) != 1 || heads[0] != serverAddr+" outbound|1194||vpn" {
			t.Errorf("the proxy saw %q", heads)
		}
	})
}

// A trace context that the client sends arrives in the agent's log.
func TestTraceparent(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		d := w.client("a")
		d.Header = http.Header{headerTraceparent: {trace}}
		c, err := d.DialContext(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c); err != nil {
			t.Error(err)
		}
		w.until("it is logged", func() bool { return w.log.has("agent agent-1", "traceparent="+trace) })
	})
}

// A target that is reset resets the client, and the other way round.
func TestResetThroughTheTunnel(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		seen := make(chan error, 1)
		w.target("10.0.0.8:80", func(c net.Conn) {
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err != nil {
				seen <- err
				return
			}
			if string(buf) == "reset" {
				_, _ = io.WriteString(c, "part")
				_ = c.(*tunneltest.Conn).Reset()
				return
			}
			_, err := io.ReadAll(c)
			seen <- err
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		for range 20 {
			c, err := w.client("a").DialContext(t.Context(), "tcp", "10.0.0.8:80")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "reset")
			if got, err := io.ReadAll(c); err == nil {
				t.Fatalf("the client read %q and a clean end of a target that was reset", got)
			}
			c.Close()

			c, err = w.client("a").DialContext(t.Context(), "tcp", "10.0.0.8:80")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "watch")
			time.Sleep(time.Second)
			_ = relay.Reset(c)
			if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("the target of a client that was reset read: %v", err)
			}
		}
	})
}

// A client that closes without waiting for the end is no error: the target
// reads the end of the data and not a reset.
func TestCloseIsNoReset(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		seen := make(chan error, 1)
		w.target("10.0.0.8:80", func(c net.Conn) {
			_, _ = io.WriteString(c, "answer")
			_, err := io.ReadAll(c)
			seen <- err
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
			"Server.Dialer": w.server.Dialer("a"), "CONNECT": w.client("a").DialContext,
		} {
			c, err := dial(t.Context(), "tcp", "10.0.0.8:80")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "question")
			if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if err := <-seen; err != nil {
				t.Errorf("%s: the target read: %v", name, err)
			}
		}
		time.Sleep(time.Minute)
		if w.log.has("relay") {
			t.Errorf("logged as an error\n%s", w.log)
		}
	})
}

// A target that does not care that its client has gone is reset all the same.
func TestClosedStreamEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ended := make(chan error, 1)
		w.target("10.0.0.8:80", func(c net.Conn) {
			_, _ = io.ReadAll(c)
			for { // silent after the client's end
				if _, err := c.Write(nil); err != nil {
					ended <- err
					return
				}
				time.Sleep(time.Second)
			}
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.8:80")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		start := time.Now()
		<-ended
		if d := time.Since(start); d > unreadGrace+2*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}
