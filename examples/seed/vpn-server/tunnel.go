package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/examples/internal/netfilter"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// tunnel is what --mode tun has in the kernel: a device, the way into it, and a wall
// behind it.
//
//	openTunnel: wall ─► device ─► routes ──► close: the same backwards
//
// A process that is killed leaves the wall only, which the next one takes over.
type tunnel struct {
	device *packet.Device
	routes *pathcontrol.NetlinkRouter // nil without --shoot-network
	wall   *netfilter.Firewall        // nil with --firewall=false
	self   packet.Member
	log    *slog.Logger
	lines  *slog.Logger // of what clients cause by coming and going
	own    int          // its own MTU

	mu    sync.Mutex
	links map[*packet.Conn]bool // to clients
	mtu   int                   // that the device has
}

// openTunnel makes it all, in the network namespace of this thread.
func openTunnel(o *options, log *slog.Logger) (*tunnel, error) {
	t := &tunnel{log: log, lines: new(cli.LogLimit).Logger(log), own: o.mtu, links: make(map[*packet.Conn]bool)}
	if t.own == 0 {
		t.own = defaultMTU
	}
	t.mtu = t.own
	if err := t.open(o); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

const defaultMTU = 1500

func (t *tunnel) open(o *options) error {
	wall := &netfilter.Firewall{Device: o.device, Logger: t.log}
	if o.firewall {
		t.wall = wall
		if err := wall.Up(); err != nil {
			return fmt.Errorf("--firewall: %w", err)
		}
	} else if err := wall.Sweep(); err != nil { // of a killed process
		return err
	}
	var err error
	if t.device, err = packet.OpenTUN(&packet.DeviceOptions{Name: o.device, MTU: t.own, Addresses: o.addresses}); err != nil {
		return fmt.Errorf("--device %s: %w", o.device, err)
	}
	// What a client does not take, its link finishes.
	if err := t.device.SetOffload(packet.OffloadAll); err != nil {
		t.log.Warn("the device hands over whole packets only, which is slow", "error", err)
	}
	t.self = packet.Member{ID: rand.Uint64() | 1, Name: "vpn-server"} // 0 is none
	for _, a := range o.addresses {
		t.self.Addresses = append(t.self.Addresses, a.Addr())
	}
	if len(o.networks) == 0 {
		return nil
	}
	t.routes = &pathcontrol.NetlinkRouter{
		Networks: o.networks,
		Hops:     map[string]pathcontrol.NextHop{o.device: {Interface: o.device}},
		// Beside a path-controller of the same host.
		Metric: pathcontrol.DefaultRouteMetric + 10,
		Logger: t.log,
	}
	if err := t.routes.Use(context.Background(), o.device); err != nil {
		return fmt.Errorf("--shoot-network: %w", err)
	}
	return nil
}

// close takes it back.
func (t *tunnel) close() error {
	var errs []error
	if t.routes != nil {
		errs = append(errs, t.routes.Close())
	}
	if t.device != nil {
		if err := t.device.Close(); !errors.Is(err, net.ErrClosed) { // by the switch
			errs = append(errs, err)
		}
	}
	if t.wall != nil {
		errs = append(errs, t.wall.Close())
	}
	return errors.Join(errs...)
}

// port is the device as the switch sees it.
func (t *tunnel) port() packet.PortOptions {
	return packet.PortOptions{Name: t.device.Name(), Member: t.self, Addresses: prefixesOf(t.self.Addresses), Trusted: true}
}

func prefixesOf(addresses []netip.Addr) (all []netip.Prefix) {
	for _, a := range addresses {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// fit keeps the device's MTU at the least of those of its links, until the link is
// gone: the kernel then tells senders what a link would drop. Leave must be called.
func (t *tunnel) fit(c *packet.Conn) (leave func()) {
	t.refit(func() { t.links[c] = true })
	return func() { t.refit(func() { delete(t.links, c) }) }
}

func (t *tunnel) refit(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
	mtu := t.own
	for c := range t.links {
		mtu = min(mtu, c.MTU())
	}
	mtu = max(mtu, minMTU) // below, the kernel takes the device's IPv6 away
	if mtu == t.mtu {
		return
	}
	if err := t.device.SetMTU(mtu); err != nil {
		t.lines.Warn("MTU not set", "device", t.device.Name(), "mtu", mtu, "error", err)
		return
	}
	t.mtu = mtu
	t.lines.Info("MTU set", "device", t.device.Name(), "mtu", mtu)
}
