package interop

import (
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// testOpenSSL uses s_client twice over: as a TLS stack that is not Go's and
// through which the bytes of kube-apiserver go to the client door, and, with
// -proxy, as a CONNECT client of its own (which cannot speak TLS to a proxy,
// so that it goes to the Unix socket).
func testOpenSSL(t *testing.T, w *world) {
	openssl := need(t, "openssl", "apt-get install openssl")

	door := func(certificateOf, cluster, version string) []string {
		files := w.client[certificateOf]
		return []string{"s_client", "-quiet", "-verify_return_error", version,
			"-connect", w.clients, "-servername", server(cluster), "-verify_hostname", server(cluster),
			"-CAfile", w.caFile, "-cert", files.cert, "-key", files.key}
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("Door"+version, func(t *testing.T) {
			out := converse(t, openssl, door("alpha", "alpha", version),
				"CONNECT "+w.alpha.plain+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "\r\n\r\n",
				"GET /who HTTP/1.0\r\n\r\n", "kubelet of alpha\n")
			if !strings.HasPrefix(out, "HTTP/1.1 200 ") {
				t.Errorf("got %q, want a 200 first", out)
			}
		})
	}
	t.Run("DoorRefused", func(t *testing.T) {
		out := converse(t, openssl, door("alpha", "alpha", "-tls1_3"),
			"CONNECT "+w.refused+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "\r\n\r\n")
		for _, want := range []string{"HTTP/1.1 502 connection_refused", "Proxy-Status:", "error=connection_refused"} {
			if !strings.Contains(out, want) {
				t.Errorf("got %q, want %q in it", out, want)
			}
		}
	})
	t.Run("TLS1.1", func(t *testing.T) {
		_, errs, code := run(t, nil, openssl, append(door("alpha", "alpha", "-tls1_1"), "-cipher", "ALL:@SECLEVEL=0")...)
		if code == 0 || !strings.Contains(errs, "alert protocol version") {
			t.Errorf("exit code %d, want that the door refuses the version\n%s", code, errs)
		}
	})
	t.Run("NoCertificate", func(t *testing.T) {
		args := door("alpha", "alpha", "-tls1_3")
		args = args[:len(args)-4] // -cert and -key
		_, errs, code := run(t, nil, openssl, args...)
		if code == 0 || !strings.Contains(errs, "certificate required") {
			t.Errorf("exit code %d, want that the door asks for a certificate\n%s", code, errs)
		}
	})
	t.Run("Proxy", func(t *testing.T) {
		out := converse(t, openssl, []string{"s_client", "-quiet", "-verify_return_error", "-proxy", forwardTo(t, "unix", w.socket),
			"-connect", w.alpha.secure, "-verify_ip", "127.0.0.1", "-CAfile", w.alpha.caFile},
			"GET /who HTTP/1.0\r\n\r\n", "kubelet of alpha\n")
		if !strings.HasPrefix(out, "HTTP/1.0 200 OK") {
			t.Errorf("got %q, want a 200 first", out)
		}
	})
	t.Run("ProxyRefused", func(t *testing.T) {
		_, errs, code := run(t, nil, openssl, "s_client", "-proxy", forwardTo(t, "unix", w.socket), "-connect", w.refused)
		if code == 0 || !strings.Contains(errs, "connection_refused") {
			t.Errorf("exit code %d, want a failure that names connection_refused\n%s", code, errs)
		}
	})
}

// converse runs a program and in turn writes a text to it and reads until
// another text has come. It returns everything that came.
func converse(t *testing.T, name string, args []string, dialogue ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	out, errs := new(syncBuffer), new(syncBuffer)
	cmd.Stdout, cmd.Stderr = out, errs
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		input.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}()
	for i := 0; i < len(dialogue); i += 2 {
		say, want := dialogue[i], dialogue[i+1]
		if _, err := io.WriteString(input, say); err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, errs)
		}
		deadline := time.Now().Add(20 * time.Second)
		for !strings.Contains(out.String(), want) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in\n%s\n%s", want, out, errs)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return out.String()
}

// forwardTo listens on loopback and forwards to a Unix socket, or to "tcp", until
// the test ends: socat in a few lines. The target sees a client at 127.0.0.1.
func forwardTo(t *testing.T, network, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ctx := t.Context()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			onward, err := net.Dial(network, target)
			if err != nil {
				t.Error(err)
				c.Close()
				continue
			}
			go relay.Relay(ctx, c, onward, nil)
		}
	}()
	return l.Addr().String()
}
