package connect

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestParseProxyStatus(t *testing.T) {
	for _, tt := range []struct {
		in, reason, details string
		ok                  bool
	}{
		{`rhizome; error=connection_refused; details="dial: \"x\\y\""`, "connection_refused", `dial: "x\y"`, true},
		{`agent;error=dns_error, server;error=connection_terminated`, "dns_error", "", true},
		{`server, agent; error=dns_timeout`, "dns_timeout", "", true},
		{`"a, b"; received-status=502; error=x; next-hop="1.2.3.4"; rcode=-1.5; b=:YQ==:; t=?1; f`, "x", "", true},
		{`(a "b";c=1 2);error=y`, "y", "", true},
		{`();error=y`, "y", "", true},
		{`a;error=x;error=y`, "y", "", true},
		{"  a;error=x ,\tb ", "x", "", true},
		{`a;error="str"`, "str", "", true},
		{`a;*=1;error=x`, "x", "", true},
		{`a`, "", "", false},
		{``, "", "", false},
		// One defect anywhere makes all of it void.
		{`a;error=x, `, "", "", false},
		{`a;error=x,`, "", "", false},
		{`a;error=x b`, "", "", false},
		{`a;error=x;`, "", "", false},
		{`a;Error=x`, "", "", false},
		{`a;error=`, "", "", false},
		{`a;error=x;d="`, "", "", false},
		{`a;error=x;d="\`, "", "", false},
		{`a;error=x;d="\n"`, "", "", false},
		{"a;error=x;d=\"\x7f\"", "", "", false},
		{`a;error=x;d=1234567890123456`, "", "", false},
		{`a;error=x;d=1.`, "", "", false},
		{`a;error=x;d=1.2345`, "", "", false},
		{`a;error=x;d=-`, "", "", false},
		{`a;error=x;d=?2`, "", "", false},
		{`a;error=x;d=:a`, "", "", false},
		{`(a`, "", "", false},
		{`(a(`, "", "", false},
		{`(a"b")`, "", "", false},
		{`(a;=)`, "", "", false},
		{`{a};error=x`, "", "", false},
		{`ä;error=x`, "", "", false},
	} {
		reason, details, ok := parseProxyStatus([]string{tt.in})
		if string(reason) != tt.reason || details != tt.details || ok != tt.ok {
			t.Errorf("%q: %q, %q, %v", tt.in, reason, details, ok)
		}
	}
	if reason, _, _ := parseProxyStatus([]string{"a", "b;error=x", "c;error=y"}); reason != "x" {
		t.Errorf("three fields: %q", reason)
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"5":                             5 * time.Second,
		"86401":                         24 * time.Hour,
		"4294967295":                    24 * time.Hour,
		"99999999999999999999":          0,
		"-1":                            0,
		"1.5":                           0,
		"soon":                          0,
		"Sat, 21 Nov 2026 12:00:30 GMT": 30 * time.Second,
		"Sat, 21 Nov 2026 11:00:00 GMT": 0,
		"Sat, 21 Nov 2099 11:00:00 GMT": 24 * time.Hour,
	} {
		if got := parseRetryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestRefusal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer Response
		want   string
		reason Reason
		retry  time.Duration
	}{
		{"ours", *Classify(ErrRefused).Response(""), "502 connection_refused", ErrRefused, 0},
		{"ours with details", *(&Error{Reason: ErrUnavailable, Detail: "no agent", RetryAfter: time.Second}).Response(""),
			"503 destination_unavailable: no agent", ErrUnavailable, time.Second},
		{"phrase only", Response{Status: 502, Phrase: "connection_refused: dial tcp"}, "502 destination_unavailable: connection_refused: dial tcp", ErrUnavailable, 0},
		{"squid", Response{Status: 503, Phrase: "Service Unavailable"}, "503 destination_unavailable", ErrUnavailable, 0},
		{"free phrase", Response{Status: 403, Phrase: "Forbidden by rule 7"}, "403 http_request_denied: Forbidden by rule 7", ErrDenied, 0},
		{"unknown type", Response{Status: 502, Header: http.Header{"Proxy-Status": {"x;error=http_response_incomplete"}}},
			"502 http_response_incomplete", "http_response_incomplete", 0},
		{"407", Response{Status: 407, Phrase: "Proxy Authentication Required", Header: http.Header{"Proxy-Status": {"x;error=http_request_denied"}}},
			"407 proxy_authentication_required", ErrAuth, 0},
		{"401", Response{Status: 401}, "401 proxy_authentication_required", ErrAuth, 0},
		{"400", Response{Status: 400}, "400 http_request_error", ErrRequest, 0},
		{"429", Response{Status: 429}, "429 connection_limit_reached", ErrLimit, 0},
		{"500", Response{Status: 500}, "500 proxy_internal_error", ErrInternal, 0},
		{"504", Response{Status: 504}, "504 connection_timeout", ErrTimeout, 0},
		{"302", Response{Status: 302}, "302 http_protocol_error", ErrProtocol, 0},
		{"101", Response{Status: 101}, "101 http_protocol_error", ErrProtocol, 0},
	} {
		if tt.answer.Header == nil {
			tt.answer.Header = http.Header{}
		}
		e := tt.answer.Refusal("http://p:1", "t:2")
		want := "connect: proxy http://p:1 refused t:2: " + tt.want
		if tt.answer.Phrase == "" && strings.HasPrefix(e.Error(), want) {
			want = e.Error()
		}
		if e.Error() != want || e.Reason != tt.reason || e.RetryAfter != tt.retry || !e.Answered() || e.Status != tt.answer.Status {
			t.Errorf("%s: %v (%v, %v), want %s", tt.name, e, e.Reason, e.RetryAfter, want)
		}
	}
}
