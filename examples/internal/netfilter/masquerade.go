package netfilter

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// A Masquerade gives what comes out of a tunnel device and leaves by another
// interface this host's own address, so that the answers find back without
// routes in the networks behind. Device and Networks must be set. It needs linux
// 5.7 or later with nftables, and CAP_NET_ADMIN.
//
// It hides who asks: where sources must be kept, let the networks behind route the
// answers to this host instead.
//
// The fields must not be changed while it is up.
type Masquerade struct {
	// Device is the tunnel's, by its name.
	Device string
	// Networks are the destinations to which it applies, IPv4 or IPv6. They may
	// overlap. To others packets keep their source.
	Networks []netip.Prefix
	// Logger gets a line when the rules come and go. Nil means silent.
	Logger *slog.Logger

	table table
}

// Up makes the rules, in the place of those that a predecessor has left. A second
// call makes them anew.
func (m *Masquerade) Up() error {
	if err := checkDevice(m.Device); err != nil {
		return err
	}
	if len(m.Networks) == 0 {
		return errors.New("netfilter: masquerade needs networks")
	}
	if err := checkNetworks("masquerade", m.Networks); err != nil {
		return err
	}
	return m.table.up("rhizome-masquerade-"+m.Device, m.Logger, func(b *batch) { b.masquerade(m.Device, m.Networks) })
}

// Close removes the rules. A second call does nothing.
func (m *Masquerade) Close() error { return m.table.close(m.Logger) }

// A Firewall keeps everybody at the far end of a tunnel device from beginning
// anything here: from the device come in, or are forwarded, the answers to what
// went out by it, and ICMP errors about that. To this host itself come also echo
// requests, and what IPv6 needs to find neighbours on the link. All else is
// dropped. Device must be set. It needs linux with nftables and CAP_NET_ADMIN.
//
// Up comes before the device does: a connection that the far side could begin before
// counts as one of ours.
//
// It stays when the process is killed, until the next one replaces it: a door that
// nobody watches is better shut.
//
// The fields must not be changed while it is up.
type Firewall struct {
	// Device is the tunnel's, by its name.
	Device string
	// Logger gets a line when the rules come and go. Nil means silent.
	Logger *slog.Logger

	table table
}

// Up makes the rules, in the place of those that a predecessor has left. A second
// call makes them anew.
func (f *Firewall) Up() error {
	if err := checkDevice(f.Device); err != nil {
		return err
	}
	return f.table.up("rhizome-firewall-"+f.Device, f.Logger, func(b *batch) { b.firewall(f.Device) })
}

// Close removes the rules. A second call does nothing.
func (f *Firewall) Close() error { return f.table.close(f.Logger) }

func checkDevice(name string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\x00") {
		return fmt.Errorf("netfilter: %q is not the name of a device", name)
	}
	return nil
}

// table is one table of the kernel's that is ours.
type table struct {
	mu     sync.Mutex
	name   string
	kernel *kernel // nil unless up
}

func (t *table) up(name string, log *slog.Logger, rules func(*batch)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.kernel
	if k == nil {
		var err error
		if k, err = openKernel(); err != nil {
			return fmt.Errorf("netfilter: %w", err)
		}
	}
	if err := k.replace(name, rules); err != nil {
		if t.kernel == nil {
			k.close()
		}
		return fmt.Errorf("netfilter: table %s: %w", name, err)
	}
	t.name, t.kernel = name, k
	orSilent(log).Info("packet filter up", "table", "inet "+name)
	return nil
}

func (t *table) close(log *slog.Logger) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kernel == nil {
		return nil
	}
	err := t.kernel.remove(t.name)
	t.kernel.close()
	t.kernel = nil
	if err != nil {
		orSilent(log).Error("packet filter cannot be removed", "table", "inet "+t.name, "error", err)
		return fmt.Errorf("netfilter: table %s: %w", t.name, err)
	}
	orSilent(log).Info("packet filter removed", "table", "inet "+t.name)
	return nil
}

func orSilent(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

// An interval is the addresses from first to before end; end is not valid if last
// is the last address that there is.
type interval struct{ first, end netip.Addr }

// intervals are the addresses of networks of one family, in order, none twice, as
// the kernel wants them.
func intervals(networks []netip.Prefix, v6 bool) []interval {
	list := slices.DeleteFunc(slices.Clone(networks), func(n netip.Prefix) bool { return n.Addr().Is6() != v6 })
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []interval
	var last netip.Prefix
	for _, n := range list {
		if last.IsValid() && last.Contains(n.Addr()) {
			continue // sorted, so all of n is in last
		}
		last = n
		in := interval{n.Addr(), end(n)}
		if len(out) > 0 && out[len(out)-1].end == in.first {
			out[len(out)-1].end = in.end
			continue
		}
		out = append(out, in)
	}
	return out
}

// end is the first address after a network, not valid after the last one.
func end(n netip.Prefix) netip.Addr {
	b := n.Addr().AsSlice()
	for i := n.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}
