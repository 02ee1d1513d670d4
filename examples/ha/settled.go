//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/rhizome-tunnel/rhizome/bond"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
)

// bonding tells whether this kernel has the bonding driver, on a host that is for
// nothing else.
func (w *world) bonding() error {
	h, err := w.lab.Host("probe")
	if err != nil {
		return err
	}
	if err := w.lab.Cable(h, "a", netip.Prefix{}, h, "b", netip.Prefix{}); err != nil {
		return err
	}
	return h.Do(func() error {
		k := &bond.Kernel{Members: []string{"a"}}
		return errors.Join(k.Up(), k.Close())
	})
}

// page gets a page of a program's admin port into value.
func page(h *netlab.Host, address, path string, value any) error {
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
				err = h.Do(func() error {
					c, err = net.DialTimeout(network, addr, time.Second)
					return err
				})
				return c, err
			},
		},
	}
	res, err := client.Get("http://" + address + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", h.Name, path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(value)
}

// unsettled is what is not yet as it should be, or empty.
func (w *world) unsettled() string {
	for i, h := range w.servers {
		var s struct{ Links []struct{ Name string } }
		if err := page(h, adminAddress, "/status", &s); err != nil {
			return err.Error()
		}
		if len(s.Links) != 3 {
			return fmt.Sprintf("server %d has %d links", i, len(s.Links))
		}
	}
	for _, h := range []*netlab.Host{w.seed, w.shoots[0], w.shoots[1]} {
		if why := w.clientUnsettled(h); why != "" {
			return h.Name + ": " + why
		}
	}
	var paths struct {
		Chosen string
		Paths  []struct{ Name, State string }
	}
	if err := page(w.seed, pathsAddress, "/status", &paths); err != nil {
		return err.Error()
	}
	for _, p := range paths.Paths {
		if p.State != "up" {
			return fmt.Sprintf("path %s is %s", p.Name, p.State)
		}
	}
	if paths.Chosen != w.shoots[0].Name {
		return fmt.Sprintf("the path is %q", paths.Chosen)
	}
	return ""
}

// clientUnsettled is the same of a vpn-client: it has a link to both servers, each
// reaches all members, and the first link is the one in use, for every peer.
func (w *world) clientUnsettled(h *netlab.Host) string {
	var s struct {
		Active string
		Links  []struct {
			Name, State string
			Members     []struct{}
		}
		Bond struct {
			User struct {
				Peers []struct {
					Name  string
					Links []string
				}
			}
			Legs []struct {
				Name    string
				Carrier bool
			}
		}
	}
	if err := page(h, adminAddress, "/status", &s); err != nil {
		return err.Error()
	}
	for _, l := range s.Links {
		if l.State != "up" || len(l.Members) != 3 {
			return fmt.Sprintf("%s is %s and reaches %d members", l.Name, l.State, len(l.Members))
		}
	}
	if len(s.Links) != 2 || s.Active != s.Links[0].Name {
		return fmt.Sprintf("%q is in use", s.Active)
	}
	for _, p := range s.Bond.User.Peers {
		if len(p.Links) != 1 || p.Links[0] != s.Active {
			return fmt.Sprintf("%q is in use for %s", p.Links, p.Name)
		}
	}
	for _, l := range s.Bond.Legs {
		if !l.Carrier {
			return l.Name + " has no carrier"
		}
	}
	return ""
}
