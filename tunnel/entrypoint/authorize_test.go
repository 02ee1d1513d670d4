package entrypoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The answers of Authorize are kept to the log: the client learns that it is not
// authorized, which it is not either where there is none in time.
func TestAuthorize(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var hook atomic.Pointer[func(context.Context, *Info) error]
		w := newWorld(t, func(r *Router) {
			r.Authorize = func(ctx context.Context, i *Info) error {
				if i.Client.Addr().String() == "198.51.100.77" {
					return nil
				}
				return (*hook.Load())(ctx, i)
			}
		})
		w.net.SetHost("bystander", "198.51.100.77")
		release := make(chan bool)
		want := map[string]string{doorSNI: "alert 49", doorDest: "reset", doorHeader: "403"}
		for _, tc := range []struct {
			what  string
			hook  func(context.Context, *Info) error
			after time.Duration
		}{
			{"denies", func(context.Context, *Info) error { return errors.New("secret reason") }, 0},
			{"denies later", func(context.Context, *Info) error {
				time.Sleep(249 * time.Millisecond)
				return errors.New("secret reason")
			}, 249 * time.Millisecond},
			{"hangs until it may not", func(ctx context.Context, _ *Info) error { <-ctx.Done(); return nil }, 250 * time.Millisecond},
			{"hangs", func(context.Context, *Info) error { <-release; return nil }, 250 * time.Millisecond},
			{"allows too late", func(context.Context, *Info) error { time.Sleep(251 * time.Millisecond); return nil }, 250 * time.Millisecond},
		} {
			for _, door := range kinds {
				hook.Store(&tc.hook)
				start := time.Now()
				c := w.open(door)
				w.meanwhile()
				if got := outcome(c); got != want[door] {
					t.Errorf("%s, %s: %s", tc.what, door, got)
				}
				if d := time.Since(start); d != tc.after {
					t.Errorf("%s, %s: after %v, want %v", tc.what, door, d, tc.after)
				}
				c.Close()
			}
		}
		w.onlyRefused(map[Reason]uint64{ReasonUnauthorized: 15})
		for range 3 {
			release <- true
		}
		if s := w.router.Stats(); s.Routes[0].Refused[ReasonUnauthorized] != 15 {
			t.Errorf("%+v", s)
		}
		if log := w.log.String(); !strings.Contains(log, "secret reason") || !strings.Contains(log, "no answer within 250ms") {
			t.Errorf("the log does not say why\n%s", log)
		}
	})
}

// AuthorizeTimeout can be another one, or none.
func TestAuthorizeTimeout(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		for _, timeout := range []time.Duration{time.Second, -1} {
			asked := make(chan context.Context, 1)
			w := newWorld(t, func(r *Router) {
				r.AuthorizeTimeout = timeout
				r.Authorize = func(ctx context.Context, _ *Info) error {
					asked <- ctx
					time.Sleep(time.Hour)
					return nil
				}
			})
			start := time.Now()
			c := w.dial("client", doorSNI)
			if timeout < 0 {
				w.greeted(c, nameA)
				if d := time.Since(start); d != time.Hour {
					t.Errorf("served after %v", d)
				}
				if _, ok := (<-asked).Deadline(); ok {
					t.Error("there is a deadline")
				}
				continue
			}
			send(c, hello(t, nameA))
			if got := outcome(c); got != "alert 49" || time.Since(start) != timeout {
				t.Errorf("%s after %v", got, time.Since(start))
			}
			if d, _ := (<-asked).Deadline(); d != start.Add(timeout) {
				t.Errorf("the deadline is %v", d.Sub(start))
			}
		}
	})
}

// Authorize is told all that is known, and is asked only for what has a route
// and is allowed there.
func TestAuthorizeInfo(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		infos := make(chan *Info, 10)
		w := newWorld(t, func(r *Router) {
			r.Authorize = func(_ context.Context, i *Info) error {
				infos <- i
				return nil
			}
		})
		routes := w.routes()
		routes[1].Deny = []netip.Prefix{prefix("0.0.0.0/0")}
		w.set(routes...)
		ip, _ := w.net.LookupHost(t.Context(), "client")
		for _, door := range kinds {
			before := time.Now()
			c := w.open(door)
			i := <-infos
			if i.Route != "a" || i.Client.String() != c.LocalAddr().String() || i.Peer.String() != c.LocalAddr().String() ||
				i.Local.String() != c.RemoteAddr().String() || i.Proxy != nil || i.Start != before || len(ip) > 0 && i.Client.Addr().String() != ip[0] {
				t.Errorf("%s: %+v", door, i)
			}
			var right bool
			switch door {
			case doorSNI:
				right = i.By == BySNI && i.ServerName == nameA && i.Key() == nameA && len(i.ALPN) == 0
			case doorDest:
				right = i.By == ByDestination && i.Destination.String() == destA && i.Key() == destA
			case doorHeader:
				right = i.By == ByHeader && i.HeaderName == HeaderReversedVPN && i.HeaderValue == headerA && i.Key() == headerA &&
					i.Request.Target == "ignored.example.com:443"
			}
			if !right {
				t.Errorf("%s: %+v", door, i)
			}
			c.Close()
			time.Sleep(time.Second)
		}
		for _, name := range []string{nameB, "unknown.example.com"} {
			c := w.dial("client", doorSNI)
			send(c, hello(t, name))
			outcome(c)
		}
		w.refused(ReasonDenied, 1)
		w.refused(ReasonUnknown, 1)
		if len(infos) > 0 {
			t.Errorf("asked for %+v", <-infos)
		}
	})
	for by, want := range map[By]string{0: "", BySNI: "sni", ByDestination | ByHeader: "destination|header", BySNI | ByDestination | ByHeader: "sni|destination|header"} {
		if by.String() != want {
			t.Errorf("%q, want %q", by, want)
		}
	}
	if key := new(Info).Key(); key != "" {
		t.Errorf("%q", key)
	}
}

// A client is who connects, and a Deny wins over an Allow.
func TestACL(t *testing.T) {
	for _, tc := range []struct {
		allow, deny, client string
		want                bool
	}{
		{"", "", "192.0.2.1", true},
		{"", "", "", true},
		{"0.0.0.0/0 ::/0", "", "", false}, // has no address
		{"", "192.0.2.1/32", "", false},
		{"192.0.2.0/24", "", "192.0.2.1", true},
		{"192.0.2.0/24", "", "192.0.3.1", false},
		{"192.0.2.0/24 10.0.0.0/8", "", "10.1.1.1", true},
		{"192.0.2.0/24", "192.0.2.1/32", "192.0.2.1", false},
		{"192.0.2.1/32", "192.0.2.0/24", "192.0.2.1", false},
		{"", "192.0.2.0/24", "192.0.2.1", false},
		{"", "192.0.2.0/24", "192.0.3.1", true},
		{"0.0.0.0/0", "", "2001:db8::1", false},
		{"::/0", "", "192.0.2.1", false},
		{"2001:db8::/32", "", "2001:db8::1", true},
		{"", "::/0", "::ffff:192.0.2.1", true},           // is IPv4
		{"192.0.2.0/24", "", "::ffff:192.0.2.1", true},   //
		{"", "192.0.2.0/24", "::ffff:192.0.2.1", false},  //
		{"fe80::/10", "", "fe80::1%eth0", true},          // a prefix has no zone
		{"", "fe80::/10", "fe80::1%eth0", false},         //
		{"192.0.2.0/24", "", "::192.0.2.1", false},       // is not
		{"", "192.0.2.0/24", "64:ff9b::192.0.2.1", true}, //
	} {
		r := new(Route)
		for _, p := range strings.Fields(tc.allow) {
			r.Allow = append(r.Allow, prefix(p))
		}
		for _, p := range strings.Fields(tc.deny) {
			r.Deny = append(r.Deny, prefix(p))
		}
		var addr net.Addr = &net.UnixAddr{Net: "unix", Name: "x"}
		if tc.client != "" {
			a := netip.MustParseAddr(tc.client)
			addr = &net.TCPAddr{IP: a.AsSlice(), Zone: a.Zone(), Port: 1000}
		}
		if got := r.admits(addrPort(addr).Addr()); got != tc.want {
			t.Errorf("%s of allow %q deny %q: %v", tc.client, tc.allow, tc.deny, got)
		}
	}
	if addrPort(nil).IsValid() || addrPort(&net.UDPAddr{IP: net.IPv4(1, 2, 3, 4)}).IsValid() {
		t.Error("not an address of TCP")
	}
}

// Who comes over a UNIX socket has no address: it is served where no list is, and
// with a list it is refused in the way of its protocol.
func TestUnixClients(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		routes := w.routes()
		routes[1].Allow = []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}
		w.set(routes...)
		l, err := w.net.Host("lb").Listen("unix", "/run/entrypoint")
		if err != nil {
			t.Fatal(err)
		}
		w.wait.Go(func() { _ = w.router.Serve(l, &Door{By: BySNI | ByHeader}) })
		dial := func() net.Conn {
			c, err := w.net.Host("lb").Dial(t.Context(), "unix", "/run/entrypoint")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		for range 3 {
			w.greeted(dial(), nameA).Close()
		}
		c := dial()
		send(c, hello(t, nameB))
		if got := outcome(c); got != "alert 49" {
			t.Error(got)
		}
		c = dial()
		send(c, crlf(connectHead(HeaderReversedVPN+": "+headerB)))
		if got := outcome(c); got != "403" {
			t.Error(got)
		}
		w.onlyRefused(map[Reason]uint64{ReasonDenied: 2})
	})
}

// Denied clients are told so, each in its protocol, and others served meanwhile.
func TestDenied(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		routes := w.routes()
		w.net.SetHost("client", "198.51.100.1")
		routes[0].Deny = []netip.Prefix{prefix("198.51.100.0/24")}
		w.set(routes...)
		for door, want := range map[string]string{doorSNI: "alert 49", doorDest: "reset", doorHeader: "403"} {
			c := w.open(door)
			w.meanwhile()
			if got := outcome(c); got != want {
				t.Errorf("%s: %s", door, got)
			}
		}
		w.onlyRefused(map[Reason]uint64{ReasonDenied: 3})
		reasons := slices.Collect(func(yield func(string) bool) {
			for _, l := range strings.Split(w.log.String(), "\n") {
				if strings.Contains(l, "refused") && !yield(l) {
					return
				}
			}
		})
		for _, l := range reasons {
			if !strings.Contains(l, "reason=denied") || !strings.Contains(l, "peer=198.51.100.1:") || !strings.Contains(l, "route=a") {
				t.Error(l)
			}
		}
		if len(reasons) != 3 {
			t.Error(fmt.Sprint(len(reasons), " lines"))
		}
	})
}
