//go:build !linux

package bond

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

// TestKernelOtherSystems have no such driver, and say so.
func TestKernelOtherSystems(t *testing.T) {
	err := (&Kernel{Members: []string{"a"}}).Up()
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), runtime.GOOS) {
		t.Errorf("got %v", err)
	}
}
