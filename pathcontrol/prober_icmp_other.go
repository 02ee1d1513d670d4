//go:build !linux && !darwin

package pathcontrol

import (
	"fmt"
	"net/netip"
	"runtime"
)

func openEcho(netip.Addr, Through) (echoConn, error) {
	return nil, fmt.Errorf("pathcontrol: ICMP probes need linux or darwin, this is %s; TCP and HTTP probes do not", runtime.GOOS)
}

func isTransient(error) bool { return false }
