package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netfilter"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// surroundings is what the kernel has around the device: a wall, and the roads to
// and from it. Its zero value is nothing.
//
// A process that is killed leaves tables of nftables, and with --bond kernel
// routes. The next one takes both over.
type surroundings struct {
	firewall   *netfilter.Firewall
	gate       *netfilter.Gate
	masquerade *netfilter.Masquerade
	routers    []*pathcontrol.NetlinkRouter
}

// wall closes the device before it is there, but for the way from it to --network.
// What a killed process has left, and is not wanted any more, goes.
func (s *surroundings) wall(o *options, log *slog.Logger) error {
	wall := &netfilter.Firewall{Device: o.device, Logger: log}
	if o.firewall && len(o.networks) == 0 {
		s.firewall = wall
		if err := wall.Up(); err != nil {
			return fmt.Errorf("--firewall: %w", err)
		}
	} else if err := wall.Sweep(); err != nil {
		return err
	}
	gate := &netfilter.Gate{Device: o.device, Networks: o.networks, Host: o.open, Logger: log}
	if len(o.networks) == 0 {
		return gate.Sweep()
	}
	err := gate.Up()
	switch {
	case err == nil:
		s.gate = gate
	case errors.Is(err, errors.ErrUnsupported) && !o.masquerade && !o.firewall:
		log.Warn("nothing limits what others in the tunnel reach of this host, and by it", "error", err)
	default:
		return fmt.Errorf("--network: %w", err)
	}
	return nil
}

func (s *surroundings) unwall() error {
	var errs []error
	if s.gate != nil {
		errs = append(errs, s.gate.Close())
	}
	if s.firewall != nil {
		errs = append(errs, s.firewall.Close())
	}
	return errors.Join(errs...)
}

// roads leads packets from the device to --network and into it by --route.
func (s *surroundings) roads(o *options, log *slog.Logger) error {
	announce(o, log)
	if len(o.networks) > 0 {
		if err := netfilter.Forward(o.networks, log); err != nil {
			return fmt.Errorf("--network: %w", err)
		}
	}
	hide := &netfilter.Masquerade{Device: o.device, Networks: o.networks, Logger: log}
	if o.masquerade {
		s.masquerade = hide
		if err := hide.Up(); err != nil {
			return fmt.Errorf("--masquerade: %w", err)
		}
	} else if err := hide.Sweep(); err != nil {
		return err
	}
	for _, r := range newRouters(o, log) {
		s.routers = append(s.routers, r)
		if err := r.Use(context.Background(), onlyPath); err != nil {
			return fmt.Errorf("--route: %w", err)
		}
	}
	// A killed process may have had more of them than this one.
	return (&pathcontrol.NetlinkRouter{Logger: log}).Sweep()
}

func (s *surroundings) unroads() error {
	var errs []error
	for _, r := range s.routers {
		errs = append(errs, r.Close())
	}
	if s.masquerade != nil {
		errs = append(errs, s.masquerade.Close())
	}
	return errors.Join(errs...)
}

// announce has the device ask for its neighbours with its own IPv4 addresses only.
// Otherwise the kernel asks with the one that a packet comes from, which may be any of
// this host's, and a server drops what speaks for an address that is not the
// member's. Where /proc/sys is read-only that is left to whoever mounted it.
func announce(o *options, log *slog.Logger) {
	if o.mode != packet.TAP {
		return
	}
	err := os.WriteFile("/proc/sys/net/ipv4/conf/"+o.device+"/arp_announce", []byte("2"), 0)
	if err != nil {
		log.Warn("sysctl not set, which matters for IPv4 connections to this host's own addresses", "name", "net.ipv4.conf."+o.device+".arp_announce", "error", err)
	}
}

// onlyPath is the name of a way without another.
const onlyPath = "static"

// newRouters makes a router of the routes with the same next hop and source. They
// differ in their metric, by which each knows its own; that is above that of a
// path-controller, whose routes go first.
func newRouters(o *options, log *slog.Logger) (all []*pathcontrol.NetlinkRouter) {
	type hop struct{ via, source netip.Addr }
	known := make(map[hop]*pathcontrol.NetlinkRouter)
	for _, r := range o.routes {
		h := hop{r.via, r.source}
		if known[h] == nil {
			known[h] = &pathcontrol.NetlinkRouter{
				Hops:   map[string]pathcontrol.NextHop{onlyPath: {Via: r.via, Interface: o.device, Source: r.source}},
				Metric: pathcontrol.DefaultRouteMetric + 20 + len(all),
				Logger: log,
			}
			all = append(all, known[h])
		}
		known[h].Networks = append(known[h].Networks, r.network)
	}
	return all
}
