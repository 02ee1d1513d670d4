package entrypoint

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// Each door leads to the right backend, and the door for all does so for each.
func TestDoors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, name := range []string{nameA, nameB, strings.ToUpper(nameA)} {
			for _, door := range []string{doorSNI, doorAll} {
				w.greeted(w.dial("client", door), strings.ToLower(name))
			}
		}
		for d, name := range map[string]string{destA: nameA, destB: nameB} {
			for _, door := range []string{doorDest, doorAll} {
				c := w.dial("client", door)
				source := "192.0.2.1:1000"
				if strings.HasPrefix(d, "[") {
					source = "[2001:db8::1]:1000"
				}
				w.claim(c, proxyHeader(source, d))
				w.greeted(c, name)
			}
		}
		for value, name := range map[string]string{headerA: nameA, headerB: nameB} {
			for _, header := range []string{HeaderReversedVPN, HeaderGardenerDestination, "reversed-vpn"} {
				for _, door := range []string{doorHeader, doorAll} {
					c := w.dial("client", door)
					if status, _ := w.connect(c, connectHead(header+": "+value)); status != 200 {
						t.Fatalf("%s: %s: %d", header, value, status)
					}
					w.greeted(c, name)
				}
			}
		}
		if s := w.router.Stats(); len(s.Refused) > 0 || s.Routes[0].Name != "a" || s.Routes[0].Total == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A client that has sent its EOF gets the rest of the answer, through each door.
func TestHalfClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		open := map[string]func() net.Conn{
			"sni": func() net.Conn { return w.dial("client", doorSNI) },
			"destination": func() net.Conn {
				c := w.dial("client", doorDest)
				w.claim(c, proxyHeader("192.0.2.1:1000", destA))
				return c
			},
			"header": func() net.Conn {
				c := w.dial("client", doorHeader)
				w.connect(c, connectHead(HeaderReversedVPN+": "+headerA))
				return c
			},
		}
		for name, dial := range open {
			c := w.greeted(dial(), nameA)
			fmt.Fprint(c, "question ")
			c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "question bye\n" {
				t.Errorf("%s: %q %v", name, b, err)
			}
		}
	})
}
