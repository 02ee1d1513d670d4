package connect

import (
	"errors"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct {
		target, host string
		port         int
	}{
		{"10.0.0.7:10250", "10.0.0.7", 10250},
		{"[fd00::7]:10250", "fd00::7", 10250},
		{"[::ffff:10.0.0.7]:1", "::ffff:10.0.0.7", 1},
		{"kubernetes.default.svc:443", "kubernetes.default.svc", 443},
		{"metrics.kube-system.svc.:65535", "metrics.kube-system.svc.", 65535},
		{"node_1:80", "node_1", 80},
		{strings.Repeat("a.", 126) + "a:80", strings.Repeat("a.", 126) + "a", 80},
	} {
		host, port, err := ParseTarget(tt.target)
		if err != nil || host != tt.host || port != tt.port {
			t.Errorf("ParseTarget(%q) = %q, %d, %v", tt.target, host, port, err)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for _, target := range []string{
		"", ":", "a", "a:", ":80", "a:0", "a:65536", "a:080", "a:+80", "a:-1", "a:80 ", " a:80", "a b:80",
		"a:http", "a:80:90", "fd00::7:80", "[fd00::7]", "[fd00::7:80", "fd00::7]:80", "[]:80", "[a]:80",
		"[10.0.0.7]:80", "[fe80::1%eth0]:80", "[fe80::1%25eth0]:80", "user@host:80", "a/b:80", "http://a:80",
		"ä.example:80", "a%20b:80", "a..b:80", ".a:80", ".:80", "a:80\r\nX: y", "a\x00:80", "*:80",
		strings.Repeat("a", 64) + ":80", strings.Repeat("a.", 127) + "a:80", "a:99999999999999999999",
	} {
		_, _, err := ParseTarget(target)
		var e *Error
		if !errors.As(err, &e) || e.Response("").Status != 400 {
			t.Errorf("ParseTarget(%q) = %v, want an *Error with status 400", target, err)
		}
	}
}
