package tunnel

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A client that has said all and reads on gets its late answer, whichever way
// it came in: write, CloseWrite, and ten minutes later the answer.
func TestHalfClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.target("10.0.0.8:80", func(c net.Conn) {
			question, err := io.ReadAll(c) // ends with the client's half-close
			if err != nil {
				t.Errorf("the target read: %v", err)
			}
			time.Sleep(10 * time.Minute)
			_, _ = io.WriteString(c, "answer to "+string(question))
		})
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		w.plainDoor("server:80", "a")
		w.chain(t, "outer:3128")

		tlsClient := w.client("a")
		plain := &connect.Dialer{Address: "server:80", Forward: w.net.Host("client").Dial}
		chained := w.client("a")
		chained.Forward = (&connect.Dialer{Address: "outer:3128", Forward: w.net.Host("client").Dial}).DialContext
		type dial = func(context.Context, string, string) (net.Conn, error)
		for name, dial := range map[string]dial{
			"Server.Dialer":                    w.server.Dialer("a"),
			"CONNECT over TLS":                 tlsClient.DialContext,
			"CONNECT in the clear":             plain.DialContext,
			"CONNECT over TLS through a proxy": chained.DialContext,
		} {
			c, err := dial(t.Context(), "tcp", "10.0.0.8:80")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			_, _ = io.WriteString(c, "a question")
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Errorf("%s: CloseWrite: %v", name, err)
			}
			start := time.Now()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "answer to a question" {
				t.Errorf("%s: read %q, %v", name, got, err)
			}
			if d := time.Since(start); d != 10*time.Minute {
				t.Errorf("%s: it took %v", name, d)
			}
			c.Close()
		}
	})
}

// chain starts an HTTP proxy that dials within the world's network.
func (w *world) chain(t *testing.T, address string) {
	host, _, _ := net.SplitHostPort(address)
	l, err := w.net.Host(host).Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = (&connect.Handler{Dial: w.net.Host(host).Dial}).Serve(ctx, l)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// kube-apiserver sends these bytes, takes nothing but 200, and rejects a
// connection on which anything follows the head at once.
func TestAPIServerExactBytes(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", nil)
		w.ready("a", 1)
		w.plainDoor("server:80", "a") // as a Unix socket, which is not authenticated
		c, err := w.net.Host("apiserver").Dial(t.Context(), "tcp", "server:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "CONNECT 10.0.0.7:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK || r.Buffered() != 0 {
			t.Errorf("status %d, %d bytes behind the head", res.StatusCode, r.Buffered())
		}
		_, _ = io.WriteString(c, "hello")
		got := make([]byte, 5)
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello" {
			t.Errorf("echo %q, %v", got, err)
		}
		// What its user sees of a refusal is the status line.
		line, err := w.say("server:80", "CONNECT 10.0.0.7:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 502 connection_refused: ") || !strings.Contains(line, "10.0.0.7:1") {
			t.Errorf("%q, %v", line, err)
		}
	})
}
