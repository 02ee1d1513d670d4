package netfilter

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestSweep has a process that knows the device only remove what another one has
// left, and no more.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	wall, other := &Firewall{Device: device}, &Firewall{Device: "other"}
	hide := &Masquerade{Device: device, Networks: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}}
	must(t, w.seed.Do(func() error { return errors.Join(wall.Up(), other.Up(), hide.Up()) }))
	for range 2 { // the second time there is nothing
		must(t, w.seed.Do(func() error {
			return errors.Join((&Firewall{Device: device}).Sweep(), (&Masquerade{Device: device}).Sweep())
		}))
	}
	list := w.list(w.seed)
	for name, want := range map[string]bool{"rhizome-firewall-" + device: false, "rhizome-masquerade-" + device: false, "rhizome-firewall-other": true} {
		if strings.Contains(list, name) != want {
			t.Errorf("%s is there: %v, in %s", name, !want, list)
		}
	}
	must(t, errors.Join(wall.Close(), other.Close(), hide.Close()))
}
