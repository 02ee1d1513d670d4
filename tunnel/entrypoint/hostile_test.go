package entrypoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// meanwhile serves somebody else through all doors.
func (w *world) meanwhile() {
	w.Helper()
	w.greeted(w.dial("bystander", doorSNI), nameA).Close()
	c := w.dial("bystander", doorDest)
	w.claim(c, proxyHeader("192.0.2.1:1000", destA))
	w.greeted(c, nameA).Close()
	c = w.dial("bystander", doorHeader)
	if status, _ := w.connect(c, connectHead(HeaderReversedVPN+": "+headerA)); status != 200 {
		w.Fatalf("a bystander gets %d", status)
	}
	w.greeted(c, nameA).Close()
}

// onlyRefused waits until exactly these refusals have been counted.
func (w *world) onlyRefused(want map[Reason]uint64) {
	w.Helper()
	w.until(fmt.Sprintf("refused %v", want), func() bool { return maps.Equal(w.router.Stats().Refused, want) })
}

// send writes and does not mind that nobody wants it any more.
func send(c net.Conn, text string) { _, _ = io.WriteString(c, text) }

// outcome reads what a client gets that is not served, and says it in a word or
// two: "alert 112", "403", "nothing, EOF", "reset".
func outcome(c net.Conn) string {
	b, err := io.ReadAll(c)
	switch {
	case errors.Is(err, syscall.ECONNRESET) && len(b) == 0:
		return "reset"
	case err != nil:
		return fmt.Sprintf("%q, %v", b, err)
	case len(b) == 0:
		return "nothing, EOF"
	case len(b) == 7 && string(b[:6]) == "\x15\x03\x01\x00\x02\x02":
		return fmt.Sprintf("alert %d", b[6])
	}
	r := bufio.NewReader(strings.NewReader(string(b)))
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return fmt.Sprintf("%q", b)
	}
	body, err := io.ReadAll(res.Body)
	if rest, _ := io.ReadAll(r); err != nil || len(rest) > 0 {
		return fmt.Sprintf("%d, %q, %v, behind it %q", res.StatusCode, body, err, rest)
	}
	if l := res.Header.Get("Location"); l != "" {
		return fmt.Sprintf("%d %s", res.StatusCode, l)
	}
	return fmt.Sprint(res.StatusCode)
}

// hostile is a client that is not served.
type hostile struct {
	name   string
	door   string
	from   string // host; empty means "stranger"
	say    string
	eof    bool // and a half-close
	reason Reason
	want   string // outcome
}

// refuseAll has each client refused for its reason with its answer, and somebody
// else served while it is not.
func refuseAll(t *testing.T, all []hostile) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		want := make(map[Reason]uint64)
		for _, h := range all {
			if h.from == "" {
				h.from = "stranger"
			}
			start := time.Now()
			c := w.dial(h.from, h.door)
			send(c, h.say)
			if h.eof {
				_ = c.(*tunneltest.Conn).CloseWrite()
			}
			w.meanwhile()
			if got := outcome(c); got != h.want {
				t.Errorf("%s: %s, want %s", h.name, got, h.want)
			}
			if d := time.Since(start); h.reason != ReasonSlow && d != 0 {
				t.Errorf("%s: refused after %v, want at once", h.name, d)
			}
			c.Close()
			want[h.reason]++
			w.until(h.name+": "+string(h.reason), func() bool { return maps.Equal(w.router.Stats().Refused, want) })
		}
		w.until("all are gone", func() bool { return w.router.Stats().Sniffing == 0 && w.router.Stats().Conns == 0 })
	})
}

// What is not of the port's kind costs its own connection only, at once, and is
// told in the language that it came in where that is one.
func TestWrongProtocol(t *testing.T) {
	helloA := hello(t, nameA)
	get := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	ssh := "SSH-2.0-OpenSSH_9.9\r\n"
	const bad = ReasonMalformed
	refuseAll(t, []hostile{
		{"plain HTTP on the TLS port", doorSNI, "", get, false, bad, "400"},
		{"CONNECT on the TLS port", doorSNI, "", crlf(connectHead(HeaderReversedVPN + ": " + headerA)), false, bad, "400"},
		{"a banner on the TLS port", doorSNI, "", ssh, false, bad, "400"},
		{"lower case on the TLS port", doorSNI, "", "helo x\r\n", false, bad, "reset"},
		{"NUL bytes on the TLS port", doorSNI, "", "\x00\x00\x00\x00", false, bad, "reset"},
		{"SSLv2", doorSNI, "", "\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", false, bad, "reset"},
		{"application data", doorSNI, "", "\x17\x03\x03\x00\x01x", false, bad, "reset"},

		{"TLS on the CONNECT port", doorHeader, "", helloA, false, bad, "alert 10"},
		{"NUL bytes on the CONNECT port", doorHeader, "", "\x00\x00\x00\x00", false, bad, "400"},
		{"a banner and an end on the CONNECT port", doorHeader, "", ssh + "\r\n", false, bad, "400"},
		{"HTTP/2 on the CONNECT port", doorHeader, "", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, bad, "505"},

		{"TLS on the destination port", doorDest, "", helloA, false, ReasonProxyHeader, "reset"},
		{"HTTP on the destination port", doorDest, "", get, false, ReasonProxyHeader, "reset"},
		{"a banner on the destination port", doorDest, "", ssh, false, ReasonProxyHeader, "reset"},

		{"NUL bytes at the door for all", doorAll, "", "\x00\x00\x00\x00", false, bad, "400"},
		{"half a request and an end", doorHeader, "", "CONNECT x:1 HTTP/1.1\r\nHost:", true, bad, "400"},
		{"half a hello and an end", doorSNI, "", helloA[:100], true, bad, "alert 50"},
		{"a byte of a hello and an end", doorSNI, "", helloA[:1], true, bad, "alert 50"},
	})
}

// Who says nothing is a health check.
func TestNothingSaid(t *testing.T) {
	local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	var all []hostile
	for _, door := range []string{doorSNI, doorDest, doorHeader, doorAll} {
		all = append(all,
			hostile{"nothing at " + door, door, "", "", true, ReasonEmpty, "reset"},
			hostile{"nothing from the balancer at " + door, door, "balancer", "", true, ReasonEmpty, "reset"},
			hostile{"a health check of the balancer at " + door, door, "balancer", local, true, ReasonEmpty, "reset"},
		)
	}
	refuseAll(t, all)
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for range 100 {
			w.dial("monitor", doorSNI).Close()
		}
		w.onlyRefused(map[Reason]uint64{ReasonEmpty: 100})
		if s := w.log.String(); strings.Contains(s, "refused") {
			t.Errorf("health checks fill the log:\n%s", s)
		}
	})
}

// crlf gives lines the ends that HTTP wants.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// No answer says what a route or a backend is called, or why exactly it is not
// this client's: that is for the log.
func TestAnswersRevealNothing(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, func(r *Router) { r.Limits.PerClient = 2 })
		routes := w.routes()
		routes[0].Name, routes[1].Name = "secretly", "hidden"
		routes[0].Handler = w.forward("gone.internal:443", "down.internal:443")
		routes[1].Deny = append(routes[1].Deny, prefix("0.0.0.0/0"))
		w.set(routes...)
		var told []string
		tell := func(door, say string) {
			c := w.dial("stranger", door)
			send(c, say)
			b, _ := io.ReadAll(c)
			c.Close()
			told = append(told, string(b))
		}
		for _, value := range []string{headerA, headerB, "outbound|443||unknown"} {
			tell(doorHeader, crlf(connectHead(HeaderReversedVPN+": "+value)))
		}
		for _, name := range []string{nameA, nameB, "unknown.example.com"} {
			tell(doorSNI, hello(t, name))
		}
		all := strings.Join(told, "\n")
		for _, secret := range []string{"secretly", "hidden", "internal", "shoot", "svc", "backend-", "10.0", "unknown\r", "lookup", "no such host", "refused"} {
			if strings.Contains(all, secret) {
				t.Errorf("the answers contain %q", secret)
			}
		}
		if n := strings.Count(all, "HTTP/1.1 "); n != 3 {
			t.Errorf("%d answers in HTTP:\n%s", n, all)
		}
		w.onlyRefused(map[Reason]uint64{ReasonBackend: 2, ReasonDenied: 2, ReasonUnknown: 2})
		if log := w.log.String(); !strings.Contains(log, "gone.internal") || !strings.Contains(log, "route=secretly") {
			t.Errorf("the log does not say which backend failed:\n%s", log)
		}
	})
}

// Credentials stay out of the log, and whoever is refused often cannot fill it
// nor stretch its lines.
func TestLogIsBoundedAndKeepsSecrets(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		secrets := []string{"Proxy-Authorization: Basic c2VjcmV0", "Cookie: c2VjcmV0", "Authorization: Bearer c2VjcmV0"}
		for _, lines := range [][]string{
			append(secrets, HeaderReversedVPN+": "+headerA),
			append(secrets, HeaderReversedVPN+": unknown"),
			append(secrets, HeaderReversedVPN+": a", HeaderGardenerDestination+": b"),
			append(secrets, "Content-Length: 5"),
			secrets,
		} {
			c := w.dial("stranger", doorHeader)
			w.connect(c, connectHead(lines...))
			c.Close()
		}
		w.until("all are told", func() bool { return w.router.Stats().Sniffing == 0 })
		if log := w.log.String(); strings.Contains(log, "c2VjcmV0") || !strings.Contains(log, "several routing headers") {
			t.Errorf("secrets in the log, or nothing:\n%s", log)
		}
		time.Sleep(time.Second) // for the limit
		before := len(w.log.String())
		for range 100 {
			c := w.dial("stranger", doorHeader)
			send(c, crlf(connectHead(HeaderReversedVPN+": "+strings.Repeat("x", 60000)+"\x7f")))
			c.Close()
			c = w.dial("stranger", doorHeader)
			send(c, crlf(connectHead(HeaderReversedVPN+": "+strings.Repeat("y", 60000))))
			c.Close()
		}
		w.until("all are told", func() bool { return w.router.Stats().Sniffing == 0 })
		added := w.log.String()[before:]
		if n := strings.Count(added, "\n"); n == 0 || n > 41 || len(added) > n*1500 {
			t.Errorf("%d lines of %d bytes from 200 refused clients", n, len(added))
		}
	})
}

// A client that resets what it has begun is broken; one that has not got past the
// PROXY headers may be a health check.
func TestResetWhileSniffed(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		outer := wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))
		want := make(map[Reason]uint64)
		for door, say := range map[string]string{
			doorSNI: hello(t, nameA), doorDest: outer, doorHeader: crlf(connectHead(HeaderReversedVPN + ": " + headerA)), doorAll: hello(t, nameA),
		} {
			for _, from := range []string{"stranger", "balancer"} {
				all, headers := say, 0
				if from == "balancer" {
					all, headers = outer+say, len(outer)
				}
				if door == doorDest {
					headers = len(all)
				}
				for _, size := range []int{0, 1, 16, 20, len(outer), len(outer) + 1, len(all) - 1} {
					if size >= len(all) {
						continue
					}
					c := w.dial(from, door)
					send(c, all[:size])
					time.Sleep(time.Millisecond)
					if !maps.Equal(w.router.Stats().Refused, want) {
						t.Fatalf("%s from %s, %d bytes: refused before the end", door, from, size)
					}
					_ = relay.Reset(c)
					if size > headers {
						want[ReasonBroken]++
					} else {
						want[ReasonEmpty]++
					}
					w.until(fmt.Sprintf("%s from %s, %d bytes: %v", door, from, size, want), func() bool { return maps.Equal(w.router.Stats().Refused, want) })
				}
			}
		}
		w.meanwhile()
	})
}
