package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/rhizome-tunnel/rhizome/tunnel/entrypoint"
)

// describe prints, for each listener, what leads where.
func describe(w io.Writer, c *entrypoint.Config) error {
	reached := make(map[string]bool)
	for _, l := range c.Listeners {
		fmt.Fprintf(w, "%s by %s\n", l.Address, l.Kind())
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, r := range c.Routes {
			for _, key := range keys(&l, &r) {
				reached[r.Name] = true
				fmt.Fprintf(t, "  %s\t─► %s\t%s%s\n", key, r.Name, strings.Join(r.Backends, ", "), conditions(&r))
			}
		}
		t.Flush()
	}
	for _, r := range c.Routes {
		if !reached[r.Name] {
			fmt.Fprintf(w, "warning: no listener leads to route %q\n", r.Name)
		}
	}
	return nil
}

// keys is what leads to the route at the listener.
func keys(l *entrypoint.ListenerConfig, r *entrypoint.RouteConfig) []string {
	var all []string
	if len(l.By) == 0 || slices.Contains(l.By, "sni") {
		all = append(all, r.SNI...)
		if r.Default {
			all = append(all, "any other TLS")
		}
	}
	if slices.Contains(l.By, "destination") {
		all = append(all, r.Destinations...)
	}
	if slices.Contains(l.By, "header") {
		all = append(all, r.HeaderValues...)
	}
	return all
}

func conditions(r *entrypoint.RouteConfig) string {
	s := ""
	if len(r.Allow) > 0 {
		s += " for " + strings.Join(r.Allow, ", ")
	}
	if len(r.Deny) > 0 {
		s += " not for " + strings.Join(r.Deny, ", ")
	}
	if r.SendProxy != "" && r.SendProxy != "none" {
		s += " with PROXY " + r.SendProxy
	}
	return s
}
