package main

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// status is the page /status.
type status struct {
	Mode     string             `json:"mode"`
	Draining bool               `json:"draining,omitempty"`
	Device   *deviceStatus      `json:"device,omitempty"`
	Links    []linkStatus       `json:"links"`
	Switch   packet.SwitchStats `json:"switch"`
}

// linkStatus is the link to a client.
type linkStatus struct {
	Name      string           `json:"name"` // of the certificate
	ID        uint64           `json:"id,string"`
	Addr      string           `json:"addr"`
	Since     time.Time        `json:"since"`
	Software  string           `json:"software"`
	MTU       int              `json:"mtu"`
	Addresses []netip.Addr     `json:"addresses"` // that it says are its own
	Networks  []netip.Prefix   `json:"networks"`  // that it says are behind it
	Stats     packet.ConnStats `json:"stats"`     // times in nanoseconds
}

// deviceStatus is the device of --mode tun.
type deviceStatus struct {
	Name        string             `json:"name"`
	MTU         int                `json:"mtu"`
	Routes      int                `json:"routes"`
	Problem     string             `json:"problem,omitempty"` // why there are fewer routes than should be
	Connections int64              `json:"connections"`       // of the CONNECT proxy
	Stats       packet.DeviceStats `json:"stats"`
}

func (p *program) status() status {
	s := status{Mode: p.mode.String(), Draining: p.draining.Load(), Links: make([]linkStatus, 0), Switch: p.sw.Stats()}
	for _, l := range p.server.Links() {
		s.Links = append(s.Links, linkStatus{
			Name: l.Identity.Name, ID: l.Remote.ID, Addr: l.Addr.String(), Since: l.Since, Software: l.Remote.Software,
			MTU: l.Remote.MTU, Addresses: l.Remote.Addresses, Networks: l.Remote.Networks, Stats: l.Stats,
		})
	}
	slices.SortFunc(s.Links, func(a, b linkStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.Since.Compare(b.Since)) })
	if p.tun != nil {
		s.Device = p.tun.status()
		if p.door != nil {
			s.Device.Connections = p.door.open.Load()
		}
	}
	return s
}

func (t *tunnel) status() *deviceStatus {
	s := &deviceStatus{Name: t.device.Name(), Stats: t.device.Stats()}
	if t.routes != nil {
		routes := t.routes.Status()
		if s.Routes = routes.Routes; routes.Err != nil {
			s.Problem = routes.Err.Error()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.MTU = t.mtu
	return s
}

// behind reports whether a client is there that has an address, or a network with
// it behind it.
func (p *program) behind(ip netip.Addr) bool {
	for _, m := range p.sw.Members() {
		if m.ID != p.tun.self.ID && (slices.Contains(m.Addresses, ip) || contains(m.Networks, ip)) {
			return true
		}
	}
	return false
}
