package entrypoint

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// wire is a PROXY header as it is sent.
func wire(h *proxyproto.Header) string {
	var b bytes.Buffer
	if err := proxyproto.WriteHeader(&b, h); err != nil {
		panic(err)
	}
	return b.String()
}

// v1 is a PROXY header of version 1.
func v1(source, destination string) string {
	h := proxyHeader(source, destination)
	h.Version = 1
	return wire(h)
}

// drip sends a text byte by byte until nobody wants it.
func drip(c net.Conn, text string, pause time.Duration) {
	for i := range len(text) {
		time.Sleep(pause)
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
	}
}

// However a client divides its time among the things that are read first, all of
// them together have to be there at HeadTimeout; and meanwhile and at that moment
// everybody else is served.
func TestSlowloris(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		const timeout = 7 * time.Second
		w := newWorld(t, func(r *Router) { r.HeadTimeout = timeout })
		var (
			outer = wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))
			inner = wire(proxyHeader("192.0.2.8:1000", destA))
			text  = v1("192.0.2.7:1000", "203.0.113.1:443")
			tls   = hello(t, nameA)
			head  = crlf(connectHead("X-Padding: "+strings.Repeat("x", 100), HeaderReversedVPN+": "+headerA))
			bytes = time.Second / 4
		)
		type slow struct {
			name, door, from string
			say              string // at once
			drip             string // and this, a byte in a while
			pause            time.Duration
			want             string
		}
		all := []slow{
			{"half an outer header", doorSNI, "balancer", outer[:20], "", 0, "reset"},
			{"half a line", doorSNI, "balancer", text[:20], "", 0, "reset"},
			{"an outer header only", doorSNI, "balancer", outer, "", 0, "reset"},
			{"half an inner header", doorDest, "stranger", inner[:20], "", 0, "reset"},
			{"half an inner line", doorDest, "stranger", text[:20], "", 0, "reset"},
			{"half an inner header behind an outer one", doorDest, "balancer", outer + inner[:20], "", 0, "reset"},
			{"an outer header, awaiting the inner", doorDest, "balancer", outer, "", 0, "reset"},
			{"perhaps a header", doorAll, "stranger", "\r\n", "", 0, "reset"},
			{"half a hello", doorSNI, "stranger", tls[:50], "", 0, "reset"},
			{"half a hello behind a header", doorSNI, "balancer", outer + tls[:50], "", 0, "reset"},
			{"half a record's head", doorSNI, "stranger", tls[:3], "", 0, "reset"},
			{"a request line", doorHeader, "stranger", head[:40], "", 0, "408"},
			{"a request line behind a header", doorHeader, "balancer", outer + head[:40], "", 0, "408"},
			{"half a request, door for all", doorAll, "stranger", head[:40], "", 0, "408"},
			{"a banner", doorHeader, "stranger", "SSH-2.0-x\r\n", "", 0, "408"},

			{"dripping a hello", doorSNI, "stranger", "", tls, bytes, "reset"},
			{"dripping a head", doorHeader, "stranger", "", head, bytes, "408"},
			{"dripping a line", doorSNI, "balancer", "", text, bytes, "reset"},
			{"dripping an outer header", doorDest, "balancer", "", outer + inner, bytes, "reset"},
			{"dripping an inner header", doorDest, "stranger", "", strings.Repeat(inner, 2), time.Second, "reset"},
			// The whole of it: the header takes most of the time, and what is
			// behind it may not have it again.
			{"dripping a header, then a hello", doorSNI, "balancer", "", outer + tls, timeout / 40, "reset"},
			{"dripping a header, then a head", doorHeader, "balancer", "", outer + head, timeout / 40, "408"},
			{"dripping two headers", doorDest, "balancer", "", outer + inner, timeout / 40, "reset"},
			{"dripping a header, then a hello, door for all", doorAll, "balancer", "", outer + tls, timeout / 40, "reset"},
			{"dripping a hello, door for all", doorAll, "stranger", "", tls, timeout / 40, "reset"},
		}
		for _, door := range []string{doorSNI, doorDest, doorHeader, doorAll} {
			all = append(all, slow{"nothing", door, "stranger", "", "", 0, "reset"}, slow{"nothing", door, "balancer", "", "", 0, "reset"})
		}
		var wait sync.WaitGroup
		for _, s := range all {
			start := time.Now()
			c := w.dial(s.from, s.door)
			send(c, s.say)
			wait.Go(func() { drip(c, s.drip, s.pause) })
			wait.Go(func() {
				got := outcome(c)
				if d := time.Since(start); got != s.want || d != timeout {
					t.Errorf("%s at %s: %s after %v, want %s after %v", s.name, s.door, got, d, s.want, timeout)
				}
				c.Close()
			})
		}
		w.meanwhile()
		time.Sleep(timeout - 1)
		if s := w.router.Stats(); s.Sniffing != len(all) || len(s.Refused) > 0 {
			t.Errorf("before the end: %+v", s)
		}
		w.meanwhile()
		wait.Wait()
		w.meanwhile()
		w.onlyRefused(map[Reason]uint64{ReasonSlow: uint64(len(all))})
	})
}

// A client that is slow but in time is served, and from then on it may take its
// time.
func TestHeadTimeoutEndsWithTheHead(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, timeout := range []time.Duration{0, -1} {
			w := newWorld(t, func(r *Router) { r.HeadTimeout = timeout })
			wait := 9 * time.Second
			if timeout < 0 {
				wait = time.Hour
			}
			outer := wire(proxyHeader("192.0.2.7:1000", "203.0.113.1:443"))
			inner := wire(proxyHeader("192.0.2.8:1000", destA))
			for _, door := range []string{doorSNI, doorDest, doorHeader, doorAll} {
				for _, from := range []string{"client", "balancer"} {
					c := w.dial(from, door)
					time.Sleep(wait / 3)
					if from == "balancer" {
						send(c, outer[:20])
						time.Sleep(wait / 3)
						send(c, outer[20:])
					}
					time.Sleep(wait / 3)
					switch door {
					case doorDest:
						send(c, inner)
					case doorHeader:
						if status, _ := w.connect(c, connectHead(HeaderReversedVPN+": "+headerA)); status != 200 {
							t.Fatalf("%d", status)
						}
					}
					if door == doorDest || door == doorHeader {
						time.Sleep(10 * time.Minute) // the head has been
					}
					a := w.greeted(c, nameA)
					time.Sleep(10 * time.Minute)
					send(a, "still there?\n")
					if got := line(a); got != "still there?" {
						t.Errorf("%s from %s: %q after ten minutes", door, from, got)
					}
					a.Close()
				}
			}
			w.onlyRefused(nil)
		}
	})
}

// A client that does not read its answer is gone soon after, and nobody waits for
// it any longer.
func TestClientThatDoesNotRead(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		network := &tunneltest.Network{Buffer: 1}
		router := new(Router)
		door := &Door{By: BySNI | ByHeader, Unknown: Redirect}
		l, err := network.Listen("tcp", "lb:443")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- router.Serve(l, door) }()
		for what, say := range map[string]string{
			"an error":   "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n",
			"a redirect": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
			"an alert":   hello(t, nameA),
		} {
			start := time.Now()
			c, err := network.Dial(t.Context(), "tcp", "lb:443")
			if err != nil {
				t.Fatal(err)
			}
			send(c, say)
			for router.Stats().Sniffing > 0 {
				if time.Sleep(time.Second / 2); time.Since(start) > 12*time.Second {
					t.Fatalf("%s: it is still there after %v", what, time.Since(start))
				}
			}
			if d := time.Since(start); d < answerTimeout {
				t.Errorf("%s: gone after %v", what, d)
			}
			c.Close()
		}
		// Close does not wait so long.
		c, err := network.Dial(t.Context(), "tcp", "lb:443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send(c, hello(t, nameA))
		start := time.Now()
		router.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
		<-done
	})
}
