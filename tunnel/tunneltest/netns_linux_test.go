package tunneltest

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

func thisNetns(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInNetns(t *testing.T) {
	ran := false
	t.Run("inside", func(t *testing.T) {
		outside := thisNetns(t)
		InNetns(t, func(t *testing.T) {
			ran = true
			inside := thisNetns(t)
			if inside == outside {
				t.Error("the namespace is the one of before")
			}
			links, err := netlink.LinkList()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				if up := l.Attrs().Flags&net.FlagUp != 0; up != (l.Attrs().Name == "lo") {
					t.Errorf("%s: up is %v", l.Attrs().Name, up)
				}
			}

			// The loopback works, and the port is free however busy the machine is.
			l, err := net.Listen("tcp", "127.0.0.1:443")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()

			// A second host does not reach the first one's.
			InNetns(t, func(t *testing.T) {
				if thisNetns(t) == inside {
					t.Error("the nested namespace is the outer one")
				}
				_, err := net.Dial("tcp", "127.0.0.1:443")
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("Dial from another namespace: %v, want ECONNREFUSED", err)
				}
			})
			if thisNetns(t) != inside {
				t.Error("after the nested one the namespace is another")
			}
			c, err := net.Dial("tcp", "127.0.0.1:443")
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
		if thisNetns(t) != outside {
			t.Error("afterwards the namespace is another")
		}
	})
	if !ran {
		t.Skip("InNetns skipped its test; see there")
	}
}
