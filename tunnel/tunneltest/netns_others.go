//go:build !linux

package tunneltest

import (
	"runtime"
	"testing"
)

// InNetns skips the test: network namespaces exist on linux only.
func InNetns(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Skip("network namespaces need linux, this is " + runtime.GOOS)
}
