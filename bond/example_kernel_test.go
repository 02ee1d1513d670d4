package bond_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/rhizome-tunnel/rhizome/bond"
)

// What the driver would refuse, or silently not heed, is said before anything is
// touched.
func ExampleKernel() {
	k := &bond.Kernel{
		Members:   []string{"tap0", "tap1"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("fd8f:6d53:b97a:1::b:0/96")},
		Primary:   "eth0",
		Mode:      bond.ModeActiveBackup,
		LACP:      bond.LACP{Rate: "fast"},
	}
	err := k.Up()
	switch {
	case errors.Is(err, bond.ErrUnsupported):
		fmt.Println("use a Bond")
	case err != nil:
		fmt.Println(err)
	default:
		defer k.Close() // or k.Run, which does it at its end
	}
	// Output:
	// bond: LACP.Rate means nothing in mode active-backup: lacp_rate is for 802.3ad
	// Primary "eth0" is none of the Members tap0, tap1
}

func ExampleKernelMode_UnmarshalText() {
	var mode bond.KernelMode
	fmt.Println(mode.UnmarshalText([]byte("balance-rr")), mode)
	fmt.Println(mode.UnmarshalText([]byte("balance")))
	// Output:
	// <nil> balance-rr
	// bond: the mode "balance" is none of balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb
}
