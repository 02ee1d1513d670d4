//go:build !linux

package intercept

import (
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"
)

// TestOtherSystems have no address of their own, and say so.
func TestOtherSystems(t *testing.T) {
	err := (&LocalAddr{Addr: netip.MustParseAddr("240.0.0.1")}).Up()
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), runtime.GOOS) {
		t.Errorf("got %v", err)
	}
}
