//go:build unix

package guard

import "testing"

func TestDescriptors(t *testing.T) {
	if n := Descriptors(); n != 0 && n < 64 {
		t.Errorf("%d descriptors", n)
	}
}
