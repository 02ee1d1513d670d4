package netfilter

import (
	"errors"
	"fmt"
)

// Sweep removes what a killed predecessor has left for a device, for a start on which
// no firewall is wanted any more. It is no error if there is nothing, nor if the
// kernel has no nftables.
func (f *Firewall) Sweep() error { return sweep("rhizome-firewall-" + f.Device) }

// Sweep is that of [Firewall.Sweep], for where nobody is to be masqueraded.
func (m *Masquerade) Sweep() error { return sweep("rhizome-masquerade-" + m.Device) }

func sweep(name string) error {
	k, err := openKernel()
	if err == nil {
		defer k.close()
		err = k.remove(name)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("netfilter: table %s: %w", name, err)
	}
	return nil
}
