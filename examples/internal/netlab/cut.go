//go:build linux

package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cut is a direction in which the router drops everything.
type cut struct{ from, to netip.Addr }

// Cut drops what goes between two hosts of the router, both ways, as a cable that
// is cut somewhere far away does: no host is told.
func (l *Lab) Cut(a, b *Host) error {
	if err := l.CutOneWay(a, b); err != nil {
		return err
	}
	return l.CutOneWay(b, a)
}

// CutOneWay drops what goes from one host of the router to another.
func (l *Lab) CutOneWay(from, to *Host) error { return l.set(cut{from.Addr, to.Addr}, true) }

// Blackhole cuts a host off from all others.
func (l *Lab) Blackhole(h *Host) error {
	if err := l.set(cut{from: h.Addr}, true); err != nil {
		return err
	}
	return l.set(cut{to: h.Addr}, true)
}

// Mend takes back all cuts.
func (l *Lab) Mend() error {
	l.mu.Lock()
	var all []cut
	for c := range l.cuts {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		if err := l.set(c, false); err != nil {
			return err
		}
	}
	return nil
}

// set adds or removes the rule of a direction.
func (l *Lab) set(c cut, on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cuts[c] == on {
		return nil
	}
	err := l.router.Do(func() error {
		r := netlink.NewRule()
		r.Family = unix.AF_INET
		r.Type = unix.FR_ACT_BLACKHOLE
		r.Priority = 100
		if c.from.IsValid() {
			r.Src = ipNet(netip.PrefixFrom(c.from, 32))
		}
		if c.to.IsValid() {
			r.Dst = ipNet(netip.PrefixFrom(c.to, 32))
		}
		if on {
			return netlink.RuleAdd(r)
		}
		return netlink.RuleDel(r)
	})
	if err != nil {
		return fmt.Errorf("cut from %v to %v: %w", c.from, c.to, err)
	}
	if on {
		l.cuts[c] = true
	} else {
		delete(l.cuts, c)
	}
	return nil
}
