package interop

import (
	"strconv"
	"strings"
	"testing"
)

// testCurl does with curl what kube-apiserver and Prometheus do: CONNECT and
// requests in absolute form, over TLS with a client certificate and over a
// Unix socket.
func testCurl(t *testing.T, w *world) {
	curl := need(t, "curl", "apt-get install curl")
	version, _, _ := run(t, nil, curl, "--version")
	if !strings.Contains(version, "HTTPS-proxy") {
		missing(t, "this curl knows no https proxy: install one of version 7.52 or newer with OpenSSL or GnuTLS")
	}
	// -q: no ~/.curlrc. An empty --noproxy: no exception for loopback.
	through := func(cluster, certificateOf string, args ...string) []string {
		_, port, _ := strings.Cut(w.clients, ":")
		files := w.client[certificateOf]
		return append([]string{"-q", "-sS", "--noproxy", "", "--max-time", "20",
			"--resolve", server(cluster) + ":" + port + ":127.0.0.1",
			"--proxy", "https://" + server(cluster) + ":" + port,
			"--proxy-cacert", w.caFile, "--proxy-cert", files.cert, "--proxy-key", files.key}, args...)
	}
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"HTTPS", through("alpha", "alpha", "--cacert", w.alpha.caFile, "https://"+w.alpha.secure+"/who"), "kubelet of alpha\n"},
		{"HTTPSTunnel", through("alpha", "alpha", "--proxytunnel", "--cacert", w.alpha.caFile, "https://"+w.alpha.secure+"/who"), "kubelet of alpha\n"},
		{"HTTPTunnel", through("beta", "beta", "--proxytunnel", "http://"+w.beta.plain+"/who"), "kubelet of beta\n"},
		{"HTTPAbsoluteForm", through("beta", "beta", "http://"+w.beta.plain+"/who"), "kubelet of beta\n"},
		{"Operator", through("beta", "*", "--cacert", w.beta.caFile, "https://"+w.beta.secure+"/who"), "kubelet of beta\n"},
		{"KeepAlive", through("alpha", "alpha", "-w", "%{num_connects}\n",
			"http://"+w.alpha.plain+"/who", "http://"+w.alpha.plain+"/who"), "kubelet of alpha\n1\nkubelet of alpha\n0\n"},
		{"Upload", through("alpha", "alpha", "--data-binary", "ping", "http://"+w.alpha.plain+"/echo"), "ping"},
		{"UploadAfterContinue", through("alpha", "alpha", "-H", "Expect: 100-continue", "--data-binary", "ping", "http://"+w.alpha.plain+"/echo"), "ping"},
		{"Big", through("alpha", "alpha", "--cacert", w.alpha.caFile, "-o", "/dev/null", "-w", "%{size_download}", "https://"+w.alpha.secure+"/big"), strconv.Itoa(bigSize)},
		{"BigAbsoluteForm", through("alpha", "alpha", "-o", "/dev/null", "-w", "%{size_download}", "http://"+w.alpha.plain+"/big"), strconv.Itoa(bigSize)},

		// curl ignores --proxy where --unix-socket is given, so it cannot send
		// CONNECT to a socket: requests in absolute form it can, and CONNECT
		// through a forwarder.
		{"UnixAbsoluteForm", []string{"-q", "-sS", "--max-time", "20", "--unix-socket", w.socket,
			"--request-target", "http://" + w.alpha.plain + "/who", "http://" + w.alpha.plain}, "kubelet of alpha\n"},
		{"UnixTunnel", []string{"-q", "-sS", "--noproxy", "", "--max-time", "20", "--proxy", "http://" + forwardTo(t, "unix", w.socket),
			"--cacert", w.alpha.caFile, "https://" + w.alpha.secure + "/who"}, "kubelet of alpha\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := run(t, nil, curl, test.args...)
			if code != 0 || out != test.want {
				t.Errorf("exit code %d, output %q, want %q\n%s", code, out, test.want, errs)
			}
		})
	}

	t.Run("Errors", func(t *testing.T) {
		tests := []struct {
			name string
			args []string
			code int
			want []string // in the output of -v
		}{
			// 56 is CURLE_RECV_ERROR, what curl makes of a refused CONNECT.
			{"Refused", through("alpha", "alpha", "-v", "https://"+w.refused+"/"), 56,
				[]string{"< HTTP/1.1 502 connection_refused", "error=connection_refused", "502"}},
			{"RefusedAbsoluteForm", through("alpha", "alpha", "-v", "http://"+w.refused+"/"), 0,
				[]string{"< HTTP/1.1 502 ", "error=connection_refused"}},
			{"NotAllowed", through("alpha", "alpha", "-v", "--proxytunnel", "http://"+w.beta.plain+"/who"), 56,
				[]string{"< HTTP/1.1 403 "}},
			{"OtherCluster", through("beta", "alpha", "-v", "--proxytunnel", "http://"+w.beta.plain+"/who"), 56,
				[]string{"< HTTP/1.1 403 http_request_denied", "error=http_request_denied"}},
			{"OtherClusterAbsoluteForm", through("beta", "alpha", "-v", "http://"+w.beta.plain+"/who"), 0,
				[]string{"< HTTP/1.1 403 ", "error=http_request_denied"}},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				out, errs, code := run(t, nil, curl, test.args...)
				if code != test.code {
					t.Errorf("exit code %d, want %d", code, test.code)
				}
				for _, want := range test.want {
					if !strings.Contains(errs, want) {
						t.Errorf("no %q in\n%s%s", want, errs, out)
					}
				}
				if strings.Contains(out, "kubelet of") {
					t.Errorf("reached a kubelet: %s", out)
				}
			})
		}
	})

	// Nothing but a certificate opens the door: no HTTP answer is needed then,
	// but no tunnel either.
	t.Run("NoCertificate", func(t *testing.T) {
		args := through("alpha", "alpha", "--cacert", w.alpha.caFile, "https://"+w.alpha.secure+"/who")
		for i, arg := range args {
			if arg == "--proxy-cert" {
				args = append(args[:i:i], args[i+4:]...)
				break
			}
		}
		out, errs, code := run(t, nil, curl, args...)
		if code == 0 || out != "" {
			t.Errorf("exit code %d, output %q, want a failure\n%s", code, out, errs)
		}
		t.Logf("%s", strings.TrimSpace(errs))
	})
}
